"""Pruning: only what may go, only from the front, never a day early; and what is left can still be proven."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core import retention
from compliance_agent.entries.minimum import NAME, Pruned
from compliance_agent.errors import BadEvidence, LogStopped, StorageError
from compliance_agent.evidence.chains import Row, Tagger
from compliance_agent.evidence.served import Held, ServedLog, held_to_older, read_log
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf, verify_inclusion
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.server.blobs import Directory
from compliance_agent.server.opening import opened
from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.services.pruning import LogState, Pruning
from compliance_agent.server.services.readopt import Readopt
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import packed_entry
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import ZEROS, FakeHost, Hands, Signed, serving
from tests.server.test_process import command
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio
LOG = "log/clinic-1/2026"
LAST_DAY = datetime(2032, 11, 22, 23, 59, tzinfo=UTC)  # six years after the first part
NEXT_DAY = datetime(2032, 11, 23, 0, 0, tzinfo=UTC)
LONG_AFTER = datetime(2040, 1, 1, tzinfo=UTC)
FIRST_PART = 300  # records; the shard's own entry and two enrolments come before


def naming(host: FakeHost, version: str) -> Signed:
    return host.next(baseline={"version": version, "sha256": ZEROS})


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """303 entries of 22 November 2026, of which one is of ws-02, then 20 of December under version 2. Both hosts are revoked."""
    directory = tmp_path_factory.mktemp("old") / "data"

    async def fill() -> None:
        async with serving(directory) as server:
            host, other = await server.enrolled(), await server.enrolled("ws-02")
            for _ in range(2):
                await server.deliver(host, *(naming(host, "1") for _ in range(100)))
            await server.deliver(other, naming(other, "a"))
            await server.deliver(host, *(naming(host, "1") for _ in range(99)))
            await settled(server)
            shutil.copy(directory / LOG / "checkpoint", directory / "first-checkpoint")
            server.clock.move(20 * 86_400)
            await server.deliver(host, *(naming(host, "2") for _ in range(20)))
            for item in (host, other):
                await server.services.enrolment.revoke("clinic-1", item.key_id, actor="operator")
            await settled(server)

    asyncio.run(fill())
    return directory


@pytest.fixture
def data(old: Path, tmp_path: Path) -> Path:
    shutil.copytree(old, tmp_path / "data")
    return tmp_path / "data"


async def pruned(data: Path, now: datetime, *, holds: tuple[str | None, ...] = (), **how: Any) -> LogState:
    async with opened(ServerSettings(data_dir=data), clock=Hands(now)) as services:
        for host in holds:
            await services.holds.add("clinic-1", host, "case-1")
        [state] = await services.pruning.prune(**{"clock_checked": True, **how})
        return state


async def released(data: Path, now: datetime) -> None:
    async with opened(ServerSettings(data_dir=data), clock=Hands(now)) as services:
        await services.holds.release("clinic-1", None, "case-1")


def rows(data: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(data / "server.db")) as database:
        return database.execute(query).fetchall()


def emptied(data: Path) -> int:
    [[count]] = rows(data, "SELECT count(*) FROM bundles WHERE length(body) = 0")
    return int(count)


async def problems(data: Path) -> list[str]:
    async with opened(ServerSettings(data_dir=data)) as services:
        checker = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
        return [problem async for finding in checker.run() for problem in finding.problems]


def served(data: Path) -> tuple[ServedLog, Policy]:
    """The log as somebody far away reads it, from its files alone."""

    def get(path: str) -> bytes | None:
        file = data / LOG / path
        return file.read_bytes() if file.is_file() else None

    key = VerifierKey.parse((data / "keys" / "clinic-1-2026.vkey").read_text().strip())
    policy = Policy((key,), {}, {}, "none", {})
    return read_log(get, policy, Tagger()), policy


def files(data: Path) -> dict[str, bytes]:
    root = data / LOG
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


async def test_what_is_left_can_still_be_proven(data: Path) -> None:
    before, leaves = files(data), rows(data, "SELECT leaf FROM log_entries ORDER BY leaf_index")
    state = await pruned(data, NEXT_DAY)
    assert (state.minimum, state.could, state.records) == (0, 303, FIRST_PART)
    assert state.first_kept is not None and state.first_kept.until == date(2032, 12, 12)
    assert emptied(data) == FIRST_PART
    after = files(data)
    assert before.keys() - after.keys() == {"tile/entries/000"}  # the bundle with entry 303 stays whole
    assert after.keys() - before.keys() == {NAME}
    assert all(after[path] == content for path, content in before.items() if path in after)
    assert Pruned.parse(after[NAME]).of("compliance-server/clinic-1/2026", state.size) == Pruned(
        "compliance-server/clinic-1/2026", 303, NEXT_DAY
    )
    assert await problems(data) == []
    log, policy = served(data)
    assert log.problems == [] and log.book.whole and log.book.first == 256
    assert list(held_to_older(log, (data / "first-checkpoint").read_bytes(), policy)) == []
    checkpoint = Checkpoint.parse(Note.parse(after["checkpoint"]).text)
    tree = TileTree(checkpoint.size, lambda *tile: (data / LOG / Tile(*tile).path).read_bytes())
    for index, leaf in enumerate(packed_entry.unpacked(kept) for (kept,) in leaves):
        path = tree.inclusion(index)
        verify_inclusion(hash_leaf(leaf), index, checkpoint.size, path, RootHash(checkpoint.root))
    held = rows(data, "SELECT leaf FROM log_entries WHERE leaf_index IS NOT NULL ORDER BY leaf_index")
    waiting = rows(data, "SELECT leaf FROM log_entries WHERE leaf_index IS NULL")
    assert held == leaves and [json.loads(leaf)["act"] for (leaf,) in waiting] == ["pruned"]
    assert rows(data, "SELECT subject FROM audit WHERE action = 'pruned'") == [("2026:0-303",)]
    again = await pruned(data, NEXT_DAY)
    assert (again.minimum, again.could, again.records, files(data)) == (303, 303, 0, after)


async def test_the_bytes_are_gone_from_the_file(data: Path) -> None:
    [[kept]] = rows(data, "SELECT body FROM bundles WHERE seq = 7")
    others = [body for [body] in rows(data, "SELECT body FROM bundles WHERE seq != 7")]
    parts = [kept[at : at + 16] for at in range(16, len(kept) - 16, 4)]
    parts = [part for part in parts if not any(part in body for body in others)]  # what records have in common stays
    assert len(parts) > 10 and all(part in (data / "server.db").read_bytes() for part in parts)
    await pruned(data, NEXT_DAY)
    for path in data.glob("server.db*"):
        assert not any(part in path.read_bytes() for part in parts)


async def test_not_a_day_early(data: Path) -> None:
    state = await pruned(data, LAST_DAY)
    assert (state.could, state.records, emptied(data)) == (0, 0, 0)
    assert not (data / LOG / NAME).exists()


@pytest.mark.parametrize("host", [None, "ws-01"])
async def test_a_hold_beats_every_expiry(data: Path, host: str | None) -> None:
    state = await pruned(data, LONG_AFTER, holds=(host,))
    assert (state.could, emptied(data)) == (0, 0)
    assert state.first_kept is not None and state.first_kept.why == "held"


async def test_a_released_hold_holds_nothing(data: Path) -> None:
    await pruned(data, LONG_AFTER, holds=(None,))
    await released(data, LONG_AFTER)
    state = await pruned(data, LONG_AFTER)
    assert state.could == state.size and emptied(data) == FIRST_PART + 20
    assert await problems(data) == [] and served(data)[0].problems == []


async def test_what_must_be_kept_keeps_all_that_follows(data: Path) -> None:
    """One record of ws-02 stands in the middle; its version is in effect, for nobody has revoked that host."""
    with closing(sqlite3.connect(data / "server.db")) as database, database:
        database.execute("UPDATE hosts SET revoked_at = NULL WHERE host_id = 'ws-02'")
    [[middle]] = rows(
        data,
        "SELECT leaf_index FROM log_entries WHERE seq = 1 AND key_id = (SELECT key_id FROM hosts WHERE host_id = 'ws-02')",
    )
    state = await pruned(data, LONG_AFTER)
    assert state.could == middle == 203
    assert state.first_kept is not None and state.first_kept.why == "in_effect"
    assert emptied(data) == 200
    assert await problems(data) == [] and served(data)[0].problems == []
    assert (data / LOG / "tile/entries/000").exists()  # 203 is in it


async def test_a_stretch_is_one_transaction(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compliance_agent.server.services import pruning

    monkeypatch.setattr(pruning, "AT_MOST", 100)
    state = await pruned(data, NEXT_DAY)
    assert (state.could, state.records) == (303, FIRST_PART)
    said = [row[0] for row in rows(data, "SELECT subject FROM audit WHERE action = 'pruned'")]
    assert said == ["2026:0-100", "2026:100-200", "2026:200-300", "2026:300-303"]


class Crash(Exception):
    """The machine went away here."""


def breaks(target: object, name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def act(patch: pytest.MonkeyPatch) -> None:
        def crash(*_: object, **__: object) -> None:
            raise Crash

        patch.setattr(target, name, crash)

    return act


POINTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], int]] = {
    "within the transaction": (breaks(BoundTransaction, "audit"), 0),
    "after the transaction": (breaks(Pruning, "publish"), FIRST_PART),
    "before the statement is durable": (breaks(Directory, "update"), FIRST_PART),
    "before an entry bundle is removed": (breaks(Directory, "delete"), FIRST_PART),
}


@pytest.mark.parametrize("name", POINTS)
async def test_a_crash_is_mended_by_running_it_again(
    data: Path, old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    act, count = POINTS[name]
    with monkeypatch.context() as patch, pytest.raises(Crash):
        act(patch)
        await pruned(data, NEXT_DAY)
    assert emptied(data) == count
    log, _ = served(data)
    assert log.problems == []  # nobody outside ever sees something missing
    await pruned(data, NEXT_DAY)
    assert await problems(data) == []
    shutil.copytree(old, tmp_path / "uncrashed")
    await pruned(tmp_path / "uncrashed", NEXT_DAY)
    assert files(data) == files(tmp_path / "uncrashed")
    assert emptied(data) == FIRST_PART


def one_day_less(day: date) -> date:
    return date.fromordinal(day.toordinal() + 365 * 6)


async def test_the_database_refuses_what_the_rule_forgets(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that counts six years as 6 x 365 days, and one that forgets holds: both end at the wall, with nothing changed."""
    monkeypatch.setattr(retention, "kept_until", one_day_less)
    with pytest.raises(StorageError):
        await pruned(data, datetime(2032, 11, 21, 13, 0, tzinfo=UTC))
    monkeypatch.undo()
    monkeypatch.setattr(retention.Keep, "may_go", lambda self, today: today > self.until)
    with pytest.raises(StorageError):
        await pruned(data, LONG_AFTER, holds=("ws-01",))
    assert (emptied(data), rows(data, "SELECT * FROM pruned_logs")) == (0, [])
    assert rows(data, "SELECT * FROM prune_guards") == []


