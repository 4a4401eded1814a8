"""The database file: how it is opened, who may write at once, and what is refused untouched."""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import text

from compliance_agent.errors import StorageError
from compliance_agent.server.records import NewLeaf, Site, Transaction
from compliance_agent.server.store import SqlStore, engine
from compliance_agent.server.store.database import translated
from tests.server.builder import START

pytestmark = pytest.mark.anyio


def site(name: str) -> Site:
    return Site(name, "msp", START)


async def test_a_write_is_durable_when_it_returns(tmp_path: Path) -> None:
    """WAL and synchronous=FULL on the connection that writes (NORMAL loses promised records in a power cut)."""
    store = await SqlStore.open(tmp_path / "server.db")
    assert isinstance(store.database, engine.SqliteDatabase)
    with store.database.writer.connect() as connection:
        found = {
            name: connection.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in (
                "journal_mode",
                "synchronous",
                "foreign_keys",
                "page_size",
                "trusted_schema",
                "cell_size_check",
            )
        }
    await store.close()
    assert found == {
        "journal_mode": "wal",
        "synchronous": 2,
        "foreign_keys": 1,
        "page_size": 16_384,
        "trusted_schema": 0,
        "cell_size_check": 1,
    }
    assert (tmp_path / "server.db").stat().st_mode & 0o777 == 0o600


async def test_readers_cannot_write(tmp_path: Path) -> None:
    store = await SqlStore.open(tmp_path / "server.db")
    assert isinstance(store.database, engine.SqliteDatabase)
    with pytest.raises(StorageError), translated("trying"), store.database.readers.begin() as connection:
        connection.execute(text("DELETE FROM sites"))
    await store.close()


async def test_an_error_undoes_the_whole_transaction(tmp_path: Path) -> None:
    store = await SqlStore.open(tmp_path / "server.db")

    async def half(tx: object) -> None:
        await tx.add_site(site("a"))  # type: ignore[attr-defined]
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(half)
    assert await store.all_sites() == frozenset()
    await store.close()


async def test_two_processes_write_in_turn(tmp_path: Path) -> None:
    """Two stores on one file stand for the server and a command of its; each write waits for the other's lock."""
    stores = [await SqlStore.open(tmp_path / "server.db") for _ in range(2)]
    names = [f"site-{number}" for number in range(40)]
    await asyncio.gather(*(stores[n % 2].write(lambda tx, n=n: tx.add_site(site(names[n]))) for n in range(40)))  # type: ignore[misc]
    assert await stores[0].all_sites() == frozenset(names)
    for store in stores:
        await store.close()


async def test_a_lock_that_is_never_given_back_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await SqlStore.open(tmp_path / "server.db")
    monkeypatch.setattr(engine, "WAIT_FOR_LOCK_S", 0.05)
    with (tmp_path / "server.db.write-lock").open("r+") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(StorageError) as caught:
            await store.write(lambda tx: tx.add_site(site("a")))
        assert caught.value.code == "busy"
    await store.write(lambda tx: tx.add_site(site("a")))
    await store.close()


@pytest.mark.parametrize(
    "statement", ["UPDATE alembic_version SET version_num = '9999'", "DELETE FROM alembic_version"]
)
async def test_another_schema_version_is_refused_untouched(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "server.db"
    await (await SqlStore.open(path)).close()
    with sqlite3.connect(path) as database:
        database.execute(statement)
    database.close()
    before = path.read_bytes()
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(path)
    assert caught.value.code == "wrong_schema_version"
    assert path.read_bytes() == before


async def test_what_is_no_database_is_refused_untouched(tmp_path: Path) -> None:
    path = tmp_path / "server.db"
    path.write_bytes(b"not a database" * 1_000)
    with pytest.raises(StorageError):
        await SqlStore.open(path)
    assert path.read_bytes() == b"not a database" * 1_000


async def test_every_table_of_a_clinic_carries_its_site() -> None:
    from compliance_agent.server.store import tables

    without = {table.name for table in tables.metadata.sorted_tables if "site_id" not in table.c}
    people = {
        "users",
        "sessions",
        "operator_tokens",
        "login_attempts",
        "factors",
        "recovery_codes",
        "identities",
        "flows",
    }
    assert without == {"nonces", "prune_never", "alert_outbox", "duties", "replicas", *people}


async def test_the_schema_is_written_for_postgresql_too() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    from compliance_agent.server.store import tables

    for table in tables.metadata.sorted_tables:
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]


async def test_a_transaction_waits_for_nothing_else(tmp_path: Path) -> None:
    """It runs in the writer's thread from end to end: work that waits for the loop would hold the lock for ever."""
    store = await SqlStore.open(tmp_path / "server.db")

    async def idle(tx: Transaction) -> None:
        await tx.add_site(site("a"))
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited"):
        await store.write(idle)
    assert await store.all_sites() == frozenset()
    await store.close()


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 63, 64, 65, 137])
async def test_rows_are_added_in_their_order_however_many_they_are(tmp_path: Path, count: int) -> None:
    """They go in by several in one statement; their numbers are in a row, which is how the sequencer finds them."""
    store = await SqlStore.open(tmp_path / "server.db")
    await store.write(lambda tx: tx.add_site(site("clinic-1")))
    leaves = [NewLeaf("clinic-1", b"%d" % number, "key", 0, number) for number in range(count)]
    await store.write(lambda tx: tx.add_leaves(leaves, START))
    pending = await store.write(lambda tx: tx.pending_leaves({"clinic-1"}, 1_000))
    await store.close()
    assert [item.leaf for item in pending] == [item.leaf for item in leaves]
    assert [item.number for item in pending] == list(range(1, count + 1))


@pytest.mark.parametrize("twice", [3, 70, 129])
async def test_a_row_that_is_refused_undoes_all_of_them(tmp_path: Path, twice: int) -> None:
    """Also one that repeats a row of its own statement: the wall looks at each."""
    store = await SqlStore.open(tmp_path / "server.db")
    await store.write(lambda tx: tx.add_site(site("clinic-1")))
    leaves = [NewLeaf("clinic-1", b"entry", "key", 0, number if number < twice else twice - 1) for number in range(130)]
    with pytest.raises(StorageError):
        await store.write(lambda tx: tx.add_leaves(leaves[: twice + 1], START))
    assert await store.write(lambda tx: tx.pending_leaves({"clinic-1"}, 1_000)) == []
    await store.close()
