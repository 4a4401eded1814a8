"""Tenants (RELIABILITY 3.4): another clinic's rows do not exist, whichever route, id or statement asks."""

from __future__ import annotations

import re
from typing import Any

import pytest
from fastapi.routing import APIRoute
from sqlalchemy import event

from compliance_agent.server.records import BundleQuery
from compliance_agent.server.store import SqlStore, tables
from compliance_agent.server.store.reader import BoundReader
from tests.server.builder import FakeHost, Server

pytestmark = pytest.mark.anyio
UNKNOWN = "f" * 64


@pytest.fixture
async def two(server: Server) -> tuple[FakeHost, FakeHost, str]:
    """A host at each of two clinics, and the id of a bundle of the second."""
    ours, theirs = await server.enrolled(), await server.enrolled("ws-99", "clinic-2")
    await server.deliver(ours, ours.next())
    bundle = theirs.next()
    await server.deliver(theirs, bundle)
    return ours, theirs, bundle.document["bundle_id"]


def routes_with_ids(server: Server) -> list[str]:
    """Every read route of the API, the ones of the viewer too."""
    found = [route.path for route in all_routes(server.app.routes) if "GET" in (route.methods or ())]
    return [path for path in found if "{" in path and "static" not in path and "path:path" not in path]


def all_routes(routes: Any) -> list[APIRoute]:
    """Routes, those of included routers too, however the framework nests them."""
    found: list[APIRoute] = []
    for route in routes:
        if isinstance(route, APIRoute):
            found.append(route)
        else:
            inner = getattr(route, "original_router", None) or getattr(route, "routes", None)
            found += all_routes(getattr(inner, "routes", inner) or ())
    return found


