"""Orders in a real Chromium: by mouse, by keyboard alone, without scripts, in both themes, and 320 px wide."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.web.browsing import MARKS, Visit, axe, looked_at, press, tab_to
from tests.web.people import code_of, sign_in_as, with_people
from tests.web.serving import Served, on_loopback

pytestmark = MARKS


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    with on_loopback(tmp_path_factory.mktemp("orders"), prepare=with_people) as started:
        yield started


def test_pausing_a_host_as_a_person_does(browser: Browser, running: tuple[str, Served]) -> None:
    """From the host's page to the command that signs, with axe and the narrow width at each page, in both themes."""
    address, served = running
    findings: list[str] = []
    visit = Visit(browser, address)
    page = sign_in_as(visit, served, "ada")

    def seen(page: Page, name: str) -> None:
        findings.extend(looked_at(page, name))

    page.goto(f"{address}/hosts/{served.hosts['ehr-db-02'].key_id}")
    page.get_by_role("link", name="Ask this host for something").click()
    seen(page, "ask")
    page.get_by_role("button", name="Pause healing").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Pause healing: ehr-db-02")
    seen(page, "confirm")
    page.get_by_role("button", name="Draft and approve").click()
    expect(page.locator("#sign")).to_contain_text(f"--url {address}")
    seen(page, "approved")
    page.get_by_role("link", name="Withdraw it").click()
    seen(page, "withdraw")
    page.get_by_role("button", name="Withdraw it").click()
    expect(page.get_by_text("Withdrawn", exact=True)).to_be_visible()
    page.get_by_role("link", name="Orders").click()
    expect(page.get_by_role("row", name=re.compile("Pause.*Cancelled"))).to_be_visible()
    seen(page, "orders")
    visit.context.close()
    assert findings == [] and visit.complaints == []


def test_a_plan_is_approved_by_keyboard_alone_without_scripts(browser: Browser, running: tuple[str, Served]) -> None:
    """The second person, whose factor was shown too long ago, is asked for a code and comes back to the question."""
    address, served = running
    first = Visit(browser, address, scripts=False)
    page = sign_in_as(first, served, "ada")
    host = served.hosts["ehr-db-02"].key_id
    page.goto(f"{address}/hosts/{host}/order")
    target = page.locator("input[name=target]")
    target.focus()
    page.keyboard.type("steps-" + "0" * 32)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Approve a plan: ehr-db-02")
    tab_to(page, "Draft and approve")
    page.keyboard.press("Enter")
    expect(page.get_by_text("One more person must approve it besides ada.")).to_be_visible()
    order = page.url.removeprefix(address)
    first.context.close()

    looking = Visit(browser, address)
    page = sign_in_as(looking, served, "ben")
    page.goto(f"{address}{order}/approve")
    expect(page.get_by_role("heading", level=1)).to_have_text("Approve: approve a plan")
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
        assert axe(page, f"approve {theme}") == []
    looking.context.close()

    second = Visit(browser, address, scripts=False)
    page = sign_in_as(second, served, "ben")
    served.clock.now = served.clock.now + timedelta(minutes=6)
    page.goto(address + order)
    tab_to(page, "Approve it")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Confirm that it is you")
    page.keyboard.type(code_of(served, "ben"))  # the field has the focus
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Approve: approve a plan")
    tab_to(page, "Approve it")
    page.keyboard.press("Enter")
    expect(page.locator("#sign")).to_contain_text("--cosigner")
    assert page.url == address + order
    second.context.close()
    assert second.complaints == [] == first.complaints


def test_healing_is_paused_by_keyboard_alone_without_scripts(browser: Browser, running: tuple[str, Served]) -> None:
    """From the host's page on, and withdrawn again."""
    address, served = running
    visit = Visit(browser, address, scripts=False)
    page = sign_in_as(visit, served, "ben")
    page.goto(f"{address}/hosts/{served.hosts['frontdesk-01'].key_id}")
    press(page, "Ask this host for something")
    press(page, "Pause healing…")
    expect(page.get_by_role("heading", level=1)).to_have_text("Pause healing: frontdesk-01")
    press(page, "Draft and approve")
    expect(page.locator("#sign")).to_contain_text(f"--url {address}")
    press(page, "Withdraw it")
    press(page, "Withdraw it")
    expect(page.get_by_text("Withdrawn", exact=True)).to_be_visible()
    assert visit.complaints == []
    visit.context.close()
