"""A walk through the viewer in a real Chromium over a fleet of any size: every page of `lab/bench_viewer.py`, and every act.

`scripts/browse.py` walks over 1,000,000 records, `test_walking.py` over a handful; both are the same walk.
"""

from __future__ import annotations

import contextlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from playwright.sync_api import Browser, Error, Page, expect

from compliance_agent.lab import bench_viewer
from compliance_agent.lab.seeding import MovingClock
from compliance_agent.lab.viewer_seed import END, Size, made, settings
from compliance_agent.server.app import create_app
from compliance_agent.server.opening import utc_now
from tests.web.browsing import Visit, looked_at
from tests.web.people import sign_in_as, with_factor
from tests.web.serving import Served

# What a browser saves or reads on and does not show, by its route.
FILES = frozenset(
    {
        "/hosts/{key_id}/public-key",
        "/bundles/{bundle_id}/{name}",
        "/sites/{site_id}/log/{year}/key",
        "/sites/{site_id}/log/{year}/files/{name}",
        "/sites/{site_id}/log/{year}/older/{index}",
        "/sites/{site_id}/log/{year}/consistency/{size}",
        "/sites/{site_id}/controls.csv",
        "/sites/{site_id}/sample.csv",
        "/live",
    }
)
ANSWERED = """(() => { const [one] = performance.getEntriesByType('navigation'); return one.responseStart - one.requestStart })()"""
READY_MS = 300_000


@dataclass(frozen=True)
class Large(Served):
    """A server over a large fleet.

    Attributes:
        ids: of some hosts, each with a record, an order and the rest that a path may name.
        key_ids: of all hosts.
        people: an owner and an operator with second factors, new to this server, who do the acts.
    """

    ids: Sequence[Mapping[str, str]] = ()
    key_ids: Sequence[str] = ()
    people: Sequence[str] = ()


@contextlib.asynccontextmanager
async def serving_large(directory: Path, size: Size, hosts: int) -> AsyncIterator[Large]:
    """A server over the fleet that is kept there, or is made first; pages are asked for of so many hosts."""
    await made(directory / "server", size)
    clock = MovingClock(END)
    asked = settings(directory / "server")
    app = create_app(asked, clock=clock, log_clock=utc_now)
    async with app.router.lifespan_context(app):
        services = app.state.services
        people = [f"{role}-{secrets.token_hex(4)}" for role in ("owner", "operator")]
        large = Large(app, services, {}, clock, asked.data_dir / "server.db")
        for name in people:
            await with_factor(large, name, role=name.partition("-")[0])
        ids = await bench_viewer.ids_of(services, directory, min(hosts, size.hosts), people[0])
        with bench_viewer.collecting_as_a_server():
            yield replace(large, people=people, ids=ids, key_ids=bench_viewer.key_ids(directory))


@dataclass
class Seen:
    """One page or act as the browser had it.

    Attributes:
        answered_ms: from request to first byte, each time it was asked for.
        findings: whatever is wrong with it.
    """

    name: str
    answered_ms: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)


def pages() -> list[str]:
    """Every page that a browser shows to who is signed in, its route with what stands after it."""
    left = FILES | {"/login"}
    return [path + more for path, after in bench_viewer.PAGES.items() if path not in left for more in after]


def walked(
    browser: Browser, address: str, large: Large, paths: Sequence[str], say: Callable[[str], object] = lambda _: None
) -> list[Seen]:
    """Look at these pages: each time of another host; once in both themes with axe, and 320 px wide."""
    visit = Visit(browser, address)
    page = sign_in_as(visit, large, large.people[0])
    found = []
    for path in paths:
        found.append(seen := Seen(path))
        for number, ids in enumerate(large.ids):
            answer = page.goto(address + path.format(**ids))
            if answer is None or answer.status != 200:
                seen.findings.append(f"answers {answer and answer.status}")
                break
            seen.answered_ms.append(page.evaluate(ANSWERED))
            if number == 0:
                seen.findings += looked_at(page, path)
        seen.findings += visit.complaints
        visit.complaints = []
        say(f"{path}: {max(seen.answered_ms, default=0):.0f} ms{', '.join(['', *seen.findings])}")
    visit.context.close()
    return found


