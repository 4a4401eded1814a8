"""Row-level security in PostgreSQL: what stands when a statement, or a whole reader, forgets the site."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import select

from compliance_agent.errors import StorageError
from compliance_agent.server.records import Host, Transaction
from compliance_agent.server.store import Address, SqlStore, rows, tables
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import serving

pytestmark = pytest.mark.anyio


async def test_a_statement_that_forgets_the_site_meets_the_second_wall(postgresql: Address, tmp_path: Path) -> None:
    """PostgreSQL shows a transaction the rows of the sites that it is bound to, whatever the statement says."""
    async with serving(tmp_path / "data", database=postgresql.url) as server:
        theirs = await server.enrolled("ws-99", "clinic-2")
        await server.enrolled()
        await server.deliver(theirs, theirs.next())
        store = server.services.store
        assert isinstance(store, SqlStore)
        for statement in (select(table) for table in tables.TENANT_TABLES):
            rows = await store.database.all(statement, sites={"clinic-1"})
            assert all(row["site_id"] == "clinic-1" for row in rows)
            assert await store.database.all(statement, sites=()) == []
        assert [row["site_id"] for row in await store.database.all(select(tables.hosts), sites={"clinic-1"})] == [
            "clinic-1"
        ]

        async def into_another(tx: Transaction) -> None:
            await tx.add_token("h" * 64, "clinic-2", server.clock(), server.clock())

        with pytest.raises(StorageError):
            await store.write(into_another, sites={"clinic-1"})
        await store.write(into_another, sites={"clinic-2"})
        await server.by_hand(
            "ALTER TABLE hosts DISABLE ROW LEVEL SECURITY"
        )  # planted: without it, the statement shows both
        assert len(await store.database.all(select(tables.hosts), sites={"clinic-1"})) == 2


@pytest.mark.parametrize("forgets", ["_hosts", "hosts"])
async def test_a_reader_without_a_predicate_still_shows_one_clinic(
    postgresql: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgets: str
) -> None:
    """Planted: the statement that lists hosts names no site any more."""
    every = select(tables.hosts, tables.sites.c.client_id).join(
        tables.sites, tables.sites.c.site_id == tables.hosts.c.site_id
    )

    async def hosts(self: BoundReader, _site_id: str | None = None) -> list[Host]:
        return [rows.host(row) for row in await self._all(every)]

    monkeypatch.setattr(BoundReader, forgets, hosts if forgets == "hosts" else lambda _self: every)
    async with serving(tmp_path / "data", database=postgresql.url) as server:
        ours, _ = await server.enrolled(), await server.enrolled("ws-99", "clinic-2")
        headers = await server.operator(sites=frozenset({"clinic-1"}))
        reply = await server.client.get("/api/v1/hosts", headers=headers)
        assert [item["key_id"] for item in reply.json()] == [ours.key_id]
