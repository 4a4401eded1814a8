"""Recorded bundles that the server has not acknowledged, in chain order, with one back-off for the whole line.

A row is pending from the moment it is recorded, in the same transaction; `enqueue` after `store_evidence` finds it there.
It leaves the line only by `mark_uploaded`, which the caller uses after the server's signed answer named this very bundle,
and even then the row is kept. First in, first out: the server wants the chain in order, so while the oldest is waiting
nothing is ready. Nothing is ever given up; `failed` counts what has been tried often and is still tried.
"""

from __future__ import annotations

import functools
import random
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import structlog

from compliance_agent import crypto
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.open_databases import release, shared
from compliance_agent.core.schedule import backoff_s
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence, NoInput, StorageError, StorageFull
from compliance_agent.evidence import directory, recovery, table
from compliance_agent.models import QueuedEvidence

if TYPE_CHECKING:
    from compliance_agent.ports import Clock

T = TypeVar("T")
BACKOFF_BASE_S = 5.0
BACKOFF_CAP_S = 900.0
LONGEST_WAIT_S = 3_600.0  # what a server may ask for, and the longest wait taken over from before a restart
_CODE_LENGTH = 40

log = structlog.get_logger()


@dataclass(frozen=True)
class Gap:
    """Numbers of this host's chain that no sound row has: `first` to `last` of one epoch, both included."""

    epoch: int
    first: int
    last: int


