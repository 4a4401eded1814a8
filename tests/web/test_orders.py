"""Orders from the viewer: who may, how often, on what they saw, and that the log of the site has each act."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from typing import Any

import httpx2 as httpx
import pytest

from compliance_agent.checks import registry
from compliance_agent.core.orders import FORMS
from compliance_agent.remedies.plan import target_of
from compliance_agent.server.records import Dates
from compliance_agent.server.services.orders import OrderDesk
from compliance_agent.web import asking
from tests.web.people import OPERATORS, code_of, with_people
from tests.web.serving import PASSWORD, Served, serving
from tests.web.test_views import token_of, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_orders")]
As = Callable[[str], Awaitable[httpx.AsyncClient]]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async def prepare(served: Served) -> None:
        await with_people(served)
        today = served.clock.now.date()
        dates = Dates(today - timedelta(days=2), today + timedelta(days=2))
        sites = frozenset({"clinic-elm-street"})
        await served.services.users.add("examiner", PASSWORD, role="auditor", sites=sites, dates=dates)

    async with serving(tmp_path_factory.mktemp("orders"), prepare=prepare) as running:
        yield running


@pytest.fixture
async def as_(served: Served) -> AsyncIterator[As]:
    """A signed-in browser of each of these people."""
    opened: list[Any] = []

    async def signed_in(name: str) -> httpx.AsyncClient:
        context = visiting(served)
        client = await context.__aenter__()
        opened.append(context)
        page = await client.get("/login")
        factor = name in (*OPERATORS, "harbour")
        fields = {"name": name, "password": PASSWORD, "code": code_of(served, name) if factor else "", "next": "/"}
        assert (await client.post("/login", data={"form_token": token_of(page), **fields})).status_code == 303
        return client

    yield signed_in
    for context in opened:
        await context.__aexit__(None, None, None)


def confirm(served: Served, label: str = "ehr-db-02") -> str:
    return f"/hosts/{served.hosts[label].key_id}/order/confirm"


def hidden(page: httpx.Response) -> dict[str, str]:
    """The hidden fields of the form that does it."""
    form = page.text[page.text.index('<form method="post" action="/hosts/') :]
    return dict(re.findall(r'name="(\w+)" value="([^"]*)"', form[: form.index("<div")]))


async def drafted(client: httpx.AsyncClient, served: Served, **asked: str) -> str:
    """The path of an order that was drafted on the page for it."""
    page = await client.get(confirm(served), params={"kind": "pause", **asked})
    assert page.status_code == 200, page.text
    answer = await client.post(confirm(served), data=hidden(page))
    assert answer.status_code == 303, answer.text
    return str(answer.headers["location"])


async def act(client: httpx.AsyncClient, path: str, what: str) -> httpx.Response:
    page = await client.get(f"{path}/{what}")
    return await client.post(f"{path}/{what}", data={"form_token": token_of(page)})


async def acts(served: Served) -> list[tuple[str, str]]:
    """Word and subject of the acts about orders in the log of the site, in order."""
    services = served.services
    while await services.sequencer.round():
        pass
    reader = services.store.for_sites({"clinic-elm-street"})
    found = []
    for shard in await reader.shards():
        for leaf in await reader.leaves(shard.site_id, shard.year, 0, shard.size):
            document = json.loads(leaf)
            if document["kind"] == "act" and document["act"].startswith("order"):
                found.append((document["act"], document["subject"]))
    return found


async def test_two_people_approve_a_plan_and_the_page_says_how_to_sign_it(as_: As, served: Served) -> None:
    before = len(await acts(served))
    ada, ben = await as_("ada"), await as_("ben")
    asked = {"kind": "approve", "check": "patching", "target": "steps-" + "0" * 32}
    path = await drafted(ada, served, **asked)
    assert "Two people must approve it" in (await ada.get(path)).text
    assert (await act(ada, path, "approve")).status_code == 303
    text = (await ada.get(path)).text
    assert "One more person must approve it besides ada" in text and f'href="{path}/approve"' not in text
    assert "server order sign" not in text, "nothing is to be signed yet"
    assert (await act(ada, path, "approve")).status_code == 303, "twice is once"
    assert "One more person" in (await ada.get(path)).text
    assert (await act(ben, path, "approve")).status_code == 303
    text = (await ben.get(path)).text
    assert f"server order sign {path[8:]}" in text and "--cosigner" in text and "Two signatures" not in text
    assert "--url https://viewer.test" in text
    found = (await acts(served))[before:]
    assert [word for word, _ in found] == ["order_drafted", "order_approved", "order_approved"]
    assert len({subject for _, subject in found}) == 1 and re.fullmatch(r"[0-9a-f]{64}", found[0][1])
    listed = (await ben.get("/orders")).text
    assert path in listed[: listed.index('id="others"') if 'id="others"' in listed else None]
    assert path in (await ben.get("/")).text


async def test_a_form_that_is_sent_twice_drafts_once(as_: As, served: Served) -> None:
    ada, reader = await as_("ada"), served.services.store.for_sites({"clinic-elm-street"})
    page = await ada.get(confirm(served), params={"kind": "pause"})
    count = len(await reader.orders())
    answers = [await ada.post(confirm(served), data={**hidden(page), "approve": "1"}) for _ in range(3)]
    assert {(answer.status_code, answer.headers["location"]) for answer in answers} == {
        (303, answers[0].headers["location"])
    }
    assert len(await reader.orders()) == count + 1
    other = {**hidden(page), "kind": "resume"}
    assert (await ada.post(confirm(served), data=other)).status_code == 409, "one page is for one order"
    assert len(await reader.orders()) == count + 1


async def test_who_sends_no_id_twice_would_draft_twice(
    as_: As, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: the id of the page is not looked at."""
    right = OrderDesk.draft
    monkeypatch.setattr(
        OrderDesk,
        "draft",
        lambda self, user, reader, wanted, bounded=None, *, order_id=None: right(self, user, reader, wanted),
    )
    ada, reader = await as_("ada"), served.services.store.for_sites({"clinic-elm-street"})
    page = await ada.get(confirm(served), params={"kind": "pause"})
    count = len(await reader.orders())
    for _ in range(2):
        await ada.post(confirm(served), data=hidden(page))
    assert len(await reader.orders()) == count + 2


