"""The viewer in a real Chromium, against a real server on loopback with a real, seeded database."""

from __future__ import annotations

import re
import sqlite3
from datetime import timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from compliance_agent.server.store.packing import unpacked
from tests.server.builder import unwalled
from tests.web.browsing import MARKS, Visit, axe
from tests.web.serving import Served, on_loopback

pytestmark = MARKS

# A page fits at every hour of the day, not only where the hour has one digit.
WIDEST_TIMES = (
    """document.querySelectorAll("time[data-local='text']")"""
    """.forEach(time => { time.textContent = "Nov 28, 2026, 12:38:48\\u202fPM" })"""
)


# Where a form's fields begin and how wide they are: two to a row, all alike, but for one that has a row to itself.
FIELDS = """[...document.querySelectorAll('form.filter label > :is(select, input)')].map(field => field.getBoundingClientRect())
    .filter(box => box.width < innerWidth / 2).map(box => Math.round(box.width))"""


def paths(served: Served) -> list[str]:
    """One of each page."""
    host = served.hosts["ehr-db-02"]
    silent = served.hosts["imaging-01"]
    return [
        "/",
        "/sites/clinic-elm-street",
        "/sites/clinic-harbour",
        f"/hosts/{host.key_id}",
        f"/hosts/{silent.key_id}",
        f"/hosts/{host.key_id}/evidence",
        f"/hosts/{host.key_id}/checks/firewall",
        f"/hosts/{host.key_id}/checks/patching",
        f"/bundles/{host.bundle_ids[0]}",
        f"/bundles/{host.cures['firewall']}",
        f"/bundles/{host.cures['patching']}",
        "/sites/clinic-elm-street/controls",
        "/sites/clinic-elm-street/controls?by=host&rule=proposed",
        "/sites/clinic-elm-street/packets",
        "/sites/clinic-elm-street/sample",
        "/sites/clinic-elm-street/sample?seed=audit&number=9&control=164.312(b)",
        "/evidence",
        "/evidence?check=no-such",
        "/account",
        "/account/factor",
        "/account/prove",
    ]


def test_from_the_front_page_to_a_verified_bundle(visit: Visit) -> None:
    page = visit.sign_in()
    page.get_by_role("link", name="clinic-elm-street").first.click()
    page.get_by_role("rowheader").get_by_role("link", name="ehr-db-02").click()
    row = page.locator("tr#firewall")
    expect(row).to_contain_text("Pass")
    expect(row).to_contain_text("Healed")
    row.get_by_role("link", name="ago").click()
    expect(page.get_by_role("heading", name="VALID", exact=True)).to_be_visible()
    expect(page.locator(".proofs li")).to_have_count(6)
    expect(page.locator("#verification")).not_to_contain_text("BROKEN")
    page.get_by_role("link", name=re.compile("Previous")).click()
    expect(page.get_by_role("heading", name="VALID", exact=True)).to_be_visible()
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")


def test_everything_can_be_read_without_scripts(browser: Browser, running: tuple[str, Served]) -> None:
    address, served = running
    visit = Visit(browser, address, scripts=False)
    page = visit.sign_in()
    page.goto(f"{address}/hosts/{served.hosts['frontdesk-01'].key_id}")
    expect(page.locator("tr#backup")).to_contain_text("Needs a person")
    expect(page.get_by_role("contentinfo")).to_contain_text("UTC")
    expect(page.get_by_role("button", name=re.compile("Theme"))).to_be_hidden()
    page.goto(f"{address}/hosts/{served.hosts['frontdesk-01'].key_id}/evidence")
    page.get_by_label("What").select_option("remediation")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("tbody tr")).to_have_count(1)
    visit.context.close()


def test_downloads_have_their_names(visit: Visit, running: tuple[str, Served]) -> None:
    page, host = visit.sign_in(), running[1].hosts["ehr-db-02"]
    page.goto(f"{visit.address}/bundles/{host.bundle_ids[3]}")
    for name in ("bundle.json", "bundle.sig", "ehr-db-02.pub.pem"):
        with page.expect_download() as waiting:
            page.get_by_role("link", name=name).click()
        assert waiting.value.suggested_filename == name


def test_live_page_follows_the_server_and_keeps_its_place(visit: Visit, running: tuple[str, Served]) -> None:
    """The next look is asked for at once instead of after five seconds."""
    page, served = visit.sign_in(), running[1]
    page.goto(f"{visit.address}/hosts/{served.hosts['nurse-station'].key_id}")
    expect(page.get_by_text("Reporting")).to_be_visible()
    page.locator("#live").evaluate("element => element.dataset.kept = 'yes'")
    before = served.clock.now
    try:
        served.clock.now = before + timedelta(hours=2)
        page.evaluate("htmx.trigger('#live', 'refresh')")
        expect(page.get_by_text("This host has stopped reporting.")).to_be_visible(timeout=30_000)
        expect(page.locator("tbody .tone-pass")).to_have_count(0)
    finally:
        served.clock.now = before


