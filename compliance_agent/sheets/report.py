"""The ten sheets of a packet (HIPAA evidence as auditors ask for it), with the list of records that their numbers lead to. Pure.

Each number has an id. On paper it leads to the list of its records; two tables that are attached to the PDF have all of it
for a machine: `numbers.csv` (which records each number counts) and `records.csv` (where each record stands in the packet).
"""

from __future__ import annotations

import csv
import io
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compliance_agent.packet.content import RESULTS, Record, Scope, day_of, in_order
from compliance_agent.packet.report import Report
from compliance_agent.packet.table import cell
from compliance_agent.sheets import period, registers, standing
from compliance_agent.sheets.sheet import WORDS, Cell, Number, Said, Sheet, Table, host

LISTED = 5_000  # records that are listed on paper; the attached tables have all of them
RECORDS = (
    "record",
    "host",
    "timestamp_start",
    "kind",
    "check",
    "result",
    "outcome",
    "bundle_id",
    "directory",
    "sha256",
    "log_index",
)
NUMBERS = ("number", "sheet", "said", "records")
DAYS = ("host", "check", "day", "result", "times", "records")


@dataclass(frozen=True)
class Printable:
    """A report, ready to be set.

    Attributes:
        document: what the template reads.
        attached: name and bytes of each table that goes with it.
        made_at: when the checkpoint was signed, seconds since 1970: the date of the PDF, so that it is the same each time.
    """

    document: dict[str, Any]
    attached: dict[str, bytes]
    made_at: int


def sheets_of(scope: Scope, records: Sequence[Record], found: Report) -> list[Sheet]:
    """All ten, in their order."""
    return [
        period.period(scope, records),
        period.sample(scope, records),
        registers.changes(records),
        registers.exceptions(scope, records),
        registers.review(records),
        registers.backups(records),
        standing.hosts(scope, records),
        registers.updates(records),
        standing.health(scope, records, found),
        standing.verification(scope, found),
    ]


def report_of(
    scope: Scope, records: Iterable[Record], found: Report, *, sha256: str, version: str, made_at: int
) -> Printable:
    """The report of a packet.

    Args:
        scope: of the packet.
        records: that are in it; those of the period count.
        found: by its verifier.
        sha256: of the packet.
        version: of the program that prints.
        made_at: when the checkpoint was signed, seconds since 1970.
    """
    held = in_order(records, scope)
    places = {id(record): number for number, record in enumerate(held, 1)}
    numbers: list[tuple[Number, int]] = []
    sheets = []
    for index, sheet in enumerate(sheets_of(scope, held, found), 1):
        take = _taker(index, numbers, places)
        bars = [{"label": bar.label, "parts": list(map(take, bar.counts))} for bar in sheet.bars]
        tables = [_table(table, take) for table in sheet.tables]
        sheets.append(
            {
                "title": sheet.title,
                "lead": list(sheet.lead),
                "bars": bars,
                "tables": tables,
                "sign_off": list(sheet.sign_off),
            }
        )
    counted = [
        (f"n{at}", sheet, number.text, _ranges(sorted(places[id(one)] for one in number.records)))
        for at, (number, sheet) in enumerate(numbers, 1)
    ]
    listed = [_listed(number, record) for number, record in enumerate(held, 1)]
    short = len(held) <= LISTED
    document = {
        "site": scope.site_id,
        "since": scope.since,
        "until": scope.until,
        "control": scope.control or "",
        "host": scope.host or "",
        "origin": scope.origin,
        "size": scope.size,
        "signed_at": scope.signed_at,
        "sha256": sha256,
        "version": version,
        "ok": found.ok,
        "results": [{"tone": result, "word": WORDS[result]} for result in RESULTS],
        "sheets": sheets,
        "count": len(held),
        "short": short,
        "numbers": [[number, str(sheet), said, records] for number, sheet, said, records in counted] if short else [],
        "records": [_on_paper(line) for line in listed] if short else [],
    }
    attached = {
        "records.csv": _csv(RECORDS, listed),
        "numbers.csv": _csv(NUMBERS, counted),
        "days.csv": _csv(DAYS, _daily(held, places)),
    }
    return Printable(document, attached, made_at)


def _table(table: Table, take: Callable[[Cell], dict[str, str]]) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": list(table.columns),
        "rows": [list(map(take, row)) for row in table.rows],
        "empty": table.empty,
        "dense": table.dense,
    }


def _taker(
    sheet: int, numbers: list[tuple[Number, int]], places: Mapping[int, int]
) -> Callable[[Cell], dict[str, str]]:
    """What turns the cells of a sheet into those of the template; a number that counts nothing leads nowhere."""

    def take(found: Cell) -> dict[str, str]:
        if isinstance(found, str):
            return {"text": found, "to": "", "tone": ""}
        if not found.records:
            return {"text": found.text, "to": "", "tone": ""}
        if not found.text:
            name = f"R{places[id(found.records[0])]}"
            return {"text": name, "to": name, "tone": found.tone}
        numbers.append((found, sheet))
        return {"text": found.text, "to": f"n{len(numbers)}", "tone": found.tone}

    return take


def _daily(records: Sequence[Record], places: Mapping[int, int]) -> Iterator[list[Any]]:
    """Each host, check and day, with how often each result was stated and by which records."""
    found: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in records:
        found[host(record), day_of(record.document)].append(record)
    for (label, day), held in sorted(found.items()):
        said = Said(held)
        for check in said.checks:
            for result in RESULTS:
                number = said.number(result, check)
                if number.records:
                    yield [label, check, day, result, number.text, _ranges([places[id(one)] for one in number.records])]


def _on_paper(line: Sequence[Any]) -> list[str]:
    record, label, start, kind, check, result, _, bundle_id, _, _, index = line
    return [record, label, f"{start[:10]} {start[11:19]}", kind, check, result, bundle_id, str(index)]


def _listed(number: int, record: Record) -> list[Any]:
    said = record.document
    last = said["post_result"] or said["result"] or ""
    words = [said["timestamp_start"], said["kind"], said["check"] or "", last, said["outcome"] or "", said["bundle_id"]]
    return [f"R{number}", host(record), *words, record.directory, record.digest, record.index]


def _ranges(numbers: Sequence[int]) -> str:
    """`R1-R4 R9`: neighbours together."""
    return " ".join(_spans(numbers))


def _spans(numbers: Sequence[int]) -> Iterator[str]:
    for _, group in itertools.groupby(enumerate(numbers), lambda pair: pair[1] - pair[0]):
        together = [number for _, number in group]
        yield f"R{together[0]}" if len(together) == 1 else f"R{together[0]}-R{together[-1]}"


def _csv(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\r\n")
    writer.writerow(columns)
    writer.writerows([cell(value) for value in row] for row in rows)
    return text.getvalue().encode()