async def test_every_route_hides_the_other_clinic(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    """The same status and bytes (but for the trace id) for what is theirs and for what does not exist."""
    _, theirs, bundle_id = two
    headers = await server.operator("limited", frozenset({"clinic-1"}))
    secret = await server.services.users.login("limited", "correct horse battery")
    server.client.cookies.set("session", secret)
    paths = routes_with_ids(server)
    assert len(paths) >= 3
    values = {
        "key_id": theirs.key_id,
        "bundle_id": bundle_id,
        "site_id": "clinic-2",
        "year": "2026",
        "name": "bundle.json",
    }
    others = {"key_id": UNKNOWN, "bundle_id": "0" * 36, "site_id": "clinic-9", "year": "2026", "name": "bundle.json"}
    for path in paths:
        sent = {} if not path.startswith("/api/") else headers
        foreign, missing = [await server.client.get(path.format(**ids), headers=sent) for ids in (values, others)]
        assert foreign.status_code == missing.status_code == 404, path
        assert _normal(foreign.text, values) == _normal(missing.text, others), path


def _normal(text: str, ids: dict[str, str]) -> str:
    for value in ids.values():
        text = text.replace(value, "ID")
    return re.sub(r'"trace_id":"[0-9a-f]+"|value="[\w-]{43}"', "", text)


async def test_lists_hold_nothing_of_the_other_clinic(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    ours, theirs, bundle_id = two
    headers = await server.operator("limited", frozenset({"clinic-1"}))
    for path in ("/api/v1/sites", "/api/v1/hosts", "/api/v1/bundles", f"/api/v1/hosts/{ours.key_id}"):
        text = (await server.client.get(path, headers=headers)).text
        assert "clinic-1" in text
        for canary in ("clinic-2", "ws-99", theirs.key_id, bundle_id):
            assert canary not in text, path
    for query in ("site=clinic-2", "site=clinic-9"):
        assert (await server.client.get(f"/api/v1/hosts?{query}", headers=headers)).status_code == 404
    for query in (f"host={theirs.key_id}", f"host={UNKNOWN}"):
        assert (await server.client.get(f"/api/v1/bundles?{query}", headers=headers)).status_code == 404


async def test_a_user_of_all_sites_sees_both(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    headers = await server.operator("everywhere")
    sites = (await server.client.get("/api/v1/sites", headers=headers)).json()
    assert {site["site_id"] for site in sites} == {"clinic-1", "clinic-2"}
    whole = (await server.client.get(f"/api/v1/bundles/{two[2]}", headers=headers)).json()
    assert whole["valid"] is True and {point["holds"] for point in whole["points"]} == {True}


async def test_a_host_cannot_speak_into_another_chain(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    ours, theirs, _ = two
    stolen = theirs.next()
    reply = await server.deliver(ours, stolen)
    assert (reply.status_code, reply.json()["code"]) == (422, "bad_signature")


async def test_nothing_is_read_without_signing_in(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    ours = two[0]
    for path in ("/api/v1/sites", "/api/v1/hosts", "/api/v1/bundles", f"/api/v1/hosts/{ours.key_id}/checks"):
        for headers in ({}, ours.headers, {"authorization": "Bearer cao1.x"}, {"cookie": "session=x"}):
            reply = await server.client.get(path, headers=headers)
            assert (reply.status_code, reply.json()["code"]) == (401, "not_signed_in")


async def test_every_statement_on_a_tenant_table_names_the_site(server: Server) -> None:
    """The SQL itself: no read or write of rows that belong to clinics without a predicate (or a value) for the site."""
    seen: list[str] = []
    store = server.services.store
    assert isinstance(store, SqlStore)
    for engine in (store.database.writer, store.database.readers):
        event.listen(engine, "before_cursor_execute", lambda *args: seen.append(args[2]))
    host = await server.enrolled()
    await server.deliver(host, host.next(), host.heartbeat(time_sync="pass"))
    await server.deliver(host, host.next(seq=9))
    await server.checkin(host)
    headers = await server.operator()
    for path in ("sites", "hosts", "bundles", f"hosts/{host.key_id}", f"hosts/{host.key_id}/checks"):
        assert (await server.client.get(f"/api/v1/{path}", headers=headers)).status_code == 200
    await server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    names = "|".join(table.name for table in tables.TENANT_TABLES)
    touching = {sql for sql in seen if re.search(rf"\b(FROM|INTO|UPDATE|JOIN) ({names})\b", sql)}
    assert len(touching) > 20
    assert {sql for sql in touching if not _bound(sql)} == {sql for sql in touching if _by_secret(sql)}


def _bound(sql: str) -> bool:
    if sql.startswith("INSERT"):
        return "site_id" in sql.partition("VALUES")[0]
    return re.search(r"site_id( \|\| \?\))? (IN|=) ", sql.partition("WHERE")[2]) is not None


def _by_secret(sql: str) -> bool:
    """Who comes with a secret (API key, token), or asks for ids alone, is not bound yet; these statements give no rows away."""
    where = sql.partition("WHERE")[2].strip()
    return where.startswith(("api_keys.hash = ", "enrol_tokens.hash = ")) or sql.startswith(
        ("SELECT sites.site_id \nFROM sites", "SELECT hosts.epoch \nFROM hosts")
    )


async def test_a_reader_that_forgets_the_site_is_caught(
    server: Server, two: tuple[FakeHost, FakeHost, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = frozenset({"clinic-1", "clinic-2"})
    monkeypatch.setattr(BoundReader, "__init__", _forgetful(everything))
    with pytest.raises(AssertionError):
        await test_every_route_hides_the_other_clinic(server, two)


def _forgetful(everything: frozenset[str]) -> Any:
    def init(self: BoundReader, engine: Any, _sites: Any) -> None:
        self._database, self._sites = engine, everything

    return init


async def test_a_handle_cannot_be_widened(server: Server, two: tuple[FakeHost, FakeHost, str]) -> None:
    reader = server.services.store.for_sites({"clinic-1"})
    assert reader.only("clinic-2").sites == frozenset()
    assert await reader.only("clinic-2").hosts() == []
    assert await reader.bundle(two[2]) is None
    assert [item.site_id for item in await reader.bundles(BundleQuery())] == ["clinic-1"]
