"""The wall in the database file: evidence is not changed and not deleted, whoever asks."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest

from compliance_agent.server.store import SqlStore
from compliance_agent.server.store.wall import WALL
from tests.server.builder import START, serving, stamp, unwalled
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with five bundles, one that contradicts the third, and a hold that was released."""
    directory = tmp_path_factory.mktemp("wall") / "data"

    async def fill() -> None:
        async with serving(directory) as server:
            host = await server.enrolled()
            await server.deliver(host, host.next(), host.next())
            other = host.sign(host.document())
            await server.deliver(host, host.next(), host.next(), host.next())
            await server.deliver(host, other)
            await server.services.holds.add("clinic-1", None, "case-1")
            await server.services.holds.release("clinic-1", None, "case-1")
            await settled(server)

    asyncio.run(fill())
    return directory / "server.db"


@pytest.fixture
def database(filled: Path, tmp_path: Path) -> sqlite3.Connection:
    """As somebody with the sqlite3 program has it."""
    path = tmp_path / "server.db"
    shutil.copy(filled, path)
    return sqlite3.connect(path, isolation_level=None)


REFUSED = {
    "DELETE FROM bundles": "bundles: a record is never deleted",
    "DELETE FROM bundles WHERE seq = 2": "bundles: a record is never deleted",
    "UPDATE bundles SET body = x'00'": "bundles: this record must be kept",
    "UPDATE bundles SET body = x''": "bundles: this record must be kept",
    "UPDATE bundles SET sig = zeroblob(64)": "bundles: a record is never changed",
    "UPDATE bundles SET sha256 = 'f' WHERE seq = 1": "bundles: a record is never changed",
    "UPDATE bundles SET received_at = '2000-01-01T00:00:00.000000Z'": "bundles: a record is never changed",
    "INSERT OR REPLACE INTO bundles SELECT * FROM bundles WHERE seq = 1": "bundles: a record is never replaced",
    "UPDATE OR REPLACE bundles SET seq = 2 WHERE seq = 1": "bundles: a record is never changed",
    "DELETE FROM forks": "forks: a record is never deleted",
    "UPDATE forks SET body = x''": "forks: this record must be kept",
    "UPDATE forks SET sha256 = 'f'": "forks: a record is never changed",
    "INSERT OR REPLACE INTO forks SELECT * FROM forks": "forks: a record is never replaced",
    "DELETE FROM log_entries WHERE leaf_index = 3": "log_entries: an entry is never deleted",
    "UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 3": "log_entries: an entry is never changed",
    "UPDATE log_entries SET leaf_index = 99 WHERE leaf_index = 3": "log_entries: an entry never moves",
    "UPDATE log_entries SET year = NULL, leaf_index = NULL": "log_entries: an entry never moves",
    "INSERT OR REPLACE INTO log_entries SELECT * FROM log_entries": "log_entries: an entry is never replaced",
    "DELETE FROM holds": "holds: a hold is released, never deleted",
    "UPDATE holds SET released_at = NULL": "holds: a hold is released once, and not changed",
    "UPDATE holds SET reason_id = 'other'": "holds: a hold is released once, and not changed",
    "DELETE FROM baseline_uses": "baseline_uses: the last day of a baseline version is never forgotten",
    "UPDATE baseline_uses SET last_on = '2000-01-01'": "baseline_uses: the last day of a baseline version only moves",
}


def dump(database: sqlite3.Connection) -> list[str]:
    return list(database.iterdump())


@pytest.mark.parametrize("statement", REFUSED)
def test_by_hand(database: sqlite3.Connection, statement: str) -> None:
    with closing(database):
        before = dump(database)
        with pytest.raises(sqlite3.IntegrityError) as caught:
            database.execute(statement)
        assert str(caught.value).startswith(REFUSED[statement])
        assert dump(database) == before


@pytest.mark.parametrize("name", WALL)
def test_every_stone_holds_something(database: sqlite3.Connection, name: str) -> None:
    """Without this one trigger, a statement that was refused goes through."""
    with closing(database):
        database.execute(f"DROP TRIGGER {name}")
        through = []
        for statement in REFUSED:
            database.execute("BEGIN")
            try:
                database.execute(statement)
                through.append(statement)
            except sqlite3.IntegrityError:
                pass
            finally:
                database.execute("ROLLBACK")
        assert through


