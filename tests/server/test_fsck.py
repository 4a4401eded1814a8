"""`server fsck`: a sound directory is said to be so, and each kind of damage to it is named."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.server.opening import opened
from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.settings import ServerSettings
from tests.server.builder import Server, serving, unwalled
from tests.server.test_process import command
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio
LOG = "log/clinic-1/2026"


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a log of 302 entries."""
    directory = tmp_path_factory.mktemp("sound") / "data"

    async def fill() -> None:
        async with serving(directory) as server:
            host = await server.enrolled()
            for _ in range(3):
                await server.deliver(host, *(host.next() for _ in range(100)))
            await settled(server)

    asyncio.run(fill())
    return directory


async def problems(directory: Path, database: str | None = None) -> list[str]:
    """What is wrong with the logs of a data directory."""
    async with opened(ServerSettings(data_dir=directory, database=database)) as services:
        checker = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
        return [problem async for finding in checker.run() for problem in finding.problems]


def test_the_command(sound: Path, tmp_path: Path) -> None:
    """A table or JSON, exit 65 when something is wrong; no directory is made by looking for one."""
    done = command("server", "fsck", "--data-dir", str(sound))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[1].split() == ["clinic-1/2026", "302", "302", "300", "0", "ok"]
    shutil.copytree(sound, tmp_path / "data")
    flip("tile/0/000")(tmp_path / "data")
    done = command("server", "fsck", "--json", "--data-dir", str(tmp_path / "data"))
    assert (done.returncode, json.loads(done.stdout)["valid"]) == (65, False)
    done = command("server", "fsck", "--data-dir", str(tmp_path / "data"))
    assert done.returncode == 65 and "DAMAGED" in done.stdout and "tile/0/000: other bytes" in done.stderr
    assert command("server", "fsck", "--data-dir", str(tmp_path / "none")).returncode == 66
    assert not (tmp_path / "none").exists()


def flip(path: str) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        file = directory / LOG / path
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw)

    return act


def run(statement: str) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        with sqlite3.connect(directory / "server.db") as database:
            unwalled(database)
            assert database.execute(statement).rowcount == 1
        database.close()

    return act


def delete(path: str) -> Callable[[Path], None]:
    def act(directory: Path) -> None:
        (directory / LOG / path).unlink()

    return act


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "a hash tile": (flip("tile/0/000"), "tile/0/000: other bytes"),
    "a partial hash tile": (flip("tile/0/001.p/46"), "tile/0/001.p/46: other bytes"),
    "an upper tile": (flip("tile/1/000.p/1"), "tile/1/000.p/1: other bytes"),
    "an entry bundle": (flip("tile/entries/000"), "tile/entries/000"),
    "the visible checkpoint": (flip("checkpoint"), "checkpoint"),
    "a missing tile": (delete("tile/0/000"), "tile/0/000: missing"),
    "a missing bundle of entries": (delete("tile/entries/001.p/46"), "missing or damaged"),
    "no checkpoint": (delete("checkpoint"), "none is published"),
    "an entry's bytes": (run("UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 7"), "root of 302 entries"),
    "a lost entry": (run("DELETE FROM log_entries WHERE leaf_index = 9"), "255 are held"),
    "the root that is held": (run("UPDATE log_shards SET root = x'00'"), "is not the one that is held"),
    "emptied bytes": (run("UPDATE bundles SET body = x'' WHERE seq = 5"), "bytes are gone, and no minimum"),
    "a changed bundle": (run("UPDATE bundles SET sha256 = 'f' WHERE seq = 5"), "says something else"),
    "a bundle's bytes": (run("UPDATE bundles SET body = x'7b7d' WHERE seq = 6"), "says something else"),
    "a bundle without entry": (
        run("UPDATE log_entries SET seq = 999 WHERE seq = 300"),
        "bundle number 300: has no entry",
    ),
    "a swap": (run("UPDATE log_shards SET size = size - 1, checkpoint_size = 301"), "root of 301 entries"),
}


async def test_a_sound_directory(sound: Path) -> None:
    assert await problems(sound) == []


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_named(sound: Path, tmp_path: Path, name: str) -> None:
    directory = tmp_path / "data"
    shutil.copytree(sound, directory)
    act, words = DAMAGES[name]
    act(directory)
    found = await problems(directory)
    assert any(words in problem for problem in found), found


async def test_beside_a_server_that_works(server: Server) -> None:
    """Entries that come while it looks are no damage."""
    host = await server.enrolled()
    await server.deliver(host, host.next())

    async def load() -> None:
        for _ in range(20):
            await server.deliver(host, *(host.next() for _ in range(30)))

    settings, loading = server.services.settings, asyncio.create_task(load())
    while not loading.done():
        assert await problems(settings.data_dir, settings.database) == []
    await loading
