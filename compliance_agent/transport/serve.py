"""A small HTTP/1.1 server over asyncio and h11: one function answers every request, and everything is bounded.

Bounds: length of a head and of a body, time for one request from its first byte to the last byte of its answer, time a
connection may be idle, number of connections. Connections are kept alive. TLS, if any, is 1.3.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from pathlib import Path

import h11
import structlog

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import ConfigError, NotPermitted, Unavailable
from compliance_agent.logs import where
from compliance_agent.ports import HttpReply

MAX_HEAD_BYTES = 16_384
_READ_BYTES = 65_536
_LINGER_S = 1.0
_LINGER_BYTES = 1_048_576

Answer = Callable[[str, str, bytes], Awaitable[HttpReply]]  # (method, target, body)


@dataclass(frozen=True)
class Asked:
    """One whole request, and the connection it came on."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    connection: asyncio.StreamWriter


log = structlog.get_logger()


class HttpServer:
    """Serves `answer` on one address.

    Args:
        answer: called once for each whole request; what it raises becomes status 500.
        now: the time, for the `Date` of a reply.
        max_body_bytes: of a request; 413 above it.
        deadline_s: for one request and its answer.
        idle_s: how long a connection may wait for its next request.
        max_connections: at one time; more are closed at once.
    """

    def __init__(
        self,
        answer: Answer,
        now: Callable[[], datetime],
        *,
        max_body_bytes: int = 65_536,
        deadline_s: float = 10.0,
        idle_s: float = 75.0,
        max_connections: int = 256,
    ) -> None:
        self._answer = answer
        self._now = now
        self._max_body_bytes = max_body_bytes
        self._deadline_s = deadline_s
        self._idle_s = idle_s
        self._max_connections = max_connections
        self._open: set[asyncio.Task[None]] = set()
        self._busy: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._stopping = False
        self.refusal: Callable[[int], HttpReply] = _plain

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> int:
        """Listen; the port, which is a free one for port 0.

        Raises:
            NotPermitted, Unavailable: this address cannot be listened on.
        """
        try:
            self._server = await asyncio.start_server(self._connected, host, port, ssl=tls)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "cannot be resolved")
            kind = NotPermitted if error.errno == errno.EACCES else Unavailable
            raise kind(f"host {host} port {port}: cannot listen ({name})", hint="choose another with --port") from error
        return int(self._server.sockets[0].getsockname()[1])

    async def start_on(self, listening: socket.socket) -> None:
        """Listen on a stream socket that its caller has bound."""
        self._server = await asyncio.start_unix_server(self._connected, sock=listening)

    async def stop(self, grace_s: float = 3.0) -> None:
        """Take nothing new, finish what was begun, and close every connection."""
        self._stopping = True
        if self._server is not None:
            self._server.close()
        for task in self._open - self._busy:
            task.cancel()
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=grace_s)
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=1)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._open) >= self._max_connections or self._stopping:
            writer.transport.abort()
            return
        self._open.add(task)
        try:
            await _Connection(self, reader, writer, task).talk()
        except (OSError, TimeoutError, asyncio.CancelledError):  # gone, idle for too long, or the server ends
            writer.transport.abort()
        except Exception as error:
            log.error("http.failed", error=type(error).__name__, at=where(error))
            writer.transport.abort()
        finally:
            self._open.discard(task)
            self._busy.discard(task)

    async def answer_to(self, asked: Asked) -> HttpReply:
        """What is answered; a server that looks at more than method, target and body has its own."""
        return await self._answer(asked.method, asked.target, asked.body)

    async def reply_to(self, asked: Asked) -> HttpReply:
        """What is answered; the deadline is the caller's."""
        try:
            return await self.answer_to(asked)
        except Exception as error:
            log.error("http.failed", error=type(error).__name__, at=where(error))
            return self.refusal(500)

    def begun(self, task: asyncio.Task[None], *, busy: bool) -> bool:
        """Note whether a connection is in the middle of a request; False when no other one should follow."""
        (self._busy.add if busy else self._busy.discard)(task)
        return not self._stopping

    @property
    def limits(self) -> tuple[int, float, float]:
        """Largest body, deadline of a request, idle time."""
        return self._max_body_bytes, self._deadline_s, self._idle_s

    def head(self, reply: HttpReply, *, last: bool) -> h11.Response:
        """Status and headers of a reply."""
        from email.utils import format_datetime  # with the first request: an idle agent does without these ten modules

        headers = [
            ("date", format_datetime(self._now(), usegmt=True)),
            ("content-length", str(len(reply.body))),
            *reply.headers.items(),
            *([("connection", "close")] if last else []),
        ]
        return h11.Response(status_code=reply.status, headers=headers)


