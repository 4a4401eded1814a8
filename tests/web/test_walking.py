"""The walk over a large fleet (`./run browse`), here over a handful of hosts: what it does, and that it sees what is wrong."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser

from compliance_agent.lab.viewer_seed import Size
from tests.web.browsing import MARKS
from tests.web.serving import listening
from tests.web.walking import Acts, Large, pages, serving_large, walked

pytestmark = MARKS


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Large]]:
    with listening(serving_large(tmp_path_factory.mktemp("fleet"), Size(sites=2, hosts=4, bundles=400), 1)) as started:
        yield started


def test_every_act_leads_to_what_it_promises(browser: Browser, running: tuple[str, Large]) -> None:
    done = Acts(browser, *running).done()
    assert {act.name: act.findings for act in done if act.findings} == {}
    assert len(done) == 9


def test_an_act_that_finds_no_way_is_told(browser: Browser, running: tuple[str, Large]) -> None:
    class Wrong(Acts):
        def press_what_is_not_there(self) -> None:
            self._open("/orders").get_by_role("button", name="No such button").click(timeout=200)

    done = Wrong(browser, *running).done()
    assert [act.name for act in done if act.findings] == ["press what is not there"]


def test_a_page_that_fails_or_does_not_fit_is_told(browser: Browser, running: tuple[str, Large]) -> None:
    assert "/hosts/{key_id}" in pages() and not any("csv" in path for path in pages())
    good, missing = walked(browser, *running, ["/orders", "/orders/none"])
    assert good.findings == [] and len(good.answered_ms) == 1
    assert missing.findings[0] == "answers 404" and missing.answered_ms == []