class OfflineQueue:
    """The line of pending bundles of one agent.

    Args:
        db_path: the agent's database; opened by the first user in this process.
        evidence_dir: root of the evidence directories; `evidence` beside the database when not given.
        clock: for attempts and waits; the system's when not given.
        max_retries: attempts after which a bundle counts as `failed`, and is still tried.
        rng: source of the jitter.
        database: an open database instead of `db_path`'s shared one.

    Raises:
        StateInUse, StorageError: the database cannot be opened.
    """

    def __init__(
        self,
        db_path: Path | str,
        *,
        evidence_dir: Path | str | None = None,
        clock: Clock | None = None,
        max_retries: int = 10,
        rng: random.Random | None = None,
        database: Database | None = None,
    ) -> None:
        self.database = database if database is not None else shared(db_path)
        self._owned = database is None
        self.evidence_dir = Path(evidence_dir) if evidence_dir else self.database.directory / "evidence"
        self.max_retries = max_retries
        self._clock = clock if clock is not None else _system_clock()
        self._rng = rng if rng is not None else random.Random()  # noqa: S311  jitter needs no secrecy
        self._ready_at = 0.0  # monotonic
        self._directories_fail = False  # said once, not for each bundle of each turn
        self.database.migrate(table.NAME, table.STATEMENTS)
        self.database.migrate(table.TRACES, table.TRACES_STATEMENTS)
        self._restore_wait()

    def close(self) -> None:
        """Give the database back."""
        if self._owned:
            self._owned = False
            release(self.database)

    async def _write(self, fn: Callable[[sqlite3.Connection], T], *, drains: bool = False) -> T:
        return await self.database.call(lambda: self.database.write(fn, drains=drains))

    async def _read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        return await self.database.call(lambda: self.database.read(fn))

    # In

    async def enqueue(self, bundle_id: str, bundle_path: Path | str, signature_path: Path | str) -> int:
        """The id of this bundle's place in the line; durable when it returns.

        A bundle that was recorded here is there already. Any other is taken in by the bytes of its two files.

        Raises:
            NoInput: it is not recorded here, and its files cannot be read.
            BadEvidence: another bundle has its place in the chain.
            StorageError: nothing was promised.
        """
        existing = await self._read(lambda connection: _id_of(connection, str(bundle_id)))
        if existing is not None:
            return existing
        paths = (_absolute(bundle_path), _absolute(signature_path))
        return await self.database.call(lambda: self._take_in(str(bundle_id), paths))

    def _take_in(self, bundle_id: str, paths: tuple[Path, Path]) -> int:
        content = directory.read(*paths)
        if content is None:
            raise NoInput("bundle to enqueue: its two files cannot be read")
        return self.database.write(lambda connection: self._insert(connection, bundle_id, content, paths))

    def _insert(
        self, connection: sqlite3.Connection, bundle_id: str, content: tuple[bytes, bytes], paths: tuple[Path, Path]
    ) -> int:
        body, signature = content
        publics, claim = table.public_keys(connection) or {}, table.claim(body)
        own = claim is not None and claim.bundle_id == bundle_id
        own = own and claim is not None and crypto.verify(publics.get(claim.key_id, b""), signature, body)
        try:
            return table.insert(
                connection,
                bundle_id=bundle_id,
                place=(claim.epoch, claim.seq) if own and claim is not None else None,
                body=body,
                signature=signature,
                own=own,
                created_at=self._now(),
                paths=None if own else (str(paths[0]), str(paths[1])),
            )
        except sqlite3.IntegrityError as error:
            raise BadEvidence("another bundle has this place in the chain", code="fork") from error

    # Out

    async def get_pending(self, limit: int = 100) -> list[QueuedEvidence]:
        """The oldest pending bundles, in chain order, with their bytes; none while the oldest one waits.

        Their files are in place too, where there is room for them.

        A row whose bytes are not what was signed any more is given them back from its directory, else it is set aside as
        `damaged`, kept, logged and counted.
        """
        if self._clock.monotonic() < self._ready_at:
            return []
        return await self.database.call(lambda: self._pending(limit))

    def _pending(self, limit: int) -> list[QueuedEvidence]:
        while True:
            rows, publics = self.database.read(lambda connection: _oldest(connection, limit))
            unsound = [row for row in rows if not row.is_sound(publics)]
            if not unsound:
                ids = [row.bundle_id for row in rows]
                traces = self.database.read(functools.partial(table.traceparents, bundle_ids=ids))
                return [self._queued(row, traces.get(row.bundle_id)) for row in rows]
            for row in unsound:
                self._set_aside(row, publics)

    def _set_aside(self, row: table.Row, publics: table.Publics | None) -> None:
        self.database.write(
            lambda connection: recovery.mend_or_set_aside(
                connection, row.id, row.bundle_id, publics, self.evidence_dir
            ),
            drains=True,
        )

    def _queued(self, row: table.Row, traceparent: str | None) -> QueuedEvidence:
        paths = self._files(row)
        return QueuedEvidence(
            id=row.id,
            bundle_id=row.bundle_id,
            bundle_path=str(paths[0]),
            signature_path=str(paths[1]),
            created_at=row.created_at,
            retry_count=row.retry_count,
            last_error=row.last_error,
            epoch=row.epoch,
            seq=row.seq,
            body=row.body,
            signature=row.signature,
            traceparent=traceparent,
        )

    def _files(self, row: table.Row) -> tuple[Path, Path]:
        """Files that hold exactly the row's bytes, made from the row where they are missing or differ.

        What is delivered is the row, so files that cannot be made (a full disk) keep nothing back; the store makes them later.
        """
        if row.bundle_path is not None and row.signature_path is not None:
            paths = Path(row.bundle_path), Path(row.signature_path)
            if directory.read(*paths) == (row.body, row.signature):
                return paths
        place = table.directory_of(row, self.evidence_dir)
        try:
            directory.put(place, row.body, row.signature)
            self._directories_fail = False
        except StorageError as error:
            if not self._directories_fail:
                log.warning("queue.directory_failed", bundle_id=row.bundle_id, code=error.code)
            self._directories_fail = True
        return place / directory.BUNDLE, place / directory.SIGNATURE

    async def mark_uploaded(self, id: int, ack: bytes | None = None) -> None:
        """The server's verified answer named this bundle. The row stays; `ack` is kept with it where there is room."""
        now = self._now().isoformat()

        def mark(connection: sqlite3.Connection, ack: bytes | None = ack) -> None:
            kept = None if ack is None else table.keep_ack(connection, ack)
            connection.execute(
                "UPDATE evidence SET state = 'uploaded', uploaded_at = ?, ack = ?, last_error = NULL"
                " WHERE id = ? AND state = 'pending'",
                (now, kept, id),
            )
            connection.execute("DELETE FROM queue_wait")

        try:
            if not self.database.full:
                await self._write(mark, drains=True)
        except StorageFull:
            log.warning("queue.ack_not_kept", row=id)
        if self.database.full:  # without the acknowledgement the row does not grow
            await self._write(lambda connection: mark(connection, None), drains=True)
        self._ready_at = 0.0

    async def increment_retry(self, id: int, error: str, retry_after_s: float | None = None) -> None:
        """Delivery of this bundle failed; the whole line waits, longer each time, with full jitter.

        Args:
            id: of the bundle.
            error: code of what went wrong; anything that is no short code is kept as `error`.
            retry_after_s: the server asked for at least this long.
        """
        code = error if error.isascii() and error.replace("_", "").isalnum() and len(error) <= _CODE_LENGTH else "error"

        def count(connection: sqlite3.Connection) -> int:
            connection.execute(
                "UPDATE evidence SET retry_count = retry_count + 1, last_error = ? WHERE id = ? AND state = 'pending'",
                (code, id),
            )
            row = connection.execute("SELECT retry_count FROM evidence WHERE id = ?", (id,)).fetchone()
            tries = int(row[0]) if row else 1
            wait_s = max(self._backoff_s(tries), min(retry_after_s or 0.0, LONGEST_WAIT_S))
            self._wait(wait_s)
            until = (self._now() + timedelta(seconds=wait_s)).isoformat()
            connection.execute("INSERT OR REPLACE INTO queue_wait VALUES (1, ?)", (until,))
            return tries

        tries = await self._write(count, drains=True)
        if tries == self.max_retries:
            log.error("queue.not_delivered", row=id, tries=tries, code=code)

    def _backoff_s(self, tries: int) -> float:
        return backoff_s(max(0, tries - 1), BACKOFF_BASE_S, BACKOFF_CAP_S, self._rng)

    def _wait(self, seconds: float) -> None:
        self._ready_at = self._clock.monotonic() + seconds

    def _restore_wait(self) -> None:
        """Wait out what was waited for before a restart, but never longer than one such wait, whatever the clock says."""
        row = self.database.read(lambda connection: connection.execute("SELECT until FROM queue_wait").fetchone())
        if row is not None:
            left_s = (datetime.fromisoformat(row[0]) - self._now()).total_seconds()
            if left_s > 0:
                self._wait(min(left_s, LONGEST_WAIT_S))

    async def requeue_from(self, epoch: int, seq: int) -> int:
        """Deliver again from this place on, because the server says it lacks it; returns how many bundles."""

        def again(connection: sqlite3.Connection) -> int:
            connection.execute("DELETE FROM queue_wait")
            return connection.execute(
                "UPDATE evidence SET state = 'pending', retry_count = 0 WHERE own AND state = 'uploaded'"
                " AND (epoch, seq) >= (?, ?)",
                (epoch, seq),
            ).rowcount

        count = await self._write(again, drains=True)
        self._ready_at = 0.0
        log.warning("queue.requeued", epoch=epoch, seq=seq, count=count)
        return count

    # Looking

    async def get_stats(self) -> dict[str, Any]:
        """Counts by state, and the times that matter: `pending failed uploaded damaged oldest_pending next_attempt_at`.

        `failed` is the part of `pending` that was tried `max_retries` times or more.
        """
        wait_s = self._ready_at - self._clock.monotonic()
        found = await self._read(lambda connection: _counts(connection, self.max_retries))
        found["next_attempt_at"] = (self._now() + timedelta(seconds=wait_s)).isoformat() if wait_s > 0 else None
        found["storage_full"] = self.database.full
        return found

    async def gaps(self) -> list[Gap]:
        """Numbers that no sound row has, lost by damage."""
        return await self._read(_gaps)

    def _now(self) -> datetime:
        return self._clock.now().astimezone(UTC)


