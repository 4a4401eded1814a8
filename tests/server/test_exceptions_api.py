"""Exceptions over the API: recorded and ended with a token of who may approve, listed to who may look, nothing of other days."""

from __future__ import annotations

from datetime import date, timedelta
from typing import Any

import pytest

from compliance_agent.server.records import Dates
from tests.server.builder import Server, on_sqlite
from tests.server.test_acts import acts
from tests.server.test_exceptions import failing, operator, record, wanted

pytestmark = pytest.mark.anyio
BASE = "/api/v1/exceptions"
ASKED = {
    "check": "time_sync", "reason": "vendor_requires", "measure": "watched", "reference": "RA-2026-14", "days": 7,
}  # fmt: skip


async def bearer(server: Server, name: str, **person: Any) -> dict[str, str]:
    await server.services.users.add(name, "correct horse battery", **person)
    return {"authorization": f"Bearer {(await server.services.users.tokens.create(name, timedelta(days=60)))[0]}"}


async def test_recorded_listed_read_and_ended(server: Server) -> None:
    host, jo = await failing(server), await bearer(server, "jo", role="operator")
    other = await server.enrolled("ws-01", "clinic-2")
    client, body = server.client, {**ASKED, "host": host.key_id}
    made = await client.post(BASE, headers=jo, json=body)
    assert made.status_code == 201, made.text
    one = made.json()
    assert (one["state"], one["approver"], one["site_id"], one["key_id"]) == ("stands", "jo", "clinic-1", host.key_id)
    again = await client.post(BASE, headers=jo, json=body)
    assert (again.status_code, again.json()["code"]) == (409, "exception_stands"), "asked twice it is recorded once"
    for query, found in (
        ("", [one]),
        (f"?host={host.key_id}", [one]),
        ("?site=clinic-2", []),
        (f"?host={other.key_id}", []),
    ):
        assert (await client.get(BASE + query, headers=jo)).json() == found, query
    assert (await client.get(f"{BASE}/{one['exception_id']}", headers=jo)).json() == one
    ended = (await client.post(f"{BASE}/{one['exception_id']}/end", headers=jo)).json()
    assert (ended["state"], ended["withdrawn_by"]) == ("withdrawn", "jo")
    assert (await client.post(f"{BASE}/{one['exception_id']}/end", headers=jo)).json()["code"] == "exception_ended"
    mine = [(act["act"], act["subject"]) for act in (await acts(server))["clinic-1"] if act["act"].startswith("exc")]
    assert mine == [("exception_recorded", one["sha256"]), ("exception_withdrawn", one["sha256"])]


async def test_for_the_whole_site_it_names_no_host_and_ends_by_itself(server: Server) -> None:
    host, jo = await failing(server), await bearer(server, "jo", role="owner")
    made = (await server.client.post(BASE, headers=jo, json={**ASKED, "host": host.key_id, "whole_site": True})).json()
    assert made["key_id"] is None
    assert len((await server.client.get(f"{BASE}?host={host.key_id}", headers=jo)).json()) == 1, (
        "it is about this host too"
    )
    server.clock.move(7 * 86_400)
    assert [one["state"] for one in (await server.client.get(BASE, headers=jo)).json()] == ["expired"]


@on_sqlite
@pytest.mark.parametrize(
    "wrong", [{"reference": "Mrs Smith, born 1950"}, {"days": 9_999}, {"reason": "she_fell"}, {"note": "free text"}]
)
async def test_nothing_sent_has_room_for_a_patient(server: Server, wrong: dict[str, Any]) -> None:
    host, jo = await failing(server), await bearer(server, "jo", role="operator")
    reply = await server.client.post(BASE, headers=jo, json={**ASKED, "host": host.key_id, **wrong})
    assert reply.status_code == 422 and "Smith" not in reply.text and "fell" not in reply.text
    assert (await server.client.get(BASE, headers=jo)).json() == []


@on_sqlite
async def test_who_may_look_may_not_record_or_end_and_a_cookie_alone_does_nothing(server: Server) -> None:
    host = await failing(server)
    user = await operator(server, "owner")
    made = await record(server, user, wanted(host))
    body, end = {**ASKED, "host": host.key_id, "whole_site": True}, f"{BASE}/{made.exception_id}/end"
    days = Dates(date(2026, 11, 1), date(2026, 11, 30))
    people: dict[str, dict[str, Any]] = {
        "viewer": {}, "proposer": {}, "auditor": {"sites": frozenset({"clinic-1"}), "dates": days},
    }  # fmt: skip
    for role, limits in people.items():
        headers = await bearer(server, role, role=role, **limits)
        assert len((await server.client.get(BASE, headers=headers)).json()) == 1, role
        for path, sent in ((BASE, body), (end, {})):
            assert (await server.client.post(path, headers=headers, json=sent)).status_code == 403, role
    server.client.cookies.set("session", await server.services.users.login(user.name, "correct horse battery"))
    for path, sent in ((BASE, body), (end, {})):
        assert (await server.client.post(path, json=sent)).status_code == 401
    assert [one["state"] for one in (await server.client.get(BASE)).json()] == ["stands"]


async def test_an_auditor_sees_what_stood_on_the_own_days_as_it_stood_then(server: Server) -> None:
    """One that was recorded before stands in them as well; that one was ended afterwards is not of these days."""
    host, user = await failing(server), await operator(server)
    made = await record(server, user, wanted(host, days=30))
    recorded = made.created_at.date()
    server.clock.move(20 * 86_400)
    await server.services.exceptions().withdraw(user, await server.services.users.reader(user), made.exception_id)

    async def seen(first: int, last: int) -> list[Any]:
        days = Dates(recorded + timedelta(days=first), recorded + timedelta(days=last))
        return await server.services.store.for_sites({"clinic-1"}, days).exceptions()

    assert [one.withdrawn_by for one in await seen(5, 10)] == [None]
    assert [one.withdrawn_by for one in await seen(5, 20)] == [user.name]
    assert await seen(21, 29) == [], "it was over"
    assert await seen(-9, -1) == [], "it was not yet"


@on_sqlite
async def test_where_two_are_needed_another_token_approves(server: Server) -> None:
    host, jo, ann = (
        await failing(server),
        await bearer(server, "jo", role="operator"),
        await bearer(server, "ann", role="owner"),
    )
    owner = await operator(server, "owner")
    await server.services.exceptions().set_people(owner, await server.services.users.reader(owner), "clinic-1", 2)
    made = (await server.client.post(BASE, headers=jo, json={**ASKED, "host": host.key_id})).json()
    assert (made["state"], made["people"]) == ("waiting", 2)
    approve = f"{BASE}/{made['exception_id']}/approve"
    assert (await server.client.post(approve, headers=jo)).json()["code"] == "same_person"
    looker = await bearer(server, "vi", role="viewer")
    assert [(await server.client.post(approve, headers=headers)).status_code for headers in (looker, {})] == [403, 401]
    said = (await server.client.post(approve, headers=ann)).json()
    assert (said["state"], said["seconded_by"], said["sha256"]) == ("stands", "ann", made["sha256"])
