"""PostgreSQL under the store: transactions as if alone, what is certain when it goes away, and what guards its rows."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import func, insert, select, text

from compliance_agent.errors import ConfigError, StorageError, StorageFull
from compliance_agent.server.records import Host, NewLeaf, Site, Transaction
from compliance_agent.server.settings import check_database
from compliance_agent.server.store import Address, SqlStore, migrate, tables
from compliance_agent.server.store import postgres as engine
from compliance_agent.server.store.database import Statements
from compliance_agent.server.store.fences import STONES
from tests.postgres import Postgres, shared
from tests.server.builder import START, by_hand, stamp

pytestmark = pytest.mark.anyio


@pytest.fixture
async def store(postgresql: Address) -> AsyncIterator[SqlStore]:
    opened = await SqlStore.open(postgresql)
    yield opened
    await opened.close()


def site(name: str) -> Site:
    return Site(name, "msp", START)


def owner_of(address: Address) -> Address:
    return Address(address.url.replace("//server@", "//owner@"))


# --- transactions ---------------------------------------------------------------------------------


async def test_it_is_durable_and_alone(store: SqlStore) -> None:
    """What the role or the database has set does not count."""

    async def settings(statements: Statements) -> list[str]:
        names = ("synchronous_commit", "transaction_isolation", "idle_in_transaction_session_timeout")
        return [(await statements.execute(text(f"SHOW {name}"))).scalar_one() for name in names]

    assert await store.database.transaction(settings) == ["on", "serializable", "15s"]


async def _skewed(store: SqlStore) -> int:
    """Two transactions that each count, wait for each other, and then write by what they counted; what is there at the end."""
    met = asyncio.Barrier(2)
    runs: list[int] = []

    async def once(number: int, statements: Statements) -> None:
        runs.append(number)
        count = (await statements.execute(select(func.count()).select_from(tables.nonces))).scalar_one()
        if runs.count(number) == 1:
            await met.wait()
        if count == 0:
            row = {"hash": f"h{number}", "key_id": "k", "expires_at": ""}
            await statements.execute(insert(tables.nonces).values(row))

    await asyncio.gather(*(store.database.transaction(lambda s, n=n: once(n, s)) for n in range(2)))  # type: ignore[misc]
    [found] = await store.database.all(select(func.count().label("count")).select_from(tables.nonces))
    return int(found["count"])


async def test_a_decision_by_what_was_read_is_not_overtaken(store: SqlStore) -> None:
    assert await _skewed(store) == 1


async def test_planted_a_weaker_isolation_is_overtaken(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = engine._begun
    monkeypatch.setattr(engine, "_begun", lambda engine, _begin, sites: begun(engine, "BEGIN", sites))
    assert await _skewed(store) == 2


async def test_a_transaction_that_never_gets_its_turn_is_busy(store: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """And was certainly not written; the number of its attempts has an end."""
    monkeypatch.setattr(engine, "WAIT_S", 0.05)
    attempts = 0

    async def conflicting(statements: Statements) -> None:
        nonlocal attempts
        attempts += 1
        await statements.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = '40001'; END $$"))

    with pytest.raises(StorageError) as caught:
        await store.database.transaction(conflicting)
    assert caught.value.code == "busy" and attempts > 1


async def test_two_processes_write_at_the_same_time(postgresql: Address) -> None:
    stores = [await SqlStore.open(postgresql) for _ in range(2)]
    names = [f"site-{number}" for number in range(40)]
    await asyncio.gather(*(stores[n % 2].write(lambda tx, n=n: tx.add_site(site(names[n]))) for n in range(40)))  # type: ignore[misc]
    assert await stores[0].all_sites() == frozenset(names)
    for store in stores:
        await store.close()


@pytest.mark.parametrize("count", [0, 1, 65, 1_000])
async def test_rows_are_added_in_their_order(store: SqlStore, count: int) -> None:
    await store.write(lambda tx: tx.add_site(site("clinic-1")))
    leaves = [NewLeaf("clinic-1", b"%d" % number, None if number % 2 else "key", 0, number) for number in range(count)]
    await store.write(lambda tx: tx.add_leaves(leaves, START))
    pending = await store.write(lambda tx: tx.pending_leaves({"clinic-1"}, 2_000))
    assert [item.leaf for item in pending] == [item.leaf for item in leaves]
    assert [item.number for item in pending] == list(range(1, count + 1))


async def test_an_error_undoes_the_whole_transaction(store: SqlStore) -> None:
    async def half(tx: Transaction) -> None:
        await tx.add_site(site("a"))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await store.write(half)
    assert await store.all_sites() == frozenset()


async def test_who_stops_waiting_leaves_nothing_behind(store: SqlStore) -> None:
    async def slow(tx: Transaction) -> None:
        await tx.add_site(site("a"))
        await asyncio.Event().wait()

    waiting = asyncio.create_task(store.write(slow))
    await asyncio.sleep(0.05)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await store.write(lambda tx: tx.add_site(site("b")))
    assert await store.all_sites() == {"b"}


# --- when it goes away ----------------------------------------------------------------------------

_END = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'server'"
)


async def test_a_connection_that_ends_before_the_commit_has_written_nothing(
    store: SqlStore, postgresql: Address
) -> None:
    async def cut(tx: Transaction) -> None:
        await tx.add_site(site("a"))
        await by_hand(postgresql.url, _END)
        await tx.add_site(site("b"))

    with pytest.raises(StorageError) as caught:
        await store.write(cut)
    assert caught.value.code == "database_away"
    await store.write(lambda tx: tx.add_site(site("c")))  # a new connection, at once
    assert await store.all_sites() == {"c"}


async def test_a_connection_that_ends_during_the_commit_leaves_it_open(
    store: SqlStore, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be written or not: it is not promised, and not run again."""
    commit, runs = engine._commit, 0

    async def lost(driver: Any) -> None:
        await by_hand(postgresql.url, _END)
        await commit(driver)

    async def work(tx: Transaction) -> None:
        nonlocal runs
        runs += 1
        await tx.add_site(site("a"))

    monkeypatch.setattr(engine, "_commit", lost)
    with pytest.raises(StorageError) as caught:
        await store.write(work)
    assert (caught.value.code, runs) == ("commit_unknown", 1)


