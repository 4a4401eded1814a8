"""The OpenAPI document against the app: right and wrong cases of every operation, from whoever may call and from strangers.

What is sent comes from schemathesis; what must hold of the answer is said here, for every answer: no 5XX, a documented status and
media type, the documented schema, every refusal a problem, and what cannot be right is never taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import CHECKS, load_all_checks
from schemathesis.core.failures import FailureGroup
from schemathesis.core.parameters import ParameterLocation
from schemathesis.schemas import APIOperation

from compliance_agent.server import openapi
from compliance_agent.server.app import create_app
from compliance_agent.server.settings import ServerSettings
from tests.server.builder import Server, serving

DOCUMENT = openapi.build(create_app(ServerSettings()))
FOUND: list[Any] = [found.ok() for found in schemathesis.openapi.from_dict(DOCUMENT).get_all_operations()]  # type: ignore[union-attr]
OPERATIONS = {f"{found.method.upper()} {found.path}": found for found in FOUND}
CASES = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
WHO = ("host", "operator", "stranger")
load_all_checks()
HELD = tuple(
    CHECKS.get_one(name)
    for name in (
        "not_a_server_error",
        "status_code_conformance",
        "content_type_conformance",
        "response_headers_conformance",
        "response_schema_conformance",
    )
)


class Caller:
    """A server with a host and an operator, called from a test that does not wait itself."""

    def __init__(self, portal: BlockingPortal, server: Server) -> None:
        self._portal = portal
        self.server = server
        host = portal.call(server.enrolled)
        portal.call(server.deliver, host, host.next())
        self.headers = {"host": host.headers, "operator": portal.call(server.operator), "stranger": {}}

    def send(self, case: Any, who: str) -> httpx2.Response:
        """The answer to a case, with this caller's credentials in place of made-up ones."""
        wanted = case.as_transport_kwargs(base_url="http://server.test")
        headers = {name: value for name, value in wanted["headers"].items() if name.lower() != "authorization"}
        request = httpx2.Request(
            wanted["method"],
            wanted["url"],
            params=wanted.get("params"),
            headers=_sendable({**headers, **self.headers[who]}),
            cookies=wanted.get("cookies"),
            content=_body(wanted),
        )
        return self._portal.call(self.server.client.send, request)


def _sendable(headers: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    texts = {name: value for name, value in headers.items() if isinstance(value, str)}
    return [(name.encode("latin-1", "replace"), value.encode("latin-1", "replace")) for name, value in texts.items()]


def _body(wanted: dict[str, Any]) -> bytes | None:
    if "json" in wanted:
        return json.dumps(wanted["json"]).encode()
    data = wanted.get("data")
    if data is None or isinstance(data, bytes):
        return data
    return str(data).encode("utf-8", "surrogatepass")


@pytest.fixture(scope="module")
def caller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Caller]:
    directory: Path = tmp_path_factory.mktemp("schemathesis") / "data"
    limits: dict[str, Any] = dict.fromkeys(("host_requests_per_min", "host_bundles_per_min"), 0)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(serving(directory, **limits)) as server,
    ):
        yield Caller(portal, server)


def held(case: Any, reply: httpx2.Response) -> None:
    """Raises what does not hold of an answer."""
    case.validate_response(reply, checks=list(HELD))
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        document = reply.json()
        assert document["status"] == reply.status_code and document["code"] and document["trace_id"]
    for inside in ("Traceback", "sqlite", "pydantic", "/tmp"):
        assert inside not in reply.text


def planned(operation: APIOperation[Any, Any, Any, Any], mode: GenerationMode) -> Any:
    return operation.as_strategy(generation_mode=mode)


@pytest.mark.parametrize("name", OPERATIONS)
def test_right_requests_are_answered_as_documented(caller: Caller, name: str) -> None:
    @CASES
    @given(case=planned(OPERATIONS[name], GenerationMode.POSITIVE))
    def right(case: Any) -> None:
        for who in WHO:
            held(case, caller.send(case, who))

    right()


def may_be_wrong(operation: APIOperation[Any, Any, Any, Any]) -> bool:
    """Whether there is anything of this operation that could be wrong."""
    return bool(operation.path_parameters or operation.query or operation.body)


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if may_be_wrong(operation)])
def test_wrong_requests_are_refused_as_documented(caller: Caller, name: str) -> None:
    @CASES
    @given(case=planned(OPERATIONS[name], GenerationMode.NEGATIVE))
    def wrong(case: Any) -> None:
        for who in WHO:
            reply = caller.send(case, who)
            held(case, reply)
            if who == "stranger" and OPERATIONS[name].definition.raw.get("security"):
                assert reply.status_code in {401, 404, 413, 415, 422}
            part = case.meta.components.get(ParameterLocation.BODY)
            if part is not None and part.mode is GenerationMode.NEGATIVE:
                assert reply.status_code >= 400, case.as_curl_command()

    wrong()


@pytest.mark.parametrize("name", OPERATIONS)
def test_other_methods_are_problems(caller: Caller, name: str) -> None:
    path = OPERATIONS[name].path.replace("{", "").replace("}", "")
    allowed = {method.upper() for method in DOCUMENT["paths"][OPERATIONS[name].path]}
    for method in {"GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"} - allowed:
        request = httpx2.Request(method, f"http://server.test{path}")
        reply = caller._portal.call(caller.server.client.send, request)
        assert (reply.status_code, reply.json()["code"]) in {(405, "method_not_allowed"), (404, "not_found")}
        assert reply.headers["content-type"] == "application/problem+json"


def test_every_documented_operation_is_here_and_every_route_is_documented() -> None:
    documented = {f"{method.upper()} {path}" for path, operations in DOCUMENT["paths"].items() for method in operations}
    assert set(OPERATIONS) == documented
    assert len(documented) >= 20


@pytest.mark.parametrize(
    ("status", "answer", "seen"),
    [
        (500, {"json": {}}, "ServerError"),
        (200, {"json": {"surprise": 1}}, "SchemaError"),
        (302, {"text": ""}, "UndefinedStatusCode"),
        (404, {"text": "not here"}, "UndefinedContentType"),
    ],
)
def test_planted_a_wrong_answer_is_seen(caller: Caller, status: int, answer: dict[str, Any], seen: str) -> None:
    case = OPERATIONS["GET /api/v1/sites"].Case()
    fine = caller.send(case, "operator")
    held(case, fine)
    wrong = httpx2.Response(status, request=fine.request, **answer)
    wrong.elapsed = fine.elapsed
    with pytest.raises(FailureGroup) as caught:
        held(case, wrong)
    assert seen in " ".join(type(found).__name__ for found in caught.value.exceptions)