def test_a_page_that_hears_nothing_says_so(visit: Visit) -> None:
    page = visit.page
    page.clock.install()
    visit.sign_in()
    page.route("**/*", lambda route: route.abort())
    expect(page.locator("#stale")).to_be_hidden()
    page.clock.run_for(30_000)
    expect(page.locator("#stale")).to_be_visible()
    expect(page.locator("#stale")).to_contain_text("This page has stopped updating.")
    visit.forgive()  # the failed requests are the point


def test_an_ended_session_leads_to_the_login_page(visit: Visit) -> None:
    page = visit.sign_in()
    visit.context.clear_cookies()
    page.evaluate("void setTimeout(() => htmx.trigger('#live', 'refresh'))")  # the answer comes before the page goes
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in", timeout=30_000)
    visit.forgive()  # the 401 is the point


def test_the_theme_is_the_readers_choice(visit: Visit) -> None:
    page = visit.sign_in()
    ground = "() => getComputedStyle(document.documentElement).backgroundColor"
    light = page.evaluate(ground)
    switch = page.get_by_role("button", name=re.compile("Theme"))
    switch.click()
    switch.click()
    expect(switch).to_have_text("Theme: dark")
    assert page.evaluate(ground) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(ground) != light


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_page_is_accessible_and_fits(browser: Browser, running: tuple[str, Served], theme: str) -> None:
    """No serious finding of axe, no sideways scrolling at 320 px, no complaint of the browser (the policy among them)."""
    address, served = running
    visit = Visit(browser, address, theme=theme)
    visit.page.goto(f"{address}/login")
    findings = axe(visit.page, "/login")
    page = visit.sign_in()
    for path in paths(served):
        page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(address + path)
        findings += axe(page, path)
        page.set_viewport_size({"width": 320, "height": 700})
        page.evaluate(WIDEST_TIMES)
        width = page.evaluate("document.documentElement.scrollWidth")
        findings += [f"{path}: {width} px wide at 320"] if width > 320 else []
        fields = set(page.evaluate(FIELDS))
        findings += (
            [f"{path}: fields of {sorted(fields)} px at 320"]
            if len(fields) > 1 or min(fields, default=140) < 130
            else []
        )
    assert findings == []
    assert visit.complaints == []
    page.goto(f"{address}/no/such/page")
    assert axe(page, "404") == []
    visit.context.close()


def test_axe_finds_a_planted_fault(visit: Visit) -> None:
    page = visit.sign_in()
    page.evaluate("document.querySelector('main').insertAdjacentHTML('beforeend', '<img src=\"/x.svg\">')")
    assert any("image-alt" in finding for finding in axe(page, "/"))
    visit.forgive()


def test_the_policy_stops_a_planted_script(visit: Visit) -> None:
    page = visit.sign_in()
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"document.title = `owned`\">')")
    page.wait_for_function("() => document.images[document.images.length - 1].complete")
    assert page.title() != "owned"
    assert any("Content Security Policy" in said for said in visit.complaints)
    visit.forgive()


def test_a_record_changed_in_the_database_shows_invalid(browser: Browser, tmp_path: Path) -> None:
    """One letter of one stored bundle is changed behind the server's back."""
    with on_loopback(tmp_path) as (address, served):
        host = served.hosts["ehr-db-02"]
        visit = Visit(browser, address)
        page = visit.sign_in()
        url = f"{address}/bundles/{host.bundle_ids[-5]}"
        page.goto(url)
        expect(page.get_by_role("heading", name="VALID", exact=True)).to_be_visible()
        tamper(served.database, host.bundle_ids[-5])
        page.get_by_role("button", name="Verify again").click()
        expect(page.get_by_role("heading", name="INVALID")).to_be_visible()
        broken = page.locator(".proofs li", has_text="BROKEN")
        assert {text.split(":")[0] for text in broken.all_inner_texts()} >= {"Signature", "Stored bytes"}
        page.goto(f"{address}/bundles/{host.bundle_ids[-6]}")
        expect(page.get_by_role("heading", name="VALID", exact=True)).to_be_visible()
        visit.context.close()


def tamper(database: Path, bundle_id: str) -> None:
    """Change the policy version in the stored bytes, keeping their length and form."""
    with sqlite3.connect(database) as connection:
        table, column = next(
            (table, column)
            for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
            for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})").fetchall()
            if column == "body" and "bundle" in table
        )
        (body,) = connection.execute(f"SELECT {column} FROM {table} WHERE bundle_id = ?", (bundle_id,)).fetchone()
        body = unpacked(bytes(body))
        changed = body.replace(b'"policy_version":"1.0"', b'"policy_version":"1.1"')
        assert changed != body
        unwalled(connection)
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE bundle_id = ?", (changed, bundle_id))
    connection.close()
