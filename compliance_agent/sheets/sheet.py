"""What a sheet is made of: paragraphs, tables, bars, and lines that a person fills in. Pure.

A number is never said without the records that it was counted from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from compliance_agent.packet.content import RESULTS, Record, statements

WORDS = {
    "pass": "pass",
    "fail": "fail",
    "unknown": "unknown",
    "not_applicable": "not applicable",
    "exception": "exception",
}
LETTERS = {"fail": "F", "unknown": "U", "exception": "E", "not_applicable": "N", "pass": "P"}  # the worst first


@dataclass(frozen=True)
class Number:
    """A count of what these records state.

    Attributes:
        text: as it is said; "" stands for the one record's own number.
        tone: the result it counts, which gives it its colour; "" for none.
    """

    text: str
    records: tuple[Record, ...]
    tone: str = ""


Cell = str | Number
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Table:
    """Rows under a head.

    Attributes:
        empty: what is said where there is no row.
        dense: a heat map, in small letters.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    empty: str = "Nothing."
    dense: bool = False


@dataclass(frozen=True)
class Bar:
    """Counts of results side by side, each as wide as its share."""

    label: str
    counts: tuple[Number, ...]


@dataclass(frozen=True)
class Sheet:
    """One of the ten.

    Attributes:
        lead: paragraphs before the tables.
        sign_off: what a person states and signs for; none where nobody has to.
    """

    title: str
    lead: tuple[str, ...]
    tables: tuple[Table, ...] = ()
    bars: tuple[Bar, ...] = ()
    sign_off: tuple[str, ...] = ()


def count(records: Iterable[Record], tone: str = "") -> Number:
    """How many these are."""
    held = tuple(records)
    return Number(str(len(held)), held, tone)


def alone(record: Record, tone: str = "") -> Number:
    """This record, by the number it has in the list of records."""
    return Number("", (record,), tone)


def stated(records: Sequence[Record], result: str, of: Callable[[str], bool]) -> Number:
    """How often these records state a result of the checks that `of` takes."""
    holding = [(record, times) for record in records if (times := _times(record, result, of))]
    return Number(str(sum(times for _, times in holding)), tuple(record for record, _ in holding), result)


def results(records: Sequence[Record], of: Callable[[str], bool]) -> tuple[Number, ...]:
    """One number for each result, `unknown` too."""
    return tuple(stated(records, result, of) for result in RESULTS)


def heads() -> tuple[str, ...]:
    """What stands over those numbers."""
    return tuple(WORDS[result] for result in RESULTS)


def at(record: Record) -> str:
    """When a record is about, to the second, UTC."""
    start: str = record.document["timestamp_start"]
    return f"{start[:10]} {start[11:19]}"


def host(record: Record) -> str:
    """Its host's label."""
    label: str = record.document["host"]["id"]
    return label


def _times(record: Record, result: str, of: Callable[[str], bool]) -> int:
    return sum(found == result and of(check) for check, found, _ in statements(record.document))
