"""SQLite under the store: exactly one connection writes at a time, over all processes, in a thread of its own.

A whole transaction, or a whole query, runs in one visit to a thread: a driver that visits its thread for every call (aiosqlite)
takes 26 visits and five times the processor for a single bundle. A transaction's work is written as a coroutine, so that the
same work runs on PostgreSQL, where each statement does wait; here none does, and the thread runs it from end to end.

Debian 12's SQLite (3.40.1) can damage a WAL database when two connections write or checkpoint at the same moment (fixed in
3.51.3). So every write transaction, and with it the checkpoint it may cause, happens behind a file lock that the server
and the commands of `compliance-agent server` share. Readers open the file read-only and can do neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import functools
import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from sqlalchemy import URL, Connection, Engine, Executable, Table, create_engine, event
from sqlalchemy.dialects import sqlite
from sqlalchemy.engine import CursorResult, RowMapping

from compliance_agent.errors import StorageError
from compliance_agent.server.store.database import Statements, translated
from compliance_agent.server.store.packing import as_kept

T = TypeVar("T")
READERS = 4
WAIT_FOR_LOCK_S = 10.0
_WRITER_PRAGMAS = (
    "PRAGMA page_size = 16384",  # bundles are 2-4 kB: fewer overflow pages, half the cost of a row
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL loses promised records in a power cut
    "PRAGMA foreign_keys = ON",
    "PRAGMA recursive_triggers = ON",  # else REPLACE deletes past the wall
    "PRAGMA secure_delete = ON",  # what is emptied is overwritten
    "PRAGMA temp_store = MEMORY",  # what a statement may have to undo is kept there, not in a file for each of them
)
# A statement that a trigger can abort saves each page that it changes before it does: one statement for each row would copy
# 100 kB for 3 kB of evidence. So rows go in by the largest of these numbers that is left.
_ROWS_AT_ONCE = (64, 8, 1)
_PRAGMAS = ("PRAGMA busy_timeout = 5000", "PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")


class WriteLock:
    """The file lock that lets one process at a time write."""

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        deadline = time.monotonic() + WAIT_FOR_LOCK_S
        while not self._taken():
            if time.monotonic() > deadline:
                raise StorageError(
                    f"writing: another process has held the lock for {WAIT_FOR_LOCK_S:.0f} s", code="busy"
                )
            time.sleep(0.002)
        try:
            yield
        finally:
            fcntl.flock(self._handle, fcntl.LOCK_UN)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Give the lock file back."""
        os.close(self._handle)


class _Direct:
    """`Statements` that answer at once, in the thread that runs them."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: Sequence[dict[str, Any]] | dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        found = self._connection.execute(statement, parameters)
        assert isinstance(found, CursorResult)  # noqa: S101  what every statement of Core gives
        return found

    async def insert(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        at, rows = 0, as_kept(table, columns, rows)
        for count in _ROWS_AT_ONCE:
            while len(rows) - at >= count:
                values = tuple(chain.from_iterable(rows[at : at + count]))
                self._connection.exec_driver_sql(_insertion(table, columns, count), values)
                at += count

    async def update(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], by: int) -> None:
        if rows:
            self._connection.exec_driver_sql(_change(table, columns, by), [(*row[by:], *row[:by]) for row in rows])


@functools.cache
def _insertion(table: Table, columns: tuple[str, ...], rows: int) -> str:
    """A statement for so many rows; one for each table and number, so that the driver finds it prepared."""
    quoted = sqlite.dialect().identifier_preparer.format_column
    row = f"({', '.join('?' * len(columns))})"
    names = ", ".join(quoted(table.c[name]) for name in columns)
    return f"INSERT INTO {table.name} ({names}) VALUES {', '.join([row] * rows)}"  # noqa: S608  our own names


@functools.cache
def _change(table: Table, columns: tuple[str, ...], by: int) -> str:
    """A statement for one row."""
    quoted = sqlite.dialect().identifier_preparer.format_column
    said = [f"{quoted(table.c[name])} = ?" for name in columns]
    return f"UPDATE {table.name} SET {', '.join(said[by:])} WHERE {' AND '.join(said[:by])}"  # noqa: S608  our own names


class SqliteDatabase:
    """A database file: one thread that writes, several that read."""

    def __init__(self, path: Path) -> None:
        self._lock = WriteLock(path.with_name(f"{path.name}.write-lock"))
        path.touch(mode=0o600)
        self.writer = _engine(path, {}, "BEGIN IMMEDIATE", (*_PRAGMAS, *_WRITER_PRAGMAS), size=1)
        self.readers = _engine(path, {"mode": "ro"}, "BEGIN", _PRAGMAS, size=READERS)
        self._writing = ThreadPoolExecutor(1, "store-writer")
        self._reading = ThreadPoolExecutor(READERS, "store-reader")

    async def all(
        self, query: Executable, values: dict[str, Any] | None = None, *, sites: Iterable[str] | None = None
    ) -> list[RowMapping]:
        """Every row of a query, which names its sites itself: a file has no second wall."""

        def read() -> list[RowMapping]:
            with translated("reading the database"), self.readers.connect() as connection:
                return list(connection.execute(query, values).mappings())

        return await asyncio.get_running_loop().run_in_executor(self._reading, read)

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, sites: Iterable[str] | None = None) -> T:
        """Run `work` in one write transaction; an error in it undoes everything."""

        async def run(statements: Statements) -> T:
            return await work(statements)

        def write() -> T:
            with translated("writing the database"), self._lock(), self.writer.begin() as connection:
                return _driven(run(_Direct(connection)))

        return await asyncio.get_running_loop().run_in_executor(self._writing, write)

    async def prepare(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in the first transaction, before anything else."""

        def first() -> T:
            with translated("opening the database"), self._lock(), self.writer.begin() as connection:
                return act(connection)

        return await asyncio.get_running_loop().run_in_executor(self._writing, first)

    async def close(self) -> None:
        """Close every connection; the last one to close a database checkpoints it, which is writing."""

        def last() -> None:
            self.readers.dispose()
            try:
                with self._lock():
                    self.writer.dispose()
            finally:
                self._lock.close()

        try:
            await asyncio.get_running_loop().run_in_executor(self._writing, last)
        finally:
            self._writing.shutdown(wait=False)
            self._reading.shutdown(wait=False)


def _driven(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine whose every wait is answered at once."""
    try:
        work.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    work.close()
    raise RuntimeError("a transaction waited for something other than its own statements")


def _engine(path: Path, query: dict[str, str], begin: str, pragmas: tuple[str, ...], size: int) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=f"file:{quote(str(path))}", query={"uri": "true", **query}),
        # The driver begins nothing by itself, `_begin` does; a pool's connection serves one thread at a time.
        connect_args={"isolation_level": None, "check_same_thread": False},
        pool_size=size,
        max_overflow=0,
    )

    @event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine
