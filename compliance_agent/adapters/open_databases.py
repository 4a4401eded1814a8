"""The databases that are open in this process, each once, whoever uses it; and a look at one beside the process that has it."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

from compliance_agent.adapters import sqlite_file
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.sqlite_trouble import as_ours
from compliance_agent.errors import NoInput


@contextlib.contextmanager
def read_only(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only looks, for commands beside a running agent. It never writes nor checkpoints.

    Raises:
        NoInput: there is no such database.
        StorageError: it cannot be read.
    """
    if not path.is_file():
        raise NoInput(f"{path}: no database there")
    with as_ours(f"reading {path}"), contextlib.closing(sqlite_file.connect_to_read(path)) as connection:
        yield connection


class _Shared:
    """The databases open in this process, with how many users each has."""

    def __init__(self) -> None:
        self.mutex = threading.Lock()
        self.open: dict[Path, tuple[Database, int]] = {}


_SHARED = _Shared()


def shared(path: Path | str, *, threaded: bool = True, reserve_kb: int = 512) -> Database:
    """The process-wide database of this path, opened by the first user; each user calls `release` once when done.

    Raises:
        StateInUse, ConfigError, StorageError: as `Database`.
    """
    key = Path(path).absolute()
    with _SHARED.mutex:
        database, users = _SHARED.open.get(key, (None, 0))
        if database is None:
            database = Database(key, threaded=threaded, reserve_kb=reserve_kb)
        _SHARED.open[key] = (database, users + 1)
        return database


def release(database: Database) -> None:
    """Give a shared database back; the last user closes it. A database that is not shared is closed at once."""
    key = database.path.absolute()
    with _SHARED.mutex:
        known, users = _SHARED.open.get(key, (None, 0))
        if known is database and users > 1:
            _SHARED.open[key] = (database, users - 1)
            return
        if known is database:
            del _SHARED.open[key]
    database.close()
