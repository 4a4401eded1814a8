"""Short requests to the routes that hosts call all the time are read whole and answered in one step, without ASGI in between.

What uvicorn and Starlette do around a request costs several times what the request itself does: a task that waits for a body that
is here already, messages for each part of it, headers checked one by one, two writes. So a POST to one of `answers` whose head
declares a body of at most 64 KB, in no encoding, waits here until it is complete, is answered by one call, and written at once.
That is as much as uvicorn reads of a body before anybody asks for it. Everything else, a longer or a chunked body, another method,
HTTP/1.0, a request on the heels of one that is not answered yet, goes the usual way, and gets the same answers.

The guard's limits and deadlines are those of every request (guard.py); what stands around a route is `edge.WholeEdge`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

import structlog
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from compliance_agent.server.api.edge import MOST_OPEN_BYTES
from compliance_agent.server.guard import Crowd, Guarded

# Scope and body; never raises. Every header of the answer is in the response.
Answer = Callable[[MutableMapping[str, Any], bytes], Awaitable[Response]]

_NOT_PLAIN = frozenset((b"transfer-encoding", b"content-encoding", b"expect", b"upgrade"))
log = structlog.get_logger()


class _Nobody:
    """Nobody waits for the next part of a request that is read whole."""

    def set(self) -> None:
        """Said to whoever waits for a part, or for the end of the connection."""


_NOBODY = _Nobody()


class _Exchange:
    """A request that is read whole: the part of uvicorn's cycle that the connection asks for."""

    __slots__ = ("answer", "body", "disconnected", "keep_alive", "more_body", "response_complete", "scope")
    message_event = _NOBODY
    response_started = False  # the answer is written at once, and then it is complete

    def __init__(self, answer: Answer, scope: MutableMapping[str, Any], *, keep_alive: bool) -> None:
        self.answer = answer
        self.scope = scope
        self.keep_alive = keep_alive
        self.body = bytearray()
        self.more_body = True
        self.response_complete = False
        self.disconnected = False


class Whole(Guarded):
    """One connection. `answers` are the routes of its process, by path; see `answered_by`."""

    answers: Mapping[bytes, Answer]

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._heading, self._plain, self._length = True, True, -1

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name in _NOT_PLAIN or not self._heading:  # or a trailer
            self._plain = False
            super().on_header(name, value)
            return
        if name == b"content-length":
            self._length = int(value) if value.isdigit() and len(value) <= 6 else -1
        self.headers.append((name, value))

    def begin(self) -> None:
        self._heading = False
        answer = self.answers.get(self.url) if self._plain and 0 <= self._length <= MOST_OPEN_BYTES else None
        parser = self.parser
        if (
            answer is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not self._answered()
        ):
            super().begin()
            return
        path = self.url.decode("ascii")
        scope: MutableMapping[str, Any] = self.scope  # type: ignore[assignment]  # a dictionary
        scope.update(method="POST", path=path, raw_path=self.url, query_string=b"")
        self.cycle = _Exchange(answer, scope, keep_alive=parser.should_keep_alive())  # type: ignore[assignment]

    def on_message_complete(self) -> None:
        super().on_message_complete()
        exchange: object = self.cycle
        if isinstance(exchange, _Exchange):
            task = self.loop.create_task(self._answer(exchange))
            task.add_done_callback(self.tasks.discard)
            self.tasks.add(task)

    async def _answer(self, exchange: _Exchange) -> None:
        try:
            response = await exchange.answer(exchange.scope, bytes(exchange.body))
            if self.flow.write_paused:
                await self.flow.drain()
        except BaseException as error:  # cancelled at the end of the server, or a bug of what stands around the route
            log.error("request.abandoned", error=type(error).__name__)
            exchange.response_complete = True
            self.transport.close()
            raise
        self._write(exchange, response)

    def _write(self, exchange: _Exchange, response: Response) -> None:
        exchange.response_complete = True
        if self.transport.is_closing():
            return
        lines = [STATUS_LINE[response.status_code]]
        for name, value in (*self.server_state.default_headers, *response.raw_headers):
            if name == b"connection":
                exchange.keep_alive = False
            else:
                lines += (name, b": ", value, b"\r\n")
        lines += (b"\r\n" if exchange.keep_alive else b"connection: close\r\n\r\n", bytes(response.body))
        self.transport.write(b"".join(lines))
        if not exchange.keep_alive:
            self.transport.close()
        self.on_response_complete()


def answered_by(answers: Mapping[bytes, Answer], crowd: Crowd) -> type[Whole]:
    """The protocol of one server process."""
    return type("Whole", (Whole,), {"crowd": crowd, "answers": answers})
