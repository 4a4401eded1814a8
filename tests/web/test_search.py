"""Evidence is found by each thing the form asks for, alone and together, page by page."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import httpx2 as httpx
import pytest

from compliance_agent.web import search, words
from tests.web.serving import OTHER, Served, serving
from tests.web.test_views import sign_in, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_search")]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("search")) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(served) as visitor:
        await sign_in(visitor)
        yield visitor


def ids(text: str) -> list[str]:
    """Of the records that a page lists."""
    return re.findall(r'<a href="/bundles/([0-9a-f-]{36})\?', text)


async def found(client: httpx.AsyncClient, **asked: str) -> list[str]:
    answer = await client.get("/evidence", params=asked)
    assert answer.status_code == 200, answer.text
    return ids(answer.text)


async def test_each_field_finds_what_it_says(client: httpx.AsyncClient, served: Served) -> None:
    host = served.hosts["ehr-db-02"]
    cure, held = host.cures["firewall"], host.cures["patching"]
    assert await found(client, id=cure) == [cure]
    assert await found(client, id=cure.upper()) == [cure]
    assert await found(client, check="patching") == [held]
    assert await found(client, outcome="deferred") == [held]
    assert cure in await found(client, citation="164.312(e)(1)")
    assert held not in await found(client, citation="164.312(e)(1)")
    assert await found(client, proposed="5") == [held], "critical patches within fifteen days"
    assert await found(client, host="ehr-db-02", kind="remediation", check="firewall") == [cure]
    assert await found(client, key=host.key_id, result="fail", check="firewall") == [cure]
    assert set(await found(client, site="clinic-elm-street", result="fail", outcome="success")) < set(
        await found(client, result="fail", outcome="success")
    )


@pytest.mark.parametrize(
    "asked",
    [
        {"id": "0" * 36}, {"id": "<script>"}, {"check": "no-such"}, {"citation": "164.999"}, {"citation": "164.308(a)(2)"},
        {"site": "nowhere"}, {"host": "nobody"}, {"key": "f" * 64}, {"result": "fine"}, {"from": "2001-01-01", "to": "2001-01-02"},
        {"from": "2030-01-01"}, {"check": "backup", "citation": "164.312(e)(1)"}, {"proposed": "1"}, {"proposed": "99"},
    ],
)  # fmt: skip
async def test_what_matches_nothing_is_an_empty_page(client: httpx.AsyncClient, asked: dict[str, str]) -> None:
    answer = await client.get("/evidence", params=asked)
    assert answer.status_code == 200 and "Nothing was recorded that matches." in answer.text


@pytest.mark.parametrize("asked", [{"from": "today"}, {"to": "2026-13-01"}, {"before": "1e9"}, {"before": "-1"}])
async def test_what_cannot_be_asked_is_said(client: httpx.AsyncClient, asked: dict[str, str]) -> None:
    assert (await client.get("/evidence", params=asked)).status_code == 400


async def test_pages_go_on_where_the_last_one_ended(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, served: Served
) -> None:
    monkeypatch.setattr(search, "PER_PAGE", 7)
    whole, path = [], "/evidence?site=clinic-elm-street"
    for _ in range(20):
        text = (await client.get(path)).text
        whole += ids(text)
        older = re.search(r'<a href="([^"]+)">Older</a>', text)
        if older is None:
            break
        path = older[1].replace("&amp;", "&")
        assert "site=clinic-elm-street" in path
    made = [one for name in ("ehr-db-02", "frontdesk-01") for one in served.hosts[name].bundle_ids]
    assert sorted(whole) == sorted(made)


async def test_another_tenant_finds_nothing_of_ours(served: Served) -> None:
    async with visiting(served) as visitor:
        await sign_in(visitor, OTHER)
        theirs = served.hosts["ehr-db-02"]
        for asked in (
            {"site": "clinic-elm-street"},
            {"host": "ehr-db-02"},
            {"key": theirs.key_id},
            {"id": theirs.bundle_ids[0]},
        ):
            assert await found(visitor, **asked) == []
        text = (await visitor.get("/evidence")).text
        assert "clinic-elm-street" not in text and ids(text)


def test_every_check_of_a_section_is_asked_for() -> None:
    from compliance_agent.web.controls import checks_of

    for section in {section for check in words.registry().values() for section in check["citations"]}:
        assert checks_of(section) == tuple(
            sorted(name for name, check in words.registry().items() if section in check["citations"])
        )
