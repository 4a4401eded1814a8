"""An exception is asked for, read back, recorded once and withdrawn in the viewer, by who may, second factor shown lately."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import httpx2 as httpx
import pytest

from compliance_agent.server.services import roles
from compliance_agent.web import security
from tests.web.people import code_of, with_people
from tests.web.serving import NAME, PASSWORD, Served, serving
from tests.web.test_views import sign_in, token_of, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_exceptions")]
ASKED = {"reason": "vendor_requires", "measure": "segregated", "reference": "RA-2026-14", "days": "30", "whole": "0"}


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(tmp_path, prepare=with_people) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(served) as visitor:
        await sign_in_with_code(visitor, served, "ada")
        yield visitor


async def sign_in_with_code(visitor: httpx.AsyncClient, served: Served, name: str) -> None:
    page = await visitor.get("/login")
    code = code_of(served, name)
    form = {"form_token": token_of(page), "name": name, "password": PASSWORD, "code": code, "next": "/"}
    assert (await visitor.post("/login", data=form)).status_code == 303


def place_of(served: Served) -> str:
    return f"/hosts/{served.hosts['ehr-db-02'].key_id}/checks/patching"


async def recorded(client: httpx.AsyncClient, place: str) -> httpx.Response:
    page = await client.get(f"{place}/exception", params=ASKED)
    assert page.status_code == 200, page.headers
    fields = dict(re.findall(r'type="hidden" name="(\w+)" value="([^"]*)"', page.text.partition("<main")[2]))
    await client.post(f"{place}/exception", data=fields)
    return await client.post(f"{place}/exception", data=fields)  # sent twice, as an impatient person does


async def test_recorded_it_is_shown_on_its_own_on_every_page_and_withdrawn(
    client: httpx.AsyncClient, served: Served
) -> None:
    place, host = place_of(served), served.hosts["ehr-db-02"]
    before = (await client.get("/")).text
    answer = await recorded(client, place)
    assert (answer.status_code, answer.headers["location"]) == (303, place)
    page = (await client.get(place)).text
    assert page.count("Withdraw it") == 1 and "The vendor requires it as it is." in page and "RA-2026-14" in page
    assert "said last: fail" in page and '"check": "patching"' in page.replace("&#34;", '"')
    assert "said last: fail" in (await client.get(f"/hosts/{host.key_id}")).text
    assert before.count("0 exception") > (after := (await client.get("/")).text).count("0 exception")
    assert after.count("1 exception") >= 1
    [link] = re.findall(r'href="([^"]+withdraw=[0-9a-f]{32})"', page)
    sure = await client.get(link)
    form = {"form_token": token_of(sure), "withdraw": link.rpartition("=")[2]}
    assert (await client.post(f"{place}/exception", data=form)).status_code == 303
    page = (await client.get(place)).text
    assert "Withdrawn" in page and "by ada" in page and "said last" not in page
    assert (await client.get(link)).status_code == 409


async def test_where_two_are_needed_the_other_one_approves(client: httpx.AsyncClient, served: Served) -> None:
    """Until then it says that it waits, and what fails stays failing; who asked for it has no way to approve it."""
    place, users, desk = place_of(served), served.services.users, served.services.exceptions()
    owner = await users.add("own", PASSWORD, role="owner")
    await desk.set_people(owner, await users.reader(owner), served.hosts["ehr-db-02"].site_id, 2)
    assert "wants a second person" in (await client.get(f"{place}/exception", params=ASKED)).text
    await recorded(client, place)
    page = (await client.get(place)).text
    assert "Waits" in page and "Refuse it" in page and "Approve it<" not in page and "said last" not in page
    assert "Record an exception" not in page, "one about it waits"
    [link] = re.findall(r'href="([^"]+)withdraw=[0-9a-f]{32}"', page)
    [named] = re.findall(r"withdraw=([0-9a-f]{32})", page)
    form = {"form_token": token_of(await client.get("/account")), "approve": named}
    assert (await client.post(f"{place}/exception", data=form)).status_code == 409
    async with visiting(served) as other:
        await sign_in_with_code(other, served, "ben")
        assert "Approve it<" in (await other.get(place)).text
        sure = await other.get(f"{link}approve={named}")
        assert sure.status_code == 200 and "ada asks for it" in sure.text
        answer = await other.post(f"{place}/exception", data={"form_token": token_of(sure), "approve": named})
        assert answer.status_code == 303
        page = (await other.get(place)).text
    assert "said last: fail" in page and "and ben" in page and "Waits" not in page


async def test_an_owner_sets_how_many_are_needed(client: httpx.AsyncClient, served: Served) -> None:
    """Read back, with a token and the factor shown lately, once however often it is sent, and an act of the site's log."""
    site = served.hosts["ehr-db-02"].site_id
    rule = f"/sites/{site}/exception-rule"
    page = await client.get(rule)
    assert "<strong>one person</strong>" in page.text and "An owner can change it." in page.text, "ada is an operator"
    assert (await client.get(rule, params={"people": "2"})).status_code == 403
    token = token_of(await client.get("/account"))
    assert (await client.post(rule, data={"form_token": token, "people": "2"})).status_code == 403
    await served.services.users.set_role("ada", "owner")
    sure = await client.get(rule, params={"people": "2"})
    assert "covers nothing until another one approves it" in sure.text and "An owner" not in sure.text
    assert (await client.post(rule, data={"people": "2"})).status_code == 403, "no token of a page"
    for wrong in ("0", "3", "two", "1\u0662"):
        assert (await client.get(rule, params={"people": wrong})).status_code == 422
        assert (await client.post(rule, data={"form_token": token_of(sure), "people": wrong})).status_code == 422
    assert "<strong>one person</strong>" in (await client.get(rule)).text
    for _ in range(2):
        answer = await client.post(rule, data={"form_token": token_of(sure), "people": "2"})
        assert (answer.status_code, answer.headers["location"]) == (303, rule)
    assert "<strong>two people</strong>" in (await client.get(rule)).text
    with closing(sqlite3.connect(served.database)) as database:
        query = "SELECT COUNT(*) FROM audit WHERE action = 'exception_rule'"
        assert database.execute(query).fetchone() == (1,)
    served.clock.now += timedelta(minutes=6)
    late = await client.post(rule, data={"form_token": token_of(sure), "people": "1"})
    assert late.status_code == 303 and late.headers["location"].startswith("/account/prove")
    assert "<strong>two people</strong>" in (await client.get(rule)).text


