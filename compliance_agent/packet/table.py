"""`evidence.csv`: one line for each record, for people with a spreadsheet (RFC 4180). Pure.

A cell that a spreadsheet would take for a formula gets an apostrophe in front, so that opening the file runs nothing.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence

from compliance_agent.packet.content import Record, Scope, counted, in_order, statements

COLUMNS = (
    "host", "timestamp_start", "kind", "check", "result", "reason", "outcome", "post_result", "error", "severity",
    "hipaa_controls", "statements", "bundle_id", "key_id", "epoch", "seq", "log_index", "bundle_sha256", "directory",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def table(scope: Scope, records: Iterable[Record]) -> bytes:
    """The file."""
    return b"".join(pieces(scope, records))


def pieces(scope: Scope, records: Iterable[Record]) -> Iterator[bytes]:
    """Its lines, one after the other."""
    yield _line(COLUMNS)
    for record in in_order(records, scope):
        yield _line([cell(value) for value in _cells(record)])


def _line(cells: Sequence[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(cells)
    return written.getvalue().encode()


def cell(value: object) -> str:
    """A value as text that no spreadsheet takes for a formula; a missing value is empty."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cells(record: Record) -> list[object]:
    said = record.document
    counts = counted(result for _, result, _ in statements(said))
    summary = " ".join(f"{result}={count}" for result, count in counts.items() if count)
    plain = [said[name] for name in ("timestamp_start", "kind", "check", "result", "reason", "outcome", "post_result")]
    more = [said["error"], said["severity"], " ".join(said["hipaa_controls"]), summary, said["bundle_id"]]
    digest = hashlib.sha256(record.body).hexdigest()
    return [said["host"]["id"], *plain, *more, *record.place, record.index, digest, record.directory]
