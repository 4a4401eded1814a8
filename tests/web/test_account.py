"""The pages of the own account, as a person uses them: in a real Chromium, and what they refuse, without one."""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from io import BytesIO
from pathlib import Path

import httpx2
import pytest
import zxingcpp
from PIL import Image
from playwright.sync_api import Browser, expect, sync_playwright

from compliance_agent.server.services import totp
from compliance_agent.web import account
from tests.server.builder import Server, serving
from tests.server.tenants import form_token
from tests.web.browsing import CHROMIUM, FLAGS, MARKS, Visit, axe
from tests.web.serving import NAME, PASSWORD, Served, on_loopback


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with serving(tmp_path / "data") as running:
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Visit, Served]]:
    """A server of this test alone: it changes an account."""
    with sync_playwright() as playwright, on_loopback(tmp_path) as (address, served):
        browser: Browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        visit = Visit(browser, address)
        yield visit, served
        browser.close()
        assert visit.complaints == []


def code_of(served: Served, secret: str, steps: int = 0) -> str:
    return totp.code_at(base64.b32decode(secret), totp.step_of(served.clock.now) + steps)


def read_by_a_phone(picture: bytes) -> str:
    """What a reader that is not ours finds in the picture."""
    (found,) = zxingcpp.read_barcodes(Image.open(BytesIO(picture)).convert("L"))
    return str(found.text)


@pytest.mark.browser
@pytest.mark.xdist_group("browser")
@MARKS[2]
def test_setting_up_a_second_factor_and_using_it(own: tuple[Visit, Served], tmp_path: Path) -> None:
    visit, served = own
    page = visit.sign_in()
    page.get_by_role("link", name=NAME).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your account")
    expect(page.locator("tbody tr")).to_have_count(1)
    page.get_by_role("link", name="Set up an authenticator app").click()
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Show me the secret").click()
    address = page.get_by_role("link", name="open the authenticator app").get_attribute("href") or ""
    assert address.startswith("otpauth://totp/compliance-server:auditor?secret=")
    secret = address.partition("secret=")[2].partition("&")[0]
    assert page.locator(".secret").inner_text().replace(" ", "") == secret
    assert read_by_a_phone(page.locator(".qr").screenshot()) == address
    findings = axe(page, "secret")
    page.emulate_media(color_scheme="dark")
    page.set_viewport_size({"width": 320, "height": 700})
    assert read_by_a_phone(page.locator(".qr").screenshot()) == address
    findings += axe(page, "secret, dark")
    page.get_by_label("The code that the app shows now").fill(code_of(served, secret))
    page.get_by_role("button", name="Confirm").click()
    expect(page.locator(".codes li")).to_have_count(10)
    recovery = page.locator(".codes li").first.inner_text()
    assert findings + axe(page, "codes") == []
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("Name").fill(NAME)
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_label("Code").fill(recovery)
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("All sites")
    page.goto(f"{visit.address}/account/prove?next=/account")
    page.get_by_label("Code").fill(code_of(served, secret, 1))
    page.get_by_role("button", name="Confirm").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Your account")
    expect(page.locator("tbody tr")).not_to_contain_text(re.compile("no$"))
    page.get_by_role("button", name=re.compile("End session")).click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


# --- without a browser ----------------------------------------------------------------------------


async def signed_in(server: Server, name: str = "j.doe") -> tuple[httpx2.AsyncClient, str]:
    """A browser's client with its form token."""
    client = server.client
    page = await client.get("/login")
    await client.post("/login", data={"form_token": form_token(page.text), "name": name, "password": PASSWORD})
    return client, form_token((await client.get("/account")).text)


POSTS = ("/account/sessions/end", "/account/factor/begin", "/account/factor/confirm", "/account/prove")


@pytest.mark.anyio
@pytest.mark.parametrize("path", POSTS)
async def test_a_form_that_is_not_ours_changes_nothing(server: Server, path: str) -> None:
    await server.services.users.add("j.doe", PASSWORD)
    client, token = await signed_in(server)
    fields = {"session": "others", "password": PASSWORD, "code": "123456"}
    assert (await client.post(path, data={**fields, "form_token": "x" * 43})).status_code == 403
    cross = {"sec-fetch-site": "cross-site"}
    assert (await client.post(path, data={**fields, "form_token": token}, headers=cross)).status_code == 403
    assert (await client.get(path)).status_code in {404, 405, 200}  # no state changes by GET
    assert await server.services.users.factors.begun("j.doe") is None
    client.cookies.delete("session")
    answer = await client.post(path, data={**fields, "form_token": token})
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")


@pytest.mark.anyio
async def test_a_session_alone_sets_up_no_factor(server: Server) -> None:
    await server.services.users.add("j.doe", PASSWORD)
    client, token = await signed_in(server)
    answer = await client.post("/account/factor/begin", data={"form_token": token, "password": "wrong password"})
    assert answer.status_code == 403 and "otpauth" not in answer.text
    answer = await client.post("/account/factor/begin", data={"form_token": token, "password": PASSWORD})
    assert answer.status_code == 200 and "otpauth://" in answer.text and answer.headers["cache-control"] == "no-store"
    wrong = await client.post("/account/factor/confirm", data={"form_token": token, "code": "000000"})
    assert wrong.status_code == 422 and not await server.services.users.factors.has("j.doe")


@pytest.mark.anyio
@pytest.mark.parametrize("back", ["//evil.test", "https://evil.test", "/\\evil.test"])
async def test_proving_never_leads_elsewhere(server: Server, back: str) -> None:
    users = server.services.users
    await users.add("j.doe", PASSWORD)
    client, token = await signed_in(server)
    secret = await users.factors.begin("j.doe")
    await users.factors.confirm("j.doe", totp.code_at(secret, totp.step_of(server.clock())))
    server.clock.move(30)
    code = totp.code_at(secret, totp.step_of(server.clock()))
    answer = await client.post("/account/prove", data={"form_token": token, "next": back, "code": code})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(60, "1 minute"), (900, "15 minutes"), (3_600, "1 hour"), (5_400, "90 minutes"), (86_400, "24 hours")],
)
def test_how_long_a_session_may_rest_is_said_in_words(seconds: int, said: str) -> None:
    assert account.in_words(timedelta(seconds=seconds)) == said
