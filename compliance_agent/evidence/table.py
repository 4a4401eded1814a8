"""The evidence table: one row for each bundle, which is at once the record and its place in the delivery queue.

`store` appends rows and owns the chain's head, `queue` changes `state` and attempts; both make the tables with
`database.migrate("evidence", STATEMENTS)`. A row is the truth: its bytes are what was signed.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent import crypto
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.directory import MAX_BUNDLE_BYTES

NAME = "evidence"
STATEMENTS: Sequence[str] = (
    """CREATE TABLE IF NOT EXISTS evidence (
        id INTEGER PRIMARY KEY,
        bundle_id TEXT NOT NULL UNIQUE,
        epoch INTEGER,
        seq INTEGER,
        sha256 TEXT NOT NULL,
        body BLOB NOT NULL,
        signature BLOB NOT NULL,
        own INTEGER NOT NULL,
        bundle_path TEXT,
        signature_path TEXT,
        created_at TEXT NOT NULL,
        state TEXT NOT NULL DEFAULT 'pending' CHECK (state IN ('pending', 'uploaded', 'damaged')),
        retry_count INTEGER NOT NULL DEFAULT 0,
        last_error TEXT,
        uploaded_at TEXT,
        ack BLOB,  -- SHA-256 of the row in acks that holds the acknowledgement
        UNIQUE (epoch, seq)
    ) STRICT""",
    "CREATE INDEX IF NOT EXISTS evidence_state ON evidence (state, epoch, seq, id)",
    """CREATE TABLE IF NOT EXISTS chain (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        epoch INTEGER NOT NULL,
        seq INTEGER NOT NULL,
        digest TEXT NOT NULL,
        key_id TEXT NOT NULL,
        public BLOB NOT NULL,
        materialised INTEGER NOT NULL,
        database_id TEXT NOT NULL  -- beside the key: pages of another database are told from a key that was changed
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS queue_wait (
        one INTEGER PRIMARY KEY CHECK (one = 1),
        until TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS former_keys (
        key_id TEXT PRIMARY KEY,
        public BLOB NOT NULL,
        ended_at TEXT NOT NULL,
        statement BLOB NOT NULL,
        old_sig BLOB NOT NULL,
        new_sig BLOB NOT NULL,
        confirmed INTEGER NOT NULL DEFAULT 0  -- the server has said that the new key took its place
    ) STRICT""",
    # The server acknowledges many bundles with one signature: kept once, and named by the rows that it speaks of.
    "CREATE TABLE IF NOT EXISTS acks (sha256 BLOB PRIMARY KEY, ack BLOB NOT NULL) STRICT",
    "CREATE INDEX IF NOT EXISTS evidence_ack ON evidence (ack) WHERE ack IS NOT NULL",
)
# Which trace a record belongs to, beside its row: a table of its own, that an older version does not mind.
TRACES = "traces"
TRACES_STATEMENTS: Sequence[str] = (
    "CREATE TABLE IF NOT EXISTS traces (bundle_id TEXT PRIMARY KEY, traceparent TEXT NOT NULL) STRICT, WITHOUT ROWID",
)
_SAFE = re.compile(r"[0-9]{4}/[0-9]{2}/[0-9]{2}")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_COLUMNS = (
    "id, bundle_id, epoch, seq, sha256, body, signature, own, bundle_path, signature_path, created_at, state,"
    " retry_count, last_error"
)


Publics = Mapping[str, bytes]  # raw public keys by key id: this host's own, and those that gave way to it


@dataclass(frozen=True)
class Row:
    """One bundle as recorded.

    Attributes:
        own: it carried this host's valid signature when it came in. Where its directory stands follows from its bytes.
        bundle_path: for rows that are not `own`, where the file was that it was taken from; likewise `signature_path`.
    """

    id: int
    bundle_id: str
    epoch: int | None
    seq: int | None
    sha256: str
    body: bytes
    signature: bytes
    own: bool
    bundle_path: str | None
    signature_path: str | None
    created_at: datetime
    state: str
    retry_count: int
    last_error: str | None

    def is_sound(self, publics: Publics | None) -> bool:
        """Whether the bytes are still those that were recorded, and signed by this host if they were then."""
        try:
            if hashlib.sha256(self.body).hexdigest() != self.sha256:
                return False
            if not self.own or publics is None:
                return True
            said = claim(self.body)
            if said is None or (said.bundle_id, said.epoch, said.seq) != (self.bundle_id, self.epoch, self.seq):
                return False
            return crypto.verify(publics.get(said.key_id, b""), self.signature, self.body)
        except TypeError:  # a damaged row may hold a value of another type
            return False


@dataclass(frozen=True)
class Claim:
    """What a bundle's own bytes say of its place. `prev` and the rest are believed only after its signature verified."""

    bundle_id: str
    epoch: int
    seq: int
    prev: str
    start: str
    key_id: str = ""


@functools.lru_cache(maxsize=2)  # a bundle is asked for its place several times while it is recorded
def claim(body: bytes) -> Claim | None:
    """The place a bundle claims, or None when the bytes are not a bundle in canonical form."""
    try:
        document = read_json(body, limit_bytes=MAX_BUNDLE_BYTES)
    except DocumentError:
        return None
    match document:
        case {
            "bundle_id": str(bundle_id),
            "epoch": int(epoch),
            "seq": int(seq),
            "prev": str(prev),
            "timestamp_start": str(start),
            "host": {"key_id": str(key_id)},
        } if _is_written_so(document, body):
            return Claim(bundle_id, epoch, seq, prev, start, key_id)
    return None


def _is_written_so(document: Any, body: bytes) -> bool:
    try:
        return canonical(document) == body
    except BadEvidence:
        return False


def is_bundle_id(text: str) -> bool:
    """Whether it is a UUID, and so safe as a directory's name."""
    return _ID.fullmatch(text) is not None


def select(connection: sqlite3.Connection, rest: str, values: Sequence[Any] = ()) -> list[Row]:
    """Rows of `SELECT ... FROM evidence {rest}`; `rest` is always a constant of this package."""
    return [_row(found) for found in connection.execute(f"SELECT {_COLUMNS} FROM evidence {rest}", values)]  # noqa: S608


def _row(found: Sequence[Any]) -> Row:
    values = list(found)
    values[7] = bool(values[7])
    try:
        values[10] = datetime.fromisoformat(values[10])
    except (ValueError, TypeError):  # a damaged row must not keep the others from being read
        values[10] = datetime.fromtimestamp(0, UTC)
    return Row(*values)


def directory_of(row: Row, evidence_dir: Path) -> Path:
    """Where a row is materialised: by the day in its signed bytes, or under `other` when they are no bundle."""
    place = claim(row.body)
    told = place is not None and place.bundle_id == row.bundle_id
    return directory_for(row.bundle_id, place.start if told and place else "", row.body, evidence_dir)


def directory_for(bundle_id: str, start: str, body: bytes, evidence_dir: Path) -> Path:
    """Where a bundle's directory stands, by its id and the `timestamp_start` in its bytes; under `other` without a day."""
    day = start[:10].replace("-", "/")
    if not _SAFE.fullmatch(day) or not _ID.fullmatch(bundle_id):
        return evidence_dir / "other" / hashlib.sha256(body).hexdigest()
    return evidence_dir / day / bundle_id


def insert(
    connection: sqlite3.Connection,
    *,
    bundle_id: str,
    place: tuple[int, int] | None,
    body: bytes,
    signature: bytes,
    own: bool,
    created_at: datetime,
    paths: tuple[str, str] | None = None,
) -> int:
    """Append a pending row and return its id. `paths` are the files of a bundle that is not this host's own record."""
    epoch, seq = place if place is not None else (None, None)
    digest = hashlib.sha256(body).hexdigest()
    cursor = connection.execute(
        "INSERT INTO evidence (bundle_id, epoch, seq, sha256, body, signature, own, bundle_path, signature_path,"
        " created_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (bundle_id, epoch, seq, digest, body, signature, int(own), *(paths or (None, None)), created_at.isoformat()),
    )
    return int(cursor.lastrowid or 0)


def keep_trace(connection: sqlite3.Connection, bundle_id: str, traceparent: str) -> None:
    """Note which trace a record belongs to, until its receipt is proven."""
    connection.execute("INSERT OR REPLACE INTO traces VALUES (?, ?)", (bundle_id, traceparent))


def traceparents(connection: sqlite3.Connection, bundle_ids: Sequence[str]) -> dict[str, str]:
    """The traces of these records, by their ids; of most there is none."""
    marks = ",".join("?" * len(bundle_ids))
    found = connection.execute(f"SELECT bundle_id, traceparent FROM traces WHERE bundle_id IN ({marks})", bundle_ids)  # noqa: S608
    return {str(bundle_id): str(text) for bundle_id, text in found}


def end_trace(connection: sqlite3.Connection, row_id: int) -> list[tuple[str, str]]:
    """Forget the trace of a row; it and when the row was delivered, if it had one."""
    found = connection.execute(
        "SELECT traceparent, uploaded_at FROM traces JOIN evidence USING (bundle_id) WHERE id = ?", (row_id,)
    ).fetchall()
    if found:
        connection.execute(
            "DELETE FROM traces WHERE bundle_id = (SELECT bundle_id FROM evidence WHERE id = ?)", (row_id,)
        )
    return [(str(text), str(at)) for text, at in found]


def keep_ack(connection: sqlite3.Connection, ack: bytes) -> bytes:
    """Keep an acknowledgement, once; what names it in the rows of its bundles."""
    digest = hashlib.sha256(ack).digest()
    connection.execute("INSERT OR IGNORE INTO acks VALUES (?, ?)", (digest, ack))
    return digest


def remove_uploaded(connection: sqlite3.Connection, ids: Sequence[int]) -> None:
    """Forget delivered bundles, and each acknowledgement that names none of those that stay."""
    rows = [(number,) for number in ids]
    connection.executemany("DELETE FROM traces WHERE bundle_id IN (SELECT bundle_id FROM evidence WHERE id = ?)", rows)
    acks = {connection.execute("SELECT ack FROM evidence WHERE id = ?", row).fetchone() for row in rows} - {None}
    connection.executemany("DELETE FROM evidence WHERE id = ? AND state = 'uploaded'", rows)
    connection.executemany(
        "DELETE FROM acks WHERE sha256 = ?1 AND NOT EXISTS (SELECT 1 FROM evidence WHERE ack = ?1)", acks
    )


def public_keys(connection: sqlite3.Connection) -> Publics | None:
    """The raw public keys this host's chain is and was signed with, by their ids; None before the first record."""
    now = connection.execute("SELECT key_id, public FROM chain").fetchone()
    if now is None:
        return None
    former = connection.execute("SELECT key_id, public FROM former_keys").fetchall()
    return {str(key_id): bytes(public) for key_id, public in [*former, now]}
