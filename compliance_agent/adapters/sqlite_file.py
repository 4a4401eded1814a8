"""The parts of the database that need no state: opening a connection, what it should hold, what can still be read.

`database` owns the one connection that writes; everything here works on a connection it is given.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import fsync_directory
from compliance_agent.errors import ConfigError

# Small, so that a checkpoint on a full disk needs less room than the reserve file gives back.
CHECKPOINT_PAGES = 50
CACHE_KIB = 512  # a quarter of SQLite's own; the kernel has the file's pages besides
SALVAGE_LOOKUPS = 200_000


def connect(path: Path, synchronous: str) -> sqlite3.Connection:
    """The connection that writes, with every setting that durability rests on; the file is made (0600) when absent."""
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        fsync_directory(path.parent)
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in (
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "foreign_keys = ON",
            "temp_store = MEMORY",
            "secure_delete = ON",  # what a rollback point held of the host is gone from the file, too
            "journal_mode = WAL",
            f"synchronous = {synchronous}",
            f"wal_autocheckpoint = {CHECKPOINT_PAGES}",
            f"cache_size = -{CACHE_KIB}",
        ):
            connection.execute(f"PRAGMA {pragma}").fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def connect_to_read(path: Path) -> sqlite3.Connection:
    """A connection that changes neither the database nor its WAL, not even when it is closed last."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        connection.execute("PRAGMA cell_size_check = ON")
    except BaseException:
        connection.close()
        raise
    return connection


def steps_applied(connection: sqlite3.Connection, name: str) -> int:
    """How many of a store's statements were run on this database."""
    try:
        row = connection.execute("SELECT applied FROM migrations WHERE name = ?", (name,)).fetchone()
    except sqlite3.OperationalError:  # no such table yet
        return 0
    return int(row[0]) if row else 0


def apply_steps(connection: sqlite3.Connection, name: str, statements: Sequence[str]) -> None:
    """Run those of a store's statements that were not run before, and count them.

    Raises:
        ConfigError: more were run than are known here.
    """
    connection.execute("CREATE TABLE IF NOT EXISTS migrations (name TEXT PRIMARY KEY, applied INTEGER NOT NULL) STRICT")
    applied = steps_applied(connection, name)
    if applied > len(statements):
        raise ConfigError(
            f"state: table group {name} is at step {applied}, this version knows {len(statements)}",
            code="newer_schema",
            hint="install the version that wrote it, or a later one",
        )
    for statement in statements[applied:]:
        connection.execute(statement)
    if applied != len(statements):
        connection.execute("INSERT OR REPLACE INTO migrations VALUES (?, ?)", (name, len(statements)))


def remember(connection: sqlite3.Connection, key: str, value: str) -> None:
    """Keep one word about the database itself."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def made_by(connection: sqlite3.Connection) -> int | None:
    """The schema version that wrote this database, as its own table says."""
    try:
        row = connection.execute("SELECT value FROM meta WHERE key = 'schema_version'").fetchone()
        return int(row[0]) if row else None
    except (sqlite3.OperationalError, ValueError):
        return None


def schema(connection: sqlite3.Connection) -> dict[str, str]:
    """Every table and index with the digest of its text."""
    rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {f"{kind} {name}": hashlib.sha256(str(sql).encode()).hexdigest() for kind, name, sql in rows}


def schema_is_as_made(connection: sqlite3.Connection) -> bool:
    """Whether every table still has the text it was made with; one flipped bit there passes `quick_check`."""
    present = schema(connection)
    if "table meta" not in present:
        return True  # stopped while it was being created
    row = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    try:
        made: dict[str, str] = json.loads(row[0]) if row else {}
    except ValueError:
        return False
    return all(present.get(entry) == sql for entry, sql in made.items())


def salvage(damaged: Path, into: sqlite3.Connection, tables: Sequence[str]) -> int:
    """Copy every row of these tables that can still be read; returns how many. Their owners judge the content."""
    saved = 0
    try:
        with contextlib.closing(connect_to_read(damaged)) as source:
            for table in tables:
                with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
                    saved += _salvage_table(source, into, table)
    except (sqlite3.Error, UnicodeDecodeError):
        pass
    return saved


def _salvage_table(source: sqlite3.Connection, into: sqlite3.Connection, table: str) -> int:
    quoted = '"' + table.replace('"', '""') + '"'
    saved = 0
    for row in _readable_rows(source, quoted):
        places = ", ".join("?" * len(row))
        with contextlib.suppress(sqlite3.Error):
            cursor = into.execute(f"INSERT OR IGNORE INTO {quoted} VALUES ({places})", row)  # noqa: S608  quoted name
            saved += cursor.rowcount
    return saved


def _readable_rows(source: sqlite3.Connection, quoted: str) -> Iterator[tuple[Any, ...]]:
    """Rows in order up to the first damage, then each later rowid on its own."""
    last = 0
    try:
        for rowid, *row in source.execute(f"SELECT rowid, * FROM {quoted} ORDER BY rowid"):  # noqa: S608  quoted name
            last = rowid
            yield tuple(row)
        return
    except (sqlite3.Error, UnicodeDecodeError):
        pass
    highest = last + 1_000
    with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):  # sqlite's own words may hold damaged bytes
        found = source.execute(f"SELECT max(rowid) FROM {quoted}").fetchone()[0]  # noqa: S608  quoted name
        highest = max(last, int(found or 0))
    for rowid in range(last + 1, min(highest, last + SALVAGE_LOOKUPS) + 1):
        with contextlib.suppress(sqlite3.Error, UnicodeDecodeError):
            row = source.execute(f"SELECT * FROM {quoted} WHERE rowid = ?", (rowid,)).fetchone()  # noqa: S608  quoted name
            if row is not None:
                yield tuple(row)
