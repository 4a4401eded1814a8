"""Live pages are told that something changed: by a stream that is bounded, holds nothing, and ends with the session."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser, expect

from compliance_agent.errors import Refusal
from compliance_agent.web.streams import CHANGE, END, MOST, MOST_OF_A_PERSON, Streams, told
from tests.web.browsing import MARKS, Visit
from tests.web.people import sign_in_as, with_people
from tests.web.serving import NAME, OTHER, PASSWORD, Served, on_loopback, serving
from tests.web.test_views import sign_in, visiting

EVENTS = {"accept": "text/event-stream"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("streams"), prepare=with_people) as running:
        yield running


class Ear:
    """One stream, and what was heard on it."""

    def __init__(self, served: Served, secret: str, site: str | None = None, tick_s: float = 60.0) -> None:
        self.streams = Streams(look_s=0.01, tick_s=tick_s)
        self._told = told(self.streams, served.services, secret, site)

    async def next(self, within_s: float = 10.0) -> bytes | None:
        """The next event; None when the stream has ended, or said nothing for this long."""
        try:
            async with asyncio.timeout(within_s):
                return await anext(self._told)
        except (TimeoutError, StopAsyncIteration):
            return None


async def opened(served: Served, name: str = NAME, site: str | None = None, tick_s: float = 60.0) -> tuple[Ear, str]:
    secret = await served.services.users.login(name, PASSWORD)
    while await served.services.sequencer.round():
        pass  # signing in is an act in every log: not what the test is about
    ear = Ear(served, secret, site, tick_s)
    assert (await ear.next() or b"").startswith(b"retry: ")
    return ear, secret


async def changed(served: Served, site: str = "clinic-elm-street") -> None:
    """Something happens at one site, and is published: a hold is an act in its log."""
    holds = served.services.holds
    reason = f"case-{time.monotonic_ns()}"
    await holds.add(site, None, reason)
    while await served.services.sequencer.round():
        pass


@pytest.mark.anyio
async def test_a_page_is_told_of_what_happens_at_its_sites_and_of_nothing_else(served: Served) -> None:
    whole, _ = await opened(served)
    other, _ = await opened(served, OTHER)  # may see clinic-harbour alone
    one, _ = await opened(served, site="clinic-lakeside")
    hears = [asyncio.create_task(ear.next(1.0)) for ear in (whole, other, one)]
    await asyncio.sleep(0.05)
    await changed(served)
    assert [await task for task in hears] == [CHANGE, None, None]


@pytest.mark.anyio
async def test_a_quiet_page_is_told_anyway_because_silence_is_a_change(served: Served) -> None:
    ear, _ = await opened(served, tick_s=0.05)
    assert await ear.next() == CHANGE


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["signed out", "disabled", "idle", "fewer sites"])
async def test_it_ends_with_what_it_was_opened_by(served: Served, how: str) -> None:
    users, name = served.services.users, f"someone-{how.replace(' ', '-')}"
    await users.add(name, PASSWORD)
    ear, secret = await opened(served, name, site="clinic-harbour", tick_s=0.06)
    before = served.clock.now
    if how == "signed out":
        await users.logout(secret)
    elif how == "disabled":
        await users.set_disabled(name, True)
    elif how == "idle":
        served.clock.now += timedelta(days=2)
    else:
        await users.set_sites(name, client_id=None, sites=frozenset({"clinic-lakeside"}))
    heard = [await ear.next() for _ in range(4)]
    served.clock.now = before
    assert END in heard and heard[-1] is None


@pytest.mark.anyio
async def test_it_ends_when_the_server_stops_and_no_other_is_opened(served: Served) -> None:
    ear, _ = await opened(served)
    hears = asyncio.create_task(ear.next())
    await asyncio.sleep(0.05)
    ear.streams.close()
    assert await hears == END and await ear.next() is None
    with pytest.raises(Refusal, match="too many"):
        ear.streams.take("anybody")


@pytest.mark.anyio
async def test_listening_is_no_use_of_the_session(served: Served) -> None:
    ear, secret = await opened(served, tick_s=0.03)
    served.clock.now += timedelta(minutes=2)
    for _ in range(3):
        assert await ear.next() == CHANGE
    session = await served.services.users.sessions.of(secret, use=False)
    assert session is not None and served.clock.now - session.used_at >= timedelta(minutes=2)
    async with visiting(served) as visitor:
        visitor.cookies.set("__Host-session", secret)
        await visitor.get(
            "/live", headers={**EVENTS, "accept": "text/event-stream", "hx-request": "x"}, params={"site": "x"}
        )
    session = await served.services.users.sessions.of(secret, use=False)
    assert session is not None and served.clock.now - session.used_at >= timedelta(minutes=2)


def test_a_person_has_a_few_and_the_process_so_many() -> None:
    streams = Streams()
    leave = [streams.take("a") for _ in range(MOST_OF_A_PERSON)]
    with pytest.raises(Refusal) as caught:
        streams.take("a")
    assert (caught.value.status, caught.value.code) == (429, "too_many_streams")
    leave[0]()
    leave[0] = streams.take("a")
    for number in range(MOST - MOST_OF_A_PERSON):
        leave.append(streams.take(f"p{number}"))
    with pytest.raises(Refusal):
        streams.take("b")
    for one in leave:
        one()
    assert streams.count == 0


@pytest.mark.anyio
async def test_who_may_not_look_hears_nothing(served: Served) -> None:
    async with visiting(served) as visitor:
        assert (await visitor.get("/live", headers=EVENTS)).status_code == 401
        await sign_in(visitor, OTHER)
        assert (await visitor.get("/live")).status_code == 406, "a page that is opened by hand ends at once"
        for site in ("clinic-elm-street", "no-such-site"):
            answer = await visitor.get("/live", headers=EVENTS, params={"site": site})
            assert answer.status_code == 404


@pytest.mark.anyio
async def test_a_stream_holds_no_connection_of_the_database(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two looks: every statement that began has ended, however many streams are open."""
    under_way, database = 0, served.services.store.database  # type: ignore[attr-defined]
    right = database.all

    async def counted(*arguments: object, **more: object) -> object:
        nonlocal under_way
        under_way += 1
        try:
            return await right(*arguments, **more)
        finally:
            under_way -= 1

    monkeypatch.setattr(database, "all", counted)
    ears = [(await opened(served, tick_s=30.0))[0] for _ in range(20)]
    hears = [asyncio.create_task(ear.next(0.3)) for ear in ears]
    await asyncio.sleep(0.2)
    assert under_way == 0 and not any(task.done() for task in hears)
    await asyncio.gather(*hears)


