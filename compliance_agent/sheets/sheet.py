"""What a sheet is made of: paragraphs, tables, bars, and lines that a person fills in. Pure.

A number is never said without the records that it was counted from.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
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


class Said:
    """What records state, read once and counted as often as somebody asks.

    Attributes:
        records: in their order.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        self.records = tuple(records)
        self._found: dict[
            str, dict[str, list[int]]
        ] = {}  # check, result -> places of the records, as often as they state it
        for place, record in enumerate(self.records):
            for check, result, _ in statements(record.document):
                self._found.setdefault(check, {}).setdefault(result, []).append(place)

    @property
    def checks(self) -> list[str]:
        """That something is stated of, in order."""
        return sorted(self._found)

    def number(self, result: str, *checks: str) -> Number:
        """How often the records state a result of these checks together."""
        places = [place for check in set(checks) for place in self._found.get(check, {}).get(result, ())]
        return Number(str(len(places)), tuple(self.records[place] for place in sorted(set(places))), result)

    def results(self, *checks: str) -> tuple[Number, ...]:
        """One number for each result, `unknown` too."""
        return tuple(self.number(result, *checks) for result in RESULTS)


def by_host(records: Iterable[Record]) -> dict[str, Said]:
    """What each host states, by its label, in order."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[host(record)].append(record)
    return {label: Said(own) for label, own in sorted(found.items())}


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