async def test_what_the_page_showed_must_still_stand(as_: As, served: Served) -> None:
    ada, ben = await as_("ada"), await as_("ben")
    path = await drafted(ada, served)
    page = await ben.get(f"{path}/approve")
    assert (await act(ada, path, "withdraw")).status_code == 303
    answer = await ben.post(f"{path}/approve", data={"form_token": token_of(page)})
    assert answer.status_code == 409 and "It has changed since: nothing was done." in answer.text
    assert "approved" not in [
        mark.what for mark in await served.services.store.for_sites({"clinic-elm-street"}).order_marks(path[8:])
    ]
    bound = await ada.get(confirm(served), params={"kind": "remediate", "check": "patching"})
    answer = await ada.post(confirm(served), data={**hidden(bound), "seen": "0" * 64})
    assert answer.status_code == 409 and "It has changed meanwhile" in answer.text


async def test_who_refuses_is_another_act_than_who_withdraws(as_: As, served: Served) -> None:
    ada, ben = await as_("ada"), await as_("ben")
    for client, word in ((ada, "order_withdrawn"), (ben, "order_refused")):
        path = await drafted(ada, served)
        assert (await act(client, path, "withdraw")).status_code == 303
        assert (await acts(served))[-1][0] == word
        assert (await client.get(f"{path}/withdraw")).status_code == 409


async def test_a_factor_that_was_shown_long_ago_is_asked_for_again(as_: As, served: Served) -> None:
    ada, reader = await as_("ada"), served.services.store.for_sites({"clinic-elm-street"})
    path = await drafted(ada, served)
    page, form = await ada.get(confirm(served), params={"kind": "pause"}), await ada.get(f"{path}/approve")
    count = len(await reader.orders())
    served.clock.now += timedelta(minutes=6)
    asked = await ada.get(confirm(served), params={"kind": "check", "check": ["patching", "firewall"]})
    sent = [
        asked,
        await ada.post(confirm(served), data=hidden(page)),
        await ada.post(f"{path}/approve", data={"form_token": token_of(form)}),
    ]
    assert [answer.status_code for answer in sent] == [303] * 3
    assert all(answer.headers["location"].startswith("/account/prove?next=%2F") for answer in sent)
    assert len(await reader.orders()) == count and await reader.order_marks(path[8:]) == []
    prove = await ada.get(sent[0].headers["location"])
    back = re.findall(r'name="next" value="([^"]+)"', prove.text)[0].replace("&amp;", "&")
    fields = {"form_token": token_of(prove), "next": back, "code": code_of(served, "ada")}
    answer = await ada.post("/account/prove", data=fields)
    text = (await ada.get(answer.headers["location"])).text
    assert text.count('name="check"') == 2, "what was asked for is not lost"


async def test_who_has_no_second_factor_does_nothing(as_: As, served: Served) -> None:
    await served.services.users.add("bare", PASSWORD, role="operator")
    bare = await as_("bare")
    answer = await bare.get(confirm(served), params={"kind": "pause"})
    assert answer.status_code == 303 and "/account/prove" in answer.headers["location"]
    assert "you have none yet" in (await bare.get(answer.headers["location"])).text


