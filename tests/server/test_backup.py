"""A backup of a running server is whole and sound or not there; only such a one moves the watermark; a restore loses no history."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import AgentError, BadEvidence, LogStopped, NotPermitted, StorageFull
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import Tile
from compliance_agent.server import backup as backing
from compliance_agent.server import restore as restoring
from compliance_agent.server.backup import Backup, back_up
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.opening import opened
from compliance_agent.server.restore import restore
from compliance_agent.server.settings import ServerSettings
from tests.server.builder import FakeHost, Server, acknowledged, on_sqlite, serving, unwalled
from tests.server.test_fsck import problems
from tests.server.test_process import command
from tests.server.test_readopt import readopted
from tests.server.test_sequencer import later, published, reasons, restarted, settled

pytestmark = pytest.mark.anyio
LOG = "log/clinic-1/2026"


def watermarks(directory: Path) -> list[tuple[str, int, int]]:
    """What the live database says a backup holds."""
    database = sqlite3.connect(directory / "server.db")
    found = database.execute("SELECT site_id, year, size FROM log_durable ORDER BY 1, 2").fetchall()
    database.close()
    return found


async def grown(server: Server, host: FakeHost, count: int) -> None:
    for _ in range(count // 50):
        batch = [host.next() for _ in range(50)]
        assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * 50
        await settled(server)


async def filled(server: Server) -> FakeHost:
    host = await server.enrolled()
    await grown(server, host, 300)
    return host


# --- making one -----------------------------------------------------------------------------------


@on_sqlite
async def test_a_backup_is_sound_by_itself_and_moves_the_watermark(server: Server, tmp_path: Path) -> None:
    await filled(server)
    directory, out = server.services.settings.data_dir, tmp_path / "backups" / "monday"
    assert watermarks(directory) == []
    made = await back_up(server.services, out)
    assert [(item.site_id, item.size, item.durable) for item in made.logs] == [("clinic-1", 302, 302)]
    assert watermarks(directory) == [("clinic-1", 2026, 302)]
    assert [path.name for path in out.parent.iterdir()] == ["monday"]  # nothing half-made beside it
    assert (out / "keys/log.pem").stat().st_mode & 0o777 == (out / "server.db").stat().st_mode & 0o777 == 0o600
    assert out.stat().st_mode & 0o777 == 0o700
    shutil.copytree(out, tmp_path / "copy")
    assert await problems(tmp_path / "copy") == []
    with pytest.raises(NotPermitted):
        await back_up(server.services, out)


@on_sqlite
async def test_beside_a_server_that_works(server: Server, tmp_path: Path) -> None:
    """Evidence that comes in meanwhile is in the copy wholly or not at all, and partial tiles may have gone."""
    host = await filled(server)
    loading = asyncio.create_task(grown(server, host, 600))
    number = 0
    while not loading.done() or number < 3:
        made = await back_up(server.services, tmp_path / str(number))
        head = Checkpoint.parse(Note.parse((tmp_path / str(number) / LOG / "checkpoint").read_bytes()).text)
        assert head.size == made.logs[0].size
        number += 1
    await loading
    for copy in range(number):
        assert await problems(tmp_path / str(copy)) == []


@on_sqlite
async def test_files_ahead_of_the_copy_are_cut_to_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log grows over the edge of a tile between the two copies: partial tiles are taken from the full ones."""
    host = await filled(server)
    true_copy, entries = backing._copy_log, list[int]()

    def late(*arguments: Any) -> None:
        future = asyncio.run_coroutine_threadsafe(grown(server, host, 250), loop)
        future.result(60)
        entries.append(published(server.services.settings.data_dir).size)
        true_copy(*arguments)

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(backing, "_copy_log", late)
    made = await back_up(server.services, tmp_path / "out")
    assert (made.logs[0].size, entries) == (302, [552])
    assert await problems(tmp_path / "out") == []


