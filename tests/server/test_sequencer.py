"""The sequencer as a part of the server: it guards what was published, waits out what passes, and ends a year properly."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import durable
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import StorageError, StorageFull
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import EMPTY_ROOT, hash_leaf, root_of
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.tiles import Tile
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys, make_mldsa44
from compliance_agent.server.store import SqlStore
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import START, FakeHost, Hands, Server, ack_of, serving, unrevised

pytestmark = pytest.mark.anyio


async def settled(server: Server) -> None:
    """Nothing waits for an index any more, and everything with one is published."""
    store = server.services.store
    for _ in range(200):
        await server.services.sequencer.round()
        if not await store.for_sites(await store.all_sites()).any_pending():
            await server.services.sequencer.round()  # waits for the round that is under way
            return
    raise AssertionError("entries are not sequenced")


def later(days: int = 1) -> Hands:
    return Hands(START + timedelta(days=days))


@asynccontextmanager
async def restarted(directory: Path, days: int = 1) -> AsyncIterator[Server]:
    async with serving(directory, clock=later(days)) as server:
        yield server


async def reasons(server: Server) -> tuple[int, list[str]]:
    reply = await server.client.get("/readyz")
    return reply.status_code, [reason["code"] for reason in reply.json()["reasons"]]


def published(directory: Path, year: int = 2026) -> Checkpoint:
    return Checkpoint.parse(Note.parse((directory / f"log/clinic-1/{year}/checkpoint").read_bytes()).text)


async def leaves_of(server: Server, year: int = 2026) -> list[bytes]:
    return await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", year, 0, 10_000)


# --- what is published ----------------------------------------------------------------------------


async def test_the_head_is_the_root_of_the_leaves(server: Server) -> None:
    host = await server.enrolled()
    for count in (1, 99, 100, 100):
        await server.deliver(host, *(host.next() for _ in range(count)))
    await settled(server)
    directory = server.services.settings.data_dir
    leaves = await leaves_of(server)
    assert published(directory).size == len(leaves) == 302
    assert published(directory).root == root_of(b"".join(map(hash_leaf, leaves)))
    [key] = (VerifierKey.parse(path.read_text().strip()) for path in (directory / "keys").glob("*.vkey"))
    Note.parse((directory / "log/clinic-1/2026/checkpoint").read_bytes()).verify([key])
    assert not (directory / "log/clinic-1/2026/tile/0/000.p").exists()  # the full tile has replaced the partial ones
    assert (directory / "log/clinic-1/2026/tile/0/000").exists()


async def test_each_clinic_has_its_own_log(server: Server) -> None:
    for site in ("clinic-1", "clinic-2"):
        host = await server.enrolled("ws-01", site)
        await server.deliver(host, host.next())
    await settled(server)
    found = await server.services.store.for_sites({"clinic-1", "clinic-2"}).shards()
    assert [(shard.origin, shard.size) for shard in found] == [
        ("compliance-server/clinic-1/2026", 3),
        ("compliance-server/clinic-2/2026", 3),
    ]


async def test_a_new_year_begins_with_the_last_checkpoint_of_the_old_one(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next())
    await settled(server)
    last = server.services.log_files.published("clinic-1", 2026)
    server.clock.time = datetime(2027, 1, 1, tzinfo=UTC)
    await server.deliver(host, host.next())
    await settled(server)
    first, *others = [json.loads(leaf) for leaf in await leaves_of(server, 2027)]
    assert (first["kind"], first["origin"]) == ("shard", "compliance-server/clinic-1/2027")
    assert last is not None and base64.b64decode(first["previous"]) == last
    assert [leaf["kind"] for leaf in others] == ["bundle"]
    assert server.services.log_files.published("clinic-1", 2026) == last  # a year that is over does not change
    reply = await server.deliver(host, host.next())
    assert b"/2027\n" in base64.b64decode(reply.json()["receipts"][0]["proof"])
    assert json.loads((await leaves_of(server))[0])["previous"] is None


async def test_a_second_key_signs_too_when_it_is_wanted(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", log_mldsa44=True) as server:
        await server.enrolled()
        await settled(server)
        note = Note.parse((tmp_path / "data/log/clinic-1/2026/checkpoint").read_bytes())
        keys = [VerifierKey.parse(path.read_text().strip()) for path in (tmp_path / "data/keys").glob("*.vkey")]
        assert {key.type for key, _ in note.verify(keys)} == {KeyType.ED25519, KeyType.MLDSA44}
        assert (tmp_path / "data/keys/log-mldsa44.pem").stat().st_mode & 0o777 == 0o600


def test_the_keys_are_made_once(tmp_path: Path) -> None:
    first = LogKeys(tmp_path)
    make_mldsa44(tmp_path / "log-mldsa44.pem")
    second = LogKeys(tmp_path)
    assert (first.cosigner("a"), second.public_bytes) == (None, first.public_bytes)
    made = (tmp_path / "log-mldsa44.pem").read_bytes()
    make_mldsa44(tmp_path / "log-mldsa44.pem")
    assert (tmp_path / "log-mldsa44.pem").read_bytes() == made
    assert second.note(Checkpoint("a", 0, EMPTY_ROOT), START).count(b"\xe2\x80\x94 a ") == 2


# --- restored backups -----------------------------------------------------------------------------


async def _with_backup(directory: Path) -> tuple[FakeHost, bytes]:
    """A server that goes on after its database was copied, and is then set back to the copy."""
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
    shutil.copy(directory / "server.db", directory / "backup.db")
    async with restarted(directory) as server:
        await server.deliver(host, host.next(), host.next())
        await settled(server)
    note = (directory / "log/clinic-1/2026/checkpoint").read_bytes()
    for stale in directory.glob("server.db*"):
        stale.unlink()
    shutil.copy(directory / "backup.db", directory / "server.db")
    return host, note


async def test_a_restored_backup_is_refused_with_one_alarm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is signed, the published checkpoint stays, evidence is taken in, and the host hears from where to send again."""
    directory = tmp_path / "data"
    host, note = await _with_backup(directory)
    capsys.readouterr()
    async with restarted(directory, 2) as server:
        assert await reasons(server) == (503, ["log_restored"])
        known = (await server.checkin(host)).json()["known"]
        assert (known["seq"], host.seq) == (1, 3)
        gap = await server.deliver(host, host.next())
        assert (gap.status_code, gap.json()["expected"]["seq"]) == (409, 2)
        host.seq, host.prev = known["seq"], known["digest"]
        reply = await server.deliver(host, host.next())
        assert (len(ack_of(reply, host)["bundles"]), reply.json()["receipts"]) == (1, [None])
        for _ in range(5):
            await server.services.sequencer.round()
    assert (directory / "log/clinic-1/2026/checkpoint").read_bytes() == note
    assert capsys.readouterr().out.count("log.stopped") == 1


