"""How many statements a request costs the database: a wrapper that every statement of the store goes through.

    services.store.database = counted = Counted(services.store.database)
    with counted.counting() as statements:
        await client.get("/")
    len(statements)

What other tasks do meanwhile, the sequencer for one, is not counted: the count belongs to the context that asked for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

from sqlalchemy import Connection, Executable, Table
from sqlalchemy.engine import CursorResult, RowMapping

from compliance_agent.server.store.database import Database, Statements

T = TypeVar("T")
_counted: ContextVar[list[str] | None] = ContextVar("counted", default=None)


def _note(statement: object) -> None:
    said = _counted.get()
    if said is not None:
        said.append(" ".join(str(statement).split()))


class Counted:
    """A database, and a note of each statement that it is asked to run."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @contextlib.contextmanager
    def counting(self) -> Iterator[list[str]]:
        """The statements of whatever runs in this context."""
        said: list[str] = []
        token = _counted.set(said)
        try:
            yield said
        finally:
            _counted.reset(token)

    async def all(
        self, query: Executable, values: dict[str, Any] | None = None, *, sites: Iterable[str] | None = None
    ) -> list[RowMapping]:
        """Every row of a query."""
        _note(query)
        return await self._database.all(query, values, sites=sites)

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, sites: Iterable[str] | None = None) -> T:
        """One write transaction, each of its statements noted."""
        said = _counted.get()

        async def noted(statements: Statements) -> T:
            return await work(_Noting(statements, said))

        return await self._database.transaction(noted, sites=sites)

    async def prepare(self, act: Callable[[Connection], T]) -> T:
        """Run `act` before anything else."""
        return await self._database.prepare(act)

    async def close(self) -> None:
        """Close it."""
        await self._database.close()


class _Noting:
    """`Statements` in a transaction, which may run in another thread: so the list is handed over, not the context."""

    def __init__(self, statements: Statements, said: list[str] | None) -> None:
        self._statements = statements
        self._said = said

    async def execute(
        self, statement: Executable, parameters: Sequence[dict[str, Any]] | dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        if self._said is not None:
            self._said.append(" ".join(str(statement).split()))
        return await self._statements.execute(statement, parameters)

    async def insert(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        if self._said is not None:
            self._said.append(f"INSERT INTO {table.name}")
        await self._statements.insert(table, columns, rows)

    async def update(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], by: int) -> None:
        if self._said is not None:
            self._said.append(f"UPDATE {table.name}")
        await self._statements.update(table, columns, rows, by)
