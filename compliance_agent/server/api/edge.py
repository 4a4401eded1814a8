"""The edge of the app, before any route: a trace id, the body's limit and deadline, the last net for errors, the figures.

A body that is too large by its own declaration is refused unread; one that lies is refused as soon as it exceeds the limit. A body
that does not arrive within the deadline is given up. Whatever a route raises that nobody expected ends here, logged, as a 500.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance_agent.errors import AgentError, Refusal
from compliance_agent.server.api import problems

MOST_BODY_BYTES = 1_048_576
BODY_DEADLINE_S = 20.0
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

        async def noting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer = MutableHeaders(scope=message)
                answer["X-Request-Id"] = trace_id
                answer["X-Content-Type-Options"] = "nosniff"
                answer.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            _check_declared(headers)
            await self._app(scope, _limited(receive), noting_send)
        except AgentError as error:
            if status == 0:
                await problems.of_agent_error(error, trace_id)(scope, receive, noting_send)
        except Exception as error:
            answer = problems.of_unexpected(error, trace_id)
            if status == 0:
                await answer(scope, receive, noting_send)
        route = getattr(scope.get("route"), "path", "none")
        self._observe(route, scope["method"], status, time.perf_counter() - started)


def _trace_id(headers: Headers) -> str:
    found = _TRACEPARENT.fullmatch(headers.get("traceparent", ""))
    return found[1] if found and found[1] != "0" * 32 else secrets.token_hex(16)


def _check_declared(headers: Headers) -> None:
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or len(length) > 15 or int(length) > MOST_BODY_BYTES:
        raise _too_large()
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise Refusal(
            "content-encoding: expected none; bodies are not decompressed here", code="bad_encoding", status=415
        )


def _too_large() -> Refusal:
    return Refusal(f"body: longer than {MOST_BODY_BYTES} bytes", code="too_large", status=413)


def _limited(receive: Receive) -> Receive:
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
            if taken > MOST_BODY_BYTES:
                raise _too_large()
            if not message.get("more_body", False):
                taken = -1
        return message

    return limited