def _absolute(path: Path | str) -> Path:
    return Path(path).absolute()


def _id_of(connection: sqlite3.Connection, bundle_id: str) -> int | None:
    row = connection.execute("SELECT id FROM evidence WHERE bundle_id = ?", (bundle_id,)).fetchone()
    return int(row[0]) if row else None


def _oldest(connection: sqlite3.Connection, limit: int) -> tuple[list[table.Row], table.Publics | None]:
    order = "WHERE state = 'pending' ORDER BY epoch IS NULL, epoch, seq, id LIMIT ?"
    return table.select(connection, order, (limit,)), table.public_keys(connection)


def _counts(connection: sqlite3.Connection, max_retries: int) -> dict[str, Any]:
    states = dict(connection.execute("SELECT state, count(*) FROM evidence GROUP BY state").fetchall())
    failed, oldest = connection.execute(
        "SELECT count(*) FILTER (WHERE retry_count >= ?), min(created_at) FROM evidence WHERE state = 'pending'",
        (max_retries,),
    ).fetchone()
    return {
        "pending": states.get("pending", 0),
        "failed": failed,
        "uploaded": states.get("uploaded", 0),
        "damaged": states.get("damaged", 0),
        "oldest_pending": oldest,
        "next_attempt_at": None,
    }


def _gaps(connection: sqlite3.Connection) -> list[Gap]:
    rows = connection.execute(
        "SELECT epoch, before + 1, seq - 1 FROM (SELECT epoch, seq, lag(seq, 1, 0) OVER (PARTITION BY epoch ORDER BY seq)"
        " AS before FROM evidence WHERE epoch IS NOT NULL AND state != 'damaged') WHERE seq > before + 1 ORDER BY 1, 2"
    )
    return [Gap(*row) for row in rows.fetchall()]


def _system_clock() -> Clock:
    from compliance_agent.adapters.clock import SystemClock

    return SystemClock()