FORGED = {
    "no token": ({}, {}),
    "another's token": ({"form_token": "0" * 43}, {}),
    "from elsewhere": (None, {"sec-fetch-site": "cross-site"}),
    "from beside": (None, {"sec-fetch-site": "same-site"}),
}


async def let_through(served: Served) -> set[str]:
    """What changed the rule, or was about to, without being an owner's form of our own page."""
    rule, found = f"/sites/{served.hosts['ehr-db-02'].site_id}/exception-rule", set[str]()
    await served.services.users.set_role("ben", "owner")
    async with visiting(served) as owner, visiting(served) as operator:
        await sign_in_with_code(owner, served, "ben")
        await sign_in_with_code(operator, served, "ada")
        own, other = token_of(await owner.get("/account")), token_of(await operator.get("/account"))
        for name, (form, headers) in FORGED.items():
            sent = {"form_token": own} if form is None else form
            answer = await owner.post(rule, data={**sent, "people": "2"}, headers=headers)
            found |= {name} if answer.status_code != 403 else set()
        found |= {"no owner asks"} if (await operator.get(rule, params={"people": "2"})).status_code != 403 else set()
        answer = await operator.post(rule, data={"form_token": other, "people": "1"})
        found |= {"no owner acts"} if answer.status_code != 403 else set()
        if not found:
            assert "<strong>one person</strong>" in (await owner.get(rule)).text
    return found


async def test_the_rule_is_for_an_owner_with_a_form_of_ours(served: Served) -> None:
    assert await let_through(served) == set()


def _yes(*_: object) -> bool:
    return True


PLANTED = {
    "forms are taken as they come": (security, "form_is_ours", _yes, set(FORGED)),
    "roles are not asked": (roles, "check", _yes, {"no owner asks", "no owner acts"}),
    "every role may": (roles, "may", _yes, {"no owner asks", "no owner acts"}),
}


@pytest.mark.parametrize("fault", PLANTED)
async def test_a_rule_page_without_its_guard_is_seen(
    served: Served, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Planted: what the test above looks for gets through."""
    where, name, planted, expected = PLANTED[fault]
    monkeypatch.setattr(where, name, planted)
    assert await let_through(served) == expected


async def test_it_needs_the_second_factor_shown_lately(client: httpx.AsyncClient, served: Served) -> None:
    place = place_of(served)
    served.clock.now += timedelta(minutes=6)
    page = await client.get(f"{place}/exception", params=ASKED)
    assert page.status_code == 303 and page.headers["location"].startswith("/account/prove")
    form = {"form_token": token_of(await client.get("/account")), "once": "a" * 22, **ASKED}
    answer = await client.post(f"{place}/exception", data=form)
    assert answer.status_code == 303 and answer.headers["location"].startswith("/account/prove")
    assert "Withdraw it" not in (await client.get(place)).text


async def test_nothing_typed_has_room_for_a_patient(client: httpx.AsyncClient, served: Served) -> None:
    place = place_of(served)
    for wrong in ({"reference": "Mrs Smith, born 1950"}, {"reason": "she fell"}, {"days": "9999"}, {"days": ""}):
        assert (await client.get(f"{place}/exception", params={**ASKED, **wrong})).status_code == 422
        form = {"form_token": token_of(await client.get("/account")), "once": "a" * 22, **ASKED, **wrong}
        answer = await client.post(f"{place}/exception", data=form)
        assert answer.status_code == 422 and "Smith" not in answer.text
    assert "Withdraw it" not in (await client.get(place)).text


async def test_who_may_only_look_may_not(served: Served) -> None:
    place = place_of(served)
    async with visiting(served) as visitor:
        await sign_in(visitor, NAME)
        assert (await visitor.get(f"{place}/exception")).status_code == 403
        form = {"form_token": token_of(await visitor.get("/account")), "once": "a" * 22, **ASKED}
        assert (await visitor.post(f"{place}/exception", data=form)).status_code == 403
        assert "Record an exception" not in (await visitor.get(place)).text
