"""What this host knows of its site's logs: the last verified checkpoint of each, and the receipts of its bundles.

A checkpoint only moves forward, in the same transaction as the receipts that showed it. A log that contradicted itself keeps
both notes and is never believed again. Receipts are copied beside their bundles (`leaf.json`, `bundle.tlog-proof`); as with
bundles the row is the truth, and what a stop left unwritten is written by `replay`.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import structlog

from compliance_agent.adapters.database import Database
from compliance_agent.core.receipt import ORIGIN, Followed, LoggedBundle, LogHead, Proven, Standing
from compliance_agent.errors import StorageError
from compliance_agent.evidence import directory, table
from compliance_agent.facts import LARGEST_INT, SHA256
from compliance_agent.log.merkle import RootHash

NAME = "log"
STATEMENTS: Sequence[str] = (
    """CREATE TABLE IF NOT EXISTS log_heads (
        origin TEXT PRIMARY KEY,
        size INTEGER NOT NULL,
        root TEXT NOT NULL,
        note BLOB NOT NULL,
        seen_at TEXT NOT NULL,
        theirs BLOB,
        code TEXT,
        incident TEXT
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS receipts (
        bundle INTEGER PRIMARY KEY,
        sha256 TEXT NOT NULL,
        leaf BLOB NOT NULL,
        proof BLOB NOT NULL,
        verified_at TEXT NOT NULL,
        settled INTEGER NOT NULL DEFAULT 0
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS receipts_unsettled ON receipts (bundle) WHERE NOT settled",
    "ALTER TABLE log_heads ADD COLUMN witnessed_at TEXT",
    """CREATE TABLE IF NOT EXISTS shed (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        count INTEGER NOT NULL,
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        sha256 TEXT NOT NULL,
        mark BLOB NOT NULL
    ) STRICT""",
)
_ORIGIN = re.compile(ORIGIN)
_NEWEST = "ORDER BY substr(origin, -4) DESC, seen_at DESC"
# Rows of this host's own chain that the server acknowledged; both columns are in the index, so that no bundle is read.
_ACKNOWLEDGED = "FROM evidence e WHERE e.state = 'uploaded' AND e.epoch IS NOT NULL"
_UNLOGGED = f"{_ACKNOWLEDGED} AND NOT EXISTS (SELECT 1 FROM receipts r WHERE r.bundle = e.id)"  # noqa: S608  constants only

log = structlog.get_logger()


class LogStore:
    """The rows. Synchronous; call it through `database.call`.

    Args:
        database: its tables are made here.
        evidence_dir: root of the evidence directories.
    """

    def __init__(self, database: Database, evidence_dir: Path | str) -> None:
        self.database = database
        self.evidence_dir = Path(evidence_dir)
        self._directories_fail = False  # said once, not for each bundle
        database.migrate(table.NAME, table.STATEMENTS)
        database.migrate(table.TRACES, table.TRACES_STATEMENTS)
        database.migrate(NAME, STATEMENTS)

    # Heads

    def followed(self) -> dict[str, Followed]:
        """Every log seen so far, by origin, the newest first."""
        return {item.head.origin: item for item in self.database.read(_followed)}

    def distrust(self, origin: str, theirs: bytes, code: str, incident: str) -> None:
        """Never believe this log again; `incident` is the id of the bundle that will say why. The first reason stays."""
        self.database.write(
            lambda connection: connection.execute(
                "UPDATE log_heads SET theirs = ?, code = ?, incident = ? WHERE origin = ? AND code IS NULL",
                (theirs, code, incident, origin),
            )
        )

    def unreported(self) -> list[Followed]:
        """Logs that are not believed any more, and no recorded bundle says so yet."""
        recorded = self.database.read(
            lambda connection: connection.execute(
                "SELECT incident FROM log_heads JOIN evidence ON bundle_id = incident"
            ).fetchall()
        )
        known = {str(row[0]) for row in recorded}
        return [item for item in self.followed().values() if item.incident is not None and item.incident not in known]

    # Receipts

    def bundle(self, bundle_id: str) -> tuple[int, LoggedBundle] | None:
        """The row and what a log holds of this host's own bundle; None when there is no such sound row."""
        return self.database.read(lambda connection: _bundle(connection, bundle_id))

    def keep(self, receipts: Sequence[Proven], heads: Sequence[LogHead], now: datetime) -> list[tuple[str, str]]:
        """Receipts that verified, and the checkpoints they lead to; durable together, then copied beside their bundles.

        Returns:
            The traces that end with them: `traceparent`, and when its bundle was delivered.

        Raises:
            StorageError: nothing was kept.
        """
        at = now.astimezone(UTC).isoformat()

        def write(connection: sqlite3.Connection) -> list[tuple[str, str]]:
            for head in heads:
                connection.execute(
                    "INSERT INTO log_heads (origin, size, root, note, seen_at, witnessed_at) VALUES (?, ?, ?, ?, ?, ?)"
                    " ON CONFLICT (origin) DO UPDATE SET size = excluded.size, root = excluded.root, note = excluded.note,"
                    " seen_at = excluded.seen_at, witnessed_at = excluded.witnessed_at WHERE code IS NULL AND"
                    " (excluded.size > size OR (excluded.size = size AND excluded.root = root"
                    " AND witnessed_at IS NULL AND excluded.witnessed_at IS NOT NULL))",
                    (head.origin, head.size, head.root.hex(), head.note, at, _text(head.witnessed_at)),
                )
            for item in receipts:
                connection.execute(
                    "INSERT OR REPLACE INTO receipts (bundle, sha256, leaf, proof, verified_at)"
                    " SELECT id, sha256, ?, ?, ? FROM evidence WHERE id = ? AND sha256 = ?",
                    (item.leaf, item.proof, at, item.id, item.sha256),
                )
            return [trace for item in receipts for trace in table.end_trace(connection, item.id)]

        ended = self.database.write(write)
        with contextlib.suppress(StorageError):  # they are kept; `replay` is called again with the next turn
            self.replay()
        return ended

    def unlogged(self, after: tuple[int, int], limit: int) -> list[tuple[tuple[int, int], str]]:
        """Place and id of acknowledged bundles without a receipt, in chain order from after this place."""
        rows = self.database.read(
            lambda connection: connection.execute(
                f"SELECT e.epoch, e.seq, e.bundle_id {_UNLOGGED} AND (e.epoch, e.seq) > (?, ?)"
                " ORDER BY e.epoch, e.seq LIMIT ?",
                (*after, limit),
            ).fetchall()
        )
        return [((int(epoch), int(seq)), str(bundle_id)) for epoch, seq, bundle_id in rows]

    def standing(self) -> Standing:
        """Counts for health."""
        return self.database.read(standing)

    # Directories

    def replay(self) -> int:
        """Copy receipts beside their bundles where that has not been done; how many were copied."""
        waiting = self.database.read(
            lambda connection: connection.execute(
                "SELECT bundle, sha256, leaf, proof FROM receipts WHERE NOT settled ORDER BY bundle"
            ).fetchall()
        )
        done = [row[0] for row in waiting if self._copied(Proven(*row))]
        if done:
            self.database.write(
                lambda connection: connection.executemany(
                    "UPDATE receipts SET settled = 1 WHERE bundle = ?", [(row_id,) for row_id in done]
                )
            )
        return len(done)

    def _copied(self, receipt: Proven) -> bool:
        rows = self.database.read(lambda connection: table.select(connection, "WHERE id = ?", (receipt.id,)))
        if not rows or rows[0].sha256 != receipt.sha256:
            return False
        place = table.directory_of(rows[0], self.evidence_dir)
        try:
            directory.put(place, rows[0].body, rows[0].signature)
            directory.put_receipt(place, receipt.leaf, receipt.proof)
        except StorageError as error:
            if not self._directories_fail:
                log.warning("receipts.directory_failed", row=receipt.id, code=error.code)
            self._directories_fail = True
            return False
        self._directories_fail = False
        return True


def latest_head(connection: sqlite3.Connection) -> tuple[str, int, str, datetime | None] | None:
    """Origin, size, root (hex) and witnesses' time of the last verified checkpoint, of the newest year; None before the first."""
    rows = connection.execute(f"SELECT origin, size, root, witnessed_at FROM log_heads {_NEWEST}")  # noqa: S608  constants only
    return next(((*head, _time(at)) for *head, at in rows if _is_head(*head)), None)


def forget_moved(connection: sqlite3.Connection) -> None:
    """Drop receipts whose row holds another bundle by now: they were of other bytes."""
    connection.execute(
        "DELETE FROM receipts WHERE NOT EXISTS"
        " (SELECT 1 FROM evidence e WHERE e.id = receipts.bundle AND e.sha256 = receipts.sha256)"
    )


def standing(connection: sqlite3.Connection) -> Standing:
    """Counts of acknowledged bundles, for the agent and for those who look beside it."""
    acknowledged = connection.execute(f"SELECT count(*) {_ACKNOWLEDGED}").fetchone()[0]
    unlogged = connection.execute(f"SELECT count(*) {_UNLOGGED}").fetchone()[0]
    row = connection.execute(f"SELECT e.uploaded_at {_UNLOGGED} ORDER BY e.epoch, e.seq LIMIT 1").fetchone()
    return Standing(acknowledged - unlogged, unlogged, _time(row[0]) if row else None)


def _followed(connection: sqlite3.Connection) -> list[Followed]:
    columns = "origin, size, root, note, code, theirs, incident, witnessed_at"
    rows = connection.execute(f"SELECT {columns} FROM log_heads {_NEWEST}")  # noqa: S608  constants only
    return [
        Followed(LogHead(origin, size, RootHash(bytes.fromhex(root)), note, _time(at)), code, theirs, incident)
        for origin, size, root, note, code, theirs, incident, at in rows
        if _is_head(origin, size, root)
    ]


def _is_head(origin: str, size: int, root: str) -> bool:
    """A damaged row must not keep others from being read, nor a bundle from being recorded."""
    return bool(_ORIGIN.fullmatch(origin) and SHA256.fullmatch(root)) and 0 <= size <= LARGEST_INT


def _bundle(connection: sqlite3.Connection, bundle_id: str) -> tuple[int, LoggedBundle] | None:
    rows = table.select(connection, "WHERE bundle_id = ? AND own", (bundle_id,))
    claim = table.claim(rows[0].body) if rows else None
    if claim is None or not rows[0].is_sound(table.public_keys(connection)):
        return None
    found = rows[0]
    return found.id, LoggedBundle(claim.key_id, claim.epoch, claim.seq, claim.prev, found.sha256, found.signature)


def _text(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).isoformat()


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text) if text else None
    except ValueError:
        return None