class Lost:
    """A driver whose connection ends as the answer to COMMIT is awaited."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def execute(self, statement: str) -> None:
        assert statement == "COMMIT"
        raise self.error


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ConnectionDoesNotExistError("closed in the middle of operation"),
        asyncpg.InternalClientError("cannot switch to state 15; another operation (2) is in progress"),
        asyncpg.InterfaceError("connection is closed"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.CrashShutdownError("terminating connection"),
        asyncpg.TransactionResolutionUnknownError("unknown"),
        TimeoutError(),
        ConnectionResetError(),
    ],
    ids=lambda error: type(error).__name__,
)
async def test_a_commit_without_an_answer_is_not_known(error: Exception) -> None:
    with pytest.raises(StorageError) as caught:
        await engine._commit(Lost(error))
    assert caught.value.code == "commit_unknown"


@pytest.mark.parametrize("error", [asyncpg.SerializationError("undone"), asyncpg.DiskFullError("no room")])
async def test_a_commit_that_was_refused_is_known(error: Exception) -> None:
    with pytest.raises(type(error)):
        await engine._commit(Lost(error))


async def test_nothing_listens_there() -> None:
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(Address("postgresql://server@127.0.0.1:1/none", "s3cret-word"))
    assert caught.value.code == "database_away"
    assert "s3cret" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


async def test_a_full_disk_is_one(store: SqlStore) -> None:
    async def full(statements: Statements) -> None:
        await statements.execute(text("DO $$ BEGIN RAISE EXCEPTION 'x' USING ERRCODE = 'disk_full'; END $$"))

    with pytest.raises(StorageFull):
        await store.database.transaction(full)


async def test_the_session_s_server_is_started_anew_when_all_who_held_it_are_gone(tmp_path: Path) -> None:
    """A worker of pytest-xdist may end before another one comes to its first test here."""
    first, handle = shared(tmp_path)
    os.close(handle)
    async with asyncio.timeout(60):
        while first.directory.exists():
            await asyncio.sleep(0.01)
    second, handle = shared(tmp_path)
    try:
        third, another = shared(tmp_path)
        os.close(another)
        assert (second == third, second == first) == (True, False)
        assert await second.by_hand("postgres", "SELECT 1") == [(1,)]
    finally:
        os.close(handle)


# --- the address ----------------------------------------------------------------------------------


def test_a_password_is_not_shown() -> None:
    address = Address("postgresql://server@/x", "s3cret-word")
    assert "s3cret" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://u:s3cret@localhost/x", "password"),
        ("postgresql://u@localhost/x?password=s3cret", "password"),
        ("postgresql://u@db.example/x", "TLS"),
        ("postgresql:///x", "expected"),
        ("postgresql://u@localhost", "expected"),
        ("mysql://u@localhost/x", "expected"),
        ("postgresql://u@localhost:x/x", "expected"),
    ],
)
def test_an_address_that_cannot_be_used_says_why(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        check_database("database", url)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://u@/x?host=/run/postgresql",
        "postgresql://u@127.0.0.1:5433/x",
        "postgresql://u@db.example/x?sslmode=verify-full",
    ],
)
def test_addresses_that_can_be_used(url: str) -> None:
    check_database("database", url)


# --- the wall -------------------------------------------------------------------------------------

KEY = "k" * 64


async def _filled(store: SqlStore) -> None:
    async def work(tx: Transaction) -> None:
        await tx.add_site(site("clinic-1"))
        await tx.add_host(Host(KEY, "clinic-1", "msp", "ws-01", b"p", START))

    await store.write(work)
    at = stamp(START)
    for statement in (
        "INSERT INTO bundles (bundle_id, site_id, key_id, epoch, seq, sha256, prev, kind, created_at, received_at, body, sig)"
        f" SELECT n, 'clinic-1', '{KEY}', 0, n, 'd' || n, '', 'drift', '{at}', '{at}', 'body', 'sig' FROM generate_series(1, 3) n",
        "INSERT INTO forks (site_id, key_id, epoch, seq, sha256, body, sig, received_at)"
        f" VALUES ('clinic-1', '{KEY}', 0, 2, 'other', 'body', 'sig', '{at}')",
        "INSERT INTO log_entries (site_id, year, leaf_index, key_id, epoch, seq, decided_at, leaf)"
        f" SELECT 'clinic-1', 2026, n, '{KEY}', 0, n, '{at}', 'leaf' FROM generate_series(1, 3) n",
        "INSERT INTO log_entries (site_id, year, leaf_index, key_id, decided_at, leaf)"
        f" VALUES ('clinic-1', 2026, 4, '{KEY}', '{at}', 'seen: other')",
        f"INSERT INTO holds (site_id, reason_id, added_at, released_at) VALUES ('clinic-1', 'case-1', '{at}', '{at}')",
        "INSERT INTO baseline_uses VALUES ('clinic-1', 'ws-01', '1', '2026-11-22')",
    ):
        await store.database.transaction(lambda s, statement=statement: s.execute(text(statement)))  # type: ignore[misc]


REFUSED = {
    "DELETE FROM bundles": "bundles: a record is never deleted",
    "TRUNCATE bundles CASCADE": "bundles: a record is never deleted",
    "UPDATE bundles SET body = 'x'": "bundles: this record must be kept",
    "UPDATE bundles SET body = ''": "bundles: this record must be kept",
    "UPDATE bundles SET sig = 'x'": "bundles: a record is never changed",
    "UPDATE bundles SET site_id = 'other' WHERE seq = 1": "bundles: a record is never changed",
    "DELETE FROM forks": "forks: a record is never deleted",
    "TRUNCATE forks": "forks: a record is never deleted",
    "UPDATE forks SET body = ''": "forks: this record must be kept",
    "UPDATE forks SET sha256 = 'f'": "forks: a record is never changed",
    "DELETE FROM log_entries WHERE leaf_index = 3": "log_entries: an entry is never deleted",
    "TRUNCATE log_entries": "log_entries: an entry is never deleted",
    "UPDATE log_entries SET leaf = 'x'": "log_entries: an entry is never changed",
    "UPDATE log_entries SET leaf_index = 99 WHERE leaf_index = 3": "log_entries: an entry never moves",
    "UPDATE log_entries SET year = NULL, leaf_index = NULL": "log_entries: an entry never moves",
    "DELETE FROM holds": "holds: a hold is released, never deleted",
    "TRUNCATE holds": "holds: a hold is released, never deleted",
    "UPDATE holds SET released_at = NULL": "holds: a hold is released once, and not changed",
    "DELETE FROM baseline_uses": "baseline_uses: the last day of a baseline version is never forgotten",
    "TRUNCATE baseline_uses": "baseline_uses: the last day of a baseline version is never forgotten",
    "UPDATE baseline_uses SET last_on = '2000-01-01'": "baseline_uses: the last day of a baseline version only moves",
}


async def _refusal(connection: asyncpg.Connection[Any], *statements: str) -> str | None:
    """What the wall says to the last of these statements, in a transaction that is undone."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        for statement in statements:
            await connection.execute(statement)
    except asyncpg.IntegrityConstraintViolationError as error:
        return str(error)
    finally:
        await transaction.rollback()
    return None


