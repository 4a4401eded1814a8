"""The agent's one SQLite database: what `write` returned from is on the disk, whatever happens next.

Rules it keeps:
  - exactly one connection in one process writes and checkpoints (SQLite up to 3.51.2 may corrupt a WAL otherwise); an
    flock keeps a second process out, `read_only` serves commands that look while the agent runs;
  - WAL with `synchronous=FULL`: one fdatasync for each transaction, before it is promised;
  - after an I/O error nothing is believed that was not durable before: close, re-open, move the WAL's frames into the
    database (whose pages are then written and synced anew), check, and only then go on;
  - a database that reads as malformed is read again twice (a transient read error looks the same), then moved aside,
    never deleted; its undamaged rows are carried over, and `damage` says so until the chain's owner has dealt with it;
  - a reserve file keeps room for the writes that free space (`drains=True`) when the disk is full.

Stores own their tables and make them with `migrate`. `write(fn)` and `read(fn)` are synchronous and give `fn` the
connection; `await call(fn)` runs a function without arguments on the one writer thread:

    db = shared(state_dir / "agent.db")  # open_databases.py
    db.migrate("queue", ["CREATE TABLE IF NOT EXISTS ..."])
    row_id = await db.call(lambda: db.write(insert))      # insert(connection) -> row_id
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import structlog

from compliance_agent.adapters import sqlite_file
from compliance_agent.adapters.durable import fsync_directory, make_directory, write_file
from compliance_agent.adapters.reserve import Reserve
from compliance_agent.adapters.sqlite_trouble import (
    DAMAGE,
    NEEDS_WRITER,
    UNDECODABLE,
    UNSURE,
    as_ours,
    code_of,
    name_of,
)
from compliance_agent.adapters.state_lock import taken
from compliance_agent.adapters.writer_thread import WriterThread
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import ConfigError, StorageDamaged, StorageError, StorageFull

T = TypeVar("T")

SCHEMA_VERSION = 1
_ID = re.compile(r"[0-9a-f]{32}")

CLOSE_TIMEOUT_S = 10.0

log = structlog.get_logger()


@dataclass(frozen=True)
class Damage:
    """What happened to a database that had to be moved aside.

    Attributes:
        reason: malformed | empty | missing | replaced.
        rows_saved: rows carried over into the new database so far; each table's when its store asks for the table.
        moved_to: name of the damaged file beside the new one, empty when there was none.
    """

    reason: str
    rows_saved: int
    moved_to: str

    def as_text(self) -> str:
        """One line that `from_text` reads back."""
        return f"{self.reason} {self.rows_saved} {self.moved_to}"

    @classmethod
    def from_text(cls, text: str) -> Damage:
        """The value that `as_text` wrote."""
        reason, rows, moved_to = (*text.split(" ", 2), "", "")[:3]
        return cls(reason, int(rows) if rows.isdigit() else 0, moved_to)


class Database:
    """One database file and its one writing connection.

    Args:
        path: the file; its directory is made (0700) when absent and holds the lock and the reserve.
        threaded: `call` uses a writer thread; False runs everything where it is called (crash driver, tests).
        reserve_kb: size of the reserve file; 0 for none.

    Raises:
        StateInUse: another process (or another `Database`) has this state open.
        ConfigError: a newer version of the product wrote it.
        StorageError: it cannot be opened; nothing was changed.
    """

    synchronous = "FULL"

    def __init__(self, path: Path | str, *, threaded: bool = True, reserve_kb: int = 512) -> None:
        self.path = Path(path)
        self.directory = self.path.parent
        self.damage: Damage | None = None
        self._thread = WriterThread("database") if threaded else None
        self.reserve = Reserve(self.directory, reserve_kb * 1024)
        self._mutex = threading.RLock()
        self._inside = False
        self._closed = False
        self._migrations: dict[str, tuple[str, ...]] = {}
        self._id = ""  # of the database that is open, held against its file when it was opened
        self._salvage_from = ""  # a damaged file that tables still to be made here take their rows from
        self._connection: sqlite3.Connection | None = None
        make_directory(self.directory)
        self._lock_handle = taken(self.directory / "lock")
        try:
            with as_ours("opening the database"):
                self._open_first()
        except BaseException:
            self.close()
            raise

    # Use

    def write(self, fn: Callable[[sqlite3.Connection], T], *, drains: bool = False) -> T:
        """Run `fn(connection)` in a transaction; what it wrote is durable when this returns.

        Args:
            fn: does the reading and writing; an exception rolls everything back and travels on.
            drains: it frees space or lets space be freed (acks, deletions), so it may use the reserve.

        Raises:
            StorageFull: no room; nothing was promised.
            StorageDamaged: the database was moved aside just now; try again on the new one.
            StorageError: any other failure; nothing was promised, though the rows may turn out to be there.
        """
        with self._mutex:
            self._begin_use()
            if self.reserve.spent and not drains:
                self.reserve.refill()
            try:
                return self._transaction(fn)
            except sqlite3.Error as error:
                trouble = self._recover(error, "writing")
                if not (drains and isinstance(trouble, StorageFull)):
                    self.reserve.keep_what_is_left()
                    raise trouble from error
            value = self._drain_again(fn)
            self.reserve.keep_what_is_left()
            return value

    def write_lazily(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """As `write`, and durable only with the next write; safe from the end of this process at once. For counts.

        Raises:
            StorageError: as `write`.
        """
        with self._mutex:
            self._begin_use()
            self._live().execute(
                "PRAGMA synchronous = NORMAL"
            )  # the WAL is written, and synced with what comes after it
            try:
                return self.write(fn)
            finally:
                if self._connection is not None:
                    self._connection.execute(f"PRAGMA synchronous = {self.synchronous}")

    def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn(connection)`, which only looks.

        Raises:
            StorageError: as `write`.
        """
        with self._mutex:
            if self._inside:
                raise RuntimeError("read inside write: use the connection that fn was given")
            self._begin_use()
            try:
                return fn(self._live())
            except sqlite3.Error as error:
                raise self._recover(error, "reading") from error

    async def call(self, fn: Callable[[], T]) -> T:
        """Run `fn()` on the one writer thread, in the order of the calls (or here, when not threaded).

        A cancelled caller leaves the function running: a transaction is finished, never torn.
        """
        return fn() if self._thread is None else await self._thread.call(fn)

    def migrate(self, name: str, statements: Sequence[str]) -> None:
        """Bring a store's tables to their present form. Statements already applied under this name are not run again.

        Args:
            name: of the store.
            statements: append-only list of SQL statements; later versions add to its end.

        Raises:
            ConfigError: more statements were applied than are known here: a newer version wrote the database.
        """
        with self._mutex:
            self._migrations[name] = tuple(statements)
            # Nothing to do is the usual case, and must not need room on a full disk.
            if self.read(lambda connection: sqlite_file.steps_applied(connection, name)) != len(statements):
                self.write(lambda connection: self._migrate(connection, name, statements))

    def settle_damage(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` as `write` does and forget `damage` with it: for the chain's owner, who deals with the loss there."""

        def settle(connection: sqlite3.Connection) -> T:
            connection.execute("DELETE FROM meta WHERE key = 'damage'")
            return fn(connection)

        value = self.write(settle)
        self.damage = None
        return value

    @property
    def full(self) -> bool:
        """The reserve is spent: only writes that drain are taken until there is room again."""
        return self.reserve.spent

    def close(self) -> None:
        """Finish what was begun, checkpoint and let the state go. Safe to call twice."""
        if self._thread is not None:
            self._thread.close(CLOSE_TIMEOUT_S)
        if not self._mutex.acquire(timeout=CLOSE_TIMEOUT_S):
            log.error("storage.abandoned")  # a call hangs in the kernel; the process must be able to end
            return
        try:
            self._closed = True
            self._disconnect()
            if self._lock_handle >= 0:
                os.close(self._lock_handle)
                self._lock_handle = -1
        finally:
            self._mutex.release()

    def _migrate(self, connection: sqlite3.Connection, name: str, statements: Sequence[str]) -> None:
        """Apply what is new. Tables that a loss emptied get their readable rows back, in this same transaction."""
        before = sqlite_file.schema(connection)
        sqlite_file.apply_steps(connection, name, statements)
        after = sqlite_file.schema(connection)
        if after != before:
            sqlite_file.remember(connection, "schema", json.dumps(after, sort_keys=True))
        if not self._salvage_from:
            return
        ours = {"table meta", "table migrations"}
        new = [
            entry.split(" ", 1)[1] for entry in after if entry.startswith("table ") and entry not in {*before, *ours}
        ]
        saved = sqlite_file.salvage(self.directory / self._salvage_from, connection, new)
        if saved and self.damage is not None:
            self.damage = replace(self.damage, rows_saved=self.damage.rows_saved + saved)
            sqlite_file.remember(connection, "damage", self.damage.as_text())
        if saved:
            log.warning("storage.rows_saved", table_group=name, rows=saved)

    # Transactions and trouble

    def _begin_use(self) -> None:
        if self._closed:
            raise StorageError("database is closed", code="storage_closed")
        if self._inside:
            raise RuntimeError("a transaction inside a transaction")
        if self._connection is None:
            with as_ours("re-opening the database"):
                self._open_verified()

    def _live(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StorageError("database is not open")
        return self._connection

    def _transaction(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        connection = self._live()
        self._inside = True
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                value = fn(connection)
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise
        finally:
            self._inside = False
        return value

    def _drain_again(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        self._begin_use()
        try:
            value = self._transaction(fn)
            # The WAL's blocks are ours already; starting it over keeps a drain from needing new ones.
            self._live().execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
        except sqlite3.Error as error:
            raise self._recover(error, "writing with the reserve") from error
        return value

    def _recover(self, error: sqlite3.Error, act: str) -> StorageError:
        """Bring the database back to a state that can be trusted, and say what the error means to the caller."""
        code = code_of(error)
        if isinstance(error, sqlite3.IntegrityError | sqlite3.ProgrammingError | sqlite3.InterfaceError):
            raise error  # a bug of the caller, not of the disk
        full = code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and self.reserve.no_room())
        log.error("storage.failed", act=act, code=name_of(error), full=full)
        if full:
            self.reserve.spend()
        if full and self._checkpoint("RESTART"):
            return StorageFull(f"{act} the database: no room ({name_of(error)})")
        if code not in UNSURE and not full:
            return StorageError(f"{act} the database: {name_of(error)}")
        damaged_before = self.damage
        try:
            with as_ours("re-opening the database"):
                self._open_verified()
        except StorageError as failure:
            self._disconnect()
            return StorageFull(str(failure)) if full else failure
        if self.damage is not damaged_before:
            return StorageDamaged("the database was damaged and moved aside; undamaged rows were kept")
        if full:
            return StorageFull(f"{act} the database: no room ({name_of(error)})")
        return StorageError(f"{act} the database: {name_of(error)}")

    def _checkpoint(self, kind: str) -> bool:
        try:
            row = self._live().execute(f"PRAGMA wal_checkpoint({kind})").fetchone()
        except (sqlite3.Error, StorageError):
            return False
        return row is not None and row[0] == 0

    # Opening

    def _open_first(self) -> None:
        interrupted = self.path.with_name(self.path.name + ".new")
        if not self.path.exists() and interrupted.exists():
            interrupted.rename(self.path)  # the damaged file was moved, the new one not yet: it is complete
        interrupted.unlink(missing_ok=True)
        try:
            self._open_verified()
        except (sqlite3.OperationalError, OSError) as error:
            if not self.reserve.path.exists() or not self.reserve.no_room():
                raise
            log.warning("storage.failed", act="opening", code=type(error).__name__, full=True)
            self.reserve.spend()
            self._open_verified()
        if not self.reserve.spent and not self.reserve.whole():
            with contextlib.suppress(StorageFull):
                self.reserve.refill()

    def _open_verified(self) -> None:
        """Look three times before believing in damage, then open for writing."""
        self._disconnect()
        reason = self._missing_reason() or self._damage_seen()
        if reason is not None:
            self._set_aside(reason)
        self._connection = sqlite_file.connect(self.path, self.synchronous)
        # Frames that were written but whose fdatasync failed are in the page cache only: write them anew, elsewhere.
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        self._identify(self._connection)

    def _damage_seen(self) -> str | None:
        """`malformed` when three looks say so. They only look: a damaged file is kept exactly as it is."""
        for _attempt in range(3):
            try:
                if not self.path.exists() or self._looks_sound():
                    return None
            except sqlite3.DatabaseError as error:
                if code_of(error) not in {*DAMAGE, UNDECODABLE}:
                    raise
        return "malformed"

    def _looks_sound(self) -> bool:
        try:
            with contextlib.closing(sqlite_file.connect_to_read(self.path)) as connection:
                return self._is_sound(connection)
        except sqlite3.OperationalError as error:
            if code_of(error) not in NEEDS_WRITER:
                raise
        # Stopped while it was being created: its rollback journal must be played back first.
        with contextlib.closing(sqlite_file.connect(self.path, self.synchronous)) as connection:
            return self._is_sound(connection)

    def _missing_reason(self) -> str | None:
        """Why the file cannot be the one this state had, before SQLite touches it (an empty one would lose its WAL)."""
        if self._expected_id() is None:
            return None
        if not self.path.exists():
            return "missing"
        return "empty" if self.path.stat().st_size == 0 else None

    def _is_sound(self, connection: sqlite3.Connection) -> bool:
        version = int(connection.execute("PRAGMA user_version").fetchone()[0])
        if version not in {0, SCHEMA_VERSION} and sqlite_file.made_by(connection) != version:
            return False  # both places are written together, so one of them is damaged
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"state {self.path}: schema version {version} is newer than {SCHEMA_VERSION}",
                code="newer_schema",
                hint="install the version that wrote it, or a later one",
            )
        try:
            if [row[0] for row in connection.execute("PRAGMA quick_check(1)")] != ["ok"]:
                return False
        except UnicodeDecodeError:  # what it found names things by damaged bytes
            return False
        return sqlite_file.schema_is_as_made(connection)

    def _identify(self, connection: sqlite3.Connection) -> None:
        """Make sure this is the database that this state directory has always had."""
        connection.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
        connection.execute("INSERT OR IGNORE INTO meta VALUES ('id', ?)", (uuid.uuid4().hex,))
        if connection.execute("PRAGMA user_version").fetchone()[0] != SCHEMA_VERSION:
            sqlite_file.remember(connection, "schema_version", str(SCHEMA_VERSION))
            connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        found = dict(
            connection.execute("SELECT key, value FROM meta WHERE key IN ('id', 'damage', 'salvage_from')").fetchall()
        )
        expected = self._expected_id()
        if expected is None:
            write_file(self._id_file, found["id"].encode())
        elif expected != found["id"]:
            self._set_aside("replaced")
            self._connection = sqlite_file.connect(self.path, self.synchronous)
            self._identify(self._connection)
            return
        self._id = found["id"]
        self.damage = Damage.from_text(found["damage"]) if "damage" in found else None
        self._salvage_from = found.get("salvage_from", "")
        for name, statements in self._migrations.items():
            connection.execute("BEGIN IMMEDIATE")
            self._migrate(connection, name, statements)
            connection.execute("COMMIT")

    @property
    def id(self) -> str:
        """The random id that this state directory's database has had from its first start."""
        return self._id

    def disown(self) -> None:
        """Put a database aside that a store found to hold another one's pages; `damage` is set, and the stores start anew.

        Raises:
            StorageError: it could not be put aside.
        """
        with self._mutex, as_ours("putting the database aside"):
            self._set_aside("replaced")
            self._open_verified()

    @property
    def _id_file(self) -> Path:
        return self.path.with_name(self.path.name + ".id")

    def _expected_id(self) -> str | None:
        try:
            text = self._id_file.read_text("ascii", "replace")
        except FileNotFoundError:
            return None
        return text if _ID.fullmatch(text) else None

    def _set_aside(self, reason: str) -> None:
        """Move the damaged file away, with its WAL, and put a new one with the undamaged rows in its place."""
        self._disconnect()
        fresh = self.path.with_name(self.path.name + ".new")
        fresh.unlink(missing_ok=True)
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        aside = self.path.with_name(f"{self.path.name}.damaged-{stamp}")
        while aside.exists():
            aside = aside.with_name(f"{aside.name}x")
        with contextlib.closing(sqlite_file.connect(fresh, self.synchronous)) as connection:
            connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT")
            damage = Damage(reason, 0, aside.name if self.path.exists() else "")
            values = {"id": self._expected_id() or uuid.uuid4().hex, "damage": damage.as_text()}
            if reason == "malformed":
                values["salvage_from"] = aside.name
            connection.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
        for suffix in ("-wal", "-shm", ""):
            with contextlib.suppress(FileNotFoundError):
                self.path.with_name(self.path.name + suffix).rename(aside.with_name(aside.name + suffix))
        fsync_directory(self.directory)
        fresh.rename(self.path)
        fsync_directory(self.directory)
        log.error("storage.damaged", reason=reason, moved_to=damage.moved_to)

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(sqlite3.Error):
                self._connection.close()
            self._connection = None
