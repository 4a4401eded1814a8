"""All rows of one database into another, page by page in the order of their keys, with a digest of what was read.

A database of PostgreSQL is read in one transaction, as it is at one moment.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Executable, Table, func, literal, select, text, tuple_

from compliance_agent.errors import BadEvidence, NotPermitted
from compliance_agent.server.store import tables
from compliance_agent.server.store.database import Statements

PAGE = 1_000
Rows = Sequence[Sequence[Any]]
Read = Callable[[Executable], Awaitable[Rows]]
Told = Callable[[int], None] | None


@dataclass(frozen=True)
class Copied:
    """What a table holds: the number of its rows, and a digest over all of them in the order of their keys."""

    table: str
    rows: int
    sha256: str


async def pages(read: Read, table: Table) -> AsyncIterator[Rows]:
    """Every row of a table, a page at a time."""
    keys = list(table.primary_key.columns)
    places = [list(table.columns).index(key) for key in keys]
    query = select(table).order_by(*keys).limit(PAGE)
    found = await read(query)
    while found:
        yield found
        last = tuple_(*(literal(found[-1][place], key.type) for place, key in zip(places, keys, strict=True)))
        found = await read(query.where(tuple_(*keys) > last)) if len(found) == PAGE else []


class Tally:
    """Counts rows and digests them."""

    def __init__(self, table: Table) -> None:
        self._table, self._rows, self._digest = table.name, 0, hashlib.sha256()

    def add(self, rows: Rows) -> None:
        """Take these in."""
        self._rows += len(rows)
        for row in rows:
            self._digest.update(repr(tuple(row)).encode("utf-8", "surrogatepass"))

    @property
    def done(self) -> Copied:
        """The whole of it."""
        return Copied(self._table, self._rows, self._digest.hexdigest())


async def counted(read: Read, table: Table) -> Copied:
    """What a table holds."""
    tally = Tally(table)
    async for rows in pages(read, table):
        tally.add(rows)
    return tally.done


def reading(statements: Statements) -> Read:
    """Read within a transaction."""

    async def read(query: Executable) -> Rows:
        return list((await statements.execute(query)).all())

    return read


async def see_empty(statements: Statements) -> None:
    """A database without our tables, or with all of them empty.

    Raises:
        NotPermitted: it holds rows.
    """
    there = reading(statements)
    for table in tables.metadata.sorted_tables:
        made = (await statements.execute(text("SELECT to_regclass(:name)::text"), {"name": table.name})).scalar()
        if made is not None and await there(select(literal(1)).select_from(table).limit(1)):
            raise NotPermitted(
                f"the target holds rows in {table.name}; nothing was written", hint="name a new database"
            )


async def fill(statements: Statements, read: Read, told: Told = None) -> list[Copied]:
    """Copy everything into an empty database within one transaction, and read it back there.

    Raises:
        NotPermitted: it holds rows already.
        BadEvidence: what was read back is not what was read; nothing is kept when this ends the transaction.
    """
    there, copied, count = reading(statements), [], 0
    await see_empty(statements)
    for table in tables.metadata.sorted_tables:
        tally, names = Tally(table), tuple(column.name for column in table.columns)
        async for rows in pages(read, table):
            tally.add(rows)
            await statements.insert(table, names, [tuple(row) for row in rows])
            count += len(rows)
            if told is not None:
                told(count)
        copied.append(tally.done)
        if await counted(there, table) != tally.done:
            raise BadEvidence(f"{table.name}: was read back otherwise; nothing was kept", code="copy_damaged")
        await _go_on_counting(statements, table)
    return copied


async def _go_on_counting(statements: Statements, table: Table) -> None:
    """The next number that PostgreSQL gives is one after the last."""
    for column in table.primary_key.columns:
        if column.autoincrement is True:
            last = (await statements.execute(select(func.max(column)))).scalar()
            named = {"table": table.name, "column": column.name, "last": last or 1, "used": last is not None}
            setting = "SELECT setval(pg_get_serial_sequence(:table, :column), :last, :used)"
            await statements.execute(text(setting), named)
