"""Every page over the real server and a seeded database: what it says, what it carries, what it keeps to itself."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from fastapi.routing import APIRoute

from compliance_agent.checks import registry
from compliance_agent.server.services.fleet import Fleet
from compliance_agent.server.store.reader import BoundReader
from compliance_agent.web import log_views, rendering, security
from compliance_agent.web.views import router
from tests.web.serving import NAME, OTHER, PASSWORD, Served, serving

pytestmark = [pytest.mark.anyio, pytest.mark.xdist_group("web_views")]
HOME = "https://viewer.test"
PUBLIC = ("/login", "/verify")
CANARY = "<script>alert('&\"canary\"')</script>"


@asynccontextmanager
async def visiting(served: Served, base_url: str = HOME) -> AsyncIterator[httpx.AsyncClient]:
    """A browser without scripts, in process."""
    transport = httpx.ASGITransport(app=served.app)
    headers = {"Accept": "text/html", "Sec-Fetch-Site": "same-origin"}
    async with httpx.AsyncClient(transport=transport, base_url=base_url, headers=headers) as client:
        yield client


async def sign_in(
    client: httpx.AsyncClient, name: str = NAME, password: str = PASSWORD, back: str = "/"
) -> httpx.Response:
    """Fill in the login form as a browser does."""
    page = await client.get("/login", params={"next": back})
    return await client.post(
        "/login", data={"form_token": token_of(page), "name": name, "password": password, "next": back}
    )


def token_of(page: httpx.Response) -> str:
    """The token that a page's forms carry."""
    found = re.search(r'name="form_token" value="([^"]+)"', page.text)
    assert found, page.text[:500]
    return found[1]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(tmp_path_factory.mktemp("viewer")) as running:
        yield running


@pytest.fixture
async def client(served: Served) -> AsyncIterator[httpx.AsyncClient]:
    async with visiting(served) as visitor:
        await sign_in(visitor)
        yield visitor


def every_path(served: Served) -> dict[str, str]:
    """An address for each GET route of the viewer, so that a new route cannot be left out."""
    host = served.hosts["ehr-db-02"]
    given = {
        "site_id": "clinic-elm-street",
        "key_id": host.key_id,
        "bundle_id": host.cures["firewall"],
        "name": "bundle.json",
        "year": str(served.clock.now.year),
        "index": "0",
        "size": "2",
    }
    paths = {}
    for route in [*router.routes, *log_views.router.routes]:
        assert isinstance(route, APIRoute)
        if "GET" in (route.methods or ()):
            paths[route.path] = route.path.format(**given)
    return paths


# What pages say


async def test_first_page_leads_with_the_silent_site(client: httpx.AsyncClient) -> None:
    text = (await client.get("/")).text
    assert text.index("/sites/clinic-harbour") < text.index(
        '<a href="/sites/clinic-elm-street">clinic-elm-street</a><span'
    )
    assert "1 silent" in text
    assert "healed by itself" in text


