"""Bad input on every route that agents call: a 4xx problem that names the field, quickly, and nothing is changed."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx2
import pytest

from compliance_agent.server.api import edge
from tests.server.builder import FakeHost, Server, b64, checkin_body, on_sqlite

pytestmark = pytest.mark.anyio
ROUTES = ("/api/v1/enrol/challenge", "/api/v1/enrol", "/api/v1/checkin", "/api/v1/evidence")

RAW: dict[str, bytes] = {
    "empty": b"",
    "one byte": b"x",
    "NUL": b"\0",
    "NUL in a string": b'{"protocol":"\\u0000"}',
    "BOM": b"\xef\xbb\xbf{}",
    "UTF-16": '{"protocol":1}'.encode("utf-16"),
    "bad UTF-8": b'{"protocol":"\xff"}',
    "lone surrogate": b'{"protocol":"\\ud800"}',
    "duplicate key": b'{"protocol":1,"protocol":1}',
    "depth 200,000": b"[" * 200_000 + b"]" * 200_000,
    "depth 200,000 of objects": b'{"a":' * 200_000 + b"1" + b"}" * 200_000,
    "2 MB": b'{"protocol":1,"x":"' + b"x" * 2_000_000 + b'"}',
    "2**63": b'{"protocol":%d}' % 2**63,
    "5,000 digits": b'{"protocol":' + b"9" * 5_000 + b"}",
    "1e999": b'{"protocol":1e999}',
    "NaN": b'{"protocol":NaN}',
    "1.0": b'{"protocol":1.0}',
    "true for 1": b'{"protocol":true}',
    "full-width digit": '{"protocol":\uff11}'.encode(),
    "a list": b"[]",
    "null": b"null",
    "a number": b"1",
    "text after": b'{"protocol":1} {}',
}
LEAVES: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    2**53 - 1,
    "",
    "x" * 5_000,
    "\u202e",
    "😀",
    "../../etc",
    "\u0000",
    [],
    {},
    [[]],
)


def bodies(host: FakeHost) -> dict[str, Any]:
    """A body of the right form for each route."""
    return {
        ROUTES[0]: {"protocol": 1, "public_key": b64(host.public)},
        ROUTES[1]: {
            "protocol": 1,
            "token": "cae1.AAAA",
            "public_key": b64(host.public),
            "host_id": "ws-01",
            "nonce": b64(b"\0" * 32),
            "proof": b64(b"\0" * 64),
        },
        ROUTES[2]: checkin_body(host),
        ROUTES[3]: {"protocol": 1, "bundles": [host.sign(host.document()).item], "gaps": []},
    }


def paths_of(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value below the top."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*at, key)
        yield from paths_of(item, (*at, key))


def replaced(value: Any, path: tuple[Any, ...], leaf: Any) -> Any:
    changed = copy.deepcopy(value)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = leaf
    return changed


def problem_of(reply: httpx2.Response) -> dict[str, Any]:
    """The problem document of a refusal, which tells nothing of the inside."""
    assert 400 <= reply.status_code < 500, reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    document = reply.json()
    assert set(document) >= {"type", "title", "status", "detail", "code", "trace_id"}
    assert document["status"] == reply.status_code and "\n" not in document["detail"]
    for inside in ("Traceback", "File ", ".py", "sqlite", "pydantic", "/work", "/tmp"):
        assert inside not in reply.text
    assert isinstance(document, dict)
    return document


@pytest.mark.parametrize("case", RAW)
@pytest.mark.parametrize("route", ROUTES)
@on_sqlite
async def test_what_is_not_json_as_agreed_is_refused(server: Server, route: str, case: str) -> None:
    host = await server.enrolled()
    began = time.monotonic()
    reply = await server.client.post(route, content=RAW[case], headers=host.headers)
    assert time.monotonic() - began < 2
    problem = problem_of(reply)
    assert "body" in problem["detail"] or "protocol" in problem["detail"]
    found = await server.services.store.for_sites({"clinic-1"}).host(host.key_id)
    assert found is not None and found.last_seen_at is None


@pytest.mark.parametrize("route", ROUTES)
@on_sqlite
async def test_a_wrong_type_at_each_leaf_is_named(server: Server, route: str) -> None:
    host = await server.enrolled()
    right = bodies(host)[route]
    for path in paths_of(right):
        for leaf in LEAVES:
            if _fine(path, leaf):
                continue
            began = time.monotonic()
            raw = json.dumps(replaced(right, path, leaf)).encode()
            problem = problem_of(await server.client.post(route, content=raw, headers=host.headers))
            assert time.monotonic() - began < 2
            if problem["status"] == 422:
                assert str(path[0]).rstrip("s") in problem["detail"], (path, leaf, problem)


def _fine(path: tuple[Any, ...], leaf: Any) -> bool:
    """Values that are right, after all."""
    large = path[-1] in {"pending", "epoch", "seq"} and leaf == 2**53 - 1 and not isinstance(leaf, bool)
    empty = (path[0] == "baseline" and len(path) == 2 and leaf == "") or (path == ("checks",) and leaf == {})
    return large or empty or (path == ("gaps",) and leaf == [])


@pytest.mark.parametrize("route", ROUTES)
@on_sqlite
async def test_an_unknown_and_a_missing_field_are_named(server: Server, route: str) -> None:
    host = await server.enrolled()
    right = bodies(host)[route]
    problem = problem_of(await server.post(route, {**right, "suprise": 1}, headers=host.headers))
    assert problem["status"] == 422 and "suprise" in problem["detail"]
    for name in right.keys() - {"gaps"}:
        less = {key: value for key, value in right.items() if key != name}
        problem = problem_of(await server.post(route, less, headers=host.headers))
        assert problem["status"] == 422 and name in problem["detail"]


@pytest.mark.parametrize("length", ["-1", "1e3", "x", "9" * 400, str(edge.MOST_BODY_BYTES + 1), "\uff11"])
@on_sqlite
async def test_a_declared_length_that_cannot_be_is_refused_unread(server: Server, length: str) -> None:
    read = False

    async def body() -> Any:
        nonlocal read
        read = True
        yield b"{}"

    headers = [(b"content-length", length.encode("utf-8"))]
    reply = await server.client.post(ROUTES[0], content=body(), headers=headers)
    assert problem_of(reply)["code"] == "too_large"
    assert not read or length == "\uff11"


async def test_a_length_that_lies_is_refused_as_soon_as_it_shows() -> None:
    """More than the limit is never taken in, whatever was declared."""
    taken = 0

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        return {"type": "http.request", "body": b"x" * 65_536, "more_body": True}

    limited = edge._limited(receive, edge.MOST_BODY_BYTES)
    with pytest.raises(Exception, match="longer than"):
        while True:
            await limited()
    assert taken == edge.MOST_BODY_BYTES // 65_536 + 1


async def test_a_body_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    async def receive() -> dict[str, Any]:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(edge, "BODY_DEADLINE_S", 0.01)
    with pytest.raises(Exception, match="did not arrive"):
        await edge._limited(receive, edge.MOST_BODY_BYTES)()


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=\uff11",
        "before=-1",
        f"before={2**63}",
        "check=%00",
        "kind=a b",
        "host=",
    ],
)
async def test_a_bad_query_names_its_parameter(server: Server, query: str) -> None:
    headers = await server.operator()
    problem = problem_of(await server.client.get(f"/api/v1/bundles?{query}", headers=headers))
    assert query.partition("=")[0] in problem["detail"]


@pytest.mark.parametrize("identifier", ["%00", "..%2f..%2fetc", "%ff%fe", "x" * 5_000, "%F0%9F%98%80"])
async def test_a_strange_id_is_not_there(server: Server, identifier: str) -> None:
    headers = await server.operator()
    for path in ("hosts", "bundles"):
        reply = await server.client.get(f"/api/v1/{path}/{identifier}", headers=headers)
        assert problem_of(reply)["status"] == 404
