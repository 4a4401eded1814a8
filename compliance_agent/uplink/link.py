"""The side of `run`: a connection to `uplink`, made when it is first needed and again after it was lost, and a `Transport` over it.

Nothing that comes over it is believed further than bytes from a network would be: a broken frame, an answer to another question, or
silence beyond the time that the question itself allowed ends the connection and all that wait on it. Whether what was asked reached
the server is not known then, which is what `Transport` says of a cut. Nothing is asked again here: those above know what may be.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from compliance_agent.errors import AgentError, BadFrame, BadReply, NotPermitted, Unavailable
from compliance_agent.frames import MAX_FRAME_BYTES, Asking, Message, Reader, Side
from compliance_agent.local_socket import require_peer, uid_of
from compliance_agent.ports import HttpReply
from compliance_agent.uplink.table import BAD_REPLY, LONGEST_WAIT_MS, MOST_OPEN, SERVER, TABLE

if TYPE_CHECKING:
    from compliance_agent.config import AgentConfig

HELLO_S = 5.0
CERTIFICATE_S = 30.0
GRACE_S = 2.0  # beyond the time that uplink itself was given

log = structlog.get_logger()
Opening = Callable[[], Awaitable[socket.socket]]


def at_path(path: Path, uids: Collection[int]) -> Opening:
    """Connects to a socket, at whose other end one of these users must be: the one that listens, or the service manager."""

    async def opened() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            await asyncio.get_running_loop().sock_connect(connection, str(path))
            require_peer(connection, uids)
        except BaseException:
            connection.close()
            raise
        return connection

    return opened


def link_of(config: AgentConfig) -> Link:
    """The connection that a configuration with `privileges: split` names.

    Raises:
        ConfigError: uplink's user does not exist.
    """
    return Link(at_path(config.uplink_socket, {0, os.geteuid(), uid_of(config.uplink_user)}))


class Link:
    """The connection.

    Args:
        opening: makes a connected socket.
    """

    def __init__(self, opening: Opening) -> None:
        self._opening = opening
        self._talk: _Talk | None = None
        self._lock = asyncio.Lock()
        self._slots = asyncio.Semaphore(MOST_OPEN)

    async def ask(self, kind: str, fields: Mapping[str, Any], blob: bytes, timeout_s: float) -> Message:
        """Ask one thing.

        Raises:
            Unavailable: nobody is there, it was cut, or no answer came in time.
            BadReply: the other side broke the protocol, or the question is not one that can be asked.
        """
        try:
            async with asyncio.timeout(timeout_s), self._slots:
                return await (await self._connected()).ask(kind, fields, blob)
        except TimeoutError as error:
            self.drop()
            raise Unavailable("uplink: no answer in time", code="timed_out") from error
        except BadFrame as error:
            raise BadReply(f"uplink: {error}", code=error.code) from error

    async def _connected(self) -> _Talk:
        async with self._lock:
            if self._talk is not None and self._talk.ended:
                self.drop()
            if self._talk is None:
                try:
                    async with asyncio.timeout(HELLO_S):
                        self._talk = await _Talk.begun(await self._opening())
                except (OSError, TimeoutError, NotPermitted) as error:
                    raise Unavailable("uplink: nobody is there", code="no_uplink") from error
            return self._talk

    def drop(self) -> None:
        """Give up the present connection, and all that wait on it; the next question makes a new one."""
        if self._talk is not None:
            talk, self._talk = self._talk, None
            talk.end(Unavailable("uplink: the connection was given up", code="cut"))

    async def close(self) -> None:
        """Close the connection; the link can be used again."""
        if self._talk is not None:
            task = self._talk.task
            self.drop()
            await asyncio.wait({task}, timeout=1)


class _Talk:
    """One connection from its hello to its end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._frames, self._asking = Reader(TABLE, Side.ANSWERS), Asking(TABLE)
        self._waiting: dict[int, asyncio.Future[Message]] = {}
        self._greeted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended = False
        self.task = asyncio.create_task(self._read())

    @classmethod
    async def begun(cls, connection: socket.socket) -> _Talk:
        """Say hello and wait for the other one.

        Raises:
            BadFrame, Unavailable: it is none.
        """
        reader, writer = await asyncio.open_unix_connection(sock=connection)
        talk = cls(reader, writer)
        try:
            writer.write(TABLE.hello())
            await talk._greeted
        except BaseException:
            talk.end(Unavailable("uplink: no hello", code="cut"))
            raise
        return talk

    async def ask(self, kind: str, fields: Mapping[str, Any], blob: bytes) -> Message:
        if self.ended:
            raise Unavailable("uplink: the connection was cut", code="cut")
        question = self._asking.ask(kind, fields, blob)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._waiting[question.id] = answer
        try:
            self._writer.write(b"".join(question.frames))
            return await answer
        finally:
            del self._waiting[question.id]
            self._asking.give_up(question.id)

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(MAX_FRAME_BYTES):
                for message in self._frames.feed(data):
                    if self._asking.take(message) and not self._waiting[message.id].done():
                        self._waiting[message.id].set_result(message)
                if self._frames.greeted and not self._greeted.done():
                    self._greeted.set_result(None)
            self._frames.end()
            self.end(Unavailable("uplink: the connection was cut", code="cut"))
        except BadFrame as error:
            if error.code == "cut":
                self.end(Unavailable("uplink: the connection was cut", code="cut"))
            else:
                log.error("uplink.broke_protocol", code=error.code)
                self.end(error)
        except OSError:
            self.end(Unavailable("uplink: the connection was cut", code="cut"))

    def end(self, error: AgentError) -> None:
        """Let all that wait know, and close."""
        self.ended = True
        waiting: list[asyncio.Future[Any]] = [self._greeted, *self._waiting.values()]
        for future in waiting:
            if not future.done():
                future.set_exception(error)
        if not self._greeted.cancelled():
            self._greeted.exception()  # nobody need have waited for it
        self._writer.transport.abort()


