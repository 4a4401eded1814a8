"""After a loss: what the database and the evidence directories can still show together.

Either may hold what the other lost. A saved row whose bytes are no longer what was signed is given them back from its
directory or set aside; a directory that no row knows is taken back in. Only this host's own valid signature counts.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Collection, Sequence
from datetime import datetime
from pathlib import Path

import structlog

from compliance_agent import crypto
from compliance_agent.dataclass import dataclass
from compliance_agent.evidence import directory, table

log = structlog.get_logger()


@dataclass(frozen=True)
class Head:
    """The last bundle of a chain: its epoch and number (0: none yet in this epoch) and its SHA-256."""

    epoch: int
    seq: int
    digest: str

    @property
    def place(self) -> tuple[int, int]:
        """Epoch and number, to compare."""
        return self.epoch, self.seq


@dataclass(frozen=True)
class Found:
    """A bundle of this host as a directory holds it."""

    claim: table.Claim
    digest: str
    body: bytes
    signature: bytes


def bundle_ids(connection: sqlite3.Connection) -> set[str]:
    """The ids of every row."""
    return {str(row[0]) for row in connection.execute("SELECT bundle_id FROM evidence")}


def only_in_directories(
    evidence_dir: Path, publics: table.Publics, known: Collection[str], newest: int | None
) -> list[Found]:
    """This host's bundles in the `newest` day directories (None: all) that are not `known`, in chain order."""
    found = []
    for day in directory.days(evidence_dir, newest):
        directory.sweep(day)
        for place in directory.bundles(day):
            item = None if place.name in known else _read(place, publics)
            if item is not None:
                found.append(item)
    return sorted(found, key=lambda item: (item.claim.epoch, item.claim.seq))


def _read(place: Path, publics: table.Publics) -> Found | None:
    content = directory.read(place / directory.BUNDLE)
    claim = table.claim(content[0]) if content else None
    if content is None or claim is None or claim.bundle_id != place.name:
        return None
    if not crypto.verify(publics.get(claim.key_id, b""), content[1], content[0]):
        return None
    return Found(claim, hashlib.sha256(content[0]).hexdigest(), *content)


def take_in(
    connection: sqlite3.Connection, found: Sequence[Found], head: Head | None, now: datetime
) -> tuple[Head | None, bool]:
    """Insert them as pending rows; the head they lead to, and whether they continue the chain from `head` unbroken."""
    unbroken = head is not None
    for item in found:
        place = (item.claim.epoch, item.claim.seq)
        if connection.execute("SELECT 1 FROM evidence WHERE epoch = ? AND seq = ?", place).fetchone():
            log.error("evidence.fork_seen", bundle_id=item.claim.bundle_id, epoch=place[0], seq=place[1])
            continue
        table.insert(
            connection,
            bundle_id=item.claim.bundle_id,
            place=place,
            body=item.body,
            signature=item.signature,
            own=True,
            created_at=now,
        )
        log.warning("evidence.taken_back", bundle_id=item.claim.bundle_id, epoch=place[0], seq=place[1])
        if head is not None and place > head.place:
            unbroken = unbroken and place == (head.epoch, head.seq + 1) and item.claim.prev == head.digest
            head = Head(*place, item.digest)
    return head, unbroken


def top(connection: sqlite3.Connection) -> Head | None:
    """The highest place that a sound row of this host has."""
    row = connection.execute(
        "SELECT epoch, seq, sha256 FROM evidence WHERE own AND epoch IS NOT NULL AND state != 'damaged'"
        " ORDER BY epoch DESC, seq DESC LIMIT 1"
    ).fetchone()
    return Head(*row) if row else None


def check_rows(connection: sqlite3.Connection, publics: table.Publics, evidence_dir: Path) -> None:
    """Hold every row against its digest and signature, and mend or set aside those that fail."""
    for row_id, bundle_id in connection.execute(
        "SELECT id, bundle_id FROM evidence WHERE state != 'damaged'"
    ).fetchall():
        try:
            sound = table.select(connection, "WHERE id = ?", (row_id,))[0].is_sound(publics)
        except (ValueError, TypeError, IndexError):  # a value that is no time, text or number any more
            sound = False
        if not sound:
            mend_or_set_aside(connection, row_id, str(bundle_id), publics, evidence_dir)


def mend_or_set_aside(
    connection: sqlite3.Connection, row_id: int, bundle_id: str, publics: table.Publics | None, evidence_dir: Path
) -> bool:
    """Give a damaged row its bytes back from its directory, else keep it but never deliver it; whether it was mended."""
    item = _search(evidence_dir, bundle_id, publics)
    if item is not None:
        connection.execute(
            "UPDATE evidence SET epoch = ?, seq = ?, sha256 = ?, body = ?, signature = ?, own = 1 WHERE id = ?",
            (item.claim.epoch, item.claim.seq, item.digest, item.body, item.signature, row_id),
        )
        log.warning("evidence.row_mended", row=row_id, bundle_id=bundle_id)
        return True
    connection.execute("UPDATE evidence SET state = 'damaged', epoch = NULL, seq = NULL WHERE id = ?", (row_id,))
    log.error("evidence.row_damaged", row=row_id)
    return False


def _search(evidence_dir: Path, bundle_id: str, publics: table.Publics | None) -> Found | None:
    if publics is None or not table.is_bundle_id(bundle_id):
        return None
    found = (_read(day / bundle_id, publics) for day in directory.days(evidence_dir))
    return next((item for item in found if item is not None), None)
