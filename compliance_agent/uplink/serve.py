"""The side of `uplink`: takes questions of `run` from a unix socket, and asks the server, with the key that goes with each.

Who connects must run as a user that may, as the kernel says. Only ways of the table lead out (`table.ROUTES`), and only to the
server, a log that this host witnesses, or the collector of its traces; a `run` that is not itself any more reaches nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from typing import Protocol

import structlog

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import AgentError, BadFrame, BadReply, ConfigError, NotPermitted, Unavailable
from compliance_agent.frames import MAX_FRAME_BYTES, Answering, Message, Reader, Side
from compliance_agent.local_socket import require_peer
from compliance_agent.ports import Transport
from compliance_agent.uplink.table import (
    BAD_REPLY,
    COLLECTED,
    KEPT,
    MOST_OPEN,
    SERVER,
    TABLE,
    UNAVAILABLE,
    key_goes_with,
)

MOST_CONNECTIONS = 4  # of run: the agent's, its witness role's, and those that it has given up meanwhile

log = structlog.get_logger()


class Certificate(Protocol):
    """A client certificate and its key: `certificate.OwnCertificate`."""

    async def present(self) -> tuple[bool, bytes]:
        """Whether there is a file, and the certificate (PEM) in it."""

    async def request(self, *, anew: bool) -> bytes:
        """A signing request (DER)."""

    async def use(self, pem: bytes) -> None:
        """Keep and show this certificate; show none when it is empty."""


@dataclass
class Doors:
    """The ways out of this host.

    Attributes:
        server: to the server.
        key: the API key; raises Unavailable (`not_enrolled`) or ConfigError.
        forget: is called when the server did not take the key.
        logs: by URL, to logs that this host witnesses.
        token: what shows those logs, if they need it.
        certificate: this host's client certificate; None where somebody else looks after it.
        collectors: by URL, to the collector of traces, if there is one; no secret goes there.
    """

    server: Transport
    key: Callable[[], str]
    forget: Callable[[], None]
    logs: Mapping[str, Transport] = field(default_factory=dict)
    token: str | None = None
    certificate: Certificate | None = None
    collectors: Mapping[str, Transport] = field(default_factory=dict)

    async def close(self) -> None:
        """Close all connections."""
        for transport in (self.server, *self.logs.values(), *self.collectors.values()):
            await transport.close()


class Uplink:
    """Serves the connections of `run`.

    Args:
        doors: the ways out; may be replaced while it serves.
        uids: users that may connect.
    """

    def __init__(self, doors: Doors, uids: Collection[int]) -> None:
        self.doors = doors
        self._uids = uids
        self._talks: set[asyncio.Task[None]] = set()

    async def serve(self, listener: socket.socket) -> None:
        """Take connections until cancelled."""
        server = await asyncio.start_unix_server(self._accept, sock=listener)
        try:
            await asyncio.Event().wait()
        finally:
            server.close()
            talks = tuple(self._talks)
            for task in talks:
                task.cancel()
            if talks:
                await asyncio.wait(talks, timeout=1)

    async def talk(self, connection: socket.socket) -> None:
        """Serve one connection that was handed in, to its end."""
        await self._accept(*await asyncio.open_unix_connection(sock=connection))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("a connection is served in a task")
        self._talks.add(task)
        try:
            if len(self._talks) > MOST_CONNECTIONS:
                raise BadFrame("socket: too many connections", code="too_many")
            require_peer(writer.get_extra_info("socket"), self._uids)
            await _Served(reader, writer, self).run()
        except (BadFrame, NotPermitted) as error:
            log.warning("uplink.refused", code=error.code)
        except OSError:
            pass  # it has gone, which is no trouble of ours
        finally:
            self._talks.discard(task)
            writer.transport.abort()

    async def answer(self, asked: Message) -> tuple[str, dict[str, object], bytes]:
        """Kind, fields and blob of what a question is answered with."""
        try:
            return await (self._exchanged(asked) if asked.kind == "exchange" else self._certificate(asked))
        except Unavailable as error:
            code = error.code if error.code in UNAVAILABLE else "unavailable"
        except BadReply as error:
            code = error.code if error.code in BAD_REPLY else "bad_reply"
        except AgentError:
            code = "bad_config"  # a file of ours cannot be used
        return "failed", {"code": code}, b""

    async def _exchanged(self, asked: Message) -> tuple[str, dict[str, object], bytes]:
        to, method, path = (asked.fields[name] for name in ("to", "method", "path"))
        headers = dict(asked.fields["headers"])
        if to == SERVER:
            with_key = key_goes_with(method, path)
            if with_key is None:
                raise BadFrame(f"exchange: no way of the table: {method}", code="bad_field")
            transport, secret = self.doors.server, self.doors.key() if with_key else None
        elif to in self.doors.logs:
            transport, secret = self.doors.logs[to], self.doors.token
        elif to in self.doors.collectors and (method, path) == COLLECTED:
            transport, secret = self.doors.collectors[to], None
        else:
            raise BadFrame("exchange: neither the server, nor a log or the collector of this host", code="bad_field")
        if secret is not None:
            headers["authorization"] = f"Bearer {secret}"
        reply = await transport.request(
            method, path, headers=headers, body=asked.blob, timeout_s=asked.fields["timeout_ms"] / 1_000
        )
        if reply.status in {401, 403} and to == SERVER:
            self.doors.forget()  # this host may have been enrolled anew meanwhile
        form = TABLE.kinds["reply"].fields["headers"]
        kept = {name: reply.headers[name] for name in KEPT if name in reply.headers}
        kept = {name: value for name, value in kept.items() if form.fits({name: value})}
        return "reply", {"status": reply.status, "headers": kept}, reply.body

    async def _certificate(self, asked: Message) -> tuple[str, dict[str, object], bytes]:
        own = self.doors.certificate
        if asked.kind == "certificate":
            there, pem = (False, b"") if own is None else await own.present()
            return "certificate_is", {"there": there}, pem
        if own is None:
            raise ConfigError("client certificate: it is looked after by somebody else")
        if asked.kind == "make_request":
            return "request_is", {}, await own.request(anew=asked.fields["anew"])
        await own.use(asked.blob)
        return "done", {}, b""


class _Served:
    """One connection of `run`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uplink: Uplink) -> None:
        self._reader, self._writer, self._uplink = reader, writer, uplink
        self._frames, self._answering = Reader(TABLE, Side.ASKS), Answering(TABLE, MOST_OPEN)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Until the other side ends.

        Raises:
            BadFrame: it broke the protocol.
            OSError: it has gone.
        """
        try:
            self._writer.write(TABLE.hello())
            while data := await self._reader.read(MAX_FRAME_BYTES):
                for message in self._frames.feed(data):
                    self._answering.take(message)
                    task = asyncio.create_task(self._answer(message))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            self._frames.end()
        finally:
            for task in tuple(self._tasks):
                task.cancel()

    async def _answer(self, asked: Message) -> None:
        try:
            kind, fields, blob = await self._uplink.answer(asked)
            self._writer.write(b"".join(self._answering.answer(asked.id, kind, fields, blob)))
            with contextlib.suppress(OSError):
                await self._writer.drain()
        except BadFrame as error:
            log.warning("uplink.refused", code=error.code)
            self._writer.transport.abort()
