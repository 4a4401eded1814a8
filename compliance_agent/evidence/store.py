"""Where a bundle gets its place in the chain, its signature and its row, in one transaction with one fsync.

    read head -> build document with epoch, seq, prev -> sign -> INSERT row and UPDATE head -> COMMIT -> directory

Recorded means committed: a crash can neither skip nor reuse a number, because number, bytes, signature and head become
durable together. The directory is made from the row afterwards and again at start where it is missing (`replay`).

When the database was lost or damaged, `replay` takes bundles that only the directories still hold back in, checks every
saved row, and goes on in a new epoch whose `prev` is the last bundle that can still be shown: a gap is named, never hidden.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import structlog

from compliance_agent.adapters import log_store
from compliance_agent.adapters.database import Damage, Database
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.entries.rotation import read as read_rotation
from compliance_agent.errors import BadEvidence, ConfigError, StorageError
from compliance_agent.evidence import directory, recovery, table
from compliance_agent.evidence.allowlist import NO_PREV, Circumstances, Names, Place, build, check_document, timestamp
from compliance_agent.evidence.canonical import canonical
from compliance_agent.evidence.recovery import Head
from compliance_agent.models import EvidenceBundle

log = structlog.get_logger()
MOST_AT_ONCE = 100  # directories that were missing, made after one record
RECENT_DAYS = 2  # directories that are compared with the database at every start


@dataclass(frozen=True)
class Stored:
    """A bundle that is recorded. Its files are there, or will be made from the row."""

    id: int
    bundle_id: str
    epoch: int
    seq: int
    digest: str
    bundle_path: Path
    signature_path: Path


class EvidenceStore:
    """This host's chain. Synchronous; the agent calls it through `database.call`.

    Args:
        database: its tables are made here.
        evidence_dir: root of the evidence directories.
        signer: the host's key; without one the store only reads.
        names: the baseline's own words by check and parameter, which `Name` facts may say.

    Raises:
        ConfigError: the chain was begun with another key.
    """

    def __init__(
        self,
        database: Database,
        evidence_dir: Path | str,
        signer: Ed25519Signer | None = None,
        *,
        names: Names | None = None,
    ) -> None:
        self.database = database
        self.evidence_dir = Path(evidence_dir)
        self.names = names
        self.lost: Damage | None = None  # what a new epoch was begun for, until somebody records it
        self._signer = signer
        self._replayed = False
        self._last_id = 0
        self._unsettled: set[int] = set()  # rows whose directory could not be made yet
        database.migrate(table.NAME, table.STATEMENTS)
        database.migrate(table.TRACES, table.TRACES_STATEMENTS)
        database.migrate(log_store.NAME, log_store.STATEMENTS)
        self._check_key()

    def _check_key(self) -> None:
        known = self.database.read(_identity)
        if known is not None and known[1] != self.database.id:
            self.database.disown()  # the page is another database's: damage, not another key
            known = self.database.read(_identity)
        if known is not None and self._signer is not None and known[0] != self._signer.key_id:
            raise ConfigError(
                f"signing_key_file: key {self._signer.key_id[:16]}... is not {known[0][:16]}..., with which this host's chain"
                " was begun",
                code="key_changed",
                hint="put the former key back, or rotate the key by an order; recording stops until then",
            )

    def head(self) -> Head | None:
        """The last recorded place, or None when nothing was ever recorded."""
        return self.database.read(_head)

    # Recording

    def record(self, bundle: EvidenceBundle, seen: Circumstances, traceparent: str | None = None) -> Stored:
        """Give the bundle its place, sign it and make it durable. The same `bundle_id` again gives the same record.

        Its trace, when it has one, is noted beside its row: what is signed does not hold it.

        Raises:
            BadEvidence: it holds something that may not leave the host; nothing was recorded.
            StorageError: nothing was promised.
        """
        if not self._replayed or self.database.damage is not None:
            self.replay()
        stored, content = self.database.write(lambda connection: self._append(connection, bundle, seen, traceparent))
        self._last_id = max(self._last_id, stored.id)
        self._materialise(stored.id, (stored.bundle_path.parent, *content))
        self._materialise_the_rest(stored.id)
        log.info(
            "evidence.stored", bundle_id=stored.bundle_id, epoch=stored.epoch, seq=stored.seq, kind=str(bundle.kind)
        )
        return stored

    def rehearse(self, bundle: EvidenceBundle, seen: Circumstances) -> None:
        """Make and sign the bytes of a bundle as it would be recorded, and forget them.

        Raises:
            BadEvidence: it could not be recorded.
            StorageError: the database cannot be read.
        """
        head = self.database.read(log_store.latest_head)
        self._need_signer().sign(self._document(bundle, Place(1, 1, NO_PREV), replace(seen, log_head=head)))

    def _append(
        self, connection: sqlite3.Connection, bundle: EvidenceBundle, seen: Circumstances, traceparent: str | None
    ) -> tuple[Stored, tuple[bytes, bytes]]:
        """Where it stands, and its bytes and signature."""
        signer = self._need_signer()
        existing = table.select(connection, "WHERE bundle_id = ?", (bundle.bundle_id,))
        if existing:
            row = existing[0]
            where = table.directory_of(row, self.evidence_dir)
            stored = _stored(row.id, row.bundle_id, row.epoch or 0, row.seq or 0, row.sha256, where)
            return stored, (row.body, row.signature)
        head = _head(connection) or Head(0, 0, NO_PREV)
        place = Place(head.epoch, head.seq + 1, head.digest)
        body = self._document(bundle, place, replace(seen, log_head=log_store.latest_head(connection)))
        signature, digest = signer.sign(body), hashlib.sha256(body).hexdigest()
        row_id = table.insert(
            connection,
            bundle_id=bundle.bundle_id,
            place=(place.epoch, place.seq),
            body=body,
            signature=signature,
            own=True,
            created_at=seen.created_at.astimezone(UTC),
        )
        if traceparent is not None:
            table.keep_trace(connection, bundle.bundle_id, traceparent)
        self._set_head(connection, Head(place.epoch, place.seq, digest))
        where = table.directory_for(bundle.bundle_id, timestamp(bundle.timestamp_start), body, self.evidence_dir)
        return _stored(row_id, bundle.bundle_id, place.epoch, place.seq, digest, where), (body, signature)

    def _document(self, bundle: EvidenceBundle, place: Place, seen: Circumstances) -> bytes:
        document, undeclared = build(bundle, place, seen)
        if undeclared:
            log.error("evidence.undeclared_word", bundle_id=bundle.bundle_id, fields=undeclared)
        check_document(document, names=self.names)
        body = canonical(document)
        if len(body) > directory.MAX_BUNDLE_BYTES:
            raise BadEvidence(f"bundle is longer than {directory.MAX_BUNDLE_BYTES} bytes", code="too_large")
        return body

    def _set_head(self, connection: sqlite3.Connection, head: Head) -> None:
        signer = self._need_signer()
        done = min(self._unsettled) - 1 if self._unsettled else self._last_id
        connection.execute(
            "INSERT INTO chain VALUES (1, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (one) DO UPDATE SET epoch = excluded.epoch,"
            " seq = excluded.seq, digest = excluded.digest, database_id = excluded.database_id,"
            " materialised = max(materialised, excluded.materialised)",
            (head.epoch, head.seq, head.digest, signer.key_id, signer.public_bytes, done, self.database.id),
        )

    def _need_signer(self) -> Ed25519Signer:
        if self._signer is None:
            raise RuntimeError("this store was opened without a key: it only reads")
        return self._signer

    def new_epoch(self, after_digest: str, *, at_least: int = 0) -> int:
        """Go on in a new epoch after the bundle of this digest (the last one the server knows); returns the epoch.

        Args:
            after_digest: SHA-256 of that bundle, 64 zeros when it is not known.
            at_least: the highest epoch seen elsewhere.
        """

        def begin(connection: sqlite3.Connection) -> int:
            head = _head(connection) or Head(0, 0, NO_PREV)
            epoch = max(head.epoch, at_least) + 1
            self._set_head(connection, Head(epoch, 0, after_digest))
            return epoch

        epoch = self.database.write(begin)
        log.warning("evidence.new_epoch", epoch=epoch)
        return epoch

    def rotate(self, signer: Ed25519Signer, statement: bytes, old_sig: bytes, new_sig: bytes, at: datetime) -> None:
        """Let a new key go on where this one ended: in a new epoch, after its last record.

        Args:
            signer: the new key.
            statement, old_sig, new_sig: what both keys have signed; its record is the last one, and all of it is delivered.
            at: when.

        Raises:
            ConfigError: `not_delivered`: something still waits, or was recorded after the statement was made.
            StorageError: nothing was changed.
        """
        former, said = self._need_signer(), read_rotation(statement)

        def change(connection: sqlite3.Connection) -> None:
            head = _head(connection) or Head(0, 0, NO_PREV)
            waiting = connection.execute("SELECT 1 FROM evidence WHERE state = 'pending' LIMIT 1").fetchone()
            if waiting or self._unsettled or (said.epoch, said.seq, said.digest) != (head.epoch, head.seq, head.digest):
                raise ConfigError("key: something recorded is not delivered yet", code="not_delivered")
            connection.execute(
                "INSERT INTO former_keys (key_id, public, ended_at, statement, old_sig, new_sig) VALUES (?, ?, ?, ?, ?, ?)",
                (former.key_id, former.public_bytes, at.isoformat(), statement, old_sig, new_sig),
            )
            connection.execute("UPDATE chain SET key_id = ?, public = ?", (signer.key_id, signer.public_bytes))
            self._signer = signer
            self._set_head(connection, Head(head.epoch + 1, 0, head.digest))

        try:
            self.database.write(change)
        except BaseException:
            self._signer = former
            raise
        log.warning("evidence.key_rotated", key_id=signer.key_id)

    # Beside a server

    def continue_after(self, known: Head, *, broken: bool = False) -> int | None:
        """Begin a new epoch after the newest bundle a server holds of this key, when this chain does not lead there.

        That is so when this database was set back, lost or cloned. Returns the new epoch, None when there was no need.

        Args:
            known: that bundle; `Head(0, 0, 64 zeros)` when the server holds none.
            broken: this chain does lead there, but what should follow is lost, or follows something else.

        Raises:
            StorageError: nothing was changed.
        """
        head = self.head() or Head(0, 0, NO_PREV)
        if known.digest == head.digest:
            return None
        if not broken and self.database.read(lambda connection: _leads_to(connection, known)):
            return None
        return self.new_epoch(known.digest, at_least=known.epoch)

    def rechain(self, epoch: int, seq: int) -> int:
        """Give pending bundles of ended epochs, from this place on, new places at the end of the chain; returns how many.

        For bundles that a server can never take where they stand, because it holds another history there. What they say
        stays; their place and signature are new, and their directories as they were are kept under hidden names.

        Raises:
            StorageError: nothing was changed.
        """

        def move(connection: sqlite3.Connection) -> int:
            head = _head(connection) or Head(0, 0, NO_PREV)
            rest = "WHERE own AND state = 'pending' AND epoch < ? AND (epoch, seq) >= (?, ?) ORDER BY epoch, seq"
            rows = table.select(connection, rest, (head.epoch, epoch, seq))
            for row in rows:
                head = self._moved(connection, row, head)
            if rows:
                log_store.forget_moved(connection)
                connection.execute("DELETE FROM queue_wait")
                self._set_head(connection, head)
            return len(rows)

        count = self.database.write(move)
        log.warning("evidence.rechained", epoch=epoch, seq=seq, count=count)
        return count

    def _moved(self, connection: sqlite3.Connection, row: table.Row, head: Head) -> Head:
        document = read_json(row.body, limit_bytes=directory.MAX_BUNDLE_BYTES)
        body = canonical({**document, "epoch": head.epoch, "seq": head.seq + 1, "prev": head.digest})
        after = Head(head.epoch, head.seq + 1, hashlib.sha256(body).hexdigest())
        connection.execute(
            "UPDATE evidence SET epoch = ?, seq = ?, sha256 = ?, body = ?, signature = ?, retry_count = 0 WHERE id = ?",
            (after.epoch, after.seq, after.digest, body, self._need_signer().sign(body), row.id),
        )
        return after

    # Directories

    def _row(self, row_id: int) -> tuple[Path, bytes, bytes] | None:
        """Where a row's directory stands, and what it holds; None for a row that is gone."""
        for row in self.database.read(lambda connection: table.select(connection, "WHERE id = ?", (row_id,))):
            return table.directory_of(row, self.evidence_dir), row.body, row.signature
        return None

    def _materialise(self, row_id: int, known: tuple[Path, bytes, bytes] | None = None) -> bool:
        """Make the row's directory if it is missing; whether it was. A failure is remembered and mended later."""
        try:
            what = known if known is not None else self._row(row_id)
            written = what is not None and directory.put(*what)
        except StorageError as error:
            if not self._unsettled:  # said once, until all of them are there again
                log.warning("evidence.directory_failed", row=row_id, code=error.code)
            self._unsettled.add(row_id)
            return False
        self._unsettled.discard(row_id)
        return written

    def _materialise_the_rest(self, newest: int) -> None:
        """Directories that could not be made, now that one could."""
        if newest in self._unsettled:
            return
        for row_id in sorted(self._unsettled)[:MOST_AT_ONCE]:
            self._materialise(row_id)
            if row_id in self._unsettled:
                return

    def replay(self) -> int:
        """Bring rows and directories together again after a stop of any kind; how many directories were made.

        Raises:
            StorageError: the database cannot be read or written.
        """
        for row in self.database.read(_rows_to_settle)[0]:
            self._check_row(row)
        if self._signer is not None:
            self._take_back()
        rows, done = self.database.read(_rows_to_settle)
        self._last_id = max([done, *(row.id for row in rows)])
        self._replayed = True
        return sum(self._materialise(row.id) for row in rows)

    def _check_row(self, row: table.Row) -> None:
        """Before a row is written out: a damaged one is mended from its directory, or set aside."""
        publics = self._publics()
        if not row.is_sound(publics):
            self.database.write(
                lambda connection: recovery.mend_or_set_aside(
                    connection, row.id, row.bundle_id, publics, self.evidence_dir
                ),
                drains=True,
            )

    def _publics(self) -> table.Publics | None:
        """Whose signatures count as this host's: the key it has, and those that gave way to it."""
        held = self.database.read(table.public_keys)
        if self._signer is None:
            return held
        return {**(held or {}), self._signer.key_id: self._signer.public_bytes}

    def _take_back(self) -> None:
        """Compare the newest directories (after a loss, all) with the rows, and repair the chain's head where needed."""
        damage = self.database.damage
        publics = self._publics() or {}
        if damage is not None:
            self.database.write(lambda connection: recovery.check_rows(connection, publics, self.evidence_dir))
        astray = self.database.read(_is_astray)
        whole = damage is not None or self.head() is None
        known = self.database.read(recovery.bundle_ids)
        found = recovery.only_in_directories(self.evidence_dir, publics, known, None if whole else RECENT_DAYS)
        if damage is None and not found and not astray:
            return
        write = self.database.write if damage is None else self.database.settle_damage
        write(lambda connection: self._repair(connection, found, intact=damage is None and not astray))
        self.lost = damage or self.lost

    def _repair(self, connection: sqlite3.Connection, found: list[recovery.Found], *, intact: bool) -> None:
        head, unbroken = recovery.take_in(
            connection, found, _head(connection), datetime.fromtimestamp(time.time(), UTC)
        )
        log_store.forget_moved(connection)
        if intact and unbroken and head is not None:
            self._set_head(connection, head)
            return
        top = recovery.top(connection)
        # Without any record left, the epoch must be one that was surely never used: seconds since 1970.
        last = max((item for item in (top, head) if item), key=lambda item: item.place, default=None)
        epoch = last.epoch + 1 if last else int(time.time())
        self._set_head(connection, Head(epoch, 0, top.digest if top else NO_PREV))
        log.error("evidence.new_epoch", epoch=epoch, taken_back=len(found))


