"""What becomes of a person counts at once: role, sites, client, disabling; and nobody locks everybody out."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Dates
from compliance_agent.server.services.users import Users
from tests.server.builder import FakeHost, Server

pytestmark = pytest.mark.anyio
PASSWORD = "correct horse battery"
AUTUMN = Dates(date(2026, 9, 1), date(2026, 11, 30))


@pytest.fixture
async def users(server: Server) -> Users:
    """Two sites of one client, and one of another."""
    for site, client in (("clinic-1", "msp"), ("clinic-2", "msp"), ("clinic-9", "other")):
        await server.token(site, client)
    return server.services.users


async def seen(server: Server, headers: dict[str, str]) -> set[str] | int:
    """The sites that a token's person sees, or the status of the refusal."""
    reply = await server.client.get("/api/v1/sites", headers=headers)
    return {site["site_id"] for site in reply.json()} if reply.status_code == 200 else reply.status_code


async def refused(act: object) -> str:
    with pytest.raises(Refusal) as caught:
        await act  # type: ignore[misc]
    return caught.value.code


async def test_a_person_sees_the_sites_of_one_client(server: Server, users: Users) -> None:
    headers = await server.operator("all")
    assert await seen(server, headers) == {"clinic-1", "clinic-2", "clinic-9"}
    await users.set_sites("all", client_id="msp", sites=None)
    assert await seen(server, headers) == 401, "who moves to another client keeps no token"
    headers = {"authorization": f"Bearer {(await users.tokens.create('all', timedelta(days=1)))[0]}"}
    assert await seen(server, headers) == {"clinic-1", "clinic-2"}
    await users.set_sites("all", client_id="msp", sites=frozenset({"clinic-2"}))
    assert await seen(server, headers) == {"clinic-2"}
    assert await refused(users.set_sites("all", client_id="msp", sites=frozenset({"clinic-9"}))) == "no_such_site"


async def test_a_site_that_moves_to_another_client_is_gone_from_a_person_who_names_it(
    server: Server, users: Users
) -> None:
    await users.add("limited", PASSWORD, client_id="msp", sites=frozenset({"clinic-1"}))
    user = await server.services.store.user("limited")
    assert user is not None
    assert (await users.reader(user)).sites == {"clinic-1"}
    stale = user.__class__(**{**user.__dict__, "client_id": "other"})
    assert (await users.reader(stale)).sites == frozenset()


async def test_a_move_to_another_client_ends_every_session(users: Users) -> None:
    await users.add("tech", PASSWORD, client_id="msp")
    secret = await users.login("tech", PASSWORD)
    await users.set_sites("tech", client_id="msp", sites=frozenset({"clinic-1"}))
    assert await users.of_session(secret) is not None
    await users.set_sites("tech", client_id="other", sites=None)
    assert await users.of_session(secret) is None


async def test_disabling_counts_at_once_and_enabling_brings_nothing_back(server: Server, users: Users) -> None:
    headers = await server.operator("gone")
    secret = await users.login("gone", PASSWORD)
    await users.set_disabled("gone", True)
    assert (await users.of_session(secret), await seen(server, headers)) == (None, 401)
    assert await refused(users.login("gone", PASSWORD)) == "bad_login"
    await users.set_disabled("gone", False)
    assert (await users.of_session(secret), await seen(server, headers)) == (None, 401)
    assert await users.of_session(await users.login("gone", PASSWORD)) is not None


async def test_a_role_counts_from_the_next_request_on(server: Server, users: Users) -> None:
    await server.enrolled()
    headers = await server.operator("changing", frozenset({"clinic-1"}))
    secret = await users.login("changing", PASSWORD)
    await users.set_role("changing", "auditor", Dates(date(2020, 1, 1), date(2020, 1, 2)))
    found = await users.of_session(secret)
    assert found is not None and (found.role, found.dates) == ("auditor", Dates(date(2020, 1, 1), date(2020, 1, 2)))
    assert (await server.client.get("/api/v1/hosts", headers=headers)).json() == []
    await users.set_role("changing", "operator")
    assert len((await server.client.get("/api/v1/hosts", headers=headers)).json()) == 1


async def test_the_last_owner_stays(users: Users) -> None:
    assert await refused(users.set_disabled("admin", True)) == "last_owner"
    assert await refused(users.set_role("admin", "viewer")) == "last_owner"
    assert await refused(users.set_sites("admin", client_id="msp", sites=None)) == "last_owner"
    await users.add("second", PASSWORD, role="owner")
    await users.set_role("admin", "viewer")
    assert await refused(users.set_disabled("second", True)) == "last_owner"


async def test_refused_changes_change_nothing(users: Users) -> None:
    await users.add("j.doe", PASSWORD, client_id="msp")
    before = await users.all()
    for act, code in (
        (users.set_role("nobody", "viewer"), "no_such_user"),
        (users.set_role("j.doe", "root"), "bad_role"),
        (users.set_role("j.doe", "auditor", AUTUMN), "auditor_needs_limits"),
        (users.set_role("j.doe", "viewer", AUTUMN), "dates_not_for_role"),
        (users.set_sites("j.doe", client_id="msp", sites=frozenset({"nowhere"})), "no_such_site"),
        (users.add("new", PASSWORD, role="auditor"), "auditor_needs_limits"),
        (users.add("new", PASSWORD, sites=frozenset({"nowhere"})), "no_such_site"),
    ):
        assert await refused(act) == code
    assert await users.all() == before


async def test_ids_of_people_are_no_names_and_stay(server: Server, users: Users) -> None:
    made = [await users.add(name, PASSWORD) for name in ("a", "b")]
    assert len({item.person_id for item in made} | {"a", "b"}) == 4
    changed = await users.set_role("a", "operator")
    assert changed.person_id == made[0].person_id
    assert await server.services.store.user("a") == changed


async def test_a_host_key_is_no_person(server: Server, users: Users) -> None:
    host: FakeHost = await server.enrolled("ws-2")
    assert await seen(server, host.headers) == 401
