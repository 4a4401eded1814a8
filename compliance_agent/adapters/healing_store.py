"""What healing must remember: attempts, rollback points, rejected targets, approvals, contended checks, the pause.

All of it in the agent's one database, each change durable when the method returns. The methods are synchronous;
`StoreJournal` gives the transaction the asynchronous side, on the database's writer thread.

What was captured before a change may hold file content. It stays on this host, in a database only the agent may read, and goes
when its point is closed; after an undo that failed, when that point is pruned.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.open_databases import read_only
from compliance_agent.core.gates import Attempt, Moment
from compliance_agent.core.pausing import Pause
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import DocumentError, NoInput, NotPermitted
from compliance_agent.models import Plan, RemediationResult
from compliance_agent.remedies.ended import decode_result, encode_result
from compliance_agent.remedies.plan import decode, encode
from compliance_agent.remedies.rollback import PointState, RollbackPoint, Stage

T = TypeVar("T")
Row = tuple[Any, ...]

# More than the largest budget and flap limit that a configuration may ask for.
ATTEMPTS_KEPT = 1_000
POINTS_KEPT = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_TABLES = (
    """CREATE TABLE IF NOT EXISTS heal_attempt (
        id INTEGER PRIMARY KEY, point_id TEXT NOT NULL UNIQUE, check_id TEXT NOT NULL, target TEXT NOT NULL,
        wall_us INTEGER NOT NULL, monotonic_us INTEGER NOT NULL, boot_id TEXT NOT NULL,
        outcome TEXT NOT NULL DEFAULT 'open', forgiven INTEGER NOT NULL DEFAULT 0)""",
    "CREATE INDEX IF NOT EXISTS heal_attempt_by_check ON heal_attempt (check_id, id)",
    """CREATE TABLE IF NOT EXISTS heal_point (
        number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, plan TEXT NOT NULL, target TEXT NOT NULL,
        captured TEXT NOT NULL, pre_state TEXT NOT NULL, baseline_sha256 TEXT NOT NULL,
        wall_us INTEGER NOT NULL, monotonic_us INTEGER NOT NULL, boot_id TEXT NOT NULL,
        state TEXT NOT NULL, failure TEXT NOT NULL DEFAULT '', found TEXT NOT NULL DEFAULT '',
        unsaid TEXT)""",
    "CREATE INDEX IF NOT EXISTS heal_point_by_state ON heal_point (state)",
    """CREATE TABLE IF NOT EXISTS heal_step (
        point_id TEXT NOT NULL, step INTEGER NOT NULL, stage TEXT NOT NULL, PRIMARY KEY (point_id, step)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS heal_rejected (
        check_id TEXT NOT NULL, target TEXT NOT NULL, baseline_sha256 TEXT NOT NULL,
        PRIMARY KEY (check_id, target, baseline_sha256)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS heal_approval (
        check_id TEXT NOT NULL, target TEXT NOT NULL,
        wall_us INTEGER NOT NULL, monotonic_us INTEGER NOT NULL, boot_id TEXT NOT NULL,
        PRIMARY KEY (check_id, target)) WITHOUT ROWID""",
    """CREATE TABLE IF NOT EXISTS heal_contended (
        check_id TEXT PRIMARY KEY, wall_us INTEGER NOT NULL, monotonic_us INTEGER NOT NULL, boot_id TEXT NOT NULL)
        WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS heal_flag (name TEXT PRIMARY KEY) WITHOUT ROWID",
    """CREATE TABLE IF NOT EXISTS heal_pause (
        one INTEGER PRIMARY KEY CHECK (one = 1), reason TEXT NOT NULL, uid INTEGER NOT NULL, seconds INTEGER NOT NULL,
        wall_us INTEGER NOT NULL, monotonic_us INTEGER NOT NULL, boot_id TEXT NOT NULL)""",
)
_RECENT = """SELECT check_id, target, wall_us, monotonic_us, boot_id, outcome, forgiven FROM heal_attempt
    WHERE id IN (SELECT id FROM heal_attempt ORDER BY id DESC LIMIT :most)
       OR id IN (SELECT id FROM heal_attempt WHERE check_id = :check ORDER BY id DESC LIMIT :most) ORDER BY id"""
_PRUNE_ATTEMPTS = """DELETE FROM heal_attempt WHERE check_id = :check AND id NOT IN
    (SELECT id FROM heal_attempt WHERE check_id = :check ORDER BY id DESC LIMIT :most)"""
_PRUNE_POINTS = """DELETE FROM heal_point WHERE state NOT IN ('open', 'undoing') AND unsaid IS NULL AND number NOT IN
    (SELECT number FROM heal_point ORDER BY number DESC LIMIT :most)"""
# Only where the former state did not come back may a person still need what was captured of it.
_CLOSE_POINT = """UPDATE heal_point SET state = :state, unsaid = :unsaid,
    captured = CASE WHEN :state = 'undo_failed' THEN captured ELSE '[]' END WHERE id = :id"""
_PRUNE_STEPS = "DELETE FROM heal_step WHERE point_id NOT IN (SELECT id FROM heal_point)"
_OPEN = """SELECT id, plan, target, captured, pre_state, baseline_sha256, wall_us, monotonic_us, boot_id, state, failure, found
    FROM heal_point WHERE state IN ('open', 'undoing') ORDER BY number DESC"""


@dataclass(frozen=True)
class Memory:
    """What is remembered that bears on one drift.

    Attributes:
        history: attempts, oldest first.
        contended_since: when this check's flap breaker tripped.
        paused: an order paused healing.
        pause: a person at this host did; it may be over.
        rejected: this target was rolled back under this baseline.
        approved_at: when a person approved this target.
        interrupted: a rollback point is still open.
    """

    history: tuple[Attempt, ...]
    contended_since: Moment | None
    paused: bool
    pause: Pause | None
    rejected: bool
    approved_at: Moment | None
    interrupted: bool


class HealingStore:
    """The tables of healing in the agent's database. `HealingStore.looking(path)` only looks, beside a running agent."""

    def __init__(self, database: Database | Looking) -> None:
        self._db = database
        self.journal = StoreJournal(self)
        database.migrate("healing", _TABLES)

    @classmethod
    def looking(cls, path: Path) -> HealingStore:
        """What is remembered in the database at `path`, nothing when there is none yet. Every change is refused."""
        return cls(Looking(path))

    async def call(self, fn: Callable[[], T]) -> T:
        """Run one of the methods below on the database's writer thread."""
        return await self._db.call(fn)

    # What the gates ask

    def recall(self, check: str, target: str, baseline_sha256: str) -> Memory:
        """Everything that bears on healing this target of this check now."""

        def look(connection: sqlite3.Connection) -> Memory:
            key = (check, target)
            return Memory(
                history=_history(connection, check),
                contended_since=_moment_of(
                    connection, "SELECT wall_us, monotonic_us, boot_id FROM heal_contended WHERE check_id = ?", (check,)
                ),
                paused=_any(connection, "SELECT 1 FROM heal_flag WHERE name = 'paused'"),
                pause=pause_of(connection),
                rejected=_any(
                    connection,
                    "SELECT 1 FROM heal_rejected WHERE check_id = ? AND target = ? AND baseline_sha256 = ?",
                    (*key, baseline_sha256),
                ),
                approved_at=_moment_of(
                    connection,
                    "SELECT wall_us, monotonic_us, boot_id FROM heal_approval WHERE check_id = ? AND target = ?",
                    key,
                ),
                interrupted=_any(connection, "SELECT 1 FROM heal_point WHERE state IN ('open', 'undoing')"),
            )

        return self._db.read(look)

    def trip(self, check: str, at: Moment) -> None:
        """The check is contended from now on."""
        self._do("INSERT OR REPLACE INTO heal_contended VALUES (?, ?, ?, ?)", (check, *_columns(at)))

    # What people say

    def pause(self) -> None:
        """Heal nothing until `resume`."""
        self._do("INSERT OR IGNORE INTO heal_flag VALUES ('paused')")

    def resume(self) -> None:
        """End the pause."""
        self._do("DELETE FROM heal_flag WHERE name = 'paused'")

    def pause_for(self, pause: Pause) -> None:
        """A person at this host asks for it; it takes the place of one that was asked for before."""
        row = (pause.reason, pause.uid, pause.seconds, *_columns(pause.since))
        self._do("INSERT OR REPLACE INTO heal_pause VALUES (1, ?, ?, ?, ?, ?, ?)", row)

    def end_pause(self) -> None:
        """End what a person at this host asked for."""
        self._do("DELETE FROM heal_pause")

    def pause_here(self) -> Pause | None:
        """What a person at this host asked for; it may be over."""
        return self._db.read(pause_of)

    def paused(self) -> bool:
        """Whether an order paused healing."""
        return self._db.read(lambda connection: _any(connection, "SELECT 1 FROM heal_flag WHERE name = 'paused'"))

    def approve(self, check: str, target: str, at: Moment) -> None:
        """A person approved this plan, once."""
        self._do("INSERT OR REPLACE INTO heal_approval VALUES (?, ?, ?, ?, ?)", (check, target, *_columns(at)))

    def forgive(self, check: str) -> None:
        """A person looked into it: no target of this check is rejected, it is not contended, its cooldown is over."""

        def clear(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM heal_rejected WHERE check_id = ?", (check,))
            connection.execute("DELETE FROM heal_contended WHERE check_id = ?", (check,))
            connection.execute("UPDATE heal_attempt SET forgiven = 1 WHERE check_id = ?", (check,))

        self._db.write(clear)

    # The transaction's journal

    def begin(self, point: RollbackPoint) -> None:
        """Persist a new point with the attempt it stands for; an approval is used up.

        Raises:
            RuntimeError: another point is still open, or what was captured is not JSON.
        """
        captured, pre_state = _json(point.captured), _json(dict(point.pre_state))
        at = _columns(point.created)

        def insert(connection: sqlite3.Connection) -> None:
            if _any(connection, "SELECT 1 FROM heal_point WHERE state IN ('open', 'undoing')"):
                raise RuntimeError("a rollback point is still open: recover first")
            connection.execute(
                "INSERT INTO heal_point (id, plan, target, captured, pre_state, baseline_sha256, wall_us, monotonic_us,"
                " boot_id, found, state) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 'open')",
                (
                    point.id,
                    encode(point.plan),
                    point.target,
                    captured,
                    pre_state,
                    point.baseline_sha256,
                    *at,
                    point.found,
                ),
            )
            stages = point.stages or ("pending",) * len(point.plan.steps)
            rows = [(point.id, number, stage) for number, stage in enumerate(stages)]
            connection.executemany("INSERT INTO heal_step VALUES (?, ?, ?)", rows)
            connection.execute(
                "INSERT INTO heal_attempt (point_id, check_id, target, wall_us, monotonic_us, boot_id)"
                " VALUES (?, ?, ?, ?, ?, ?)",
                (point.id, point.check, point.target, *at),
            )
            connection.execute(
                "DELETE FROM heal_approval WHERE check_id = ? AND target = ?", (point.check, point.target)
            )
            _prune(connection, point.check)

        self._db.write(insert)

    def mark(self, point_id: str, step: int, stage: Stage) -> None:
        """One step came to this stage. "Done" is durable with what comes next, be it the end: until then it is "started"."""
        write = self._db.write_lazily if stage == "done" else self._db.write
        statement, values = "UPDATE heal_step SET stage = ? WHERE point_id = ? AND step = ?", (stage, point_id, step)
        write(lambda connection: connection.execute(statement, values).close())

    def undoing(self, point_id: str, failure: str) -> None:
        """The cure is being taken back."""
        self._do("UPDATE heal_point SET state = 'undoing', failure = ? WHERE id = ?", (failure, point_id))

    def close(self, point: RollbackPoint, state: PointState, result: RemediationResult, *, reject: bool) -> None:
        """The point is done with, and so is its attempt. How it ended is kept until it was `said`.

        A cure that is kept is so durably with the next write, which is its record: until then the power may take that back, and
        the point is open again, from which the next start looks and records.
        """
        unsaid = encode_result(result)

        def update(connection: sqlite3.Connection) -> None:
            connection.execute(_CLOSE_POINT, {"state": state, "id": point.id, "unsaid": unsaid})
            connection.execute(
                "UPDATE heal_attempt SET outcome = ? WHERE point_id = ?", (str(result.outcome), point.id)
            )
            if reject:
                connection.execute(
                    "INSERT OR IGNORE INTO heal_rejected VALUES (?, ?, ?)",
                    (point.check, point.target, point.baseline_sha256),
                )

        write = self._db.write_lazily if state == "kept" else self._db.write
        write(update)

    def open_points(self) -> tuple[RollbackPoint, ...]:
        """Points of cures that were cut off, newest first. One that cannot be read comes without steps."""

        def look(connection: sqlite3.Connection) -> tuple[RollbackPoint, ...]:
            return tuple(_point(connection, row) for row in connection.execute(_OPEN).fetchall())

        return self._db.read(look)

    def said(self, point_id: str) -> None:
        """Evidence says how this cure ended."""
        self._do("UPDATE heal_point SET unsaid = NULL WHERE id = ?", (point_id,))

    def unsaid(self) -> tuple[RemediationResult, ...]:
        """Cures that ended and that no evidence tells of yet, oldest first."""
        statement = "SELECT unsaid FROM heal_point WHERE unsaid IS NOT NULL ORDER BY number"
        rows = self._db.read(lambda connection: connection.execute(statement).fetchall())
        return tuple(decode_result(text) for (text,) in rows)

    def _do(self, statement: str, values: Row = ()) -> None:
        self._db.write(lambda connection: connection.execute(statement, values).close())


class Looking:
    """In place of a `Database`, for commands that only look."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn(connection)` on the database, or on an empty one where healing has nothing to remember yet.

        Raises:
            NotPermitted: this user may not look.
            StorageError: it cannot be read.
        """
        try:
            with read_only(self._path) as connection:
                if _any(connection, "SELECT 1 FROM sqlite_master WHERE name = 'heal_flag'"):
                    return fn(connection)
        except NoInput:
            pass
        except PermissionError as error:
            raise NotPermitted("the agent's state: no permission to read") from error
        with contextlib.closing(sqlite3.connect(":memory:")) as empty:
            for statement in _TABLES:
                empty.execute(statement)
            return fn(empty)

    def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Refused.

        Raises:
            NotPermitted: always.
        """
        raise NotPermitted("this command only looks")

    write_lazily = write

    async def call(self, fn: Callable[[], T]) -> T:
        """Run `fn()` here."""
        return fn()

    def migrate(self, name: str, statements: Sequence[str]) -> None:
        """Nothing: tables are made by the agent."""


class StoreJournal:
    """`remedies.rollback.Journal` over a store: the same methods, awaited."""

    def __init__(self, store: HealingStore) -> None:
        self._store = store

    async def begin(self, point: RollbackPoint) -> None:
        await self._store.call(lambda: self._store.begin(point))

    async def mark(self, point_id: str, step: int, stage: Stage) -> None:
        await self._store.call(lambda: self._store.mark(point_id, step, stage))

    async def undoing(self, point_id: str, failure: str) -> None:
        await self._store.call(lambda: self._store.undoing(point_id, failure))

    async def close(self, point: RollbackPoint, state: PointState, result: RemediationResult, *, reject: bool) -> None:
        await self._store.call(lambda: self._store.close(point, state, result, reject=reject))


def _any(connection: sqlite3.Connection, statement: str, values: Row = ()) -> bool:
    return connection.execute(statement, values).fetchone() is not None


def _moment_of(connection: sqlite3.Connection, statement: str, values: Row) -> Moment | None:
    row = connection.execute(statement, values).fetchone()
    return _moment(*row) if row else None


def pause_of(connection: sqlite3.Connection) -> Pause | None:
    """What a person at this host asked for last, in a state of this version or an older one."""
    if not _any(connection, "SELECT 1 FROM sqlite_master WHERE name = 'heal_pause'"):
        return None
    row = connection.execute("SELECT reason, uid, seconds, wall_us, monotonic_us, boot_id FROM heal_pause").fetchone()
    return Pause(row[0], row[1], _moment(*row[3:]), row[2]) if row else None


def _history(connection: sqlite3.Connection, check: str) -> tuple[Attempt, ...]:
    rows = connection.execute(_RECENT, {"check": check, "most": ATTEMPTS_KEPT}).fetchall()
    return tuple(
        Attempt(name, target, _moment(wall, monotonic, boot), outcome, bool(forgiven))
        for name, target, wall, monotonic, boot, outcome, forgiven in rows
    )


def _prune(connection: sqlite3.Connection, check: str) -> None:
    connection.execute(_PRUNE_ATTEMPTS, {"check": check, "most": ATTEMPTS_KEPT})
    connection.execute(_PRUNE_POINTS, {"most": POINTS_KEPT})
    connection.execute(_PRUNE_STEPS)


def _point(connection: sqlite3.Connection, row: Row) -> RollbackPoint:
    """A stored point. One that cannot be read comes without steps: there is nothing it could undo."""
    point_id, plan, target, captured, pre_state, sha256, wall, monotonic, boot, state, failure, found = row
    try:
        decoded = decode(plan)
        before, facts = json.loads(captured), json.loads(pre_state)
        if not isinstance(before, list) or not isinstance(facts, dict) or len(before) != len(decoded.steps):
            raise DocumentError("a stored rollback point does not fit its plan", code="not_a_point")
    except (DocumentError, ValueError):
        decoded, before, facts = Plan(_check_of(connection, point_id), ()), [], {}
    return RollbackPoint(
        id=point_id,
        plan=decoded,
        target=target,
        captured=tuple(before),
        pre_state=facts,
        baseline_sha256=sha256,
        created=_moment(wall, monotonic, boot),
        stages=_stages(connection, point_id, len(decoded.steps)),
        state=state,
        failure=failure,
        found=found,
    )


def _stages(connection: sqlite3.Connection, point_id: str, steps: int) -> tuple[Stage, ...]:
    rows = connection.execute("SELECT stage FROM heal_step WHERE point_id = ? ORDER BY step", (point_id,)).fetchall()
    if len(rows) == steps:
        return tuple(stage for (stage,) in rows)
    return tuple("started" for _ in range(steps))  # a damaged database lost some: undoing too much is harmless


def _check_of(connection: sqlite3.Connection, point_id: str) -> str:
    row = connection.execute("SELECT check_id FROM heal_attempt WHERE point_id = ?", (point_id,)).fetchone()
    return str(row[0]) if row else ""


def _json(value: Any) -> str:
    try:
        return json.dumps(value, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise RuntimeError("an action's `capture` must return plain JSON") from error


def _columns(at: Moment) -> tuple[int, int, str]:
    return (at.wall - _EPOCH) // timedelta(microseconds=1), int(at.monotonic_s * 1_000_000), at.boot_id


def _moment(wall_us: int, monotonic_us: int, boot_id: str) -> Moment:
    return Moment(_EPOCH + timedelta(microseconds=wall_us), monotonic_us / 1_000_000, boot_id)
