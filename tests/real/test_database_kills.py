"""`kill -9` of PostgreSQL at random moments of ingest: nothing acknowledged is lost or doubled, and each log is whole.

One server process lives through all of it, while its database is killed in three ways: one backend alone (PostgreSQL then ends all
others and recovers by itself), the postmaster alone, and every process of it at once. DATABASE_KILLS=1000 is the full run. What is
judged afterwards is the same as after the kills of the server. A database that answers before its commit is on disk is caught.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest

from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import migrate
from tests.postgres import Postgres, command, made, unprivileged
from tests.real import stage
from tests.real.test_server_kills import (
    HOSTS,
    Place,
    acknowledged_to,
    count_of,
    enrolled,
    finish,
    nursery,
    progress,
    seeded,
    sending,
    wrongs,
)

pytestmark = [pytest.mark.real, pytest.mark.slow]
KILLS = int(os.environ.get("DATABASE_KILLS", "8"))
NAME = "clinics"
MOMENTS_S = (0.0, 0.1)
UP_S = 30.0
LEFT_S = 5.0  # after which what is left of a killed postmaster is ended too, as a service manager does
AWAY = 503  # what the server answers while it cannot promise anything
WAYS = ("backend", "postmaster", "all")


@dataclass
class Database:
    """A PostgreSQL of its own, with the settings that one should have, killed and started again."""

    server: Postgres
    changes: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    killed: dict[str, int] = field(default_factory=dict)
    left: int = 0  # processes that outlived their postmaster until they were ended

    def start(self, before: Mapping[int, str] = MappingProxyType({})) -> None:
        """Start it; again while processes of the one before are still ending.

        One that waits for a lock whose holder has gone may never notice that its postmaster died, and holds the memory they shared.
        """
        began = time.monotonic()
        deadline = began + UP_S
        while True:
            if time.monotonic() > began + LEFT_S:
                for pid in [pid for pid, title in before.items() if title and title_of(pid) == title]:
                    self.left += 1
                    ended(pid)
            with (self.server.directory / "log").open("ab") as log:
                self.process = subprocess.Popen(
                    command(self.server.directory, fsync="on", full_page_writes="on", **self.changes),
                    cwd=self.server.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **unprivileged(),
                )  # fmt: skip
            if self.answers(deadline):
                return
            assert time.monotonic() < deadline, (self.server.directory / "log").read_text()[-2_000:]
            self.process.wait(UP_S)

    def answers(self, deadline: float) -> bool:
        """Wait until it takes connections; False when it has ended instead."""
        assert self.process is not None
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError, asyncpg.CannotConnectNowError, asyncpg.PostgresConnectionError):
                self.ask("SELECT 1", "postgres")
                return True
            time.sleep(0.01)
        return False

    def ask(self, query: str, name: str = NAME) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in asyncio.run(self.server.by_hand(name, query))]

    def kill(self, way: str, rng: random.Random) -> None:
        """Kill it, and have it back."""
        assert self.process is not None
        children = children_of(self.process.pid)
        backends = [pid for pid, title in children.items() if title.startswith(f"postgres: server {NAME}")]
        if way == "backend" and not backends:
            way = "all"
        self.killed[way] = self.killed.get(way, 0) + 1
        if way == "backend":
            ended(rng.choice(backends))
            assert self.answers(time.monotonic() + UP_S), "it did not recover"
            return
        for pid in [self.process.pid, *(children if way == "all" else ())]:
            ended(pid)
        self.process.wait(UP_S)
        self.start(children)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(UP_S)


def children_of(parent: int) -> dict[int, str]:
    """Process ids and titles."""
    found = {}
    for line in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        with contextlib.suppress(OSError):
            found[int(line)] = title_of(int(line))
    return found


def title_of(pid: int) -> str:
    """What a process of PostgreSQL calls itself now, without what it is doing; nothing once it has gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode("ascii", "replace").split()
    except OSError:
        return ""
    return " ".join(words[:4])


def ended(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def a_database(**changes: str) -> Iterator[Database]:
    directory = Path(tempfile.mkdtemp(prefix="ca-pgk-"))
    database = Database(Postgres(directory), changes)
    try:
        made(directory)
        database.start()
        for statement in ("CREATE ROLE server LOGIN", f"CREATE DATABASE {NAME}"):
            database.ask(statement, "postgres")
        asyncio.run(migrate(database.server.address(NAME, "owner"), "server"))
        yield database
    finally:
        database.stop()
        shutil.rmtree(directory, ignore_errors=True)


def under_fire(
    data_dir: Path, database: Database, kills: int, rng: random.Random, ways: tuple[str, ...], *options: str
) -> dict[Place, str]:
    """Kill the database so many times while hosts send; what was acknowledged to them, by the end of a calm last run."""
    url = database.server.address(NAME).url
    hosts = asyncio.run(enrolled(ServerSettings(data_dir=data_dir, database=url), HOSTS))
    with nursery(data_dir, "--database", url, *options) as server:
        server.order("start", "R")
        with sending(hosts, server.port, rng, comes_again_at=AWAY) as senders:
            for _ in range(kills):
                progress(senders, count_of(senders))
                time.sleep(rng.uniform(*MOMENTS_S))
                database.kill(rng.choice(ways), rng)
            progress(senders, count_of(senders))
            finish(senders)
            assert [sender.refused for sender in senders if sender.refused] == []
            stage.until(lambda: whole(database), UP_S, "every record is in the log, under its checkpoint")
    return acknowledged_to(senders)


def whole(database: Database) -> bool:
    waiting = "SELECT count(*) FROM log_entries WHERE leaf_index IS NULL"
    unsigned = "SELECT count(*) FROM log_shards WHERE checkpoint_size < size"
    return all(database.ask(query) == [(0,)] for query in (waiting, unsigned))


def judged(data_dir: Path, database: Database, acknowledged: dict[Place, str]) -> list[str]:
    wrong = wrongs(database.ask, acknowledged)
    named = stage.environment(MSP_SERVER_DATABASE=database.server.address(NAME).url)
    fsck = stage.command("server", "fsck", "--data-dir", data_dir, env=named)
    return wrong if fsck.returncode == 0 else [*wrong, f"fsck: {fsck.stdout}{fsck.stderr}"]


@pytest.mark.timeout(180 + 4 * KILLS)
def test_nothing_acknowledged_is_lost_or_doubled_when_postgresql_is_killed(tmp_path: Path) -> None:
    rng = seeded()
    with a_database() as database:
        acknowledged = under_fire(tmp_path / "server", database, KILLS, rng, WAYS)
        print(f"{database.killed} kills, {database.left} left over ended, {len(acknowledged)} bundles acknowledged")
        assert sum(database.killed.values()) == KILLS < len(acknowledged)
        assert judged(tmp_path / "server", database, acknowledged) == []


def test_a_database_that_answers_before_its_commit_is_on_disk_is_caught(tmp_path: Path) -> None:
    """The planted fault: what was acknowledged just before the kill is gone with the memory of the processes."""
    with a_database(wal_writer_delay="10s") as database:
        url = database.server.address(NAME).url
        hosts = asyncio.run(enrolled(ServerSettings(data_dir=tmp_path / "server", database=url), HOSTS))
        with nursery(tmp_path / "server", "--database", url, "--forgetful") as server:
            server.order("start", "R")
            with sending(hosts, server.port, seeded()) as senders:
                stage.until(lambda: count_of(senders) > 40, UP_S, "bundles are acknowledged")
            database.kill("all", random.Random(1))
        assert any(word.startswith("lost: ") for word in wrongs(database.ask, acknowledged_to(senders)))
