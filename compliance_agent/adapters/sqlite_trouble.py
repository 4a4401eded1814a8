"""What the errors of SQLite mean here: damage, doubt, a full disk; and how they become our own."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from compliance_agent.adapters.durable import storage_error
from compliance_agent.errors import StorageError, StorageFull

DAMAGE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB}
UNSURE = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, *DAMAGE}
NEEDS_WRITER = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}
UNDECODABLE = 0  # text that is not UTF-8: sqlite3 raises an error of its own, without a code of SQLite


def code_of(error: sqlite3.Error) -> int:
    """SQLite's primary result code, 0 where the error is none of its own."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF


def name_of(error: sqlite3.Error) -> str:
    """The code's name, for logs and messages."""
    return str(getattr(error, "sqlite_errorname", None) or "SQLITE_ERROR")


@contextlib.contextmanager
def as_ours(act: str) -> Iterator[None]:
    """Turn what SQLite and the operating system raise into our errors."""
    try:
        yield
    except sqlite3.Error as error:
        kind = StorageFull if code_of(error) == sqlite3.SQLITE_FULL else StorageError
        raise kind(f"{act}: {name_of(error)}") from error
    except OSError as error:
        raise storage_error(error, act) from error