async def test_a_restored_backup_from_before_the_log_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    await _with_backup(directory)
    for stale in directory.glob("server.db*"):
        stale.unlink()
    async with restarted(directory, 2) as server:
        await server.enrolled()
        assert await reasons(server) == (503, ["log_restored"])
        other = await server.enrolled("ws-01", "clinic-2")  # who has nothing to contradict goes on
        assert (await server.deliver(other, other.next())).json()["receipts"] != [None]


async def test_a_log_that_went_another_way_is_refused(tmp_path: Path) -> None:
    """The database is as long as what was published, but holds something else."""
    directory = tmp_path / "data"
    host, note = await _with_backup(directory)
    shutil.move(directory / "log", tmp_path / "first")
    shutil.rmtree(directory / "heads")  # it would not have begun
    async with restarted(directory, 2) as server:
        host.seq, host.prev = 1, (await server.checkin(host)).json()["known"]["digest"]
        for _ in range(4):
            await server.deliver(host, host.next())
        await settled(server)
    shutil.rmtree(directory / "log")
    shutil.copytree(tmp_path / "first", directory / "log")
    async with restarted(directory, 3) as server:
        assert await reasons(server) == (503, ["log_forked"])
    assert (directory / "log/clinic-1/2026/checkpoint").read_bytes() == note


