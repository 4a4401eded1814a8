"""One writer, durable when it returns; damage and full disks are survived, and said."""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import sqlite_file
from compliance_agent.adapters.database import Damage, Database
from compliance_agent.adapters.open_databases import read_only, release, shared
from compliance_agent.errors import ConfigError, NoInput, StateInUse, StorageDamaged, StorageError, StorageFull

TABLE = ["CREATE TABLE IF NOT EXISTS items (id INTEGER PRIMARY KEY, body BLOB NOT NULL) STRICT"]


def put(connection: sqlite3.Connection, size: int = 2_000) -> int:
    return connection.execute("INSERT INTO items (body) VALUES (randomblob(?))", (size,)).lastrowid or 0


def count(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM items").fetchone()[0])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "agent.db"


@pytest.fixture
def database(path: Path) -> Iterator[Database]:
    opened = Database(path, threaded=False, reserve_kb=8)
    opened.migrate("items", TABLE)
    yield opened
    opened.close()


def reopened(path: Path) -> Database:
    opened = Database(path, threaded=False, reserve_kb=8)
    opened.migrate("items", TABLE)
    return opened


def test_the_settings_that_durability_rests_on(database: Database) -> None:
    """RELIABILITY 1.1: with synchronous=NORMAL, 443 of 983 power cuts lose promised evidence."""
    wanted = {"journal_mode": "wal", "synchronous": 2, "trusted_schema": 0, "cell_size_check": 1, "foreign_keys": 1}
    found = {
        name: database.read(lambda connection, name=name: connection.execute(f"PRAGMA {name}").fetchone()[0])  # type: ignore[misc]
        for name in wanted
    }
    assert found == wanted


def test_files_are_private(database: Database) -> None:
    database.write(put)
    assert stat.S_IMODE(database.directory.stat().st_mode) == 0o700
    for file in database.directory.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


def test_an_exception_rolls_everything_back(database: Database) -> None:
    def fails(connection: sqlite3.Connection) -> None:
        put(connection)
        raise ValueError

    with pytest.raises(ValueError):
        database.write(fails)
    assert database.read(count) == 0
    database.write(put)
    assert database.read(count) == 1


def test_a_transaction_inside_a_transaction_is_a_mistake(database: Database) -> None:
    for inner in (database.write, database.read):
        with pytest.raises(RuntimeError):
            database.write(lambda connection, inner=inner: inner(put))  # type: ignore[misc]


def test_a_bug_in_sql_is_not_taken_for_a_broken_disk(database: Database) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        database.write(lambda connection: connection.execute("INSERT INTO items (body) VALUES (NULL)"))
    assert database.write(put) == 1


def test_a_second_process_is_refused_with_a_clear_message(database: Database) -> None:
    program = (
        "import sys\nfrom compliance_agent.adapters.database import Database\nfrom compliance_agent.errors import AgentError\n"
        "try: Database(sys.argv[1])\nexcept AgentError as error: print(error.line); sys.exit(error.exit_status)"
    )
    done = subprocess.run([sys.executable, "-c", program, database.path], capture_output=True, text=True, check=False)
    assert done.returncode == 75
    assert "in use by another process" in done.stdout


def test_the_same_process_shares_one_connection(path: Path) -> None:
    first, second = shared(path), shared(path)
    assert first is second
    release(first)
    second.migrate("items", TABLE)
    release(second)
    with pytest.raises(StorageError):
        first.write(put)
    third = shared(path)
    assert third is not first
    release(third)


def test_two_databases_over_one_state_are_refused(database: Database) -> None:
    with pytest.raises(StateInUse):
        Database(database.path)


def test_a_reader_sees_what_was_committed_and_cannot_write(database: Database) -> None:
    database.write(put)
    with read_only(database.path) as connection:
        assert count(connection) == 1
        with pytest.raises(sqlite3.OperationalError):
            put(connection)
    with pytest.raises(NoInput), read_only(database.path.with_name("none.db")):
        pass


def test_migrations_run_once_and_only_forward(path: Path) -> None:
    steps = [*TABLE, "INSERT INTO items (body) VALUES (x'00')"]
    for _ in range(3):
        opened = Database(path, threaded=False)
        opened.migrate("items", steps)
        assert opened.read(count) == 1
        opened.close()
    opened = Database(path, threaded=False)
    opened.migrate("items", [*steps, "INSERT INTO items (body) VALUES (x'01')"])
    assert opened.read(count) == 2
    with pytest.raises(ConfigError) as caught:
        opened.migrate("items", steps)
    assert caught.value.code == "newer_schema"
    opened.close()


def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    Database(path, threaded=False).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")
        connection.execute("UPDATE meta SET value = '99' WHERE key = 'schema_version'")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="newer") as caught:
        Database(path, threaded=False)
    assert caught.value.code == "newer_schema"
    assert path.read_bytes() == before
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 1")
        connection.execute("UPDATE meta SET value = '1' WHERE key = 'schema_version'")
    connection.close()
    Database(path, threaded=False).close()


