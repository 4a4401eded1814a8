"""What the store needs of a database, whichever it is, and how a database's errors become ours.

`SqliteDatabase` (engine.py) is a file with one writer over all processes. `PostgresDatabase` (postgres.py) lets several
transactions write at a time, each as if it were alone. Work that is right alone is right on both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Executable, Table
from sqlalchemy.engine import CursorResult, RowMapping
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from compliance_agent.errors import StorageError, StorageFull

T = TypeVar("T")


class Statements(Protocol):
    """A connection that has begun a transaction."""

    async def execute(
        self, statement: Executable, parameters: Sequence[dict[str, Any]] | dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        """Run one statement, with its parameters, or with many sets of them; `rowcount` counts for a single set only."""
        ...

    async def insert(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        """Add rows in this order, given as the database keeps their values, in as few statements as it can."""
        ...

    async def update(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], by: int) -> None:
        """Change rows, each found by the first columns, as many as `by` says; the others are set."""
        ...


class Database(Protocol):
    """Where rows are kept."""

    async def all(
        self, query: Executable, values: dict[str, Any] | None = None, *, sites: Iterable[str] | None = None
    ) -> list[RowMapping]:
        """Every row of a query, which is bound to these sites; to all of them when none are named."""
        ...

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, sites: Iterable[str] | None = None) -> T:
        """Run `work` in one write transaction, bound to these sites; an error in it undoes everything.

        It may be run again from its beginning, so it keeps what it learns until it returns.

        Raises:
            StorageError: nothing may be promised. `busy` and `database_away`: it is certainly not written.
        """
        ...

    async def prepare(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in the first transaction, before anything else."""
        ...

    async def close(self) -> None:
        """Close every connection."""
        ...


@contextlib.contextmanager
def translated(act: str) -> Iterator[None]:
    """Turn every error of the database into ours; its text, which may quote values, goes no further."""
    try:
        yield
    except DBAPIError as error:
        full = "disk is full" in str(error.orig) or sqlstate_of(error) == "53100"
        raise (StorageFull if full else StorageError)(f"{act}: {type(error.orig).__name__}") from error
    except SQLAlchemyError as error:
        raise StorageError(f"{act}: {type(error).__name__}") from error
    except OSError as error:
        raise StorageError(f"{act}: errno {error.errno}") from error


def sqlstate_of(error: BaseException | None) -> str:
    """The five characters with which PostgreSQL names an error, or none."""
    found = getattr(getattr(error, "orig", error), "sqlstate", None)
    return found if isinstance(found, str) else ""
