"""How the database finds rows while evidence comes in: by an index that leads to them, however much a site has stored by then.

SQLite guesses, without statistics, that one site has few records; a statement that offers it the site's index reads all of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # it has no types
import pytest
from sqlalchemy import event, func
from sqlalchemy.sql.compiler import SQLCompiler

from compliance_agent.server.records import BundleQuery, Dates
from compliance_agent.server.store import taking
from compliance_agent.server.store.postgres import SITES, Address
from compliance_agent.server.store.tables import among, bundles
from compliance_agent.server.store.texts import among_pairs
from tests.server.builder import START, Server, engines_of, serving

pytestmark = pytest.mark.anyio

BY_SITE = "(site_id=?)"


@contextmanager
def statements(server: Server) -> Iterator[list[tuple[str, Any]]]:
    """Every statement that runs meanwhile, with its values."""
    found: list[tuple[str, Any]] = []

    def note(_connection: Any, _cursor: Any, statement: str, values: Any, _context: Any, many: bool) -> None:
        found.append((statement, values[0] if many else values))

    engines = engines_of(server)
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield found
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


async def reads(directory: Path) -> list[tuple[str, list[str]]]:
    """How each statement finds what it wants, of all that delivering evidence and asking for receipts takes."""
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        with statements(server) as found:
            sent = [host.next() for _ in range(20)]
            await server.deliver(host, *sent)
            await server.deliver(host, *sent)
            await server.deliver(host, host.sign(host.document(seq=9)))
            ids = [bundle.document["bundle_id"] for bundle in sent]
            await server.post("/api/v1/receipts", {"protocol": 1, "bundles": ids}, headers=host.headers)
            reader = server.services.store.for_sites({"clinic-1", "clinic-2"})
            await reader.any_pending()
            await reader.backlog()
            assert await reader.bundle(ids[0]) is not None
            assert await reader.remediations(host.key_id) == {}
            newest = await reader.bundles(BundleQuery(key_id=host.key_id, limit=3))
            assert [item.bundle_id for item in newest] == ids[:-4:-1]
        path = server.services.settings.data_dir / "server.db"
    with closing(sqlite3.connect(path)) as database:
        return [
            (statement, [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)])
            for statement, values in found
            if statement.startswith(("SELECT", "UPDATE", "DELETE"))
        ]


def by_the_whole_site(plan: list[str]) -> list[str]:
    """The steps that read every record or entry of a site, or of the server."""
    tables = ("bundles", "log_entries", "verdicts", "gaps", "forks")
    whole = [f"SCAN {name}" for name in tables]
    return [step for step in plan if step in whole or (step.split()[1] in tables and step.endswith(BY_SITE))]


async def test_evidence_is_taken_in_without_reading_all_of_a_site(tmp_path: Path) -> None:
    plans = await reads(tmp_path / "data")
    assert any("FROM bundles" in statement for statement, _ in plans)
    # What waits for an index is all of it wanted; its index holds nothing else.
    found = [(statement, step) for statement, plan in plans for step in by_the_whole_site(plan)
             if "ix_log_entries_pending" not in step]  # fmt: skip
    assert found == []


async def test_planted_a_site_named_plainly_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    c = bundles.c
    monkeypatch.setattr(taking, "_PLACES", taking._PLACE.where(among(c.site_id, "sites"), among(c.bundle_id, "ids")))
    steps = [step for _, plan in await reads(tmp_path / "data") for step in by_the_whole_site(plan)]
    assert any("bundles" in step for step in steps)


async def packet_reads(directory: Path) -> list[list[str]]:
    """How the records of a packet are found, page by page."""
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, *(host.next() for _ in range(20)))
        reader = server.services.store.for_sites({"clinic-1"})
        with statements(server) as found:
            first = await reader.kept("clinic-1", ("", 0), 7)
            rest = await reader.kept("clinic-1", (first[-1].created_at, first[-1].number), 100)
            assert len({one.number for one in [*first, *rest]}) == 20
            await reader.kept_of("clinic-1", [one.number for one in first])
        path = server.services.settings.data_dir / "server.db"
    with closing(sqlite3.connect(path)) as database:
        return [
            [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in found
            if "FROM bundles" in statement
        ]


async def places_plan(address: Address, directory: Path) -> str:
    """How PostgreSQL, behind row-level security, finds whether records that arrive are there already, among 6,000 others."""
    async with serving(directory, database=address.url) as server:
        host = await server.enrolled()
        with statements(server) as found:
            await server.deliver(host, host.next(), host.next())
    (statement, values), *_ = [(one, what) for one, what in found if one.startswith(str(taking._PLACE)[:60])]
    owner = await asyncpg.connect(address.url.replace("//server@", "//owner@"))
    try:
        await owner.execute("SET session_replication_role = replica")  # no triggers
        columns = [column.name for column in bundles.columns if column.name != "number"]
        new = {
            "bundle_id": "gen_random_uuid()::text",
            "seq": "1000 + n",
            "sha256": "n::text",
            "body": "decode(repeat(md5(n::text), 70), 'hex')",
        }
        listed, filled = (
            ",".join(f'"{name}"' for name in columns),
            ",".join(new.get(name, f'b."{name}"') for name in columns),
        )
        await owner.execute(
            f"INSERT INTO bundles ({listed}) SELECT {filled} FROM (SELECT * FROM bundles LIMIT 1) b, generate_series(1, 6000) n"
        )
    finally:
        await owner.close()
    connection = await asyncpg.connect(address.url)
    try:
        await connection.execute(f"SELECT set_config('{SITES}', 'clinic-1', false)")
        return "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {statement}", *values))
    finally:
        await connection.close()


EACH_WITH_EACH = "Join Filter"


async def test_behind_row_level_security_records_that_arrive_are_not_held_against_each_that_is_there(
    postgresql: Address, tmp_path: Path
) -> None:
    assert EACH_WITH_EACH not in await places_plan(postgresql, tmp_path / "data")


async def test_planted_texts_taken_out_of_json_row_by_row_are_held_against_each(
    postgresql: Address, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(element: among_pairs, compiler: SQLCompiler, **options: Any) -> str:
        one, other, texts = (compiler.process(part, **options) for part in element.clauses)
        each = f"SELECT value ->> 0, value ->> 1 FROM jsonb_array_elements(CAST({texts} AS jsonb))"
        return f"(({one}, {other}) IN ({each}))"

    dispatch = among_pairs.__dict__["_compiler_dispatcher"]
    monkeypatch.setitem(dispatch.specs, "postgresql", careless)
    assert EACH_WITH_EACH in await places_plan(postgresql, tmp_path / "data")


async def test_no_page_of_a_packet_reads_or_sorts_a_whole_site(tmp_path: Path) -> None:
    plans = await packet_reads(tmp_path / "data")
    assert len(plans) == 3
    assert [step for plan in plans for step in plan if "TEMP B-TREE" in step or step.endswith(BY_SITE)] == []


async def test_planted_records_of_a_packet_by_the_site_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compliance_agent.server.store.tables.site_of", lambda table: table.c.site_id)
    steps = [step for plan in await packet_reads(tmp_path / "data") for step in plan]
    assert any(step.endswith(BY_SITE) for step in steps)


async def days_reads(directory: Path) -> dict[str, list[str]]:
    """How the records of some days are counted, and how those are found that a sample may be drawn from."""
    async with serving(directory) as server:
        host = await server.enrolled()
        await server.deliver(host, *(host.next() for _ in range(5)))
        reader = server.services.store.for_sites({"clinic-1"})
        days = Dates(START.date(), START.date())
        with statements(server) as found:
            assert sum(one.times for one in await reader.said(days)) == 5
            assert len(await reader.kept_on("clinic-1", {days.first: [host.key_id]})) == 5
            assert await reader.spoken([host.key_id], days) == {(host.key_id, days.first)}
        path = server.services.settings.data_dir / "server.db"
    signs = {"said": "GROUP BY", "kept_on": "log_entries.leaf_index AS", "spoken": "DISTINCT"}
    with closing(sqlite3.connect(path)) as database:
        return {
            name: [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
            for statement, values in found
            for name, sign in signs.items()
            if sign in statement and "created_at <" in statement
        }


BY_DAYS = "SEARCH bundles USING COVERING INDEX ix_bundles_days (site_id=? AND created_at>? AND created_at<?)"


async def test_days_are_counted_and_drawn_from_without_looking_up_a_record(tmp_path: Path) -> None:
    plans = await days_reads(tmp_path / "data")
    assert {name: BY_DAYS in plan for name, plan in plans.items()} == {"said": True, "kept_on": True, "spoken": True}


async def test_planted_a_column_that_the_index_of_days_lacks_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compliance_agent.server.store.reader.func.max", lambda _: func.min(bundles.c.seq))
    assert BY_DAYS not in (await days_reads(tmp_path / "data"))["said"]


async def test_what_waits_is_found_from_the_checks_that_fail_not_from_every_cure(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        reader = server.services.store.for_sites({"clinic-1"})
        with statements(server) as found:
            await reader.cures(START, "approval_required")
        path = server.services.settings.data_dir / "server.db"
    [(statement, values)] = [one for one in found if "verdicts" in one[0]]
    with closing(sqlite3.connect(path)) as database:
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    assert [step for step in plan if step.startswith("SCAN bundles")] == []
    assert "SEARCH bundles USING INDEX ix_bundles_cures (key_id=? AND check=?)" in plan