class Acts:
    """What people do in the viewer, each method one act; every act leaves the server as it was, but for its entries in the log."""

    def __init__(self, browser: Browser, address: str, large: Large) -> None:
        self._address, self._key_ids = address, large.key_ids
        self._ids = {**large.ids[0], "day": END.date().isoformat()}
        self._visits = [Visit(browser, address) for _ in large.people]
        self._page, self._second = (
            sign_in_as(visit, large, name) for visit, name in zip(self._visits, large.people, strict=True)
        )

    def done(self, say: Callable[[str], object] = lambda _: None) -> list[Seen]:
        """Do every act; what went wrong with each."""
        found = []
        for name in vars(type(self)):
            if name.startswith("_") or name == "done":
                continue
            found.append(seen := Seen(name.replace("_", " ")))
            try:
                getattr(self, name)()
            except (AssertionError, Error) as error:  # what was expected is not there, or the way to it is not
                seen.findings.append(" ".join(str(error).split())[:300])
            for visit in self._visits:
                seen.findings += visit.complaints
                visit.complaints = []
            say(f"{seen.name}{', '.join(['', *seen.findings])}")
        return found

    def _open(self, path: str, page: Page | None = None) -> Page:
        page = page or self._page
        page.goto(self._address + path.format(**self._ids))
        return page

    def find_a_record_and_verify_it_in_the_browser(self) -> None:
        """Search by check and days; the record's page; what the server finds and what this browser finds."""
        page = self._open("/evidence")
        page.get_by_label("Check").select_option("firewall")
        page.get_by_label("From", exact=True).fill("2026-11-10")
        page.get_by_label("To", exact=True).fill("2026-11-12")
        page.get_by_role("button", name="Search").click()
        page.locator("tbody tr").first.get_by_role("link").first.click()
        expect(page.get_by_role("heading", name="VALID", exact=True)).to_be_visible()
        page.get_by_role("button", name="Check in this browser").click()
        expect(page.locator("[data-verdict]")).to_contain_text("Record and log verified by this browser.")

    def go_from_the_front_page_to_a_checks_timeline(self) -> None:
        """All sites, a site, a host, a check."""
        page = self._open("/")
        page.get_by_role("link", name=self._ids["site_id"]).first.click()
        page.get_by_role("rowheader").get_by_role("link").first.click()
        page.get_by_role("link", name=re.compile("Firewall|firewall")).first.click()
        expect(page.get_by_role("heading", name="History")).to_be_visible()

    def pause_a_host_and_take_it_back(self) -> None:
        """Draft and approve, see the command that signs, withdraw."""
        page = self._open("/hosts/{key_id}")
        page.get_by_role("link", name="Ask this host for something").click()
        page.get_by_role("button", name="Pause healing").click()
        page.get_by_role("button", name="Draft and approve").click()
        expect(page.locator("#sign")).to_contain_text(f"--url {self._address}")
        self._withdraw(page)

    def approve_a_plan_as_two_people(self) -> None:
        """One drafts and approves, another one approves, the first withdraws."""
        page = self._page
        for key_id in self._key_ids:  # a plan is of a check that fails
            if self._open(f"/hosts/{key_id}/order").locator("input[name=target]").count():
                break
        page.locator("input[name=target]").fill("steps-" + secrets.token_hex(16), timeout=1_000)
        page.locator("input[name=target]").press("Enter")
        page.get_by_role("button", name="Draft and approve").click()
        expect(page.get_by_text("One more person must approve it")).to_be_visible()
        self._second.goto(page.url)
        self._second.get_by_role("link", name="Approve it").click()
        self._second.get_by_role("button", name="Approve it").click()
        expect(self._second.locator("#sign")).to_contain_text("--cosigner")
        page.reload()
        self._withdraw(page)

    def _withdraw(self, page: Page) -> None:
        page.get_by_role("link", name="Withdraw it").click()
        page.get_by_role("button", name="Withdraw it").click()
        expect(page.get_by_text("Withdrawn", exact=True)).to_be_visible()

    def record_an_exception_as_two_people(self) -> None:
        """The site's rule asks for two people; one records, another one approves; both are taken back."""
        page = self._open("/sites/{site_id}/exception-rule")
        page.get_by_role("button", name="Ask for two people").click()
        page.get_by_role("button", name="Change the rule").click()
        expect(page.locator(".lead")).to_contain_text("An exception needs two people here.")
        page = self._open("/hosts/{key_id}/checks/patching/exception")
        page.get_by_label("Documented in").fill("RA-2026-14")
        page.get_by_role("button", name="Read it back").click()
        page.get_by_role("button", name="Record it").click()
        expect(page.get_by_text("for a second person; it covers nothing yet")).to_be_visible()
        second = self._open("/hosts/{key_id}/checks/patching", self._second)
        second.get_by_role("link", name="Approve it").click()
        second.get_by_role("button", name="Approve it").click()
        second.get_by_role("link", name="Withdraw it").click()
        second.get_by_role("button", name="Withdraw it").click()
        expect(second.get_by_role("link", name="Withdraw it")).to_have_count(0)
        page = self._open("/sites/{site_id}/exception-rule")
        page.get_by_role("button", name="Ask for one person").click()
        page.get_by_role("button", name="Change the rule").click()
        expect(page.locator(".lead")).to_contain_text("An exception needs one person here.")

    def take_the_controls_as_a_table(self) -> None:
        """By day, by host, the proposed rule, one cell, and what is shown as CSV."""
        page = self._open("/sites/{site_id}/controls")
        with page.expect_download() as waiting:
            page.get_by_role("link", name="What is shown, as CSV").click()
        assert b"164.312" in Path(waiting.value.path()).read_bytes(), "no section in the table"
        page.locator("td.heat a").first.click()
        expect(page.get_by_role("heading", level=1)).to_have_text("Evidence")

    def draw_a_sample(self) -> None:
        """Of all host-days of a month; as a table."""
        page = self._open("/sites/{site_id}/sample")
        page.get_by_role("button", name="Draw").click()
        expect(page.get_by_role("heading", name="What was drawn")).to_be_visible()
        with page.expect_download() as waiting:
            page.get_by_role("link", name="The sample, as CSV").click()
        assert b"ws-" in Path(waiting.value.path()).read_bytes(), "no host in the table"

    def build_a_packet_and_take_it(self) -> None:
        """The packet of a day with its report, by a process of its own while a bar moves; then it is removed."""
        page = self._open("/sites/{site_id}/packets")
        for name in ("From", "To"):
            page.get_by_label(name, exact=True).fill(self._ids["day"])
        page.get_by_role("button", name="Build a packet").click()
        expect(page.get_by_role("progressbar")).to_be_visible()
        expect(page.get_by_role("link", name="packet.zip")).to_be_visible(timeout=READY_MS)
        for name, begins in (("packet.zip", b"PK"), ("report.pdf", b"%PDF-")):
            with page.expect_download() as waiting:
                page.get_by_role("link", name=name).click()
            assert Path(waiting.value.path()).read_bytes().startswith(begins), name
        page.get_by_role("button", name="Remove").click()
        expect(page.get_by_role("cell", name="Removed").first).to_be_visible()

    def hold_the_log_against_an_older_checkpoint(self) -> None:
        """The proof of consistency, by this browser."""
        page = self._open("/sites/{site_id}/log")
        page.locator("tr[data-size]").last.get_by_role("button").click()
        expect(page.locator("[data-verdict]").last).to_contain_text("verified by this browser")
