"""Every route of the server, whoever asks and however it ends, carries the headers that keep a browser on its reader's side."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator

import httpx2 as httpx
import pytest
from starlette.types import Receive, Scope, Send

from compliance_agent.web import security
from tests.server.tenants import all_routes, filled
from tests.web.serving import Served, serving
from tests.web.test_views import sign_in, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_headers")]
KEPT = {
    "/static/": {"public, max-age=31536000, immutable"},
    "/log/": {
        "no-cache",
        "public, max-age=31536000, immutable",
    },  # digests and signatures, the same for whoever may ask
}
FLAGS = {"httponly", "secure", "samesite=strict", "path=/"}


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("headers")) as running:
        yield running


def addresses(served: Served) -> Iterator[tuple[str, str, str]]:
    """(method, route, address) of every route of the app, with ids that are there and with ids that are not."""
    host = served.hosts["ehr-db-02"]
    there = {
        "site_id": host.site_id,
        "key_id": host.key_id,
        "bundle_id": host.bundle_ids[3],
        "name": "bundle.json",
        "year": str(served.clock.now.year),
        "path": "0/000.p/1",
        "index": "0",
        "size": "1",
        "digest": "0" * 12,
        "order_id": "0" * 32,
        "sha256": "0" * 64,
        "check": "firewall",
    }
    missing = {name: "0" * len(value) for name, value in there.items()}
    for route in all_routes(served.app.routes):
        for method in sorted(
            (route.methods or {"GET"}) | {"GET", "PUT"}
        ):  # a method that is not there is an answer too
            for ids in (there, missing):
                yield method, route.path, filled(route.path, {**dict.fromkeys(names_of(route.path), "0"), **ids})


def names_of(path: str) -> list[str]:
    return re.findall(r"{(\w+)", path)


def faults(answer: httpx.Response, route: str) -> list[str]:
    """What is missing or wrong in an answer over https."""
    said = answer.headers
    found = [name for name, value in security.HEADERS.items() if said.get_list(name) != [value]]
    found += [] if said.get_list("strict-transport-security") == [security.HSTS] else ["strict-transport-security"]
    may = {"no-store"} | next((more for start, more in KEPT.items() if route.startswith(start)), set())
    found += [] if said.get("cache-control") in may else ["cache-control"]
    for cookie in said.get_list("set-cookie"):
        flags = {part.strip().lower() for part in cookie.split(";")}
        found += [] if cookie.startswith("__Host-") and flags >= FLAGS else [cookie.partition("=")[0]]
    return found


async def crawl(served: Served) -> dict[str, list[str]]:
    """The faults of every answer, signed in and signed out, for browsers and for programs."""
    found, asked = {}, 0
    async with visiting(served) as visitor:
        for signed_in in (False, True):
            if signed_in:
                await sign_in(visitor)
            for method, route, address in addresses(served):
                if signed_in and (method, route) == ("POST", "/logout"):
                    continue
                for accept in ("text/html", "application/json"):
                    answer = await visitor.request(method, address, headers={"Accept": accept})
                    asked += 1
                    wrong = faults(answer, route)
                    if wrong:
                        found[f"{method} {route} {answer.status_code}"] = wrong
    assert asked > 400
    return found


async def test_every_answer_of_every_route_carries_them(served: Served) -> None:
    assert await crawl(served) == {}


async def test_an_answer_without_one_is_seen(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: one route's answers lose one header, and a cookie its flags."""
    right = security.SecurityHeaders.__call__

    async def careless(self: security.SecurityHeaders, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: dict[str, object]) -> None:
            if message["type"] == "http.response.start" and str(scope["path"]).endswith("/controls"):
                kept = [item for item in message["headers"] if item[0] != b"x-content-type-options"]  # type: ignore[attr-defined]
                message["headers"] = [*kept, (b"set-cookie", b"lax=1; Path=/")]
            await send(message)

        await right(self, scope, receive, sent)  # type: ignore[arg-type]

    monkeypatch.setattr(security.SecurityHeaders, "__call__", careless)
    found = await crawl(served)
    assert {name.split()[1] for name in found} == {"/sites/{site_id}/controls"}
    assert all(set(wrong) == {"X-Content-Type-Options", "lax"} for wrong in found.values())


def test_the_policy_names_nothing_unsafe() -> None:
    policy = dict(part.strip().partition(" ")[::2] for part in security.CSP.split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert {value for name, value in policy.items() if name.endswith("-src") and name != "default-src"} == {"'self'"}
    assert int(re.findall(r"max-age=(\d+)", security.HSTS)[0]) >= 31_536_000
