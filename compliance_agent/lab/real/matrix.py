"""Every fault that is really done to a host, and what must come of it: the tables of `rows` as one."""

from __future__ import annotations

from compliance_agent.lab.real.row import Row
from compliance_agent.lab.real.rows import tables

TABLES = tables()
ROWS: tuple[Row, ...] = tuple(row for table in TABLES for row in table.rows)


def chosen(only: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows that `CHECK` or `CHECK:FAULT` name; all of them for none.

    Raises:
        ValueError: a name fits no row.
    """
    for name in only:
        if not any(name in {row.check, row.name} for row in ROWS):
            raise ValueError(f"no row {name!r}; there are {', '.join(row.name for row in ROWS)}")
    return tuple(row for row in ROWS if not only or row.check in only or row.name in only)
