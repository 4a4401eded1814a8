"""What is answered beside the framework looks, from outside, like everything else that the server answers."""

from __future__ import annotations

import pytest

from tests.server.builder import Server, checkin_body, on_sqlite

pytestmark = pytest.mark.anyio
BESIDE = ("/api/v1/evidence", "/api/v1/checkin")
_OF_EACH = {"x-request-id", "content-length", "content-type"}


@on_sqlite
async def test_the_same_headers_stand_on_every_answer(server: Server) -> None:
    host = await server.enrolled()
    ours = [await server.deliver(host, host.next()), await server.checkin(host)]
    refused = [await server.post(path, {"protocol": 9}, headers=host.headers) for path in BESIDE]
    other = await server.post("/api/v1/receipts", {"protocol": 1, "bundles": []}, headers=host.headers)
    assert [reply.status_code for reply in ours + refused] == [200, 200, 422, 422]
    for reply in ours + refused:
        mine = {name: value for name, value in reply.headers.multi_items() if name not in _OF_EACH}
        assert mine == {name: value for name, value in other.headers.multi_items() if name not in _OF_EACH}
        names = [name for name, _ in reply.headers.multi_items()]
        assert len(names) == len(set(names)), "no header twice"
        assert reply.headers["x-request-id"]


@on_sqlite
@pytest.mark.parametrize("path", BESIDE)
async def test_errors_are_problem_documents_with_the_callers_trace(server: Server, path: str) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    traced = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    for reply, status, code in (
        (await server.post(path, {}, headers=traced), 401, "no_api_key"),
        (await server.client.get(path, headers=traced), 405, "method_not_allowed"),
        (await server.client.post(path, content=b"x" * (1 << 21), headers=traced), 413, "too_large"),
    ):
        assert reply.headers["content-type"] == "application/problem+json"
        assert (reply.status_code, reply.json()["code"], reply.json()["trace_id"]) == (status, code, trace)
        assert reply.headers["x-request-id"] == trace


@on_sqlite
async def test_a_bug_beside_is_a_problem_too(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await server.enrolled()

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(type(server.services.checkin), "check_in", broken)
    reply = await server.post("/api/v1/checkin", checkin_body(host), headers=host.headers)
    assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
    assert "planted" not in reply.text
