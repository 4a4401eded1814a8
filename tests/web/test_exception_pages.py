"""Exceptions in a real Chromium: the rule of two people, and the second one's yes, in both themes and 320 px wide."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, expect

from compliance_agent.core.accepted import REASONS
from tests.web.browsing import MARKS, Visit, looked_at, press, tab_to
from tests.web.people import sign_in_as, with_people
from tests.web.serving import Served, on_loopback

pytestmark = MARKS


async def owned(served: Served) -> None:
    """Two operators, one of whom is made an owner."""
    await with_people(served)
    await served.services.users.set_role("ada", "owner")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    with on_loopback(tmp_path_factory.mktemp("exceptions"), prepare=owned) as started:
        yield started


def test_one_asks_and_another_one_approves(browser: Browser, running: tuple[str, Served]) -> None:
    """An owner asks for two people and records one; nobody but another person has a way to approve it, and does."""
    address, served = running
    findings: list[str] = []

    def seen(page: Page, name: str) -> None:
        findings.extend(looked_at(page, name))

    first = Visit(browser, address)
    page = sign_in_as(first, served, "ada")
    page.goto(f"{address}/sites/clinic-elm-street")
    page.get_by_role("link", name="Rule for exceptions").click()
    seen(page, "rule")
    page.get_by_role("button", name="Ask for two people").click()
    seen(page, "change of the rule")
    page.get_by_role("button", name="Change the rule").click()
    expect(page.locator(".lead")).to_contain_text("An exception needs two people here.")
    place = f"{address}/hosts/{served.hosts['ehr-db-02'].key_id}/checks/patching"
    page.goto(f"{place}/exception")
    seen(page, "form")
    page.get_by_label("Documented in").fill("RA-2026-14")
    page.get_by_role("button", name="Read it back").click()
    seen(page, "read back")
    page.get_by_role("button", name="Record it").click()
    expect(page.get_by_text("for a second person; it covers nothing yet")).to_be_visible()
    expect(page.get_by_role("link", name="Refuse it")).to_be_visible()
    expect(page.get_by_role("link", name="Approve it")).to_have_count(0)

    second = Visit(browser, address)
    page = sign_in_as(second, served, "ben")
    page.goto(place)
    page.get_by_role("link", name="Approve it").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Approve the exception")
    seen(page, "approve")
    page.get_by_role("button", name="Approve it").click()
    expect(page.get_by_text("for a second person; it covers nothing yet")).to_have_count(0)
    page.get_by_role("link", name="Withdraw it").click()
    seen(page, "withdraw")
    assert findings == [] and first.complaints == [] == second.complaints
    first.context.close()
    second.context.close()


def test_an_exception_by_keyboard_alone_without_scripts(browser: Browser, running: tuple[str, Served]) -> None:
    """Asked for, read back, recorded, approved by a second person, withdrawn; and the rule changed there and back."""
    address, served = running
    host = served.hosts["frontdesk-01"]
    place, rule = f"{address}/hosts/{host.key_id}/checks/backup", f"{address}/sites/{host.site_id}/exception-rule"
    first, second = Visit(browser, address, scripts=False), Visit(browser, address, scripts=False)
    page = sign_in_as(first, served, "ada")
    set_rule(page, rule, "two people")
    page.goto(place)
    press(page, "Record an exception")
    tab_to(page, "Reason")
    page.keyboard.press("ArrowDown")
    tab_to(page, "Documented in")
    page.keyboard.type("RA-2026-20")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", level=1)).to_have_text("Record an exception")
    expect(page.locator(".facts")).to_contain_text(list(REASONS.values())[1])
    press(page, "Record it")
    expect(page.get_by_text("for a second person; it covers nothing yet")).to_be_visible()

    other = sign_in_as(second, served, "ben")
    other.goto(address)
    press(other, "A recent backup exists and has been restored from")
    assert other.url == place
    press(other, "Approve it")
    expect(other.get_by_role("heading", level=1)).to_have_text("Approve the exception")
    press(other, "Approve it")
    expect(other.get_by_text("for a second person; it covers nothing yet")).to_have_count(0)
    press(other, "Withdraw it")
    press(other, "Withdraw it")
    expect(other.get_by_role("link", name="Withdraw it")).to_have_count(0)
    set_rule(page, rule, "one person")
    assert first.complaints == [] == second.complaints
    first.context.close()
    second.context.close()


def set_rule(page: Page, rule: str, people: str) -> None:
    """By keyboard, if it is not so already."""
    page.goto(rule)
    if people not in page.locator(".lead").inner_text():
        press(page, f"Ask for {people}…")
        press(page, "Change the rule")
    expect(page.locator(".lead")).to_contain_text(f"An exception needs {people} here.")
