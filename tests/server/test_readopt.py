"""A database set back to a backup takes its logs back from their files: same indexes and roots, or nothing is changed."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from compliance_agent.errors import LogStopped
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, root_of
from compliance_agent.log.note import Note
from compliance_agent.server.opening import opened
from compliance_agent.server.services.readopt import Readopt, Readopted, _entry
from compliance_agent.server.settings import ServerSettings
from tests.server.builder import FakeHost, Signed, acknowledged, unwalled, walled
from tests.server.test_fsck import problems
from tests.server.test_process import command
from tests.server.test_sequencer import later as later_clock
from tests.server.test_sequencer import leaves_of, published, reasons, restarted, settled

pytestmark = pytest.mark.anyio
LOG = "log/clinic-1/2026"
LATER = 200


def set_back(directory: Path) -> None:
    for stale in directory.glob("server.db*"):
        stale.unlink()
    shutil.copy(directory / "backup.db", directory / "server.db")


def snapshot(directory: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of the tables that adopting may touch."""
    database = sqlite3.connect(directory / "server.db")
    tables = ("log_shards", "log_entries", "bundles", "forks", "hosts", "api_keys", "audit")
    found = {name: database.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall() for name in tables}
    database.close()
    return found


async def scene(directory: Path) -> tuple[FakeHost, list[Signed], FakeHost, list[Checkpoint]]:
    """A backup after one record, 200 more, one host revoked and one enrolled since; the database is then set back."""
    async with restarted(directory, 0) as server:
        host, leaving = await server.enrolled(), await server.enrolled("ws-02")
        await server.deliver(host, host.next())
        await settled(server)
    shutil.copy(directory / "server.db", directory / "backup.db")
    later, heads = [], []
    async with restarted(directory) as server:
        for _ in range(LATER // 50):
            batch = [host.next() for _ in range(50)]
            assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * 50
            await settled(server)
            heads.append(published(directory))
            later += batch
        await server.services.enrolment.revoke("clinic-1", leaving.key_id, actor="test")
        await server.enrolled("ws-03")
        await settled(server)
        heads.append(published(directory))
    set_back(directory)
    return host, later, leaving, heads


async def readopted(directory: Path) -> list[Readopted]:
    settings = ServerSettings(data_dir=directory)
    async with opened(settings, later_clock(2)) as services:
        files, keys, heads = services.log_files, services.log_keys, services.log_heads
        return await Readopt(services.store, files, keys, heads, services.clock, settings.name).run()


async def test_the_same_log_goes_on_and_hosts_send_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exactly one alarm before; then every head that was ever shown is a prefix, and nothing stands in the log twice."""
    directory = tmp_path / "data"
    host, later, leaving, heads = await scene(directory)
    capsys.readouterr()
    async with restarted(directory, 2) as server:
        assert await reasons(server) == (503, ["log_restored"])
        waiting = await server.deliver(host, *later[:3])  # sent again before anybody looked: they wait
        assert acknowledged(waiting, host, later[:3]) == ["stored"] * 3
    assert capsys.readouterr().out.count("log.stopped") == 1
    note = (directory / LOG / "checkpoint").read_bytes()
    [found] = await readopted(directory)
    assert found == Readopted("clinic-1", 2026, 4, heads[-1].size, LATER, enrolled=1, revoked=1)
    assert (directory / LOG / "checkpoint").read_bytes() == note
    async with restarted(directory, 3) as server:
        assert await reasons(server) == (200, [])
        assert (await server.checkin(leaving)).status_code in {401, 403}  # a revocation is not undone by a backup
        assert (await server.checkin(host)).json()["known"]["seq"] == 4
        for start in range(3, LATER, 50):
            batch = later[start : start + 50]
            assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * len(batch)
        new = host.next()
        assert acknowledged(await server.deliver(host, new), host, [new]) == ["stored"]
        await settled(server)
        leaves = await leaves_of(server)
        hashes = list(map(hash_leaf, leaves))
        assert len(leaves) == len(set(leaves)) == heads[-1].size + 1
        assert all(root_of(b"".join(hashes[: head.size])) == head.root for head in heads)
        ids = [later[-1].document["bundle_id"], new.document["bundle_id"]]
        reply = await server.post("/api/v1/receipts", {"protocol": 1, "bundles": ids}, headers=host.headers)
        assert None not in reply.json()["receipts"]
    assert await problems(directory) == []
    assert [item.before == item.after for item in await readopted(directory)] == [True]  # twice does no harm


async def test_another_record_for_a_logged_place_is_a_fork(tmp_path: Path) -> None:
    """What a host signed before the loss binds it: it cannot use the loss to replace a record."""
    directory = tmp_path / "data"
    host, later, _, _ = await scene(directory)
    await readopted(directory)
    async with restarted(directory, 2) as server:
        liar = replace(host, seq=1, prev=later[0].document["prev"])
        reply = await server.deliver(liar, liar.next(result="fail"))
        assert (reply.status_code, reply.json()["code"]) == (409, "fork")
        assert acknowledged(await server.deliver(host, later[0]), host, later[:1]) == ["stored"]
        await settled(server)
        entry = (await leaves_of(server))[-1]
        assert b'"kind":"fork"' in entry and later[0].sha256.encode() in entry  # both digests are named
    assert await problems(directory) == []


async def test_a_record_that_waits_and_contradicts_the_log_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    host, later, _, _ = await scene(directory)
    async with restarted(directory, 2) as server:
        liar = replace(host, seq=1, prev=later[0].document["prev"])
        await server.deliver(liar, liar.next(result="fail"))
    await refused(directory, "log_forked")


async def refused(directory: Path, code: str) -> None:
    before, note = snapshot(directory), (directory / LOG / "checkpoint").read_bytes()
    with pytest.raises(LogStopped) as caught:
        await readopted(directory)
    assert caught.value.code == code
    assert (snapshot(directory), (directory / LOG / "checkpoint").read_bytes()) == (before, note)
    async with restarted(directory, 3) as server:
        assert (await reasons(server))[0] == 503  # and still no second history is signed


def flipped(path: str, at: int = 100) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        raw = bytearray((directory / LOG / path).read_bytes())
        raw[at] ^= 1
        (directory / LOG / path).write_bytes(raw)

    return act


def lost(directory: Path) -> None:
    shutil.rmtree(directory / LOG / "tile/entries")


def other_history(directory: Path) -> None:
    with sqlite3.connect(directory / "server.db") as database:
        unwalled(database)
        database.execute("UPDATE log_entries SET leaf = CAST(replace(leaf, 'a', 'b') AS BLOB) WHERE leaf_index = 2")
        walled(database)
    database.close()


def forged_head(directory: Path) -> None:
    """A longer checkpoint with a signature that is not the log's."""
    path = directory / LOG / "checkpoint"
    note = Note.parse(path.read_bytes())
    head = Checkpoint.parse(note.text)
    path.write_bytes(Note(replace(head, size=head.size + 1).text, note.signatures).encode())


FAULTS: dict[str, tuple[Callable[[Path], None], str]] = {
    "an entry was changed": (flipped("tile/entries/000.p/206", 20_000), "log_forked"),
    "entries are lost": (lost, "log_restored"),
    "the backup is of another history": (other_history, "log_forked"),
    "the head is forged": (forged_head, "log_restored"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_what_does_not_give_the_signed_root_is_refused(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "data"
    await scene(directory)
    act, code = FAULTS[name]
    act(directory)
    await refused(directory, code)


async def test_a_backup_from_before_the_log(tmp_path: Path) -> None:
    """The year's log itself is not in the database: all of it is taken back."""
    directory = tmp_path / "data"
    _, _, _, heads = await scene(directory)
    with sqlite3.connect(directory / "server.db") as database:
        unwalled(database)
        for name in ("log_shards", "log_entries"):
            database.execute(f"DELETE FROM {name}")
    database.close()
    assert [(item.before, item.after) for item in await readopted(directory)] == [(0, heads[-1].size)]
    async with restarted(directory, 2) as server:
        assert await reasons(server) == (200, [])
    assert [item for item in await problems(directory) if "root" in item or "checkpoint" in item] == []


async def test_the_command(tmp_path: Path) -> None:
    """It says what came back and what did not, and does nothing beside a running server."""
    directory = tmp_path / "data"
    await scene(directory)
    async with restarted(directory, 2):
        done = command("server", "readopt", "--data-dir", str(directory))
        assert done.returncode == 74 and "another server runs" in done.stderr
    done = command("server", "readopt", "--data-dir", str(directory))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("clinic-1/2026: 4 -> 206 entries; 200 of records")
    assert "1 hosts must enrol anew; 1 revoked again" in done.stdout
    assert command("server", "readopt", "--data-dir", str(tmp_path / "none")).returncode == 66
    assert not (tmp_path / "none").exists()


def test_a_key_that_was_changed_since_is_refused() -> None:
    """The old key must not live again, and nothing here can give the host its new API key."""
    with pytest.raises(LogStopped, match="changed its key"):
        _entry("clinic-1", b'{"event":"rotate","key":"aa","kind":"key","v":1}')
    leaf, _ = _entry("clinic-1", b'{"event":"enrol","key":"aa","kind":"key","v":1}')
    assert (leaf.key_id, leaf.seq) == ("aa", None)