async def test_first_page_says_what_healed_and_what_waits(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (await client.get("/")).text
    assert "No plan and no order waits for anybody." in text
    cure = served.hosts["ehr-db-02"].cures["firewall"]
    assert f"/bundles/{cure}" in text[text.index('id="healed"') :]
    held = served.hosts["ehr-db-02"].cures["patching"]
    waits = text[text.index('id="waiting"') : text.index('id="turns"')]
    assert held not in waits, "it waits for its window, not for a person"
    monkeypatch.setattr("compliance_agent.server.services.cures.APPROVAL", "outside_window")
    text = (await client.get("/")).text
    assert f"/bundles/{held}" in text[text.index('id="waiting"') : text.index('id="turns"')]


async def test_first_page_lists_what_changed_since_yesterday(client: httpx.AsyncClient, served: Served) -> None:
    """Changes of verdict and cures that held, the newest first, each with its record; nothing that only was said again."""
    text = (await client.get("/")).text
    listed = text[text.index('id="turns"') : text.index('id="healed"')]
    assert served.hosts["ehr-db-02"].cures["firewall"] in listed and "Healed" in listed
    order = [listed.index(f">{label}</a>") for label in ("imaging-02", "lab-pc-03", "frontdesk-01")]
    assert order == sorted(order), "the newest first"
    assert listed.count("<tr>") == 11, "each of the story once, below the heading"
    assert served.hosts["ehr-db-02"].cures["patching"] in listed and "Held back" in listed


async def test_unknown_is_in_the_denominator(client: httpx.AsyncClient) -> None:
    text, checks = (await client.get("/sites/clinic-harbour")).text, len(registry())
    assert re.search(rf"50 %\s*<small>{checks} of {2 * checks}</small>", text), text


async def test_silent_host_shows_no_green(client: httpx.AsyncClient, served: Served) -> None:
    text = (await client.get(f"/hosts/{served.hosts['imaging-01'].key_id}")).text
    checks = text[text.index('id="checks"') : text.index('id="history"')]
    assert "tone-pass" not in checks
    assert "said last: pass" in checks
    assert "This host has stopped reporting." in text


async def test_host_page_says_why_it_did_and_did_not_fix(client: httpx.AsyncClient, served: Served) -> None:
    text = (await client.get(f"/hosts/{served.hosts['ehr-db-02'].key_id}")).text
    assert "Security updates wait to be installed." in text
    assert "it waits for the maintenance window" in text
    assert "The check passed again after the cure." in text


async def test_since_begins_anew_with_a_cure(client: httpx.AsyncClient, served: Served) -> None:
    """A check that failed and was healed within one record has not passed all along."""
    text = (await client.get(f"/hosts/{served.hosts['ehr-db-02'].key_id}")).text
    row = text[text.index('<tr id="firewall">') :]
    assert "3 h" in row[row.index('data-label="Since"') : row.index('data-label="Fixed?"')]


async def test_evidence_is_filtered_and_paged(client: httpx.AsyncClient, served: Served) -> None:
    base = f"/hosts/{served.hosts['ehr-db-02'].key_id}/evidence"
    whole = (await client.get(base)).text
    cures = (await client.get(base, params={"kind": "remediation", "outcome": "success"})).text
    assert whole.count("<tr>") > cures.count("<tr>") == 3  # two cures and the heading
    assert "Nothing was recorded that matches." in (await client.get(base, params={"check": "no-such"})).text
    assert (await client.get(base, params={"before": "1e9"})).status_code == 400
    assert "/evidence?before=" not in whole, "all of it fits on one page"
    older = (await client.get(base, params={"before": "3"})).text
    assert 'href="' + base + '?"' in older


async def test_bundle_page_verifies_and_links_its_neighbours(client: httpx.AsyncClient, served: Served) -> None:
    host = served.hosts["ehr-db-02"]
    text = (await client.get(f"/bundles/{host.bundle_ids[10]}")).text
    assert 'data-valid="yes"' in text
    assert text.count(": holds</strong>") == 6
    assert f"/bundles/{host.bundle_ids[9]}?key={host.key_id}" in text
    assert f"/bundles/{host.bundle_ids[11]}?key={host.key_id}" in text
    assert "openssl pkeyutl -verify -pubin -inkey ehr-db-02.pub.pem -rawin" in text


async def test_downloads_are_the_exact_bytes_and_verify(client: httpx.AsyncClient, served: Served) -> None:
    from compliance_agent.crypto import read_public_pem, verify

    host = served.hosts["ehr-db-02"]
    base = f"/bundles/{host.bundle_ids[10]}"
    body, sig = (await client.get(f"{base}/bundle.json")), (await client.get(f"{base}/bundle.sig"))
    pem = await client.get(f"/hosts/{host.key_id}/public-key")
    assert verify(read_public_pem(pem.content), sig.content, body.content)
    assert pem.headers["content-disposition"] == 'attachment; filename="ehr-db-02.pub.pem"'
    assert (await client.get(f"{base}/bundle.exe")).status_code == 404


async def test_receipt_and_key_can_be_downloaded_and_hold(client: httpx.AsyncClient, served: Served) -> None:
    """The four files of a record and the log's key are enough, with no word of the server."""
    from compliance_agent.log.merkle import hash_leaf
    from compliance_agent.log.policy import Policy
    from compliance_agent.log.proof import Proof

    base = f"/bundles/{served.hosts['ehr-db-02'].bundle_ids[10]}"
    leaf, proof, key = [await client.get(f"{base}/{name}") for name in ("leaf.json", "bundle.tlog-proof", "log.vkey")]
    policy = Policy.parse(f"log {key.text.strip()}\nquorum none\n".encode())
    Proof.parse(proof.content).verify(hash_leaf(leaf.content), policy)
    year = served.clock.now.year
    assert (await client.get(f"/sites/clinic-elm-street/log/{year}/key")).text == key.text
    for path in ("log?year=1999", "log?year=x", "log/1999/key"):
        assert (await client.get(f"/sites/clinic-elm-street/{path}")).status_code == 404


async def test_each_host_shows_its_receipts(client: httpx.AsyncClient, served: Served) -> None:
    seq = len(served.hosts["ehr-db-02"].bundle_ids)
    for path in ("/sites/clinic-elm-street", f"/hosts/{served.hosts['ehr-db-02'].key_id}"):
        text = (await client.get(path)).text
        assert f">{seq} of {seq}</span>" in text
        assert "unlogged" not in text
    assert (await client.get("/")).text.count("all logged") == 3


async def test_records_without_receipts_are_counted(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = served.hosts["ehr-db-02"]

    async def two(self: BoundReader) -> dict[str, int]:
        return {host.key_id: 2} if host.site_id in self.sites else {}

    async def lacking(self: BoundReader) -> tuple[frozenset[str], dict[str, int]]:
        return frozenset(), await two(self)

    monkeypatch.setattr(BoundReader, "unlogged", two)
    monkeypatch.setattr(BoundReader, "lacking", lacking)
    for path in ("/sites/clinic-elm-street", f"/hosts/{host.key_id}"):
        text = (await client.get(path)).text
        assert f">{len(host.bundle_ids) - 2} of {len(host.bundle_ids)}</span>" in text
        assert "2 unlogged" in text
    assert "2 not logged yet" in (await client.get("/")).text
    log = (await client.get("/sites/clinic-elm-street/log")).text
    assert "taken in, not under a checkpoint yet" in log


async def test_empty_fleet_says_how_to_begin(tmp_path: Path) -> None:
    async with serving(tmp_path, seeded=False) as running, visiting(running) as visitor:
        await sign_in(visitor)
        assert "enrol-token --site" in (await visitor.get("/")).text


# Who may see what


async def test_foreign_site_is_404_everywhere(served: Served) -> None:
    """Seen from another tenant, what exists and what does not are the same answer."""
    async with visiting(served) as visitor:
        await sign_in(visitor, OTHER)
        front = (await visitor.get("/")).text
        assert "clinic-harbour" in front
        assert "clinic-elm-street" not in front
        for route, path in every_path(served).items():
            if "{" in route:
                answer = await visitor.get(path)
                assert answer.status_code == 404, route
                assert "ehr-db-02" not in answer.text
                assert "clinic-elm-street" not in answer.text


async def test_signed_out_is_sent_to_login_and_back(served: Served) -> None:
    async with visiting(served) as visitor:
        for route, path in every_path(served).items():
            if route in PUBLIC:
                continue
            answer = await visitor.get(path)
            assert answer.status_code == 303, route
            assert answer.headers["location"].startswith("/login")
        path = f"/hosts/{served.hosts['ehr-db-02'].key_id}/evidence?kind=drift"
        answer = await sign_in(visitor, back=path)
        assert answer.headers["location"] == path


async def test_live_page_of_an_ended_session_loads_anew(served: Served) -> None:
    async with visiting(served) as visitor:
        answer = await visitor.get("/", headers={"HX-Request": "true"})
        assert answer.status_code == 401
        assert answer.headers["hx-refresh"] == "true"


@pytest.mark.parametrize(
    "back", ["//evil.test", "https://evil.test", "/\\evil.test", "javascript:alert(1)", "/a\r\nX: y", ""]
)
async def test_login_never_leads_elsewhere(served: Served, back: str) -> None:
    async with visiting(served) as visitor:
        assert (await sign_in(visitor, back=back)).headers["location"] == "/"


async def test_wrong_password_says_the_same_for_every_name(served: Served) -> None:
    async with visiting(served) as visitor:
        wrong = await sign_in(visitor, NAME, "wrong")
        nobody = await sign_in(visitor, "nobody", "wrong")
        assert (wrong.status_code, nobody.status_code) == (401, 401)
        assert "Name, password or code is wrong." in wrong.text
        assert wrong.text.replace(NAME, "x") == nobody.text.replace("nobody", "x").replace(NAME, "x")


async def test_too_many_attempts(served: Served) -> None:
    async with visiting(served) as visitor:
        answers = [(await sign_in(visitor, "guessed", "wrong")).status_code for _ in range(11)]
        assert answers == [401] * 10 + [429]


async def test_sign_out_ends_the_session_at_the_server(served: Served) -> None:
    async with visiting(served) as visitor:
        await sign_in(visitor)
        held = visitor.cookies["__Host-session"]
        token = token_of(await visitor.get("/"))
        assert (await visitor.post("/logout", data={"form_token": token})).status_code == 303
        visitor.cookies.set("__Host-session", held)
        assert (await visitor.get("/")).status_code == 303


# Headers, cookies, forms


async def test_every_page_carries_the_headers(client: httpx.AsyncClient, served: Served) -> None:
    paths = [*every_path(served).values(), "/no/such/page", "/static/0/none.css", "/api/v1/none"]
    for path in paths:
        answer = await client.get(path)
        for name, value in security.HEADERS.items():
            assert answer.headers.get_list(name) == [value], (path, name)
        assert answer.headers["strict-transport-security"] == security.HSTS
        assert answer.headers["cache-control"] == "no-store", path


def test_policy_allows_nothing_unsafe() -> None:
    assert "unsafe" not in security.CSP
    assert "default-src 'none'" in security.CSP
    assert "frame-ancestors 'none'" in security.CSP


async def test_pages_hold_no_inline_script_or_style(client: httpx.AsyncClient, served: Served) -> None:
    for path in [*every_path(served).values(), "/no/such/page"]:
        text = (await client.get(path)).text
        assert not re.search(r"<script(?![^>]*\bsrc=)", text), path
        assert not re.search(r"\sstyle=|<style|\son[a-z]+=\"", text), path


async def test_plain_http_has_no_hsts_and_no_host_cookies(served: Served) -> None:
    async with visiting(served, "http://127.0.0.1") as visitor:
        answer = await sign_in(visitor)
        assert "strict-transport-security" not in answer.headers
        assert answer.headers["set-cookie"].startswith("session=")


async def test_cookies_are_out_of_reach(served: Served) -> None:
    async with visiting(served) as visitor:
        for answer in (await visitor.get("/login"), await sign_in(visitor)):
            for cookie in answer.headers.get_list("set-cookie"):
                assert cookie.startswith("__Host-")
                assert {"httponly", "secure", "samesite=strict", "path=/"} <= {
                    part.strip().lower() for part in cookie.split(";")
                }


@pytest.mark.parametrize(
    ("headers", "keep_token", "status"),
    [
        ({}, True, 303),
        ({}, False, 403),
        ({"Sec-Fetch-Site": "cross-site"}, True, 403),
        ({"Sec-Fetch-Site": "same-site"}, True, 403),
        ({"Sec-Fetch-Site": "none"}, True, 403),
    ],
)
async def test_forms_are_taken_from_our_pages_only(
    served: Served, headers: dict[str, str], keep_token: bool, status: int
) -> None:
    async with visiting(served) as visitor:
        token = token_of(await visitor.get("/login"))
        fields = {"form_token": token if keep_token else "x" * 43, "name": NAME, "password": PASSWORD, "next": "/"}
        assert (await visitor.post("/login", data=fields, headers=headers)).status_code == status


@pytest.mark.parametrize(("origin", "status"), [(HOME, 303), ("https://evil.test", 403), ("null", 403)])
async def test_old_browsers_are_held_to_their_origin(served: Served, origin: str, status: int) -> None:
    async with visiting(served) as visitor:
        del visitor.headers["Sec-Fetch-Site"]
        fields = {"form_token": token_of(await visitor.get("/login")), "name": NAME, "password": PASSWORD, "next": "/"}
        assert (await visitor.post("/login", data=fields, headers={"Origin": origin})).status_code == status


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"a=" + b"x" * 9000, "application/x-www-form-urlencoded", 413),
        (b"{}", "application/json", 400),
        (b"\xff\xfe", "application/x-www-form-urlencoded", 400),
        (b"", "application/x-www-form-urlencoded", 403),
        (b"&".join(b"a=1" for _ in range(99)), "application/x-www-form-urlencoded", 400),
    ],
)
async def test_bad_forms_are_refused_with_a_page(served: Served, content: bytes, kind: str, status: int) -> None:
    async with visiting(served) as visitor:
        answer = await visitor.post("/login", content=content, headers={"Content-Type": kind})
        assert answer.status_code == status
        assert "<h1>" in answer.text


