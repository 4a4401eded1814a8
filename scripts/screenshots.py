#!/usr/bin/env python3
"""Writes docs/screenshots/*.png: the viewer in Chromium over the seeded fleet (compliance_agent/lab/seeding.py).

    .venv/bin/python scripts/screenshots.py [DIRECTORY]

Times on the pictures are those of the moment they are taken; everything else is the same on every run.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.web.browsing import CHROMIUM, FLAGS, Visit  # noqa: E402
from tests.web.serving import Served, on_loopback  # noqa: E402


def pictures(served: Served) -> dict[str, str]:
    """File name and path of each page that is pictured."""
    healed = served.hosts["ehr-db-02"]
    return {
        "fleet": "/",
        "site": "/sites/clinic-elm-street",
        "host": f"/hosts/{healed.key_id}",
        "silent": f"/hosts/{served.hosts['imaging-01'].key_id}",
        "bundle": f"/bundles/{healed.cures['firewall']}",
        "proof": f"/bundles/{healed.cures['firewall']}?proof=1",
        "log": "/sites/clinic-elm-street/log",
    }


BOTH_THEMES = ("fleet", "proof", "log")


def fit(page: Page) -> None:
    """As tall as its content, so that the picture shows no empty ground."""
    page.set_viewport_size({"width": 1280, "height": 400})
    height = page.evaluate("document.documentElement.scrollHeight")
    page.set_viewport_size({"width": 1280, "height": min(int(height), 2800)})


def main() -> int:
    """Take every picture in the light theme, and some in the dark one too."""
    if not CHROMIUM:
        sys.stderr.write("error: no Chromium found; apt-get install chromium, or set CHROMIUM\n")
        return 69
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "screenshots"
    target.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory() as folder,
        on_loopback(Path(folder)) as (address, served),
        sync_playwright() as playwright,
    ):
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        for theme, suffix in (("light", ""), ("dark", "-dark")):
            page = Visit(browser, address, theme=theme).sign_in()
            for name, path in pictures(served).items():
                if theme == "dark" and name not in BOTH_THEMES:
                    continue
                page.goto(address + path)
                if name == "proof":
                    page.get_by_role("button", name="Check in this browser").click()
                    page.wait_for_selector("form[data-done]")
                fit(page)
                page.screenshot(path=target / f"{name}{suffix}.png")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
