"""What a host says stays text, on every page and in every file: canaries in every field that a host controls, past every check."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.routing import APIRoute

from compliance_agent.server.records import Dates
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.store.reader import BoundReader
from compliance_agent.web import (
    account,
    check_views,
    controls,
    log_views,
    packets,
    rendering,
    samples,
    search,
    table_files,
    views,
)
from tests.web.serving import NAME, Served, serving
from tests.web.test_views import sign_in, visiting

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_canaries")]
XSS = "<script>alert('&\"canary\"')</script>"
FORMULAS = ('=HYPERLINK("http://evil.test","canary")', "+canary", "-canary", "@canary", "\tcanary", " =canary")
SEEN_BY = ("hosts", "host", "hosts_of", "bundles", "newest", "remediations", "bundle", "neighbours", "verdicts", "changes", "cures",
           "said", "gaps", "forks", "orders", "exceptions", "leaves", "site_rows", "sites_and_exceptions",
           "host_and_exceptions", "packet_jobs")  # fmt: skip
OURS = {
    "key_id",
    "bundle_id",
    "site_id",
    "sha256",
    "prev",
    "rotated_to",
    "day",
    "digest",
    "order_id",
    "parameters",
    "state",
    "person_id",
    "job_id",
    "stage",
    "report_sha256",
}
JOB = "0" * 32
WORDS = {"kind"}  # decides which way a record goes; the store takes none that is not of the list


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("canaries")) as running:
        user, day = await running.services.store.user(NAME), running.clock.now.date()
        assert user is not None
        asked = PacketJob(JOB, "clinic-elm-street", user.person_id, Dates(day, day), running.clock.now, host="ehr-db-02",
                          state="done", ended_at=running.clock.now)  # fmt: skip
        await running.services.store.write(lambda tx: tx.add_packet_job(asked))
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(served) as visitor:
        await sign_in(visitor)
        yield visitor


def poisoned(value: Any, text: str, name: str = "") -> Any:
    """The same with this text in everything that a host could have said."""
    if isinstance(value, str):
        return value if name in OURS | WORDS else text
    if isinstance(value, bytes):
        return poisoned_body(value, text) if value[:1] == b"{" else value
    if isinstance(value, dict):
        return {key: poisoned(item, text) for key, item in value.items()}
    if hasattr(value, "_fields"):
        return value._replace(**{field: poisoned(getattr(value, field), text, field) for field in value._fields})
    if isinstance(value, list | tuple):
        return type(value)(poisoned(item, text) for item in value)
    if hasattr(value, "__dataclass_fields__"):
        changed = {field: poisoned(getattr(value, field), text, field) for field in value.__dataclass_fields__}
        return type(value)(**changed)
    return value


def poisoned_body(body: bytes, text: str) -> bytes:
    """A document with this text as every text in it, and as a further key of every object."""

    def bad(value: Any) -> Any:
        if isinstance(value, str):
            return text
        if isinstance(value, list):
            return [bad(item) for item in value] or [text]
        if isinstance(value, dict):
            return {**{key: bad(item) for key, item in value.items()}, text: text}
        return value

    return json.dumps(bad(json.loads(body))).encode()


def poison(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    for name in (*SEEN_BY, "bodies"):
        genuine = getattr(BoundReader, name)

        async def answer(self: BoundReader, *args: Any, genuine: Any = genuine, **kwargs: Any) -> Any:
            return poisoned(await genuine(self, *args, **kwargs), text)

        monkeypatch.setattr(BoundReader, name, answer)


def every_address(served: Served) -> list[str]:
    """Each GET of the viewer, with what may stand after it."""
    host = served.hosts["ehr-db-02"]
    ids = {
        "site_id": host.site_id,
        "key_id": host.key_id,
        "bundle_id": host.cures["firewall"],
        "name": "bundle.json",
        "year": str(served.clock.now.year),
        "index": "4",
        "size": "1",
        "job_id": JOB,
        "check": "firewall",
    }
    modules = (views, check_views, log_views, account, controls, search, packets, samples)
    routes = [route for module in modules for route in module.router.routes if isinstance(route, APIRoute)]
    paths = [route.path.format(**ids) for route in routes if "GET" in (route.methods or ())]
    site, heartbeat = f"/sites/{host.site_id}/controls", f"/bundles/{host.bundle_ids[0]}"
    drawn = f"/sites/{host.site_id}/sample?seed=audit"
    more = [
        drawn,
        f"{site}?by=host",
        f"{site}?rule=proposed",
        f"{site}.csv?by=host",
        f"{site}.csv?rule=proposed",
        heartbeat,
    ]
    return [*paths, *more, f"/bundles/{ids['bundle_id']}?proof=1", "/evidence?check=firewall"]


async def test_markup_is_escaped_on_every_page(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, XSS)
    shown = 0
    for path in every_address(served):
        answer = await client.get(path)
        assert answer.status_code in {200, 303, 404}, path
        if "html" in answer.headers.get("content-type", ""):
            assert "<script>alert" not in answer.text and "alert('" not in answer.text, path
            shown += "&lt;script&gt;" in answer.text
    assert shown >= 10, "the canary stands on the pages of hosts, sites, records, controls and evidence"


async def test_what_is_asked_for_is_escaped_too(client: httpx.AsyncClient, served: Served) -> None:
    names = (
        "check",
        "kind",
        "host",
        "key",
        "citation",
        "proposed",
        "outcome",
        "result",
        "id",
        "site",
        "by",
        "rule",
        "next",
        "control",
        "seed",
        "number",
        "size",
    )
    for path in every_address(served):
        answer = await client.get(path.partition("?")[0], params=dict.fromkeys(names, XSS))
        assert "<script>alert" not in answer.text and "alert('" not in answer.text, path


async def test_the_canary_is_seen_where_escaping_is_off(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault."""
    poison(monkeypatch, XSS)
    careless = rendering.environment().overlay(autoescape=False)
    monkeypatch.setattr(rendering, "environment", lambda: careless)
    for path in (
        "/evidence",
        "/sites/clinic-elm-street/controls?by=host",
        f"/bundles/{served.hosts['ehr-db-02'].bundle_ids[0]}",
    ):
        assert "<script>alert" in (await client.get(path)).text, path


def formulas(text: str) -> list[str]:
    """The cells of a file that a program for tables would run."""
    cells = [cell for row in csv.reader(io.StringIO(text)) for cell in row]
    return [cell for cell in cells if re.match(r"\s*[=+\-@\t\r]", cell)]


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("query", ["by=host", "by=day", "rule=proposed&by=host"])
async def test_no_cell_of_a_file_is_a_formula(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, formula: str, query: str
) -> None:
    poison(monkeypatch, formula)
    text = (await client.get(f"/sites/clinic-elm-street/controls.csv?{query}")).text
    assert formulas(text) == []
    assert ("canary" in text) is ("by=host" in query), "the label of a host stands in the file of hosts"


@pytest.mark.parametrize("formula", FORMULAS)
async def test_no_cell_of_a_sample_is_a_formula(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, formula: str
) -> None:
    poison(monkeypatch, formula)
    text = (await client.get("/sites/clinic-elm-street/sample.csv?seed=audit")).text
    assert formulas(text) == [] and "canary" in text


async def test_a_formula_is_seen_where_nothing_is_done_about_it(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault."""
    poison(monkeypatch, FORMULAS[0])
    careless: Callable[[object], str] = str
    monkeypatch.setattr(table_files, "safe", careless)
    text = (await client.get("/sites/clinic-elm-street/controls.csv?by=host")).text
    assert FORMULAS[0] in formulas(text)