@on_sqlite
async def test_copying_all_of_the_log_would_be_refused(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: files as they are now, ahead of the copied database. Nothing is kept, nothing is recorded."""
    host = await filled(server)
    true_copy = backing._copy_log

    def all_of_it(live: LogFiles, copy: Path, shard: Any) -> None:
        asyncio.run_coroutine_threadsafe(grown(server, host, 50), loop).result(60)
        true_copy(live, copy, shard)
        LogFiles(copy).publish(shard.site_id, shard.year, live.published(shard.site_id, shard.year) or b"")

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(backing, "_copy_log", all_of_it)
    with pytest.raises(BadEvidence, match="restored backup"):
        await back_up(server.services, tmp_path / "out")
    assert list(tmp_path.glob("*out*")) == []
    assert watermarks(server.services.settings.data_dir) == []


def change(statement: str) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        with sqlite3.connect(directory / "server.db") as database:
            unwalled(database)
            assert database.execute(statement).rowcount == 1
        database.close()

    return act


def lose_tile(directory: Path) -> None:
    (directory / LOG / "tile/0/000").unlink()


DAMAGES: dict[str, Callable[[Path], None]] = {
    "a record's bytes": change("UPDATE bundles SET body = x'00' WHERE seq = 7"),
    "an entry": change("UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 7"),
    "a lost tile": lose_tile,
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_a_damaged_server_gets_no_watermark(tmp_path: Path, name: str) -> None:
    directory = tmp_path / "data"
    async with serving(directory) as server:
        await filled(server)
    DAMAGES[name](directory)
    with pytest.raises(AgentError):
        async with opened(ServerSettings(data_dir=directory)) as services:
            await back_up(services, tmp_path / "out")
    assert (list(tmp_path.glob("*out*")), watermarks(directory)) == ([], [])


@on_sqlite
async def test_a_full_disk_leaves_nothing(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await filled(server)

    def full(_root: Path) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(backing, "settle", full)
    with pytest.raises(StorageFull):
        await back_up(server.services, tmp_path / "out")
    assert (list(tmp_path.glob("*out*")), watermarks(server.services.settings.data_dir)) == ([], [])


# --- putting one back -----------------------------------------------------------------------------


async def two_days(directory: Path, out: Path) -> tuple[FakeHost, Backup, Checkpoint]:
    """A backup of yesterday, and 50 more records since."""
    async with restarted(directory, 0) as server:
        host = await filled(server)
        made = await back_up(server.services, out)
    async with restarted(directory) as server:
        await grown(server, host, 50)
    return host, made, published(directory)


async def test_restored_readopted_and_it_goes_on(tmp_path: Path) -> None:
    """The newer log stays, the old database is put in place; after `readopt` the host sends again; the watermark is honest."""
    directory, out = tmp_path / "data", tmp_path / "out"
    host, _, head = await two_days(directory, out)
    with pytest.raises(NotPermitted, match="not empty"):
        restore(out, directory)
    assert watermarks(directory) == [("clinic-1", 2026, 302)]
    done = restore(out, directory, force=True)
    assert [(item.size, item.signed) for item in done.logs] == [(302, 352)]
    assert (published(directory), done.set_aside) == (head, "before-restore-1.db")
    assert watermarks(directory) == []  # this copy was made before it was known to be sound
    async with restarted(directory, 2) as server:
        assert await reasons(server) == (503, ["log_restored"])
    await readopted(directory)
    async with restarted(directory, 3) as server:
        assert await reasons(server) == (200, [])
        made = await back_up(server.services, tmp_path / "early")  # the host has not sent again yet
        assert [(item.size, item.durable) for item in made.logs] == [(352, 302)]
        assert (await server.checkin(host)).json()["known"]["seq"] == 300
    assert await problems(directory) == []


async def test_into_an_empty_directory(tmp_path: Path) -> None:
    """The disk is lost: everything comes back as it was, and the server goes on from the backup."""
    directory, out = tmp_path / "data", tmp_path / "out"
    async with restarted(directory, 0) as server:
        host = await filled(server)
        made = await back_up(server.services, out)
    done = restore(out, tmp_path / "new")
    assert (done.set_aside, done.files, done.logs[0].signed) == (None, made.files, 302)
    assert await problems(tmp_path / "new") == []
    for name in ("keys/log.pem", "keys/ack.pem"):
        assert (tmp_path / "new" / name).read_bytes() == (directory / name).read_bytes()
        assert (tmp_path / "new" / name).stat().st_mode & 0o777 == 0o600
    async with restarted(tmp_path / "new") as server:
        batch = [host.next()]
        assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"]


async def test_a_restore_that_is_interrupted_signs_nothing_and_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every write of it: the next start signs no second history, and a second restore is whole."""
    directory, out = tmp_path / "data", tmp_path / "out"
    _, _, head = await two_days(directory, out)
    shutil.rmtree(directory / "log")  # lost with the disk; the heads are on another
    for stale in directory.glob("server.db*"):
        stale.unlink()
    total = await interrupted(monkeypatch, restoring, tmp_path, directory, out, 10_000)
    assert total >= 8  # keys, tiles, the checkpoint, the database
    for at in range(total):
        target = tmp_path / f"stop-{at}"
        assert await interrupted(monkeypatch, restoring, target, directory, out, at) == at
        async with restarted(target, 2) as server:
            assert await reasons(server) == (503, ["log_restored"])
            await server.services.sequencer.round()
        restore(out, target, force=True)
        async with restarted(target, 3) as server:
            assert await reasons(server) == (503, ["log_restored"])
        assert Checkpoint.parse(Note.parse((target / "heads/clinic-1-2026").read_bytes()).text) == head


async def interrupted(
    monkeypatch: pytest.MonkeyPatch, restoring: Any, target: Path, start: Path, out: Path, at: int
) -> int:
    """Restore into a copy of `start` until write number `at`; how many writes were made."""
    if target.name.startswith("stop-"):
        shutil.copytree(start, target)
    else:
        target = target / "whole"
        shutil.copytree(start, target)
    done = 0

    def counted(true: Callable[..., Any]) -> Callable[..., Any]:
        def act(*arguments: Any, **named: Any) -> Any:
            nonlocal done
            if done == at:
                raise KeyboardInterrupt
            done += 1
            return true(*arguments, **named)

        return act

    with monkeypatch.context() as patched:
        for name in ("_copy", "_set_aside", "_copy_database"):
            patched.setattr(restoring, name, counted(getattr(restoring, name)))
        patched.setattr(LogFiles, "publish", counted(LogFiles.publish))
        patched.setattr(LogHeads, "keep", counted(LogHeads.keep))
        with contextlib.suppress(KeyboardInterrupt):
            restore(out, target, force=True)
    return done


def flip(name: str) -> Callable[[Path], None]:
    def act(out: Path) -> None:
        raw = bytearray((out / name).read_bytes())
        raw[len(raw) // 2] ^= 1
        (out / name).write_bytes(raw)

    return act


def add_file(out: Path) -> None:
    (out / "log/extra").write_bytes(b"")


def escape(out: Path) -> None:
    document = json.loads((out / "manifest.json").read_bytes())
    document["files"]["../evil"] = {"size": 0, "sha256": "0" * 64}
    (out / "manifest.json").write_text(json.dumps(document))


def link(out: Path) -> None:
    (out / "keys/ack.pem").rename(out.parent / "ack.pem")
    (out / "keys/ack.pem").symlink_to(out.parent / "ack.pem")


FAULTS: dict[str, Callable[[Path], None]] = {
    "the database": flip("server.db"),
    "a tile": flip(f"{LOG}/tile/0/000"),
    "a key": flip("keys/log.pem"),
    "the manifest": flip("manifest.json"),
    "a file is gone": lambda out: (out / LOG / Tile(0, 0).path).unlink(),
    "a file was added": add_file,
    "a path leads out": escape,
    "a link": link,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    asyncio.run(two_days(root / "data", root / "out"))
    return root


@pytest.mark.parametrize("name", FAULTS)
async def test_a_backup_that_is_not_what_it_was_is_refused(whole: Path, tmp_path: Path, name: str) -> None:
    shutil.copytree(whole / "out", tmp_path / "out")
    FAULTS[name](tmp_path / "out")
    with pytest.raises(BadEvidence):
        restore(tmp_path / "out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


async def test_another_servers_directory_is_refused(whole: Path, tmp_path: Path) -> None:
    async with serving(tmp_path / "other") as server:
        await server.enrolled()
        await settled(server)
    before = (tmp_path / "other/server.db").read_bytes()
    with pytest.raises(NotPermitted, match="not the key"):
        restore(whole / "out", tmp_path / "other", force=True)
    assert (tmp_path / "other/server.db").read_bytes() == before


async def test_a_directory_that_went_another_way_is_refused(whole: Path, tmp_path: Path) -> None:
    """Two roots of one size under one key: nothing may hide that."""
    shutil.copytree(whole / "data", tmp_path / "data")
    async with opened(ServerSettings(data_dir=whole / "data"), later(2)) as services:
        head = Checkpoint.parse(Note.parse((whole / "out" / LOG / "checkpoint").read_bytes()).text)
        forged = services.log_keys.note(Checkpoint(head.origin, head.size, published(whole / "data").root), later(2)())
    (tmp_path / "data/heads/clinic-1-2026").write_bytes(forged)
    with pytest.raises(LogStopped) as caught:
        restore(whole / "out", tmp_path / "data", force=True)
    assert caught.value.code == "log_forked"


def test_the_commands(whole: Path, tmp_path: Path) -> None:
    """Beside what `test_docs` says of their keys: exit statuses, and that each says what comes next."""
    shutil.copytree(whole / "data", tmp_path / "data")
    at = ("--data-dir", str(tmp_path / "data"))
    made = command("server", "backup", "--out", str(tmp_path / "b"), *at)
    assert (made.returncode, made.stdout.splitlines()[1].split()) == (0, ["clinic-1/2026", "352", "352"]), made.stderr
    assert command("server", "backup", "--out", str(tmp_path / "b"), *at).returncode == 77
    document = json.loads(command("server", "backup", "--json", "--out", str(tmp_path / "c"), *at).stdout)
    assert (document["schema"], document["logs"][0]["durable"]) == ("compliance-agent/server-backup/v1", 352)
    assert command("server", "restore", "--from", str(whole / "out"), *at).returncode == 77
    done = command("server", "restore", "--from", str(whole / "out"), "--force", *at)
    assert done.returncode == 0 and "server readopt" in done.stderr and "before-restore-1.db" in done.stderr
    again = json.loads(command("server", "restore", "--json", "--from", str(whole / "out"), "--force", *at).stdout)
    assert (again["readopt"], again["set_aside"], again["logs"][0]["signed"]) == (True, "before-restore-2.db", 352)
    assert command("server", "restore", "--from", str(tmp_path / "none"), *at).returncode == 66
    assert (
        command("server", "backup", "--out", str(tmp_path / "d"), "--data-dir", str(tmp_path / "none")).returncode == 66
    )
