"""`evidence.csv`: one line for each record, for people with a spreadsheet (RFC 4180). Pure.

A cell that a spreadsheet would take for a formula gets an apostrophe in front, so that opening the file runs nothing.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from compliance_agent.packet.content import RESULTS, Record, Scope, in_order, statements
from compliance_agent.packet.due import Due

COLUMNS = (
    "host", "timestamp_start", "kind", "check", "result", "reason", "outcome", "post_result", "error", "severity",
    "hipaa_controls", "statements", "bundle_id", "key_id", "epoch", "seq", "log_index", "bundle_sha256", "directory",
    "retain_until", "retain_why",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_LATER_FORMULA = re.compile(",[-=+@\t]")


def table(scope: Scope, records: Iterable[Record]) -> bytes:
    """The file."""
    return b"".join(pieces(scope, records))


def pieces(scope: Scope, records: Iterable[Record]) -> Iterator[bytes]:
    """Its lines, one after the other."""
    due = Due(scope)
    return itertools.chain([HEAD], (line(record, due) for record in in_order(records, scope)))


def line(record: Record, due: Due) -> bytes:
    """The line of a record."""
    cells = [*_cells(record), *due.of(record.document)]
    plain = plainly(cells)
    return _line(map(cell, cells)) if plain is None else plain.encode()


def plainly(cells: Sequence[str]) -> str | None:
    """The line of cells that need nothing but commas between them, None where one may need more."""
    plain = ",".join(cells)
    if '"' in plain or "\r" in plain or "\n" in plain or plain.count(",") != len(cells) - 1:
        return None
    if plain.startswith(_FORMULA) or _LATER_FORMULA.search(plain) is not None:
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


def _cells(record: Record) -> list[str]:
    said = record.document
    key, epoch, seq = record.place
    return [
        said["host"]["id"], said["timestamp_start"], said["kind"], said["check"] or "", said["result"] or "",
        said["reason"] or "", said["outcome"] or "", said["post_result"] or "", said["error"] or "", said["severity"] or "",
        " ".join(said["hipaa_controls"]), _summary(said), said["bundle_id"], key, str(epoch), str(seq), str(record.index),
        record.digest, record.directory,
    ]  # fmt: skip


def _summary(said: Mapping[str, Any]) -> str:
    if said["check"] and said["result"] and not said["states"] and said["post_result"] is None:  # most say one thing
        return f"{said['result']}=1"
    stated = [result for _, result, _ in statements(said)]
    return " ".join(f"{result}={stated.count(result)}" for result in RESULTS if result in stated)
