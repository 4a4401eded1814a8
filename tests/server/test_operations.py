"""What whoever runs it relies on: health, readiness, figures, the OpenAPI file, and errors that tell nothing of the inside."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from compliance_agent.errors import StorageError
from compliance_agent.server import openapi
from compliance_agent.server.app import create_app
from compliance_agent.server.services.fleet import Fleet
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import SqlStore
from tests.server.builder import Server, serving

pytestmark = pytest.mark.anyio
COMMITTED = Path(__file__).resolve().parents[2] / "docs" / "openapi.json"


async def test_alive_and_ready(server: Server) -> None:
    assert (await server.client.get("/healthz")).json() == {"status": "ok"}
    reply = await server.client.get("/readyz")
    assert (reply.status_code, reply.json()) == (200, {"status": "ok", "reasons": []})


async def test_not_ready_says_why(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(_self: object) -> None:
        raise StorageError("planted")

    monkeypatch.setattr(SqlStore, "ready", broken)
    reply = await server.client.get("/readyz")
    assert (reply.status_code, reply.json()["reasons"]) == (503, [{"name": "database", "code": "storage_failed"}])


async def test_figures_name_no_tenant(server: Server) -> None:
    host = await server.enrolled()
    bundle = host.next()
    await server.deliver(host, bundle)
    await server.deliver(host, bundle)
    await server.deliver(host, host.next(seq=9))
    text = (await server.client.get("/metrics")).text
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert values["compliance_server_bundles_total", "stored"] == 1
    assert values["compliance_server_bundles_total", "known"] == 1
    assert values["compliance_server_bundles_refused_total", "seq_gap"] == 1
    assert values["compliance_server_hosts", "live"] == 1
    assert values["compliance_server_request_seconds_count", "POST", "/api/v1/evidence", "200"] == 2
    for canary in ("clinic-1", "ws-01", host.key_id[:12]):
        assert canary not in text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/api/v1/sites", 405, "method_not_allowed"),
        ("GET", "/api/v1/evidence", 405, "method_not_allowed"),
        ("GET", "/ca.pem", 404, "not_found"),
        ("GET", "/docs", 404, "not_found"),
    ],
)
async def test_what_is_not_there_is_a_problem(server: Server, method: str, path: str, status: int, code: str) -> None:
    reply = await server.client.request(method, path)
    assert (reply.status_code, reply.json()["code"]) == (status, code)
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json()["trace_id"] == reply.headers["x-request-id"]
    assert (status == 405) == ("allow" in reply.headers)


async def test_a_bug_is_a_500_that_tells_nothing(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def crash(_self: object) -> None:
        raise ZeroDivisionError("/var/lib/secret and Jane Roe")

    monkeypatch.setattr(Fleet, "sites", crash)
    reply = await server.client.get("/api/v1/sites", headers=await server.operator())
    assert (reply.status_code, reply.json()["code"]) == (500, "internal_error")
    said = "".join(capsys.readouterr()) + reply.text
    assert "Jane" not in said and "secret" not in said and "Traceback" not in said
    assert "ZeroDivisionError" in said and reply.json()["trace_id"] in said


async def test_the_callers_trace_goes_on(server: Server) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    assert (await server.client.get("/healthz", headers=headers)).headers["x-request-id"] == trace
    for wrong in ("00-" + "0" * 32 + "-b7ad6b7169203331-01", "x", "00-zz-b7-01"):
        assert (await server.client.get("/healthz", headers={"traceparent": wrong})).headers["x-request-id"] != trace


def test_the_committed_openapi_document_is_the_apps() -> None:
    """After a change of the API: `python -m compliance_agent.server.app docs/openapi.json`."""
    assert COMMITTED.read_text(encoding="utf-8") == openapi.text(create_app(ServerSettings()))


def test_every_api_route_is_documented_with_its_refusals() -> None:
    document = openapi.build(create_app(ServerSettings()))
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert "application/problem+json" in operation["responses"]["4XX"]["content"], path
            assert "422" not in operation["responses"]
            assert path.startswith("/api/") is False or "enrol" in path or operation["security"], path


async def test_a_second_server_on_the_same_directory_is_refused(server: Server) -> None:
    with pytest.raises(StorageError, match="another server"):
        async with serving(server.services.settings.data_dir):
            pass


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        key = server.services.ack_public_key
    async with serving(tmp_path / "data") as server:
        assert server.services.ack_public_key == key
        assert (await server.checkin(host)).json()["known"]["digest"] == host.prev
        assert (await server.deliver(host, host.next())).status_code == 200