async def test_the_wall_by_hand(store: SqlStore, postgresql: Address) -> None:
    """The owner too, and with the replication role's setting; and each stone holds something."""
    await _filled(store)
    connection = await asyncpg.connect(owner_of(postgresql).url)
    for settings in ("SELECT 1", "SET session_replication_role = replica"):
        await connection.execute(settings)
        said = {statement: await _refusal(connection, statement) for statement in REFUSED}
        assert {
            statement: words for statement, words in said.items() if not (words or "").startswith(REFUSED[statement])
        } == {}
    await connection.execute("SET session_replication_role = origin")
    for name, stone in STONES.items():
        drop = f"DROP TRIGGER {name} ON {stone.table}"
        assert any([await _refusal(connection, drop, statement) is None for statement in REFUSED]), name
    await connection.close()


async def test_the_door(store: SqlStore, postgresql: Address) -> None:
    """It opens as in SQLite: for old enough records in the stretch that the guard names, that no hold covers."""
    await _filled(store)
    connection = await asyncpg.connect(owner_of(postgresql).url)

    def guard(days: int, first: int = 0, stop: int = 9) -> str:
        at = stamp(START + timedelta(days=days))
        return f"INSERT INTO prune_guards VALUES ('clinic-1', 2026, {first}, {stop}, '{at}', 0)"

    held = "INSERT INTO holds (site_id, host_id, reason_id, added_at) VALUES ('clinic-1', {host}, 'case-2', '')"
    for empty in ("UPDATE bundles SET body = '' WHERE seq = 2", "UPDATE forks SET body = ''"):
        place = 2 if "bundles" in empty else 4
        assert await _refusal(connection, guard(2_192), empty) is None
        assert await _refusal(connection, guard(2_191), empty)
        assert await _refusal(connection, guard(2_192, first=place + 1), empty)
        assert await _refusal(connection, guard(2_192, stop=place), empty)
        assert await _refusal(connection, guard(2_192), empty.replace("''", "'x'"))
        assert await _refusal(connection, held.format(host="NULL"), guard(2_192), empty)
        assert await _refusal(connection, held.format(host="'ws-01'"), guard(2_192), empty)
        assert await _refusal(connection, held.format(host="'ws-02'"), guard(2_192), empty) is None
    await connection.execute("BEGIN")
    await connection.execute(guard(2_192))
    with pytest.raises(asyncpg.ForeignKeyViolationError):  # a guard that is left behind undoes the transaction
        await connection.execute("COMMIT")
    await connection.close()


