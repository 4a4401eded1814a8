"""Tenants (RELIABILITY 3.4): another clinic's rows do not exist, whichever route, credential, id or statement asks."""

from __future__ import annotations

import contextlib
import random
import re
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Engine, event, select
from starlette.responses import JSONResponse
from starlette.routing import Route

from compliance_agent.server.records import BundleQuery
from compliance_agent.server.store import tables
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import FakeHost, Server
from tests.server.tenants import CASES, Crawl, Nobody, Side, crawl_all, filled, routes_of, side

pytestmark = pytest.mark.anyio
Two = tuple[Side, Side]


@pytest.fixture(params=["two clients", "two sites of a client"])
async def two(request: pytest.FixtureRequest, server: Server) -> Two:
    """Two tenants, divided by the client alone, or by the site alone."""
    clients = ("msp", "other") if request.param == "two clients" else (None, None)
    return (await side(server, "clinic-1", clients[0], "ws-01"), await side(server, "clinic-2", clients[1], "db-99"))


@pytest.fixture
async def pair(server: Server) -> Two:
    """Two tenants, divided by the client."""
    return (await side(server, "clinic-1", "msp", "ws-01"), await side(server, "clinic-2", "other", "db-99"))


async def test_no_route_tells_one_tenant_of_the_other(server: Server, two: Two) -> None:
    """Every route, read and write, both directions: the bytes and the status of an unknown id."""
    assert await crawl_all(server, *two) >= 2 * 35


async def test_a_route_without_a_case_fails_the_crawl(server: Server, pair: Two) -> None:
    async def leaks(_request: Any) -> JSONResponse:
        return JSONResponse({"all": "rows"})

    server.app.router.routes.insert(0, Route("/api/v1/brand-new", leaks))
    with pytest.raises(AssertionError, match="GET /api/v1/brand-new has no isolation case"):
        await crawl_all(server, *pair)