# In a real browser, over a real connection


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    with on_loopback(tmp_path_factory.mktemp("live"), prepare=with_people) as started:
        yield started


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
@MARKS[2]
def test_the_first_page_shows_what_happened_without_asking_again_and_again(
    browser: Browser, running: tuple[str, Served]
) -> None:
    address, served = running
    watching, acting = Visit(browser, address), Visit(browser, address)
    page = sign_in_as(watching, served, "ada")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url) if request.headers.get("hx-request") else None)
    expect(page.get_by_text("No plan and no order waits for anybody.")).to_be_visible()
    other = sign_in_as(acting, served, "ben")
    other.goto(f"{address}/hosts/{served.hosts['ehr-db-02'].key_id}/order/confirm?kind=pause")
    other.get_by_role("button", name="Draft only").click()
    expect(page.locator("#waiting + div")).to_contain_text("Order: Pause", timeout=30_000)
    assert int(page.evaluate("document.documentElement.dataset.told || '0'")) >= 1
    assert served.app.state.streams.count >= 1
    acting.context.close()
    watching.context.close()
    deadline = time.monotonic() + 10
    while served.app.state.streams.count and time.monotonic() < deadline:
        time.sleep(0.05)
    assert served.app.state.streams.count == 0, "a page that is closed gives its place up"
    assert watching.complaints == [] == acting.complaints


def test_a_fifth_page_of_a_person_asks_instead_and_a_stream_does_not_hold_the_end_up(tmp_path: Path) -> None:
    server = on_loopback(tmp_path, seeded=False)
    address, _ = server.__enter__()
    with signed_in(address) as client:
        open_ = [client.stream("GET", "/live", headers=EVENTS) for _ in range(MOST_OF_A_PERSON)]
        heard = [one.__enter__().iter_raw() for one in open_]
        assert {next(lines)[:7] for lines in heard} == {b"retry: "}
        assert client.get("/live", headers=EVENTS).status_code == 429
        assert client.get("/").status_code == 200
        began = time.monotonic()
        server.__exit__(None, None, None)
        assert time.monotonic() - began < 5, "the server waited for a page that listens"
        assert [b"".join(lines).endswith(END) for lines in heard] == [True] * MOST_OF_A_PERSON
        for one in open_:
            one.__exit__(None, None, None)


@contextmanager
def signed_in(address: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=address, headers={"sec-fetch-site": "same-origin"}) as client:
        token = client.get("/login").text.partition('name="form_token" value="')[2].partition('"')[0]
        client.post("/login", data={"form_token": token, "name": NAME, "password": PASSWORD, "next": "/"})
        yield client
