"""The schema's revisions lead to what tables.py says, on both databases, down and up again, and lose no row."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Column, Connection, MetaData, String, Table, insert, inspect

from compliance_agent.errors import StorageError
from compliance_agent.server.store import Address, SqlStore, migrate, migration, tables
from compliance_agent.server.store.database import Database
from compliance_agent.server.store.engine import SqliteDatabase
from compliance_agent.server.store.postgres import PostgresDatabase
from tests.postgres import Postgres

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A database without any table, as its owner has it."""
    if request.param == "sqlite":
        file = SqliteDatabase(tmp_path / "server.db")
        yield file
        await file.close()
        return
    server: Postgres = request.getfixturevalue("postgres")
    async with server.database(template="template1") as name:
        database = PostgresDatabase(server.address(name, "owner"))
        yield database
        await database.close()


def differences(connection: Connection, metadata: MetaData = tables.metadata) -> list[Any]:
    """What alembic would still have to change for the database to be as `metadata` says."""
    context = MigrationContext.configure(connection, opts={"compare_type": True})
    return list(compare_metadata(context, metadata))


def to(revision: str) -> Callable[[Connection], None]:
    def act(connection: Connection) -> None:
        migration.VERSIONS.create(connection, checkfirst=True)
        migration.move(connection, revision)

    return act


def names(connection: Connection) -> set[str]:
    return set(inspect(connection).get_table_names())


async def test_the_revisions_make_what_the_tables_say_down_and_up_again(empty: Database) -> None:
    await empty.prepare(to(migration.HEAD))
    assert await empty.prepare(differences) == []
    await empty.prepare(to(migration.BASE))
    assert await empty.prepare(names) == {"alembic_version"}
    await empty.prepare(to(migration.HEAD))
    assert await empty.prepare(differences) == []
    assert await empty.prepare(migration.made) is False


async def test_each_step_can_be_taken_back(empty: Database) -> None:
    revisions = [item.revision for item in reversed(list(migration._scripts().walk_revisions()))]
    assert revisions[-1] == migration.HEAD and revisions == sorted(revisions)
    before = None
    for revision in revisions:
        await empty.prepare(to(revision))
        if before is not None:
            await empty.prepare(to(before))
            await empty.prepare(to(revision))
        before = revision
    assert await empty.prepare(differences) == []


async def test_a_new_database_is_the_same(empty: Database) -> None:
    assert await empty.prepare(migration.made) is True
    assert await empty.prepare(differences) == []
    assert await empty.prepare(migration.revision) == migration.HEAD


async def test_planted_a_column_without_a_revision_is_seen(empty: Database) -> None:
    await empty.prepare(to(migration.HEAD))
    more = MetaData()
    for table in tables.metadata.sorted_tables:
        table.to_metadata(more)
    more.tables["hosts"].append_column(Column("forgotten", String))
    Table("forgotten_too", more, Column("x", String, primary_key=True))
    found = await empty.prepare(lambda connection: differences(connection, more))
    assert {item[0] for item in found} == {"add_table", "add_column"}


async def test_a_way_back_that_would_lose_a_row_is_not_taken(empty: Database) -> None:
    await empty.prepare(to(migration.HEAD))
    row = insert(tables.nonces).values(hash="h", key_id="k", expires_at="")
    await empty.prepare(lambda connection: connection.execute(row) and None)
    with pytest.raises(StorageError) as caught:
        await empty.prepare(to(migration.BASE))
    assert caught.value.code == "rows_would_be_lost"
    assert "nonces" in await empty.prepare(names)


async def test_one_migrates_at_a_time(postgres: Postgres) -> None:
    """The second one waits for the first, and finds nothing to do."""
    async with postgres.database(template="template1") as name:
        owner = postgres.address(name, "owner")
        holder = await asyncpg.connect(owner.url)
        await holder.execute("SELECT pg_advisory_lock($1)", 0x636F6D706C79)
        both = [asyncio.create_task(migrate(owner, "server")) for _ in range(2)]
        done, _ = await asyncio.wait(both, timeout=0.3)
        assert not done
        await holder.close()
        assert await asyncio.gather(*both) == [[], []]
        await (await SqlStore.open(Address(postgres.address(name).url))).close()


async def test_another_programs_database_is_refused(postgresql: Address, postgres: Postgres) -> None:
    owner = Address(postgresql.url.replace("//server@", "//owner@"))
    connection = await asyncpg.connect(owner.url)
    await connection.execute("UPDATE alembic_version SET version_num = '9999'")
    await connection.close()
    for act in (SqlStore.open(postgresql), migrate(owner, "server")):
        with pytest.raises(StorageError) as caught:
            await act
        assert caught.value.code == "wrong_schema_version"
