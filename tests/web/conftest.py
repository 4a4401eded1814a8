"""A server with the seeded fleet and a browser, once for each module of tests; a visit for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.web.browsing import CHROMIUM, FLAGS, Visit
from tests.web.serving import Served, on_loopback


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Served]]:
    with on_loopback(tmp_path_factory.mktemp("server")) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=list(FLAGS))
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Browser, running: tuple[str, Served]) -> Iterator[Visit]:
    made = Visit(browser, running[0])
    yield made
    made.context.close()
    assert made.complaints == []