DAMAGE = {
    "a trigger": "DROP TRIGGER wall_bundles_delete ON bundles",
    "a sleeping trigger": "ALTER TABLE bundles DISABLE TRIGGER wall_bundles_delete",
    "a hollow function": "CREATE OR REPLACE FUNCTION wall_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'",
    "no row security": "ALTER TABLE hosts DISABLE ROW LEVEL SECURITY",
    "not for the owner": "ALTER TABLE hosts NO FORCE ROW LEVEL SECURITY",
    "one more policy": "CREATE POLICY open ON hosts USING (true)",
    "no policy": "DROP POLICY bound_sites ON hosts",
}


@pytest.mark.parametrize("damage", DAMAGE)
async def test_a_server_does_not_start_on_a_database_that_does_not_guard_it(postgresql: Address, damage: str) -> None:
    """`server migrate` puts it up again, and says what it was."""
    connection = await asyncpg.connect(owner_of(postgresql).url)
    await connection.execute(DAMAGE[damage])
    await connection.close()
    with pytest.raises(StorageError) as caught:
        await SqlStore.open(postgresql)
    assert caught.value.code == "wall_down"
    assert len(await migrate(owner_of(postgresql), "server")) == 1
    assert await migrate(owner_of(postgresql), "server") == []
    await (await SqlStore.open(postgresql)).close()


async def test_the_server_cannot_take_it_down(store: SqlStore) -> None:
    for statement in (
        *DAMAGE.values(),
        "DELETE FROM bundles",
        "UPDATE alembic_version SET version_num = '9'",
        "DELETE FROM audit",
    ):
        with pytest.raises(StorageError):
            await store.database.transaction(lambda s, statement=statement: s.execute(text(statement)))  # type: ignore[misc]


async def test_an_empty_database_is_not_made_by_the_server(postgres: Postgres) -> None:
    async with postgres.database(template="template1") as name:
        with pytest.raises(StorageError) as caught:
            await SqlStore.open(postgres.address(name))
    assert caught.value.code == "wrong_schema_version"
