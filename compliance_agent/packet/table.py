"""`evidence.csv`: one line for each record, for people with a spreadsheet (RFC 4180). Pure.

A cell that a spreadsheet would take for a formula gets an apostrophe in front, so that opening the file runs nothing.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    return writer(record.document, due)(record)


def writer(like: Mapping[str, Any], due: Due) -> Callable[[Record], bytes]:
    """What writes the line of this record, and of those that are like it but for what is their own (`evidence.alike.OWN`)."""
    host, key, said = like["host"]["id"], like["host"]["key_id"], plainly(cells := _said(like))
    if said is None:
        return lambda record: _line(map(cell, [*_before(record), *cells, *_after(record), *due.of(record.document)]))
    epoch = like["epoch"]

    def plain(record: Record) -> bytes:
        """What a record has of its own are times, numbers, digests and its id and path, which need nothing but commas."""
        own = record.document
        until, why = due.of(own)
        return (
            f"{host},{own['timestamp_start']},{said},{own['bundle_id']},{key},{epoch},{own['seq']},{record.index},"
            f"{record.digest},{record.directory},{until},{why}\r\n"
        ).encode("ascii")

    return plain


def plainly(cells: Sequence[str]) -> str | None:
    """Cells that need nothing but commas between them, None where one may need more."""
    plain = ",".join(cells)
    if '"' in plain or "\r" in plain or "\n" in plain or plain.count(",") != len(cells) - 1:
        return None
    if plain.startswith(_FORMULA) or _LATER_FORMULA.search(plain) is not None:
        return None
    return plain


def _line(cells: Iterable[str]) -> bytes:
    written = io.StringIO()
    csv.writer(written, lineterminator="\r\n").writerow(cells)
    return written.getvalue().encode()


HEAD = _line(COLUMNS)


def cell(value: object) -> str:
    """A value as text that no spreadsheet takes for a formula; a missing value is empty."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _before(record: Record) -> list[str]:
    return [record.document["host"]["id"], record.document["timestamp_start"]]


def _said(said: Mapping[str, Any]) -> list[str]:
    """What records that are alike say."""
    return [
        said["kind"], said["check"] or "", said["result"] or "", said["reason"] or "", said["outcome"] or "",
        said["post_result"] or "", said["error"] or "", said["severity"] or "", " ".join(said["hipaa_controls"]), _summary(said),
    ]  # fmt: skip


def _after(record: Record) -> list[str]:
    key, epoch, seq = record.place
    bundle = record.document["bundle_id"]
    return [bundle, key, str(epoch), str(seq), str(record.index), record.digest, record.directory]


def _summary(said: Mapping[str, Any]) -> str:
    if said["check"] and said["result"] and not said["states"] and said["post_result"] is None:  # most say one thing
        return f"{said['result']}=1"
    stated = [result for _, result, _ in statements(said)]
    return " ".join(f"{result}={stated.count(result)}" for result in RESULTS if result in stated)
