"""PostgreSQL under the store: several processes, and several transactions of each, write at a time.

Every write transaction is SERIALIZABLE: it reads and writes as if it were alone, or PostgreSQL undoes it. Whatever is right with
the one writer of SQLite is right here, too: a read that decides about a write needs no lock of its own. What was undone for such
a reason was certainly not written, so it is run again from its beginning, after a short wait of random length, until it has had
`WAIT_S`; then it is `busy`.

An error before the COMMIT is sent has undone everything. When the connection ends while a COMMIT is under way, nobody can tell
(`commit_unknown`): it is neither run again here nor promised. Whoever asked reads again.

A frozen process keeps its row locks until `idle_in_transaction_session_timeout`; then PostgreSQL ends its transaction.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg  # type: ignore[import-untyped]  # it has no types yet
from sqlalchemy import Connection, Executable, LargeBinary, String, Table, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import CursorResult, RowMapping
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from compliance_agent.errors import StorageError, StorageFull
from compliance_agent.server.store.database import Statements, sqlstate_of, translated
from compliance_agent.server.store.packing import Packed, as_kept

T = TypeVar("T")
READERS, WRITERS = 4, 4  # connections of this process at most, of each kind
WAIT_S = 10.0  # for a turn, over all attempts
CONNECT_S, COMMAND_S = 5.0, 60.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.004, 0.25
SITES, EVERY_SITE = "compliance_agent.sites", "*"  # what a transaction is bound to, ids separated by spaces
_AGAIN = frozenset({"40001", "40P01"})  # serialization failure, deadlock: undone, and worth another attempt
_WAITED = frozenset({"55P03"})  # a lock was not to be had within lock_timeout
# The server is not there, ends, starts, or has no connection left.
_AWAY = frozenset({"57P01", "57P02", "57P03", "53300", "08000", "08001", "08003", "08004", "08006", "08007", "25P03"})
_SETTINGS = {
    "application_name": "compliance-agent",
    "timezone": "UTC",
    "jit": "off",  # no query here is long enough to be worth compiling
    "idle_in_transaction_session_timeout": "15000",
    "lock_timeout": "10000",
}
_WRITER_SETTINGS = {
    **_SETTINGS,
    "synchronous_commit": "on",  # what a role or a database has set must not loosen a promise
    "enable_seqscan": "off",  # a whole table that was read conflicts with every write to it; an index only where it was read
}
_READER_SETTINGS = {**_SETTINGS, "default_transaction_read_only": "on"}


@dataclass(frozen=True)
class Address:
    """Where a database is, and what it takes to get in.

    Args:
        url: `postgresql://USER@HOST[:PORT]/NAME[?sslmode=...]`, without a password.
        password: the secret; never shown.
    """

    url: str
    password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.url


class _Waiting:
    """`Statements` over a connection to another process."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def execute(
        self, statement: Executable, parameters: Sequence[dict[str, Any]] | dict[str, Any] | None = None
    ) -> CursorResult[Any]:
        return await self._connection.execute(statement, parameters)

    async def insert(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]) -> None:
        if rows:
            values = tuple(list(column) for column in zip(*as_kept(table, columns, rows), strict=True))
            await self._connection.exec_driver_sql(_insertion(table, columns), values)

    async def update(self, table: Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]], by: int) -> None:
        if rows:
            values = tuple(list(column) for column in zip(*rows, strict=True))
            await self._connection.exec_driver_sql(_change(table, columns, by), values)


@functools.cache
def _insertion(table: Table, columns: tuple[str, ...]) -> str:
    """A statement for any number of rows, given column by column; they are numbered in the order given."""
    quoted = postgresql.dialect().identifier_preparer.format_column  # type: ignore[no-untyped-call]
    names = ", ".join(quoted(table.c[name]) for name in columns)
    arrays = ", ".join(f"${place}::{_array_of(table, name)}" for place, name in enumerate(columns, 1))
    return (
        f"INSERT INTO {table.name} ({names}) SELECT {names}"  # noqa: S608  our own names
        f" FROM unnest({arrays}) WITH ORDINALITY AS given ({names}, place) ORDER BY place"
    )


@functools.cache
def _change(table: Table, columns: tuple[str, ...], by: int) -> str:
    """A statement for any number of rows, given column by column."""
    quoted = postgresql.dialect().identifier_preparer.format_column  # type: ignore[no-untyped-call]
    names = [quoted(table.c[name]) for name in columns]
    arrays = ", ".join(f"${place}::{_array_of(table, name)}" for place, name in enumerate(columns, 1))
    said = [f"{name} = given.{name}" for name in names]
    found = " AND ".join(f"{table.name}.{item}" for item in said[:by])
    given = f"unnest({arrays}) AS given ({', '.join(names)})"
    return f"UPDATE {table.name} SET {', '.join(said[by:])} FROM {given} WHERE {found}"  # noqa: S608  our own names


def _array_of(table: Table, name: str) -> str:
    kind = table.c[name].type
    if isinstance(kind, String):
        return "text[]"
    return "bytea[]" if isinstance(kind, LargeBinary | Packed) else "bigint[]"


