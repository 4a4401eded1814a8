"""An auditor's way in a real Chromium: an account of one site and certain days signs in, sees these alone, and takes a packet."""

from __future__ import annotations

import asyncio
import io
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect

from compliance_agent.packet.verify import verify_file
from compliance_agent.server.records import Dates
from tests.web.browsing import MARKS, Visit, axe
from tests.web.serving import PASSWORD, Served

pytestmark = MARKS
SITE, OTHER = "clinic-elm-street", "clinic-harbour"
READY_MS = 60_000  # a process of its own builds, verifies and prints it


def as_auditor(visit: Visit, served: Served) -> tuple[Page, Dates]:
    """Signed in as an auditor of one site, of its days before today."""
    last = served.clock.now.date() - timedelta(days=1)
    dates = Dates(last - timedelta(days=1), last)
    limits: dict[str, Any] = {"role": "auditor", "sites": frozenset({SITE}), "dates": dates}

    async def added() -> None:
        if await served.services.store.user("ext") is None:
            await served.services.users.add("ext", PASSWORD, **limits)

    with ThreadPoolExecutor(1) as beside:  # this thread has the browser's loop
        beside.submit(lambda: asyncio.run(added())).result()
    visit.sign_in("ext")
    return visit.page, dates


def test_an_auditor_sees_the_site_and_the_days_alone_and_takes_a_packet_of_them(
    visit: Visit, running: tuple[str, Served], tmp_path: Path
) -> None:
    page, dates = as_auditor(visit, running[1])
    expect(page.get_by_text(OTHER)).to_have_count(0)
    page.get_by_role("link", name=SITE).first.click()
    page.get_by_role("link", name="Packets for an auditor").click()
    expect(page.get_by_text(f"Your account sees {dates.first} to {dates.last}")).to_be_visible()
    page.get_by_role("button", name="Build a packet").click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    assert axe(page, "building") == []
    expect(page.get_by_role("link", name="packet.zip")).to_be_visible(timeout=READY_MS)
    assert axe(page, "ready") == []
    with page.expect_download() as waiting:
        page.get_by_role("link", name="packet.zip").click()
    waiting.value.save_as(tmp_path / "packet.zip")
    assert waiting.value.suggested_filename == f"{SITE}-{dates.first}-{dates.last}-packet.zip"
    report = verify_file(tmp_path / "packet.zip")
    assert report.found == report.verified > 0
    assert {one.code for one in report.problems} <= {"missing_record"}, report.problems
    with zipfile.ZipFile(io.BytesIO((tmp_path / "packet.zip").read_bytes())) as packed:
        days = {"-".join(name.split("/")[2:5]) for name in packed.namelist() if name.endswith("/bundle.json")}
    assert days <= {dates.first.isoformat(), dates.last.isoformat()}, "no record of another day"
    with page.expect_download() as waiting:
        page.get_by_role("link", name="report.pdf").click()
    waiting.value.save_as(tmp_path / "report.pdf")
    assert (tmp_path / "report.pdf").read_bytes()[:5] == b"%PDF-"
    visit.forgive()
    answer = page.goto(f"{visit.address}/sites/{OTHER}/packets")
    assert answer is not None and answer.status == 404
    page.goto(f"{visit.address}/sites/{SITE}/packets")
    page.get_by_role("link", name=f"{dates.first} to {dates.last}").click()
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_role("cell", name="Removed")).to_be_visible()


def test_a_page_whose_packet_is_ready_opens_no_stream_and_never_looks_stopped(
    visit: Visit, running: tuple[str, Served]
) -> None:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.resource_type))
    visit.page.clock.install()
    page, _ = as_auditor(visit, running[1])
    page.goto(f"{visit.address}/sites/{SITE}/packets")
    page.get_by_role("button", name="Build a packet").click()
    expect(page.get_by_role("link", name="packet.zip")).to_be_visible(timeout=READY_MS)
    page.clock.run_for(2_000)
    page.wait_for_load_state("networkidle")  # the last look that was under way
    asked.clear()
    page.clock.run_for(60_000)
    expect(page.locator("#stale")).to_be_hidden()
    assert asked == []
    page.get_by_role("button", name="Remove").click()


def test_without_scripts_and_in_the_dark_the_page_loads_itself_until_it_is_ready(
    browser: Browser, running: tuple[str, Served]
) -> None:
    visit = Visit(browser, running[0], scripts=False, theme="dark", width=320)
    page, _ = as_auditor(visit, running[1])
    page.goto(f"{visit.address}/sites/{SITE}/packets")
    page.get_by_role("button", name="Build a packet").click()
    expect(page.locator("progress")).to_be_visible()
    expect(page.get_by_role("link", name="packet.zip")).to_be_visible(timeout=READY_MS)
    page.get_by_role("button", name="Remove").click()
    assert visit.complaints == []
    visit.context.close()