def guarded(
    database: sqlite3.Connection, *, years: int = 7, first: int = 0, stop: int = 99, site: str = "clinic-1"
) -> None:
    at = stamp(START + timedelta(days=366 * years))
    database.execute("INSERT INTO prune_guards VALUES (?, 2026, ?, ?, ?, 0)", (site, first, stop, at))


EMPTY = "UPDATE bundles SET body = x'' WHERE seq = 2"


def test_the_door(database: sqlite3.Connection) -> None:
    """Open for the entries that the guard names, when they are old enough; and then to empty bytes alone."""
    with closing(database):
        [[index]] = database.execute("SELECT leaf_index FROM log_entries WHERE seq = 2").fetchall()
        for wrong in ({"years": 5}, {"first": index + 1}, {"stop": index}):
            database.execute("BEGIN")
            guarded(database, **wrong)
            with pytest.raises(sqlite3.IntegrityError):
                database.execute(EMPTY)
            database.execute("ROLLBACK")
        database.execute("BEGIN")
        guarded(database, first=index, stop=index + 1)
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("UPDATE bundles SET body = x'00' WHERE seq = 2")
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("DELETE FROM bundles WHERE seq = 2")
        assert database.execute(EMPTY).rowcount == 1
        database.execute("UPDATE prune_guards SET first = 0, stop = 99")
        assert database.execute("UPDATE forks SET body = x''").rowcount == 1


def test_a_day_too_early_is_refused_by_the_database_too(database: sqlite3.Connection) -> None:
    with closing(database):
        for days, opens in ((2_191, False), (2_192, True)):
            database.execute("BEGIN")
            at = stamp(START + timedelta(days=days))
            database.execute("INSERT INTO prune_guards VALUES ('clinic-1', 2026, 0, 99, ?, 0)", (at,))
            if opens:
                assert database.execute(EMPTY).rowcount == 1
            else:
                with pytest.raises(sqlite3.IntegrityError):
                    database.execute(EMPTY)
            database.execute("ROLLBACK")


@pytest.mark.parametrize(("host", "held"), [("NULL", True), ("'ws-01'", True), ("'ws-02'", False)])
def test_a_hold_shuts_the_door(database: sqlite3.Connection, host: str, held: bool) -> None:
    with closing(database):
        added = f"INSERT INTO holds (site_id, host_id, reason_id, added_at) VALUES ('clinic-1', {host}, 'case-2', '')"
        database.execute(added)
        database.execute("BEGIN")
        guarded(database)
        for statement in (EMPTY, "UPDATE forks SET body = x''"):
            if held:
                with pytest.raises(sqlite3.IntegrityError):
                    database.execute(statement)
            else:
                assert database.execute(statement).rowcount == 1


def test_a_guard_that_is_left_behind_undoes_the_transaction(database: sqlite3.Connection) -> None:
    with closing(database):
        database.execute("PRAGMA foreign_keys = ON")  # as our own writer does
        database.execute("BEGIN")
        guarded(database)
        database.execute(EMPTY)
        with pytest.raises(sqlite3.IntegrityError, match="FOREIGN KEY"):
            database.execute("COMMIT")
        database.execute("ROLLBACK")
        assert database.execute("SELECT count(*) FROM bundles WHERE length(body) = 0").fetchone() == (0,)


async def test_a_wall_that_was_taken_down_is_put_up_again_and_that_is_on_record(filled: Path, tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    shutil.copy(filled, path)
    with closing(sqlite3.connect(path)) as database:
        unwalled(database)
    await (await SqlStore.open(path)).close()
    await (await SqlStore.open(path)).close()
    with closing(sqlite3.connect(path)) as database:
        there = {row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")}
        said = [row[0] for row in database.execute("SELECT subject FROM audit WHERE action = 'wall.mended'")]
    assert there == set(WALL) and sorted(said) == sorted(WALL)