class PostgresDatabase:
    """A database that several processes share: connections that write, and connections that can only read."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.writers = _engine(address, _WRITER_SETTINGS, WRITERS)
        self.readers = _engine(address, _READER_SETTINGS, READERS)

    async def all(
        self, query: Executable, values: dict[str, Any] | None = None, *, sites: Iterable[str] | None = None
    ) -> list[RowMapping]:
        """Every row of a query, in a transaction that is bound to these sites, or to all."""
        with _ours("reading the database"):
            async with _begun(self.readers, "BEGIN READ ONLY", sites) as (connection, driver):
                found = list((await connection.execute(query, values)).mappings())
                await driver.execute("COMMIT")
                return found

    async def transaction(self, work: Callable[[Statements], Awaitable[T]], *, sites: Iterable[str] | None = None) -> T:
        """Run `work` in one write transaction; again from its beginning where PostgreSQL undid it for another's sake."""
        bound = None if sites is None else frozenset(sites)
        deadline, pause_s = time.monotonic() + WAIT_S, FIRST_PAUSE_S
        while True:
            try:
                with _ours("writing the database"):
                    return await self._once(work, bound)
            except _Undone as undone:
                if time.monotonic() > deadline:
                    raise StorageError(f"writing: undone again and again for {WAIT_S:.0f} s", code="busy") from undone
            await asyncio.sleep(random.uniform(0, pause_s))  # noqa: S311  so that two do not meet again
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _once(self, work: Callable[[Statements], Awaitable[T]], sites: frozenset[str] | None) -> T:
        async with _begun(self.writers, "BEGIN ISOLATION LEVEL SERIALIZABLE", sites) as (connection, driver):
            result = await work(_Waiting(connection))
            await _commit(driver)
            return result

    async def snapshot(self, work: Callable[[Statements], Awaitable[T]]) -> T:
        """Run `work` in one transaction that sees the database as it is at its beginning, and cannot write."""
        with _ours("reading the database"):
            begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
            async with _begun(self.readers, begin, None) as (connection, driver):
                result = await work(_Waiting(connection))
                await driver.execute("COMMIT")
                return result

    async def prepare(self, act: Callable[[Connection], T]) -> T:
        """Run `act` in the first transaction, before anything else."""
        with _ours("opening the database"):
            async with _begun(self.writers, "BEGIN", None) as (connection, driver):
                result = await connection.run_sync(act)
                await _commit(driver)
                return result

    async def close(self) -> None:
        """Close every connection."""
        await self.readers.dispose()
        await self.writers.dispose()


class _Undone(Exception):
    """PostgreSQL undid a transaction for the sake of another one."""


@contextlib.contextmanager
def _ours(act: str) -> Iterator[None]:
    """Errors of PostgreSQL, and of the way to it, as ours; what was undone for another's sake as `_Undone`."""
    with translated(act):
        try:
            yield
        except (DBAPIError, asyncpg.PostgresError) as error:
            state = sqlstate_of(error)
            if state in _AGAIN:
                raise _Undone(state) from error
            if state in _WAITED:
                raise StorageError(f"{act}: another transaction has held what it needs", code="busy") from error
            if state in _AWAY or getattr(error, "connection_invalidated", False):
                raise _away(act, error) from error
            if isinstance(error, asyncpg.PostgresError):  # of BEGIN or COMMIT, which SQLAlchemy does not see
                raise (StorageFull if state == "53100" else StorageError)(f"{act}: {type(error).__name__}") from error
            raise
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, PoolTimeout) as error:
            raise _away(act, error) from error


def _away(act: str, error: BaseException) -> StorageError:
    return StorageError(
        f"{act}: the database is not to be reached ({type(getattr(error, 'orig', error)).__name__}); nothing was written",
        code="database_away",
        hint="is it running, and does the address in `database` lead to it?",
    )


async def _commit(driver: Any) -> None:
    """Make it durable. Once this is sent, only an answer of PostgreSQL tells what became of it."""
    try:
        await driver.execute("COMMIT")
    except Exception as error:
        if isinstance(error, asyncpg.PostgresError) and sqlstate_of(error) not in _AWAY:
            raise  # an answer: it was not written
        raise StorageError(
            f"writing the database: the connection ended during COMMIT ({type(error).__name__}); it may be written or not",
            code="commit_unknown",
        ) from error


@contextlib.asynccontextmanager
async def _begun(
    engine: AsyncEngine, begin: str, sites: Iterable[str] | None
) -> AsyncIterator[tuple[AsyncConnection, Any]]:
    """A connection in a transaction, which is rolled back unless the block commits it; and its driver.

    BEGIN and what binds the transaction are one message. SQLAlchemy, which would send them one by one, is told that there is
    no transaction (AUTOCOMMIT).
    """
    bound = EVERY_SITE if sites is None else " ".join(sorted(sites))
    async with engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        try:
            await driver.execute(f"{begin}; SET LOCAL {SITES} = {_quoted(bound)}")
            yield connection, driver
        except Exception:
            try:
                await driver.execute("ROLLBACK")
            except Exception:
                await connection.invalidate()
            raise
        except BaseException:  # cancelled: nobody knows where the connection stands
            await connection.invalidate()
            raise


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _engine(address: Address, settings: dict[str, str], size: int) -> AsyncEngine:
    async def connect() -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            address.url,
            password=address.password,
            timeout=CONNECT_S,
            command_timeout=COMMAND_S,
            server_settings=settings,
        )

    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=connect,
        connect_args={"prepared_statement_cache_size": 512},
        isolation_level="AUTOCOMMIT",
        pool_size=size,
        max_overflow=0,
        pool_timeout=WAIT_S,
    )

    @event.listens_for(engine.sync_engine, "checkout")
    def _alive(connection: Any, _record: Any, _proxy: Any) -> None:
        if connection.driver_connection.is_closed():  # the other side has ended it meanwhile
            raise DisconnectionError

    return engine
