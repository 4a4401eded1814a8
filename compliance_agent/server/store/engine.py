"""The engines under the store: SQLite with exactly one connection writing at a time, over all processes.

Debian 12's SQLite (3.40.1) can damage a WAL database when two connections write or checkpoint at the same moment (fixed in
3.51.3). So every write transaction, and with it the checkpoint it may cause, happens behind a file lock that the server
and the commands of `compliance-agent server` share. Readers open the file read-only and can do neither.

PostgreSQL needs none of this: `WriteGate` and `sqlite_engines` are the only SQLite code of the store.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, event
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from compliance_agent.errors import StorageError, StorageFull

READERS = 4
WAIT_FOR_LOCK_S = 10.0
_WRITER_PRAGMAS = (
    "PRAGMA page_size = 16384",  # bundles are 2-4 kB: fewer overflow pages, half the cost of a row
    "PRAGMA journal_mode = WAL",
    "PRAGMA synchronous = FULL",  # NORMAL loses promised records in a power cut
    "PRAGMA foreign_keys = ON",
)
_PRAGMAS = ("PRAGMA busy_timeout = 5000", "PRAGMA trusted_schema = OFF", "PRAGMA cell_size_check = ON")


@contextlib.contextmanager
def translated(act: str) -> Iterator[None]:
    """Turn every error of the database into ours; its text, which may quote values, goes no further."""
    try:
        yield
    except DBAPIError as error:
        full = "disk is full" in str(error.orig)
        raise (StorageFull if full else StorageError)(f"{act}: {type(error.orig).__name__}") from error
    except SQLAlchemyError as error:
        raise StorageError(f"{act}: {type(error).__name__}") from error
    except OSError as error:
        raise StorageError(f"{act}: errno {error.errno}") from error


class WriteGate:
    """Lets one writer in at a time: an asyncio lock within this process, a file lock between processes."""

    def __init__(self, path: Path) -> None:
        self._lock = asyncio.Lock()
        self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)

    @contextlib.asynccontextmanager
    async def __call__(self) -> AsyncIterator[None]:
        async with self._lock:
            await self._acquire()
            try:
                yield
            finally:
                fcntl.flock(self._handle, fcntl.LOCK_UN)

    async def _acquire(self) -> None:
        for _ in range(int(WAIT_FOR_LOCK_S * 100)):
            try:
                fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                await asyncio.sleep(0.01)
            else:
                return
        raise StorageError(f"writing: another process has held the write lock for {WAIT_FOR_LOCK_S:.0f} s", code="busy")

    def close(self) -> None:
        """Give the lock file back."""
        os.close(self._handle)


def sqlite_engines(path: Path) -> tuple[AsyncEngine, AsyncEngine]:
    """(writer, readers) for a database file, which need not exist yet; a new one is for this user alone."""
    path.touch(mode=0o600)
    writer = _engine(path, {}, "BEGIN IMMEDIATE", (*_PRAGMAS, *_WRITER_PRAGMAS), size=1)
    readers = _engine(path, {"mode": "ro"}, "BEGIN", _PRAGMAS, size=READERS)
    return writer, readers


def _engine(path: Path, query: dict[str, str], begin: str, pragmas: tuple[str, ...], size: int) -> AsyncEngine:
    engine = create_async_engine(
        URL.create("sqlite+aiosqlite", database=f"file:{quote(str(path))}", query={"uri": "true", **query}),
        connect_args={"isolation_level": None},  # the driver begins nothing by itself; `_begin` does
        pool_size=size,
        max_overflow=0,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def _prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for pragma in pragmas:
            cursor.execute(pragma)
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def _begin(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