# What a host says stays text


async def test_canaries_are_escaped_on_every_page(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The services are made to answer with markup in every field a host controls, past every check that would refuse it."""
    poison(monkeypatch)
    for route, path in every_path(served).items():
        answer = await client.get(path, params={"check": CANARY, "kind": CANARY})
        if "html" in answer.headers.get("content-type", ""):
            assert "<script>alert" not in answer.text, route
            assert "alert('" not in answer.text, f"{route}: quotes must be escaped too"
    assert "&lt;script&gt;" in (await client.get(f"/bundles/{served.hosts['ehr-db-02'].bundle_ids[3]}")).text


async def test_the_canary_is_seen_where_escaping_is_off(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: without escaping, each of these pages shows it."""
    poison(monkeypatch)
    careless = rendering.environment().overlay(autoescape=False)
    monkeypatch.setattr(rendering, "environment", lambda: careless)
    host = served.hosts["ehr-db-02"]
    for path in ("/", "/sites/clinic-elm-street", f"/hosts/{host.key_id}", f"/bundles/{host.bundle_ids[3]}"):
        assert "<script>alert" in (await client.get(path)).text, path


def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the canary into every text of what the fleet service answers."""

    def poisoned(value: Any, name: str = "") -> Any:
        if isinstance(value, str) and name not in {"key_id", "bundle_id", "created_at", "prev", "sha256"}:
            return CANARY
        if hasattr(value, "_fields"):
            return value._replace(**{key: poisoned(getattr(value, key), key) for key in value._fields})
        if isinstance(value, tuple | list):
            return type(value)(poisoned(item) for item in value)
        if hasattr(value, "__dataclass_fields__"):
            changed = {key: poisoned(getattr(value, key), key) for key in value.__dataclass_fields__}
            return replace(value, **changed)
        if isinstance(value, bytes) and name == "body":
            text = CANARY.replace('"', '\\"')
            actions = f'[{{"step":"{text}","action":"{text}","result":"{text}","code":"{text}"}}]'
            fields = (
                "check",
                "trigger",
                "severity",
                "policy_version",
                "error",
                "order_id",
                "exception_id",
                "post_result",
            )
            said = ",".join(f'"{field}":"{text}"' for field in fields)
            return (
                f'{{{said},"pre_state":{{"{text}":"{text}"}},"post_state":{{"{text}":["{text}"]}},"actions":{actions},'
                f'"hipaa_controls":["{text}"],"states":{{"{text}":{{"result":"{text}","reason":"{text}"}}}},'
                f'"agent":{{"version":"{text}"}},"clock":{{"source":"{text}"}},"rollback":{{"available":1,"generation":"{text}"}}}}'
            ).encode()
        return value

    for name in ("sites", "site", "host", "evidence_of", "newest", "bundle"):
        genuine = getattr(Fleet, name)

        async def answer(self: Fleet, *args: Any, genuine: Any = genuine, **kwargs: Any) -> Any:
            return poisoned(await genuine(self, *args, **kwargs))

        monkeypatch.setattr(Fleet, name, answer)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b"\xff\0", b'{"states":[1],"actions":[1,{}],"clock":3,"pre_state":[]}']
)
async def test_damaged_bytes_make_an_invalid_page_not_an_error(
    client: httpx.AsyncClient, served: Served, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    genuine = Fleet.bundle

    async def damaged(self: Fleet, *args: Any) -> Any:
        return replace(await genuine(self, *args), body=body)

    monkeypatch.setattr(Fleet, "bundle", damaged)
    answer = await client.get(f"/bundles/{served.hosts['ehr-db-02'].bundle_ids[3]}")
    assert answer.status_code == 200


# When something fails


async def test_failure_is_a_page_without_details(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(self: Fleet) -> Any:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Fleet, "sites", fails)
    answer = await client.get("/")
    assert answer.status_code == 500
    assert "secret detail" not in answer.text
    assert "This page could not be made." in answer.text


async def test_unreadable_database_is_not_available(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    from compliance_agent.errors import StorageError

    async def fails(self: Fleet) -> Any:
        raise StorageError("reading the database: OperationalError")

    monkeypatch.setattr(Fleet, "sites", fails)
    assert (await client.get("/")).status_code == 503


async def test_missing_page_is_html_for_browsers_and_a_problem_for_programs(client: httpx.AsyncClient) -> None:
    page = await client.get("/no/such/page")
    assert (page.status_code, page.headers["content-type"]) == (404, "text/html; charset=utf-8")
    for path, accepts in (("/no/such/page", "application/json"), ("/api/v1/none", "text/html")):
        answer = await client.get(path, headers={"Accept": accepts})
        assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")