async def test_another_log_key_is_refused(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with serving(directory) as server:
        await server.enrolled()
        await settled(server)
    (directory / "keys/log.pem").unlink()
    async with restarted(directory) as server:
        assert await reasons(server) == (503, ["checkpoint_unusable"])


async def test_deleted_files_are_written_again(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, *(host.next() for _ in range(100)))
        await server.deliver(host, *(host.next() for _ in range(100)))
        await server.deliver(host, *(host.next() for _ in range(100)))
        await settled(server)
    shutil.move(directory / "log", tmp_path / "before")
    async with restarted(directory) as server:
        assert await reasons(server) == (200, [])
        for path in (tmp_path / "before").rglob("*"):
            again = directory / "log" / path.relative_to(tmp_path / "before")
            assert path.is_dir() or again.read_bytes() == path.read_bytes(), path
        reply = (await server.deliver(host, host.next())).json()
        assert reply["receipts"][0] is not None


# --- standing still -------------------------------------------------------------------------------


async def test_a_path_with_other_bytes_stops_this_log_alone(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next())
    await settled(server)
    directory = server.services.settings.data_dir / "log/clinic-1/2026"
    strange = directory / "tile/0/000.p/4"
    strange.write_bytes(b"planted")
    reply = await server.deliver(host, host.next())
    assert (len(ack_of(reply, host)["bundles"]), reply.json()["receipts"]) == (1, [None])
    assert strange.read_bytes() == b"planted"
    assert await reasons(server) == (503, ["tile_conflict"])
    assert published(server.services.settings.data_dir).size == 3
    other = await server.enrolled("ws-01", "clinic-2")
    assert (await server.deliver(other, other.next())).json()["receipts"] != [None]


async def test_a_write_of_unknown_state_stops_it_and_a_restart_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise StorageError("writing: EIO")

    directory = tmp_path / "data"
    async with serving(directory) as server:
        host = await server.enrolled()
        await settled(server)
        with monkeypatch.context() as patch:
            patch.setattr(LogFiles, "publish", broken)
            reply = await server.deliver(host, host.next())
            assert (len(ack_of(reply, host)["bundles"]), reply.json()["receipts"]) == (1, [None])
        assert await reasons(server) == (503, ["write_unknown"])
        await server.services.sequencer.round()
        assert published(directory).size == 2
        assert (await server.deliver(host, host.next())).status_code == 200  # evidence goes on
    async with restarted(directory) as server:
        await settled(server)
        assert await reasons(server) == (200, [])
        assert published(directory).size == len(await leaves_of(server)) == 4


async def test_a_full_disk_is_waited_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise StorageFull("writing: ENOSPC")

    host = await server.enrolled()
    await settled(server)
    with monkeypatch.context() as patch:
        patch.setattr(LogFiles, "put", full)
        assert (await server.deliver(host, host.next())).json()["receipts"] == [None]
        assert await reasons(server) == (503, ["storage_full"])
        await server.services.sequencer.round()
        assert published(server.services.settings.data_dir).size == 2
    assert (await server.deliver(host, host.next())).status_code == 200
    await settled(server)
    await settled(server)
    assert await reasons(server) == (200, [])
    assert published(server.services.settings.data_dir).size == 4


async def test_a_failed_read_is_waited_out(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was to be written yet, so nothing is unknown."""

    async def broken(_self: object) -> bool:
        raise StorageError("reading: busy")

    host = await server.enrolled()
    await settled(server)
    with monkeypatch.context() as patch:
        patch.setattr(BoundReader, "any_pending", broken)
        assert (await server.deliver(host, host.next())).json()["receipts"] == [None]
        assert await reasons(server) == (503, ["storage_failed"])
    await settled(server)
    assert await reasons(server) == (200, [])
    assert published(server.services.settings.data_dir).size == 3


async def test_nothing_is_signed_while_the_clock_stands_behind(server: Server) -> None:
    host = await server.enrolled()
    await settled(server)
    server.clock.move(-3_600)
    assert (await server.deliver(host, host.next())).json()["receipts"] == [None]
    assert await reasons(server) == (503, ["clock_not_advanced"])
    assert published(server.services.settings.data_dir).size == 2
    server.clock.move(7_200)
    await settled(server)
    assert await reasons(server) == (200, [])
    assert published(server.services.settings.data_dir).size == 3


async def test_a_bug_in_it_does_not_stop_the_server(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(*_: Any) -> None:
        raise ZeroDivisionError

    host = await server.enrolled()
    await settled(server)
    monkeypatch.setattr(LogKeys, "note", bug)
    assert (await server.deliver(host, host.next())).status_code == 200
    assert await reasons(server) == (503, ["sequencer_crashed"])


# --- older databases ------------------------------------------------------------------------------


async def test_a_database_of_version_1_is_brought_up(tmp_path: Path) -> None:
    """What version 1 held is logged: enrolments, bundles in their order of arrival, forks, revocations."""
    directory = tmp_path / "data"
    async with serving(directory) as server:
        host, gone = await server.enrolled(), await server.enrolled("ws-02")
        twin = FakeHost(key=host.key, api_key=host.api_key, now=host.now)
        bundles = [host.next() for _ in range(3)]
        await server.deliver(host, *bundles)
        await server.deliver(twin, twin.next())
        await server.services.enrolment.revoke("clinic-1", gone.key_id, actor="operator")
    with sqlite3.connect(directory / "server.db") as database:
        database.execute("DROP TABLE log_entries")
        database.execute("DROP TABLE log_shards")
        unrevised(database, "1")
    database.close()
    shutil.rmtree(directory / "log")
    shutil.rmtree(directory / "heads")
    async with restarted(directory) as server:
        await settled(server)
        leaves = await leaves_of(server)
        said = [json.loads(leaf) for leaf in leaves]
        assert [leaf["kind"] for leaf in said] == ["shard", "key", "key", "bundle", "bundle", "bundle", "fork", "key"]
        assert [leaf.get("event") for leaf in said if leaf["kind"] == "key"] == ["enrol", "enrol", "revoke"]
        for leaf, bundle in zip(leaves[3:6], bundles, strict=True):
            document = bundle.document
            assert leaf == bundle_leaf(host.key_id, 0, document["seq"], document["prev"], bundle.sha256, bundle.sig)
        reply = (await server.deliver(host, host.next())).json()
        assert reply["receipts"][0] is not None


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compliance_agent.server.store import before

    directory = tmp_path / "data"
    async with serving(directory) as server:
        await server.enrolled()
    with sqlite3.connect(directory / "server.db") as database:
        database.execute("DROP TABLE log_entries")
        database.execute("DROP TABLE log_shards")
        unrevised(database, "1")
    database.close()

    def broken(*_: Any) -> bytes:
        raise StorageError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(before, "key_leaf", broken)
        with pytest.raises(StorageError):
            await SqlStore.open(directory / "server.db")
    with sqlite3.connect(directory / "server.db") as database:
        assert database.execute("SELECT value FROM meta").fetchone() == ("1",)
        assert database.execute("SELECT 1 FROM sqlite_master WHERE name = 'log_entries'").fetchone() is None
    database.close()


def test_a_tile_that_a_crash_left_is_made_durable_before_it_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, synced = LogFiles(tmp_path), list[Path]()
    files.put("a", 2026, Tile(0, 0, 1), b"x" * 32)
    monkeypatch.setattr("compliance_agent.server.blobs.fsync_directory", synced.append)
    files.put("a", 2026, Tile(0, 0, 1), b"x" * 32)
    assert synced == [tmp_path / "a/2026/tile/0/000.p"]
    assert durable.read_file(tmp_path / "a/2026/tile/0/000.p/1", limit_bytes=99) == b"x" * 32


async def test_the_first_entry_after_a_calm_moment_begins_a_round(server: Server) -> None:
    """The next ones wait for the interval, so that partial files do not pile up."""
    sequencer = server.services.sequencer
    sequencer._batch = 256  # the tests' servers begin one for each entry
    now = sequencer._round_at + 2 * sequencer._interval_s
    sequencer._time = lambda: now
    sequencer._due.clear()
    sequencer.notify(0)
    assert not sequencer._due.is_set()
    sequencer.notify(1)
    assert sequencer._due.is_set()
    sequencer._due.clear()
    sequencer._round_at = now
    sequencer.notify(1)
    assert not sequencer._due.is_set()