async def test_a_lost_entry_stops_it(data: Path) -> None:
    from tests.server.builder import unwalled

    with closing(sqlite3.connect(data / "server.db")) as database, database:
        unwalled(database)
        database.execute("DELETE FROM log_entries WHERE leaf_index = 7")
    with pytest.raises(LogStopped, match="entry 7 is not held"):
        await pruned(data, NEXT_DAY)
    assert emptied(data) == 0


async def test_a_clock_that_ran_away_destroys_nothing(data: Path) -> None:
    with pytest.raises(LogStopped) as caught:
        await pruned(data, LONG_AFTER, clock_checked=False)
    assert (caught.value.code, emptied(data)) == ("clock_not_trusted", 0)


async def test_showing_changes_nothing(data: Path) -> None:
    before, here = files(data), rows(data, "SELECT * FROM bundles")
    async with opened(ServerSettings(data_dir=data), clock=Hands(NEXT_DAY)) as services:
        [shown] = await services.pruning.show()
    assert (shown.minimum, shown.could, shown.records) == (0, 303, FIRST_PART)
    assert (files(data), rows(data, "SELECT * FROM bundles")) == (before, here)
    state = await pruned(data, NEXT_DAY)
    assert replace(state, minimum=0) == shown


# --- nobody is fooled ------------------------------------------------------------------------------