class UplinkTransport:
    """`ports.Transport` by way of `uplink`.

    Args:
        link: the connection.
        to: the server, or the URL of a log that this host witnesses or of its collector of traces.
    """

    def __init__(self, link: Link, to: str = SERVER) -> None:
        self._link, self._to = link, to
        self.certificate = CertificateOfUplink(link)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        """Have one request sent, and read its whole answer.

        Raises:
            Unavailable: no uplink, no connection, a cut or the deadline; the request may or may not have arrived.
            BadReply: the answer breaks HTTP, a limit or the frames.
        """
        fields = {
            "to": self._to,
            "method": method,
            "path": path,
            "headers": {name: value for name, value in (headers or {}).items() if name != "authorization"},
            "timeout_ms": max(1, min(int(timeout_s * 1_000), LONGEST_WAIT_MS)),
        }
        answer = _good(await self._link.ask("exchange", fields, body, timeout_s + GRACE_S))
        return HttpReply(answer.fields["status"], answer.fields["headers"], answer.blob)

    async def close(self) -> None:
        """Close the connection to uplink; the transport can be used again."""
        await self._link.close()


class CertificateOfUplink:
    """The client certificate, whose key uplink holds: `client_certificate.Kept` by way of frames."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def present(self) -> tuple[bool, bytes]:
        """Whether uplink has a file, and the certificate in it."""
        answer = _good(await self._link.ask("certificate", {}, b"", CERTIFICATE_S))
        return answer.fields["there"], answer.blob

    async def request(self, *, anew: bool) -> bytes:
        """A signing request that uplink made for a key of its own."""
        return _good(await self._link.ask("make_request", {"anew": anew}, b"", CERTIFICATE_S)).blob

    async def take(self, pem: bytes) -> None:
        """Have uplink keep this certificate and show it."""
        _good(await self._link.ask("use_certificate", {}, pem, CERTIFICATE_S))

    async def show_none(self) -> None:
        """Have uplink show none."""
        _good(await self._link.ask("use_certificate", {}, b"", CERTIFICATE_S))


def _good(answer: Message) -> Message:
    if answer.kind != "failed":
        return answer
    code = answer.fields["code"]
    if code in BAD_REPLY:
        raise BadReply(f"uplink: the server's answer cannot be used: {code}", code=code)
    raise Unavailable(f"uplink: the server was not reached: {code}", code=code)