@pytest.mark.parametrize("name", ["looker", "examiner"])
async def test_who_only_looks_is_offered_nothing_and_can_do_nothing(as_: As, served: Served, name: str) -> None:
    path = await drafted(await as_("ada"), served)
    client = await as_(name)
    host = f"/hosts/{served.hosts['ehr-db-02'].key_id}"
    assert "Ask this host" not in (await client.get(host)).text
    shown = await client.get(path)
    assert shown.status_code == 200 and "/approve" not in shown.text and "/withdraw" not in shown.text
    token = token_of(shown)
    tried = [
        await client.get(f"{host}/order"),
        await client.get(f"{host}/order/confirm", params={"kind": "pause"}),
        await client.post(f"{host}/order/confirm", data={"form_token": token, "kind": "pause", "once": "a" * 22}),
        *[await client.get(f"{path}/{what}") for what in ("approve", "withdraw")],
        *[await client.post(f"{path}/{what}", data={"form_token": token}) for what in ("approve", "withdraw")],
    ]
    assert [answer.status_code for answer in tried] == [403] * 7
    assert all("Your role may not do this" in answer.text for answer in tried)


async def test_an_order_of_another_site_is_not_there(as_: As, served: Served) -> None:
    path = await drafted(await as_("ada"), served)
    harbour = await as_("harbour")
    token = token_of(await harbour.get("/orders"))
    assert path not in (await harbour.get("/orders")).text
    tried = [await harbour.get(f"{path}{what}") for what in ("", "/approve", "/withdraw")]
    tried += [await harbour.post(f"{path}{what}", data={"form_token": token}) for what in ("/approve", "/withdraw")]
    data = {"form_token": token, "kind": "pause", "once": "a" * 22}
    tried += [await harbour.get(confirm(served), params=data), await harbour.post(confirm(served), data=data)]
    assert [answer.status_code for answer in tried] == [404] * 7


async def test_no_act_without_the_token_of_our_own_page(as_: As, served: Served) -> None:
    ada = await as_("ada")
    path = await drafted(ada, served)
    page = await ada.get(confirm(served), params={"kind": "pause"})
    cross = {"sec-fetch-site": "cross-site"}
    tried = [
        await ada.post(confirm(served), data={**hidden(page), "form_token": "x" * 43}),
        await ada.post(confirm(served), data=hidden(page), headers=cross),
        await ada.post(f"{path}/approve", data={"form_token": ""}),
        await ada.post(f"{path}/withdraw", data={"form_token": token_of(page)}, headers=cross),
    ]
    assert [answer.status_code for answer in tried] == [403] * 4
    [row] = [
        row
        for row in await served.services.store.for_sites({"clinic-elm-street"}).orders()
        if path.endswith(row.order_id)
    ]
    assert row.state == "draft"


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "reboot"},
        {"kind": "pause", "life": "86401"},
        {"kind": "check"},
        {"kind": "check", "check": "no_such"},
        {"kind": "approve", "check": "patching", "target": "John Doe, room 3"},
        {"kind": "approve", "check": "patching", "target": "john.doe"},
        {"kind": "remediate", "check": ["patching", "firewall"]},
        {"kind": "adopt_baseline", "sha256": "12"},
    ],
)
async def test_there_is_no_room_for_anything_but_ids_and_words(as_: As, served: Served, asked: dict[str, Any]) -> None:
    ada = await as_("ada")
    answer = await ada.get(confirm(served), params=asked)
    assert answer.status_code == 422 and "John" not in answer.text
    token = {"form_token": token_of(await ada.get("/orders")), "once": "a" * 22, "seen": ""}
    assert (await ada.post(confirm(served), data={**asked, **token})).status_code == 422


async def test_a_baseline_that_nobody_brought_is_not_adopted(as_: As, served: Served) -> None:
    answer = await (await as_("ada")).get(confirm(served), params={"kind": "adopt_baseline", "sha256": "0" * 64})
    assert answer.status_code == 404 and "Nobody has brought a baseline" in answer.text


def test_every_plan_of_every_check_can_be_named() -> None:
    """The form of `target` fits what the checks' own plans are called."""
    named = set()
    for check in registry().values():
        for case in check.cases:
            if case.heals:
                given = check.spec.parameters(**{**check.spec.example, **case.parameters})
                plan = check.plan(given, case.seen)
                assert plan is not None
                named.add(target_of(plan))
    assert len(named) > 5
    assert [name for name in sorted(named) if not re.fullmatch(asking.TARGET, name)] == []


def test_every_kind_of_order_has_its_words() -> None:
    assert asking.KINDS.keys() == FORMS.keys()