class _Refused(Exception):
    """A request that is answered by its status alone, after which the connection ends."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class _Connection:
    """One connection and its requests, one after the other."""

    def __init__(
        self, server: HttpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._task = task
        self._wire = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._max_body, self._deadline_s, self._idle_s = server.limits

    async def talk(self) -> None:
        """Answer until either side has had enough."""
        while await self._next():
            self._server.begun(self._task, busy=True)
            try:
                async with asyncio.timeout(self._deadline_s):
                    again = await self._exchange()
            except TimeoutError:
                again = False
                await self._refuse(408 if self._wire.their_state in {h11.IDLE, h11.SEND_BODY} else 503)
            if not self._server.begun(self._task, busy=False) or not again:
                break
            self._wire.start_next_cycle()
        await self._close()

    async def _next(self) -> bool:
        """Wait for the first byte of a request; False when the other side has closed."""
        if self._wire.trailing_data[0]:
            return True
        async with asyncio.timeout(self._idle_s):
            data = await self._reader.read(_READ_BYTES)
        self._wire.receive_data(data)
        return bool(data)

    async def _exchange(self) -> bool:
        """One request and its answer; whether the connection can take another."""
        try:
            request, body = await self._read()
            method, target = request.method.decode("ascii"), request.target.decode("latin-1")
            headers = {name.decode("ascii"): value.decode("latin-1") for name, value in request.headers}
            reply = await self._server.reply_to(Asked(method, target, headers, body, self._writer))
        except _Refused as refused:
            await self._refuse(refused.status)
            return False
        except h11.RemoteProtocolError as error:
            await self._refuse(error.error_status_hint)
            return False
        await self._send(reply, method)
        return self._wire.our_state is h11.DONE and self._wire.their_state is h11.DONE

    async def _read(self) -> tuple[h11.Request, bytes]:
        request, body = None, bytearray()
        while True:
            event = self._wire.next_event()
            if isinstance(event, h11.Request):
                request = event
                if event.http_version not in {b"1.0", b"1.1"}:
                    raise _Refused(505)
                if sum(len(name) + len(value) for name, value in event.headers) + len(event.target) > MAX_HEAD_BYTES:
                    raise _Refused(431)  # it may have come whole at once
                if any(name == b"content-length" and int(value) > self._max_body for name, value in event.headers):
                    raise _Refused(413)
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > self._max_body:
                    raise _Refused(413)
            elif isinstance(event, h11.EndOfMessage) and request is not None:
                return request, bytes(body)
            elif event is h11.NEED_DATA:
                await self._more()
            else:
                raise _Refused(400)

    async def _more(self) -> None:
        if self._wire.they_are_waiting_for_100_continue:
            self._writer.write(self._wire.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        self._wire.receive_data(await self._reader.read(_READ_BYTES))

    async def _refuse(self, status: int) -> None:
        if self._wire.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    await self._send(self._server.refusal(status), "", last=True)

    async def _send(self, reply: HttpReply, method: str, *, last: bool = False) -> None:
        parts = [self._wire.send(self._server.head(reply, last=last))]
        if reply.body and method != "HEAD":
            parts.append(self._wire.send(h11.Data(reply.body)))
        parts.append(self._wire.send(h11.EndOfMessage()))
        self._writer.write(b"".join(part for part in parts if part))
        await self._writer.drain()

    async def _close(self) -> None:
        """End in an orderly way. What still comes is read for a moment: a reset could overtake the answer."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                if self._writer.can_write_eof():
                    self._writer.write_eof()
                left = _LINGER_BYTES
                while left > 0 and (data := await self._reader.read(_READ_BYTES)):
                    left -= len(data)
        self._writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_LINGER_S):
                await self._writer.wait_closed()


def tls_context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """TLS 1.3 with this certificate.

    Raises:
        ConfigError: the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_cert_chain(str(cert_file), str(key_file))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("--cert or --key: not usable PEM, or they do not belong together") from error
    return context


def _plain(status: int) -> HttpReply:
    return HttpReply(status, {"content-type": "text/plain; charset=utf-8"}, f"{status}\n".encode())
