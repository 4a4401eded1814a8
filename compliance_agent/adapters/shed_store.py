"""Records that are let go of, in an order that tells the truth whenever it is stopped.

1. the mark, `shed.json` in the evidence directory: from here on records up to its place may be absent;
2. each record's directory, under a hidden name first, so that no half of one is ever seen;
3. the rows and their receipts, with the mark, in one transaction.

Stopped before 3, the rows are there and the next turn does all of it again. A directory that is gone is not made anew from its row:
only rows that were never materialised are.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime

from compliance_agent.adapters.durable import read_file, write_file
from compliance_agent.adapters.log_store import LogStore
from compliance_agent.core.receipt import Followed, LoggedBundle
from compliance_agent.core.shedding import MAX_MARK_BYTES, Candidate, Mark
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError, NoInput
from compliance_agent.evidence import directory, table

FILE = "shed.json"


class ShedStore:
    """The rows that may go. Synchronous; call it through `database.call`.

    Args:
        logs: whose database and directory these are.
    """

    def __init__(self, logs: LogStore) -> None:
        self.database = logs.database
        self._logs = logs
        self._path = logs.evidence_dir / FILE

    def followed(self) -> dict[str, Followed]:
        """As `LogStore.followed`."""
        return self._logs.followed()

    def mark(self) -> Mark | None:
        """The mark as the database has it, its file written again when it is lost; the file's, when the database was lost."""
        row = self.database.read(lambda connection: connection.execute("SELECT mark FROM shed").fetchone())
        known, there = Mark.parse(bytes(row[0])) if row is not None else None, self._file()
        if known is not None and (there is None or there.place < known.place):
            write_file(self._path, known.encode(), 0o644)
        if known is None and there is not None and not self.database.read(lambda c: _any_up_to(c, there.place)):
            return there
        return known

    def _file(self) -> Mark | None:
        try:
            return Mark.parse(read_file(self._path, limit_bytes=MAX_MARK_BYTES))
        except (BadEvidence, NoInput):
            return None

    def candidates(self, mark: Mark | None, limit: int, keep_last: int) -> list[Candidate]:
        """The chain from after the mark on, at most so many records, and never the newest ones."""
        after = mark.place if mark is not None else (-1, 0)

        def read(connection: sqlite3.Connection) -> list[Candidate]:
            newest = (
                "SELECT epoch, seq FROM evidence WHERE epoch IS NOT NULL ORDER BY epoch DESC, seq DESC LIMIT 1 OFFSET ?"
            )
            end = connection.execute(newest, (max(keep_last, 1) - 1,)).fetchone()
            if end is None:
                return []
            where = "WHERE epoch IS NOT NULL AND (epoch, seq) > (?, ?) AND (epoch, seq) < (?, ?) ORDER BY epoch, seq LIMIT ?"
            found = table.select(connection, where, (*after, *end, limit))
            publics = table.public_keys(connection)
            return [_candidate(connection, row, publics) for row in found]

        return self.database.read(read)

    def let_go(self, gone: Sequence[Candidate], mark: Mark) -> None:
        """Mark, then remove. All of `gone` were found by `candidates` just now.

        Raises:
            StorageError: stopped on the way; the mark is true, and the next turn goes on.
        """
        write_file(self._path, mark.encode(), 0o644)
        places = self.database.read(
            lambda connection: [
                table.directory_of(row, self._logs.evidence_dir)
                for item in gone
                for row in table.select(connection, "WHERE id = ?", (item.id,))
            ]
        )
        for place in places:
            directory.remove(place)

        def forget(connection: sqlite3.Connection) -> None:
            ids = [item.id for item in gone]
            connection.executemany("DELETE FROM receipts WHERE bundle = ?", [(number,) for number in ids])
            table.remove_uploaded(connection, ids)
            connection.execute(
                "INSERT OR REPLACE INTO shed (one, count, epoch, seq, sha256, mark) VALUES (1, ?, ?, ?, ?, ?)",
                (mark.count, mark.epoch, mark.seq, mark.sha256, mark.encode()),
            )

        self.database.write(forget, drains=True)


def _any_up_to(connection: sqlite3.Connection, place: tuple[int, int]) -> bool:
    return (
        connection.execute("SELECT 1 FROM evidence WHERE (epoch, seq) <= (?, ?) LIMIT 1", place).fetchone() is not None
    )


def _candidate(connection: sqlite3.Connection, row: table.Row, publics: table.Publics | None) -> Candidate:
    receipt = connection.execute(
        "SELECT leaf, proof FROM receipts WHERE bundle = ? AND sha256 = ?", (row.id, row.sha256)
    ).fetchone()
    at = connection.execute("SELECT uploaded_at FROM evidence WHERE id = ?", (row.id,)).fetchone()[0]
    document = {}
    with contextlib.suppress(DocumentError):
        document = read_json(row.body, limit_bytes=directory.MAX_BUNDLE_BYTES)
    sound = row.own and row.state == "uploaded" and publics is not None and row.is_sound(publics) and bool(document)
    created = _time(document.get("created_at")) if sound else None
    key_id, prev = (document["host"]["key_id"], document["prev"]) if sound else ("", "")
    return Candidate(
        id=row.id,
        bundle=LoggedBundle(key_id, row.epoch or 0, row.seq or 0, prev, row.sha256, row.signature),
        kind=str(document.get("kind", "")),
        created_at=created or datetime.max.replace(tzinfo=UTC),
        acknowledged_at=_time(at),
        sound=sound,
        leaf=bytes(receipt[0]) if receipt else b"",
        proof=bytes(receipt[1]) if receipt else b"",
    )


def _time(text: str | None) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if text else None
    except (TypeError, ValueError):
        return None
