"""The edge of the app, before any route: a trace id, the body's limit and deadline, the last net for errors, the figures.

A body that is too large by its own declaration is refused unread; one that lies is refused as soon as it exceeds the limit. A body
that does not arrive within the deadline is given up, and so is an answer that has not begun in time. A compressed body is unpacked
when a route asks for it, within the same limit (encoding.py). Whatever a route raises that nobody expected ends here, logged, as a
500. What comes before a request is whole is watched by `server/guard.py`.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_agent.errors import AgentError, Refusal
from compliance_agent.server.api import problems
from compliance_agent.server.api.encoding import ENCODINGS, unpacked

MOST_BODY_BYTES = 1_048_576
BODY_DEADLINE_S = 20.0
ANSWER_DEADLINE_S = 60.0
MOST_OPEN_BYTES = 65_536  # of a body that is read before anybody has shown who they are
CLIENT_CERTIFICATE = "compliance_agent.client_certificate"  # in a request's scope: DER, as TLS has verified it
_OPEN = ("/api/v1/enrol", "/login", "/mcp")
_OURS = frozenset((b"x-request-id", b"x-content-type-options"))
_TRACEPARENT = re.compile(r"00-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")

Observe = Callable[[str, str, int, float], None]  # route, method, status, seconds


class Edge:
    """ASGI middleware around the whole app."""

    def __init__(self, app: ASGIApp, observe: Observe) -> None:
        self._app = app
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        scope["trace_id"] = trace_id = _trace_id(headers)
        started, status = time.perf_counter(), 0
        deadline: asyncio.Timeout | None = None
        answer: Response | None = None

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if deadline is not None:
                    deadline.reschedule(None)  # a long answer may go on
                said = [item for item in message.get("headers", ()) if item[0] not in _OURS]
                said += ((b"x-request-id", trace_id.encode()), (b"x-content-type-options", b"nosniff"))
                if not any(name == b"cache-control" for name, _ in said):
                    said.append((b"cache-control", b"no-store"))
                message["headers"] = said
            await send(message)

        try:
            most = MOST_OPEN_BYTES if scope["path"].startswith(_OPEN) else MOST_BODY_BYTES
            _check_declared(headers, most)
            if "\0" in scope["path"]:  # PostgreSQL keeps no such text, and cannot even be asked for it
                raise Refusal("no such page", code="not_found", status=404)
            async with asyncio.timeout(ANSWER_DEADLINE_S) as deadline:
                await self._app(scope, _taken_in(receive, headers, most), noting_send)
        except Exception as error:
            answer = _problem(error, deadline, trace_id)
        deadline = None
        if answer is not None and status == 0:
            await answer(scope, receive, noting_send)
        route = getattr(scope.get("route"), "path", "none")
        self._observe(route, scope["method"], status, time.perf_counter() - started)


class WholeEdge:
    """The same around one endpoint whose requests come whole (`server/whole.py`): their length was looked at there.

    Args:
        endpoint: answers a POST.
        path: of its route.
        observe: told of each answer.
        headers: that every answer carries beside its own, over http and over https.
    """

    def __init__(
        self,
        endpoint: Callable[[Request], Awaitable[Response]],
        path: str,
        observe: Observe,
        headers: Callable[[str], Sequence[tuple[bytes, bytes]]],
    ) -> None:
        self._endpoint = endpoint
        self._path = path
        self._observe = observe
        self._headers = headers

    async def __call__(self, scope: MutableMapping[str, Any], body: bytes) -> Response:
        started, deadline = time.perf_counter(), None
        request = _Read(scope, body)
        scope["trace_id"] = trace_id = _trace_id(request.headers)
        try:
            async with asyncio.timeout(ANSWER_DEADLINE_S) as deadline:
                response = await self._endpoint(request)
        except Exception as error:
            response = _problem(error, deadline, trace_id)
        response.raw_headers += ((b"x-request-id", trace_id.encode()), *self._headers(scope["scheme"]))
        self._observe(self._path, "POST", response.status_code, time.perf_counter() - started)
        return response


class _Read(Request):
    """A request whose body is here."""

    def __init__(self, scope: MutableMapping[str, Any], body: bytes) -> None:
        super().__init__(scope)
        self._whole = body

    async def body(self) -> bytes:
        return self._whole


def _problem(error: Exception, deadline: asyncio.Timeout | None, trace_id: str) -> Response:
    """The answer to whatever a route raised."""
    if isinstance(error, AgentError):
        return problems.of_agent_error(error, trace_id)
    if deadline is not None and deadline.expired():
        return problems.of_agent_error(_too_late(), trace_id)
    return problems.of_unexpected(error, trace_id)


def _trace_id(headers: Headers) -> str:
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return found[1] if found and found[1] != "0" * 32 else f"{random.getrandbits(128):032x}"


def _check_declared(headers: Headers, most: int) -> None:
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 15 or int(length) > most:
        raise _too_large(most)
    if _encoding(headers) not in ("identity", *ENCODINGS):
        raise Refusal(
            f"content-encoding: expected none, or one of {', '.join(ENCODINGS)}", code="bad_encoding", status=415
        )


def _encoding(headers: Headers) -> str:
    return headers.get("content-encoding", "identity").lower()


def _too_late() -> Refusal:
    return Refusal("the answer took too long; nothing is promised", code="too_late", status=503, retry_after_s=5)


def _too_large(most: int) -> Refusal:
    return Refusal(f"body: longer than {most} bytes", code="too_large", status=413)


def _taken_in(receive: Receive, headers: Headers, most: int) -> Receive:
    """The body as a route reads it."""
    limited, encoding = _limited(receive, most), _encoding(headers)
    return limited if encoding == "identity" else _unpacking(limited, encoding, most)


def _unpacking(receive: Receive, encoding: str, most: int) -> Receive:
    done = False

    async def unpacking() -> Message:
        nonlocal done
        if done:
            return await receive()
        raw = bytearray()
        while True:
            message = await receive()
            if message["type"] != "http.request":
                return message
            raw += message.get("body", b"")
            if not message.get("more_body", False):
                break
        done = True
        return {"type": "http.request", "body": unpacked(bytes(raw), encoding, most), "more_body": False}

    return unpacking


def _limited(receive: Receive, most: int) -> Receive:
    taken = 0
    deadline: float | None = None

    async def limited() -> Message:
        nonlocal taken, deadline
        if taken < 0:  # the body is complete: what is waited for now is the end of the connection
            return await receive()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + BODY_DEADLINE_S if deadline is None else deadline
        try:
            async with asyncio.timeout_at(deadline):
                message = await receive()
        except TimeoutError as error:
            raise Refusal("body: did not arrive in time", code="too_slow", status=408) from error
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > most:
                raise _too_large(most)
            if not message.get("more_body", False):
                taken = -1
        return message

    return limited
