"""What the tests in a real Chromium share: the browser, a visit that notes every complaint, and axe.

Needs Chromium (Debian: `apt-get install chromium`); CHROMIUM names another one. Skipped where there is none, except in CI.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, Request, expect

from tests.web.serving import NAME, PASSWORD

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser") or ""
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
AXE = next((Path(__file__).parent / "assets").glob("axe-*/axe.min.js"))
GRAVE = """axe.run().then(found => found.violations
    .filter(one => one.impact === 'serious' || one.impact === 'critical')
    .map(one => one.id + ': ' + one.nodes[0].html))"""


MARKS = [
    pytest.mark.browser,
    pytest.mark.xdist_group("browser"),
    pytest.mark.skipif(not CHROMIUM and not os.environ.get("CI"), reason="no Chromium on this machine"),
]


class Visit:
    """A page, and everything the browser complained about while it was open."""

    def __init__(
        self, browser: Browser, address: str, *, scripts: bool = True, theme: str = "light", width: int = 1280
    ) -> None:
        self.address = address
        self.context = browser.new_context(
            java_script_enabled=scripts,
            color_scheme="dark" if theme == "dark" else "light",
            viewport={"width": width, "height": 900},
        )
        self.context.set_default_timeout(30_000)
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self._forgiven = False
        self.page.on("console", lambda said: self._note(said.text) if said.type in {"error", "warning"} else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("requestfailed", self._note_failed)

    def forgive(self) -> None:
        """What the browser complained about, and still may, was provoked by the test."""
        self.complaints = []
        self._forgiven = True

    def _note(self, complaint: str) -> None:
        if not self._forgiven:
            self.complaints.append(complaint)

    def _note_failed(self, request: Request) -> None:
        if request.failure != "net::ERR_ABORTED":  # left behind by going elsewhere, or turned into a download
            self._note(f"{request.failure}: {request.url}")

    def sign_in(self, name: str = NAME) -> Page:
        self.page.goto(f"{self.address}/login")
        self.page.get_by_label("Name").fill(name)
        self.page.get_by_label("Password").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("heading", level=1)).to_have_text("All sites")
        self.page.wait_for_load_state("load")  # with its scripts and images: a test may cut the page off next
        return self.page


def axe(page: Page, path: str) -> list[str]:
    """Serious and critical findings of axe-core on the page as it is."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    return [f"{path}: {finding}" for finding in page.evaluate(GRAVE)]


def looked_at(page: Page, name: str) -> list[str]:
    """What axe finds in both themes, and whether the page fits 320 px."""
    findings = []
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
        findings += axe(page, f"{name} {theme}")
    page.set_viewport_size({"width": 320, "height": 700})
    width = page.evaluate("document.documentElement.scrollWidth")
    page.set_viewport_size({"width": 1280, "height": 900})
    return findings + ([f"{name}: {width} px wide at 320"] if width > 320 else [])


SEEN_FOCUS = """() => {
  const one = document.activeElement, box = one.getBoundingClientRect(), style = getComputedStyle(one);
  const ring = style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) > 0 || style.boxShadow !== 'none';
  return ring && box.width > 0 && box.top >= 0 && box.bottom <= innerHeight;
}"""


TOLD = "[document.activeElement, ...document.activeElement.labels ?? []].map(one => one.textContent.trim())"


def tab_to(page: Page, name: str) -> None:
    """Press the tab key until what has this text, or whose label begins so, has the focus; whoever looks sees that it has."""
    for _ in range(120):
        page.keyboard.press("Tab")
        own, *labels = page.evaluate(TOLD)
        if own == name or any(label.startswith(name) for label in labels):
            assert page.evaluate(SEEN_FOCUS), f"{name}: nobody sees that it has the focus"
            return
    raise AssertionError(f"{name}: the keyboard does not reach it")


def press(page: Page, name: str) -> None:
    """Reach it by keyboard, press it, and wait for where it leads."""
    tab_to(page, name)
    with page.expect_navigation():
        page.keyboard.press("Enter")
