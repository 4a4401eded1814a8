"""Every page of the viewer asks the database a few things, whatever the size of the fleet: counted, page by page."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from fastapi import APIRouter

from compliance_agent.lab import bench
from compliance_agent.lab.bench_viewer import MOST_QUERIES, NO_PAGES, PAGES, measure
from compliance_agent.lab.viewer_seed import Size, kept
from compliance_agent.server.app import create_app
from compliance_agent.server.services.fleet import Fleet
from compliance_agent.server.settings import ServerSettings
from compliance_agent.web.routing import PageRoute

# A cycle of a host's story, and more hosts at a site than statements are allowed.
SMALL = Size(sites=2, hosts=28, bundles=28 * 19)
NOBODY_S = {"/login", "/verify"}  # no session is looked up


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("viewer")


def test_every_page_asks_at_most_ten_things(directory: Path) -> None:
    seen = {page.path: page.statements for page in measure(directory, SMALL, times=2)}
    assert len(seen) == sum(len(after) for after in PAGES.values())
    few = {path for path, said in seen.items() if len(said) < 2}
    assert few == NOBODY_S, "a page that asks nothing was not counted"
    assert {path: said for path, said in seen.items() if len(said) > MOST_QUERIES} == {}


def test_a_page_that_asks_for_each_host_is_seen(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: one question more for every host of a site."""
    right = Fleet.site

    async def careless(self: Fleet, site_id: str) -> Any:
        found = await right(self, site_id)
        for host in found.hosts:
            await self._reader.host(host.host.key_id)
        return found

    monkeypatch.setattr(Fleet, "site", careless)
    seen = {page.path: len(page.statements) for page in measure(directory, SMALL, times=1)}
    assert [path for path, count in seen.items() if count > MOST_QUERIES] == ["/sites/{site_id}"]


def pages_of(routes: Iterable[Any]) -> set[str]:
    """Every page that an app answers, also those of a router inside it."""
    found = set[str]()
    for route in routes:
        if isinstance(route, PageRoute) and "GET" in (route.methods or ()):
            found.add(route.path)
        inside = getattr(route, "original_router", None)
        found |= pages_of(inside.routes) if inside is not None else set()
    return found


def test_no_page_of_the_app_is_left_out() -> None:
    """A new page is measured, or stands among those that are none with the reason."""
    pages = pages_of(create_app(ServerSettings()).routes)
    assert pages == {*PAGES, *NO_PAGES} and not {*PAGES} & {*NO_PAGES}
    assert len(pages) > 30


def test_planted_a_page_that_nobody_measures_is_seen() -> None:
    app, more = create_app(ServerSettings()), APIRouter(route_class=PageRoute)
    more.add_api_route("/forgotten", lambda: None)
    app.include_router(more)
    assert pages_of(app.routes) - {*PAGES, *NO_PAGES} == {"/forgotten"}


def test_the_table_names_each_page(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    asked = {"SITES": SMALL.sites, "HOSTS": SMALL.hosts, "BUNDLES": SMALL.bundles, "TIMES": 2, "DIR": directory}
    for name, value in asked.items():
        monkeypatch.setenv(f"BENCH_{name}", str(value))
    ran = CliRunner().invoke(bench.main, ["viewer"], catch_exceptions=False)
    assert "/sites/{site_id}/log: p50" in ran.output and ran.output.count("300 ms") == len(
        [after for more in PAGES.values() for after in more]
    )


def test_another_size_or_schema_is_another_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from compliance_agent.server.store import migration

    before = kept(SMALL)
    assert kept(Size()) != before == kept(SMALL)
    monkeypatch.setattr(migration, "HEAD", "9999")
    assert kept(SMALL) != before
