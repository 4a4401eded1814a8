"""A copy of a SQLite database that is being written, as it is at one moment (SQLite's own online backup).

The copy is made inside one read transaction on a read-only connection: writers go on, and what they write meanwhile is not in it.
The write-ahead log cannot be cut until the copy is whole; it grows by what is written meanwhile.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from compliance_agent.errors import StorageError, StorageFull

PAGES = 256  # between two words of progress


def copy_database(source: Path, target: Path, told: Callable[[int], None] | None = None) -> None:
    """Copy `source` into the new file `target`; `told` hears how many pages are done.

    Raises:
        StorageError: the copy is not whole.
    """

    def progress(_status: int, remaining: int, total: int) -> None:
        if told is not None:
            told(total - remaining)

    target.touch(mode=0o600, exist_ok=False)
    try:
        with (
            contextlib.closing(sqlite3.connect(f"file:{quote(str(source))}?mode=ro", uri=True)) as live,
            contextlib.closing(sqlite3.connect(target)) as copy,
        ):
            live.execute("BEGIN")
            live.execute("SELECT count(*) FROM sqlite_master").fetchone()  # the moment that is copied
            live.backup(copy, pages=PAGES, progress=progress)
    except sqlite3.Error as error:
        full = "disk is full" in str(error)
        raise (StorageFull if full else StorageError)(f"copying {source}: {type(error).__name__}") from error