def test_a_flipped_bit_in_the_version_is_damage_and_not_a_newer_product(path: Path) -> None:
    reopened(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 129")
    connection.close()
    opened = reopened(path)
    assert opened.damage is not None
    opened.close()


async def test_calls_run_in_order_on_one_thread(path: Path) -> None:
    opened = Database(path)
    opened.migrate("items", TABLE)
    threads: list[int] = []

    def one() -> int:
        threads.append(threading.get_ident())
        return opened.write(put)

    ids = await asyncio.gather(*(opened.call(one) for _ in range(20)))
    assert ids == list(range(1, 21))
    assert len(set(threads)) == 1
    assert threads[0] != threading.get_ident()
    opened.close()
    with pytest.raises(StorageError):
        await opened.call(one)


async def test_a_cancelled_caller_does_not_tear_the_transaction(path: Path) -> None:
    opened = Database(path)
    opened.migrate("items", TABLE)
    began, go_on = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> int:
        began.set()
        go_on.wait(10)
        return put(connection)

    task = asyncio.ensure_future(opened.call(lambda: opened.write(slow)))
    while not began.is_set():
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    go_on.set()
    assert await opened.call(lambda: opened.read(count)) == 1
    opened.close()


# Damage


def damaged_files(path: Path) -> list[Path]:
    return [
        file for file in path.parent.iterdir() if ".damaged-" in file.name and not file.name.endswith(("-wal", "-shm"))
    ]


def test_a_damaged_page_costs_its_rows_and_nothing_else(path: Path) -> None:
    opened = reopened(path)
    for _ in range(100):
        opened.write(put)
    opened.close()
    raw = bytearray(path.read_bytes())
    raw[20 * 4096 : 21 * 4096] = b"\xff" * 4096
    path.write_bytes(raw)
    opened = reopened(path)
    assert opened.damage is not None
    assert opened.damage.reason == "malformed"
    assert 95 <= opened.read(count) < 100
    assert [file.read_bytes() for file in damaged_files(path)] == [bytes(raw)], "kept as it was"
    opened.settle_damage(lambda _: None)
    opened.close()
    opened = reopened(path)
    assert opened.damage is None
    opened.close()


def test_every_store_gets_its_rows_back_when_it_asks(path: Path) -> None:
    """The chain's owner may have dealt with the damage before another store opens its tables."""
    other = ["CREATE TABLE IF NOT EXISTS points (id INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT"]
    opened = reopened(path)
    opened.migrate("other", other)
    opened.write(lambda connection: connection.execute("INSERT INTO points (name) VALUES ('a')"))
    for _ in range(100):
        opened.write(put)
    opened.close()
    raw = bytearray(path.read_bytes())
    raw[40 * 4096 : 41 * 4096] = b"\xff" * 4096
    path.write_bytes(raw)
    opened = reopened(path)
    opened.settle_damage(lambda _: None)
    opened.close()
    opened = reopened(path)
    opened.migrate("other", other)
    assert opened.read(lambda connection: connection.execute("SELECT name FROM points").fetchall()) == [("a",)]
    assert opened.read(count) > 90
    opened.close()


def test_a_flipped_bit_in_the_text_of_a_table_is_damage(path: Path) -> None:
    """quick_check is content with it, and every statement of ours would fail for ever."""
    opened = reopened(path)
    opened.write(put)
    opened.close()
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"items (id INTEGER PRIMARY KEY, body", b"items (id INTEGER PRIMARY KEY, bodz"))
    assert path.read_bytes() != raw
    opened = reopened(path)
    assert opened.damage is not None
    assert opened.read(lambda connection: connection.execute("SELECT length(body) FROM items").fetchall()) == [(2_000,)]
    opened.close()


def test_damage_found_while_running_is_survived(path: Path) -> None:
    opened = reopened(path)
    for _ in range(200):
        opened.write(put)
    opened.close()
    opened = reopened(path)
    opened.read(lambda connection: connection.execute("PRAGMA shrink_memory").fetchall())  # or it would not look again
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (path.stat().st_size - 8192))
    with pytest.raises(StorageDamaged):
        opened.read(lambda connection: connection.execute("SELECT sum(length(body)) FROM items").fetchall())
    assert len(damaged_files(path)) == 1
    assert opened.write(put) > 0
    opened.close()


class ReadsBadly(Database):
    """Reads as malformed the first `times` times, as after a transient EIO (3 of 257 cases)."""

    times = 0

    def _is_sound(self, connection: sqlite3.Connection) -> bool:
        type(self).times -= 1
        return type(self).times < 0 and super()._is_sound(connection)