def _stored(row_id: int, bundle_id: str, epoch: int, seq: int, digest: str, where: Path) -> Stored:
    return Stored(row_id, bundle_id, epoch, seq, digest, where / directory.BUNDLE, where / directory.SIGNATURE)


def _identity(connection: sqlite3.Connection) -> tuple[str, str] | None:
    """The key the chain was begun with and the database it was begun in; None before the first record."""
    row: tuple[str, str] | None = connection.execute("SELECT key_id, database_id FROM chain").fetchone()
    return row


def _head(connection: sqlite3.Connection) -> Head | None:
    row = connection.execute("SELECT epoch, seq, digest FROM chain").fetchone()
    return Head(*row) if row else None


def _leads_to(connection: sqlite3.Connection, known: Head) -> bool:
    """Whether this bundle is one of ours, or one of our epochs was begun after it."""
    held = "SELECT 1 FROM evidence WHERE own AND epoch = ? AND seq = ? AND sha256 = ?"
    if connection.execute(held, (known.epoch, known.seq, known.digest)).fetchone() is not None:
        return True
    shed = "SELECT 1 FROM shed WHERE epoch = ? AND seq = ? AND sha256 = ?"
    if connection.execute(shed, (known.epoch, known.seq, known.digest)).fetchone() is not None:
        return True
    first = table.select(connection, "WHERE own AND seq = 1 AND state != 'damaged'")
    return any(claim is not None and claim.prev == known.digest for claim in map(table.claim, (r.body for r in first)))


def _is_astray(connection: sqlite3.Connection) -> bool:
    """Whether the head is not the last row's: an older one, another one, or none at all."""
    head, top = _head(connection), recovery.top(connection)
    if top is None:
        return False
    return head is None or top.place > head.place or (top.place == head.place and top.digest != head.digest)


def _rows_to_settle(connection: sqlite3.Connection) -> tuple[list[table.Row], int]:
    done = connection.execute("SELECT materialised FROM chain").fetchone()
    after = int(done[0]) if done else 0
    return table.select(connection, "WHERE id > ? AND own AND state != 'damaged' ORDER BY id", (after,)), after