async def test_entries_that_are_missing_without_a_word_are_missing(data: Path) -> None:
    (data / LOG / "tile/entries/000").unlink()
    assert any("tile/entries/000" in problem for problem in await problems(data))
    assert [problem.code for problem in served(data)[0].problems] == ["no_tile"]


async def test_a_statement_that_comes_too_early_excuses_nothing(data: Path) -> None:
    """The very first day on which anything of a log of 2026 may go is 3 January 2032."""
    for at, code in ((datetime(2032, 1, 2, tzinfo=UTC), "bad_retention"), (datetime(2032, 1, 3, tzinfo=UTC), None)):
        (data / LOG / NAME).write_bytes(Pruned("compliance-server/clinic-1/2026", 303, at).encode())
        (data / LOG / "tile/entries/000").unlink(missing_ok=True)
        codes = [problem.code for problem in served(data)[0].problems]
        assert codes == ([code, "no_tile"] if code else [])
    assert any("the database 0" in problem for problem in await problems(data))


@pytest.mark.parametrize(
    "change",
    [
        {"minimum_index": "7"},
        {"minimum_index": True},
        {"minimum_index": -1},
        {"origin": "compliance-server/clinic-1/x"},
        {"schema": "compliance-agent/log-retention/v2"},
        {"pruned_at": "then"},
        {"more": 1},
    ],
)
def test_a_statement_of_another_form_is_none(change: dict[str, object]) -> None:
    said = json.loads(Pruned("compliance-server/clinic-1/2026", 7, NEXT_DAY).encode())
    with pytest.raises(BadEvidence):
        Pruned.parse(json.dumps(said | change).encode())


