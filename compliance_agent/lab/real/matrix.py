"""Every fault that is really done to a host, and what must come of it: the tables of `rows` as one, and how hosts share them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from compliance_agent.lab.real.row import Row, Table
from compliance_agent.lab.real.rows import tables


def _with_rest(table: Table) -> Table:
    """Before any fault, a host as it should be is looked at: a row too, where the check has none of its own for that."""
    rest = (
        ()
        if any(row.standing for row in table.rows)
        else (Row(table.check, "none", "true", *table.rests, standing=True),)
    )
    return replace(table, rows=(*rest, *table.rows))


TABLES = tuple(_with_rest(table) for table in tables())
ROWS: tuple[Row, ...] = tuple(row for table in TABLES for row in table.rows)


def chosen(only: Sequence[str]) -> tuple[Table, ...]:
    """The tables with the rows that `CHECK` or `CHECK:FAULT` name; all of them for none.

    Raises:
        ValueError: a name fits no row.
    """
    for name in only:
        if not any(name in {row.check, row.name} for row in ROWS):
            raise ValueError(f"no row {name!r}; there are {', '.join(row.name for row in ROWS)}")
    found = []
    for table in TABLES:
        rows = tuple(row for row in table.rows if not only or row.check in only or row.name in only)
        if rows:
            found.append(replace(table, rows=rows))
    return tuple(found)


def spread(tables: Sequence[Table], hosts: int) -> list[tuple[Table, ...]]:
    """Which host takes which tables, so that all end at about the same time: the longest first, each to who has least to do."""
    shares: list[list[Table]] = [[] for _ in range(min(hosts, len(tables)))]
    for table in sorted(tables, key=lambda table: -table.cost_s):
        min(shares, key=lambda share: sum(taken.cost_s for taken in share)).append(table)
    return [tuple(share) for share in shares]
