"""The wire, before anything of the app runs: connections that take their time end, and nothing about them grows.

A client has ten seconds for the head of a request from its first byte on (or from connecting), and a little longer than the app for
the body. A head is at most 16 KiB, whatever it is made of. An answer that nobody reads is given up. When there are more
connections than the server has room for, the one that has been idle longest goes: a host opens another.

Refusals here are problem documents like all others, and close the connection. The deadlines are per connection and cost no timer
while a request arrives whole, as nearly all do.
"""

from __future__ import annotations

import asyncio
import enum
import resource
import secrets
from collections import OrderedDict
from typing import Any

import orjson
import uvloop
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle

from compliance_agent.server.api.edge import BODY_DEADLINE_S, CLIENT_CERTIFICATE, MOST_BODY_BYTES

HANDSHAKE_DEADLINE_S = 10.0
HEAD_DEADLINE_S = 10.0
GRACE_S = 5.0  # the app's own deadline for a body comes first, with its own words
STALL_DEADLINE_S = 30.0  # for an answer that is not read
MOST_HEAD_BYTES = 16_384
MOST_WIRE_BYTES = 4 * MOST_BODY_BYTES  # of a body and all that frames it
MOST_CONNECTIONS = 16_384
KEPT_FILES = 256  # for the database, the logs and the rest


class _Part(enum.Enum):
    """What of a request comes next."""

    NOTHING = 0
    HEAD = 1
    BODY = 2


class Loop(uvloop.Loop):
    """uvloop, with a deadline for the TLS handshake: what comes before it has no protocol that could watch it."""

    async def create_server(self, *arguments: Any, **options: Any) -> Any:
        if options.get("ssl") is not None:
            options.setdefault("ssl_handshake_timeout", HANDSHAKE_DEADLINE_S)
        return await super().create_server(*arguments, **options)


class Crowd:
    """The connections that wait for a request, longest idle first, and how many there may be in all."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._idle: OrderedDict[Guarded, None] = OrderedDict()
        self._open = 0

    def came(self, connection: Guarded) -> None:
        """A connection was made; when that is one too many, the longest idle one ends, the new one itself if need be."""
        self._open += 1
        self._idle[connection] = None
        if self._open > self.most:
            longest, _ = self._idle.popitem(last=False)
            longest.drop()

    def went(self, connection: Guarded) -> None:
        """It is closed."""
        self._open -= 1
        self._idle.pop(connection, None)

    def busy(self, connection: Guarded) -> None:
        """A whole head has come."""
        self._idle.pop(connection, None)

    def idle(self, connection: Guarded) -> None:
        """It was answered."""
        self._idle[connection] = None
        self._idle.move_to_end(connection)


def room() -> int:
    """How many connections the open files of this process leave room for, once it may have as many as it is allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return max(16, min(MOST_CONNECTIONS, hard - KEPT_FILES))


class Guarded(HttpToolsProtocol):
    """One connection. `crowd` is that of its process; see `whole.answered_by`."""

    crowd: Crowd

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._part = _Part.NOTHING
        self._timed = _Part.NOTHING
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._head_bytes = 0
        self._wire_bytes = 0
        self._trailer_bytes = 0
        self._refused: tuple[int, str] | None = None
        self._certificate: bytes | None = None  # the client's, once TLS has verified it

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # of a stream it is one
        super().connection_made(transport)
        tls = transport.get_extra_info("ssl_object")
        self._certificate = tls.getpeercert(binary_form=True) if tls is not None else None
        self._part = _Part.HEAD
        self._watch()
        self.crowd.came(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.crowd.went(self)
        for timer in (self._timer, self._stalled):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._part is _Part.BODY:
            self._wire_bytes += len(data)
        else:
            self._head_bytes += len(data)
        super().data_received(data)
        if self._part is _Part.NOTHING and self._forgotten():
            self._part = _Part.HEAD  # empty lines, which the parser skips, are not a way to stay
        if self._part is _Part.HEAD and self._head_bytes > MOST_HEAD_BYTES:
            self._refuse(431, "head_too_large", f"head of the request: longer than {MOST_HEAD_BYTES} bytes")
        elif self._part is _Part.BODY and self._wire_bytes > MOST_WIRE_BYTES:
            self._refuse(413, "too_large", f"body: longer than {MOST_WIRE_BYTES} bytes on the wire")
        else:
            self._watch()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._certificate is not None:
            self.scope[CLIENT_CERTIFICATE] = self._certificate  # type: ignore[literal-required]  # ours
        self._part = _Part.HEAD
        self._trailer_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._part is _Part.BODY:
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > MOST_HEAD_BYTES:
                self._refused = (431, "head_too_large")
                raise ValueError("trailers")  # ends the parser; `send_400_response` answers
            return  # nobody reads them
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MOST_HEAD_BYTES:
            self._refused = (431, "head_too_large")
            raise ValueError("head")
        self._part = _Part.BODY
        self._head_bytes = self._wire_bytes = 0
        self.crowd.busy(self)
        self.begin()

    def begin(self) -> None:
        """A head has come and is within its limits: hand the request on."""
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._part = _Part.NOTHING
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._part is _Part.NOTHING and self._answered():
            # What is idle holds nothing of its last request: a fleet that keeps its connections would hold it ten thousand times,
            # and each full collection of garbage would walk it.
            self.cycle = self.scope = None  # type: ignore[assignment]  # as before the first request
            self.headers = []
        if not self.transport.is_closing():
            self.crowd.idle(self)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALL_DEADLINE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def send_400_response(self, msg: str) -> None:
        """What the parser could not read, as a problem document."""
        status, code = self._refused or (400, "bad_http")
        detail = msg if self._refused is None else f"head of the request: longer than {MOST_HEAD_BYTES} bytes"
        self._refuse(status, code, detail)

    def drop(self) -> None:
        """Make room for another."""
        self.transport.abort()

    def _forgotten(self) -> bool:
        """Whether nothing is under way and no timer of the server waits for the next request."""
        return self._answered() and not self.pipeline and self.timeout_keep_alive_task is None

    def _answered(self) -> bool:
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _watch(self) -> None:
        """One timer for the part of a request that is awaited; none when nothing is."""
        if self._part is self._timed or self.transport.is_closing():
            return
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._timed = self._part
        if self._part is not _Part.NOTHING:
            wait = HEAD_DEADLINE_S if self._part is _Part.HEAD else BODY_DEADLINE_S + GRACE_S
            self._timer = self.loop.call_later(wait, self._too_slow)

    def _too_slow(self) -> None:
        what = "head of the request" if self._part is _Part.HEAD else "body"
        self._refuse(408, "too_slow", f"{what}: did not arrive in time")

    def _refuse(self, status: int, code: str, detail: str) -> None:
        """Answer, unless an answer is under way already, and close."""
        if self.transport.is_closing():
            return
        if self._answered() or not self.cycle.response_started:
            trace_id = secrets.token_hex(16)
            document = {
                "type": f"urn:compliance-agent:problem:{code}",
                "title": STATUS_LINE[status][13:-2].decode(),
                "status": status,
                "detail": detail,
                "code": code,
                "trace_id": trace_id,
            }
            body = orjson.dumps(document)
            head = (
                f"content-type: application/problem+json\r\ncontent-length: {len(body)}\r\nx-request-id: {trace_id}\r\n"
            )
            self.transport.write(STATUS_LINE[status] + head.encode() + b"connection: close\r\n\r\n" + body)
        self.transport.close()
