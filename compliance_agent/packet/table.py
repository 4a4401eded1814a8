"""`evidence.csv`: one line for each record, for people with a spreadsheet (RFC 4180). Pure.

A cell that a spreadsheet would take for a formula gets an apostrophe in front, so that opening the file runs nothing.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence

from compliance_agent.packet.content import RESULTS, Record, Scope, in_order, statements
from compliance_agent.packet.due import Due

COLUMNS = (
    "host", "timestamp_start", "kind", "check", "result", "reason", "outcome", "post_result", "error", "severity",
    "hipaa_controls", "statements", "bundle_id", "key_id", "epoch", "seq", "log_index", "bundle_sha256", "directory",
    "retain_until", "retain_why",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_SPECIAL = re.compile('["\r\n]|,[-=+@\t]')  # lines with these are written cell by cell


def table(scope: Scope, records: Iterable[Record]) -> bytes:
    """The file."""
    return b"".join(pieces(scope, records))


def pieces(scope: Scope, records: Iterable[Record]) -> Iterator[bytes]:
    """Its lines, one after the other."""
    due = Due(scope)
    return itertools.chain([HEAD], (line(record, due) for record in in_order(records, scope)))


def line(record: Record, due: Due) -> bytes:
    """The line of a record."""
    cells = ["" if value is None else str(value) for value in (*_cells(record), *due.of(record.document))]
    plain = plainly(cells)
    return _line(map(cell, cells)) if plain is None else plain.encode()


def plainly(cells: Sequence[str]) -> str | None:
    """The line of cells that need nothing but commas between them, None where one may need more."""
    plain = ",".join(cells)
    if plain.count(",") != len(cells) - 1 or _SPECIAL.search(plain) is not None or plain.startswith(_FORMULA):
        return None
    return f"{plain}\r\n"


def _line(cells: Iterable[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(cells)
    return written.getvalue().encode()


HEAD = _line(COLUMNS)


def cell(value: object) -> str:
    """A value as text that no spreadsheet takes for a formula; a missing value is empty."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _cells(record: Record) -> list[object]:
    said = record.document
    stated = [result for _, result, _ in statements(said)]
    summary = " ".join(f"{result}={stated.count(result)}" for result in RESULTS if result in stated)
    plain = [said[name] for name in ("timestamp_start", "kind", "check", "result", "reason", "outcome", "post_result")]
    more = [said["error"], said["severity"], " ".join(said["hipaa_controls"]), summary, said["bundle_id"]]
    return [said["host"]["id"], *plain, *more, *record.place, record.index, record.digest, record.directory]