async def test_a_new_route_that_leaks_is_seen_by_its_case(
    server: Server, pair: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A case that its author got from the list finds what its route forgot."""

    async def leaks(request: Any) -> JSONResponse:
        reader = request.app.state.services.store.for_sites(await request.app.state.services.store.all_sites())
        host = await reader.host(request.path_params["key_id"])
        return JSONResponse({"detail": "no such host"}, 404) if host is None else JSONResponse({"label": host.host_id})

    server.app.router.routes.insert(0, Route("/api/v1/labels/{key_id}", leaks, methods=["GET"]))
    monkeypatch.setitem(CASES, "GET /api/v1/labels/{key_id}", CASES["GET /api/v1/hosts/{key_id}"])
    with pytest.raises(AssertionError, match="labels"):
        await crawl_all(server, *pair)


async def test_a_reader_that_forgets_the_site_is_caught(
    server: Server, pair: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(self: BoundReader, database: Any, _sites: Any, dates: Any = None) -> None:
        self._database, self._sites, self._dates = database, frozenset({"clinic-1", "clinic-2"}), dates

    monkeypatch.setattr(BoundReader, "__init__", forgetful)
    with pytest.raises(AssertionError):
        await crawl_all(server, *pair)


async def test_ids_that_are_swapped_anywhere_bring_nothing_out(server: Server, two: Two) -> None:
    """Requests of one side, made at random from routes, queries and headers with the other side's ids: no canary comes back."""
    rng, (mine, theirs) = random.Random(4), two
    crawl, nobody = Crawl(server, mine, theirs), Nobody()
    routes = [path for method, path in routes_of(server) if method == "GET" and path != "/api/v1/openapi.json"]
    names = ("site", "host", "key", "check", "kind", "before", "year", "proof", "next", "client_id", "site_id")
    for _ in range(600):
        sides = [rng.choice((mine, theirs, theirs, nobody)) for _ in range(4)]
        ids = {name: rng.choice(sides).ids[name] for name in mine.ids} | {
            "name": rng.choice(["leaf.json", "bundle.sig"])
        }
        values = [
            value for one in sides for value in (one.ids["site_id"], one.ids["key_id"], one.ids["bundle_id"], "1")
        ]
        query = "&".join(f"{rng.choice(names)}={rng.choice(values)}" for _ in range(rng.randrange(4)))
        path = filled(rng.choice(routes), ids)
        headers = {**rng.choice([mine.token, mine.session, mine.host.headers])}
        headers |= {f"x-{name}": rng.choice(values) for name in rng.sample(("site-id", "client-id", "tenant"), 2)}
        text = (await crawl.ask("GET", f"{path}?{query}", headers)).text
        for asked in [*values, *ids.values()]:  # a page may say where it is
            text = text.replace(asked, "")
        for canary in (theirs.host.host_id, theirs.bundle.sha256, theirs.bundle.document["bundle_id"]):
            assert canary not in text, f"{path}?{query}"


ASKED: ContextVar[list[str] | None] = ContextVar("asked", default=None)


@pytest.fixture
def asking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes what the readers of this test's own requests ask, not those of the server's tasks."""
    real = BoundReader._all

    async def noting(self: BoundReader, query: Any, **values: Any) -> Any:
        found = ASKED.get()
        if found is not None:
            found.append(str(query))
        return await real(self, query, **values)

    monkeypatch.setattr(BoundReader, "_all", noting)


async def test_theirs_costs_what_unknown_costs(server: Server, pair: Two, asking: None) -> None:
    """The same statements for a foreign id as for an unknown one: how long the answer takes tells nothing either."""
    mine, theirs = pair
    crawl = Crawl(server, mine, theirs)
    for method, path in routes_of(server):
        if method != "GET" or "{" not in path:
            continue
        asked = []
        for one in (theirs, crawl.nobody):
            noted: list[str] = []
            ASKED.set(noted)
            for headers in (mine.token, mine.session):
                await crawl.ask(method, filled(path, one.ids), headers)
            asked.append(noted)
        assert asked[0] == asked[1], path
    ASKED.set(None)


async def test_a_user_of_all_sites_sees_both(server: Server, pair: Two) -> None:
    headers = await server.operator("everywhere")
    sites = (await server.client.get("/api/v1/sites", headers=headers)).json()
    assert {site["site_id"] for site in sites} == {"clinic-1", "clinic-2"}
    whole = (await server.client.get(f"/api/v1/bundles/{pair[1].ids['bundle_id']}", headers=headers)).json()
    assert whole["valid"] is True and {point["holds"] for point in whole["points"]} == {True}


async def test_a_host_cannot_speak_into_another_chain(server: Server, pair: Two) -> None:
    stolen = pair[1].host.next()
    reply = await server.deliver(pair[0].host, stolen)
    assert (reply.status_code, reply.json()["code"]) == (422, "bad_signature")


async def test_nothing_is_read_without_signing_in(server: Server, pair: Two) -> None:
    ours: FakeHost = pair[0].host
    for path in ("/api/v1/sites", "/api/v1/hosts", "/api/v1/bundles", f"/api/v1/hosts/{ours.key_id}/checks"):
        for headers in ({}, ours.headers, {"authorization": "Bearer cao1.x"}, {"cookie": "session=x"}):
            reply = await server.client.get(path, headers=headers)
            assert (reply.status_code, reply.json()["code"]) == (401, "not_signed_in")


@contextlib.contextmanager
def statements() -> Iterator[list[str]]:
    """Every statement that any engine of this process runs, however it is made."""
    seen: list[str] = []

    def note(*args: Any) -> None:
        seen.append(args[2])

    event.listen(Engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(Engine, "before_cursor_execute", note)


async def unbound(server: Server, two: Two) -> set[str]:
    """Statements on a tenant's table, over every route and a few services, that do not name the site."""
    with statements() as seen:
        await crawl_all(server, *two)
        host = two[0].host
        await server.deliver(host, host.next(seq=9))
        await server.checkin(host)
        await server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    names = "|".join(table.name for table in tables.TENANT_TABLES)
    touching = {sql for sql in seen if re.search(rf"\b(FROM|INTO|UPDATE|JOIN) ({names})\b", sql)}
    assert len(touching) > 40
    return {sql for sql in touching if not _bound(sql) and not _by_secret(sql)}


def _bound(sql: str) -> bool:
    if sql.startswith("INSERT"):
        return "site_id" in sql.partition("VALUES")[0]
    return re.search(r"site_id( \|\| [^)]*\))? (IN|=) ", sql.partition("WHERE")[2]) is not None


def _by_secret(sql: str) -> bool:
    """Who comes with a secret (API key, token), or asks for ids alone, is not bound yet; these give no rows away."""
    where = sql.partition("WHERE")[2].strip()
    return where.startswith(
        ("api_keys.hash = ", "enrol_tokens.hash = ", "host_certificates.fingerprint = ", "sites.client_id = ")
    ) or sql.startswith(
        (
            "SELECT sites.site_id \nFROM sites",
            "SELECT hosts.epoch \nFROM hosts",
        )
    )


async def test_every_statement_on_a_tenant_table_names_the_site(server: Server, pair: Two) -> None:
    """The SQL itself: no read or write of rows that belong to clinics without a predicate (or a value) for the site."""
    assert await unbound(server, pair) == set()


async def test_a_statement_without_the_site_is_caught(
    server: Server, pair: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that asks for all verdicts and picks its own afterwards gives nothing away, and is seen all the same."""
    real = BoundReader.verdicts

    async def picking(self: BoundReader, key_id: str | None = None) -> Any:
        await self._all(select(tables.verdicts).where(tables.verdicts.c.key_id == (key_id or "")))
        return await real(self, key_id)

    monkeypatch.setattr(BoundReader, "verdicts", picking)
    assert [sql for sql in await unbound(server, pair) if "FROM verdicts" in sql] != []


async def test_a_handle_cannot_be_widened(server: Server, pair: Two) -> None:
    reader = server.services.store.for_sites({"clinic-1"})
    assert reader.only("clinic-2").sites == frozenset()
    assert await reader.only("clinic-2").hosts() == []
    assert await reader.bundle(pair[1].ids["bundle_id"]) is None
    assert {item.site_id for item in await reader.bundles(BundleQuery())} == {"clinic-1"}