async def test_a_hash_tile_that_was_changed_is_seen(data: Path) -> None:
    """Where entries are gone, their hashes are all there is: they must give the signed root."""
    await pruned(data, NEXT_DAY)
    path = data / LOG / "tile/0/000"
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    assert any("tile/0/000" in problem for problem in await problems(data))
    assert "bad_tile" in {problem.code for problem in served(data)[0].problems}


async def test_a_record_whose_entry_is_gone_needs_its_receipt(data: Path) -> None:
    """Below the minimum index a verified receipt stands in for the entry; without one nothing is taken for granted."""
    await pruned(data, NEXT_DAY)
    log, tags = served(data)[0], Tagger()
    held, name = Held([log], tags), tags.short(log.origin)
    nothing = bytes(16)
    blank = Row(3, nothing, nothing, nothing, nothing, 0, 0, nothing, -1, -1, nothing, nothing, 0)
    for at, code in ((200, None), (300, "not_logged"), (-1, "not_logged")):
        entry, wrong = held.find("0" * 64, 0, blank._replace(log=name, at=at))
        assert (wrong.code if wrong else None) == code
        assert (entry is None) == (code is not None)
        assert wrong is None or "those below 256 were destroyed" in wrong.detail


# --- what the rest says ----------------------------------------------------------------------------


async def test_the_server_says_that_it_is_gone(data: Path) -> None:
    records = rows(data, "SELECT bundle_id FROM bundles ORDER BY number")
    await pruned(data, NEXT_DAY)
    async with serving(data, clock=Hands(NEXT_DAY)) as server:
        headers = await server.operator()

        async def got(path: str) -> tuple[int, str]:
            reply = await server.client.get(path, headers=headers)
            return reply.status_code, reply.json().get("code", "") if "json" in reply.headers["content-type"] else ""

        assert await got("/log/clinic-1/2026/tile/entries/000") == (410, "pruned")
        assert (await got("/log/clinic-1/2026/tile/entries/001.p/69"))[0] == 200
        assert (await got("/log/clinic-1/2026/tile/0/000"))[0] == 200
        assert (await got("/log/clinic-1/2026/retention.json"))[0] == 200
        assert await got(f"/api/v1/bundles/{records[0][0]}") == (410, "pruned")
        assert (await got(f"/api/v1/bundles/{records[-1][0]}"))[0] == 200
        assert (await server.client.get("/readyz")).status_code == 200


async def test_the_commands(data: Path) -> None:
    here = ("--data-dir", str(data))
    said = json.loads(command("server", "retention", "show", "--json", *here).stdout)
    [log] = said["logs"]
    assert (said["pruned"], log["minimum_index"], log["minimum_after"], log["why"]) == (False, 0, 0, "six_years")
    assert log["kept_until"] == "2032-11-22"
    done = command("server", "retention", "prune", "--clock-checked", *here)
    assert done.returncode == 0 and "2032-11-22 (six_years)" in done.stdout
    assert command("server", "retention", "prune", "--dry-run", "--site", "clinic-9", *here).returncode == 66
    assert emptied(data) == 0


async def test_a_backup_that_lacks_destroyed_entries_is_not_taken_for_the_log(data: Path, tmp_path: Path) -> None:
    """An empty database beside a pruned log: the entries are in no file, and that is said."""
    await pruned(data, NEXT_DAY)
    from tests.server.builder import unwalled, walled

    with closing(sqlite3.connect(data / "server.db")) as database, database:
        unwalled(database)
        database.execute("DELETE FROM log_shards")
        database.execute("DELETE FROM log_entries")
        walled(database)
    async with opened(ServerSettings(data_dir=data), clock=Hands(NEXT_DAY)) as services:
        readopt = Readopt(
            services.store,
            services.log_files,
            services.log_keys,
            services.log_heads,
            services.clock,
            "compliance-server",
        )
        with pytest.raises(LogStopped, match="entries 0 to 255 were destroyed"):
            await readopt.run()