@pytest.mark.parametrize(("times", "kept"), [(1, True), (2, True), (3, False)])
def test_malformed_is_believed_after_the_third_look(path: Path, times: int, kept: bool) -> None:
    opened = reopened(path)
    opened.write(put)
    opened.close()
    ReadsBadly.times = times
    opened = ReadsBadly(path, threaded=False, reserve_kb=8)
    assert (opened.damage is None) is kept
    opened.migrate("items", TABLE)
    assert opened.read(count) == 1, "nothing lost either way"
    assert len(damaged_files(path)) == (0 if kept else 1)
    opened.close()


@pytest.mark.parametrize("how", ["missing", "empty", "replaced"])
def test_a_database_that_is_not_the_one_of_this_state(path: Path, tmp_path: Path, how: str) -> None:
    opened = reopened(path)
    opened.write(put)
    opened.close()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    else:
        other = reopened(tmp_path / "other" / "agent.db")
        other.close()
        path.write_bytes((tmp_path / "other" / "agent.db").read_bytes())
    opened = reopened(path)
    assert opened.damage == Damage(how, 0, opened.damage.moved_to if opened.damage else "")
    assert opened.read(count) == 0
    assert len(damaged_files(path)) == (0 if how == "missing" else 1)
    opened.close()


def test_a_set_aside_that_was_interrupted_is_finished(path: Path) -> None:
    """Killed between the two renames: the new database is complete, the damaged one is out of the way."""
    opened = reopened(path)
    opened.write(put)
    opened.close()
    path.rename(path.with_name(path.name + ".new"))
    opened = reopened(path)
    assert opened.read(count) == 1
    opened.close()


def test_what_is_left_of_a_salvage_is_not_taken_for_a_database(path: Path) -> None:
    opened = reopened(path)
    opened.write(put)
    opened.close()
    path.with_name(path.name + ".new").write_bytes(b"half")
    opened = reopened(path)
    assert opened.read(count) == 1
    opened.close()


# Full disk


class Tight(Database):
    """A file system that has room for nothing."""

    full_disk: bool = False

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.refill, self.reserve.refill = self.reserve.refill, self._refilled  # type: ignore[method-assign]

    def _transaction(self, fn):  # type: ignore[no-untyped-def]
        if self.full_disk and self.reserve.path.exists():
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode, error.sqlite_errorname = sqlite3.SQLITE_FULL, "SQLITE_FULL"
            raise error
        return super()._transaction(fn)

    def _refilled(self) -> None:
        if self.full_disk:
            raise StorageFull("no room for the reserve")
        self.refill()


def is_full(opened: Database) -> bool:
    return opened.full


def test_the_reserve_is_spent_on_draining_only(path: Path) -> None:
    opened = Tight(path, threaded=False, reserve_kb=8)
    opened.migrate("items", TABLE)
    opened.write(put)
    opened.full_disk = True
    with pytest.raises(StorageFull):
        opened.write(put)
    assert is_full(opened)
    assert (path.parent / "reserve").stat().st_size == 8 * 1024, "what the checkpoint did not need is ours again"
    with pytest.raises(StorageFull):
        opened.write(put)
    opened.write(lambda connection: connection.execute("DELETE FROM items"), drains=True)
    assert opened.read(count) == 0
    opened.full_disk = False
    opened.write(put)
    assert not is_full(opened)
    assert (path.parent / "reserve").stat().st_size == 8 * 1024
    opened.close()


def test_a_drain_that_meets_the_full_disk_first_is_done_with_the_reserve(path: Path) -> None:
    opened = Tight(path, threaded=False, reserve_kb=8)
    opened.migrate("items", TABLE)
    opened.write(put)
    opened.full_disk = True
    opened.write(lambda connection: connection.execute("DELETE FROM items"), drains=True)
    assert opened.read(count) == 0
    assert opened.full
    opened.close()


def test_the_reserve_can_hold_what_a_checkpoint_adds() -> None:
    """The last checkpoint before the reserve is spent must fit into it, or nothing could drain."""
    assert sqlite_file.CHECKPOINT_PAGES * 4096 <= 512 * 1024 // 2


def test_stopped_while_it_was_being_created(path: Path) -> None:
    """A hot rollback journal needs a writer to be played back; it is no reason to refuse to start."""
    program = (
        "import os, sqlite3, sys\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('CREATE TABLE half (a)')\n"
        "connection.execute('PRAGMA cache_size = 1')\n"
        "connection.execute('BEGIN')\n"
        "connection.executemany('INSERT INTO half VALUES (randomblob(9000))', [()] * 50)\n"
        "os._exit(0)"
    )
    path.parent.mkdir(mode=0o700)
    subprocess.run([sys.executable, "-c", program, path], check=True)
    assert path.with_name("agent.db-journal").stat().st_size > 0
    opened = reopened(path)
    opened.write(put)
    assert opened.damage is None
    opened.close()
