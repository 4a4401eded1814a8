"""HTTP/1.1 to one server over asyncio: one kept connection, everything bounded, no redirect ever followed.

TLS is 1.3 only, under the pinned authority when one is configured (never the system's trust store then), with the name
checked. A kept connection that the server closed while idle is replaced once, and only when no byte of the answer came.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import urlsplit

from compliance_agent.errors import BadReply, ConfigError, Unavailable
from compliance_agent.ports import HttpReply
from compliance_agent.transport.answer import TARGET, Answer, CannotSend, ClosedWhileIdle, NotHttp, request

if TYPE_CHECKING:
    from compliance_agent.config import AgentConfig

PIECE_BYTES = 16_384  # as much as one record of TLS holds


class HttpTransport:
    """Exchanges with one server.

    Args:
        url: `https://host[:port][/prefix]`, or http to this machine.
        ca_file: PEM of the only authority to trust; the system's store when not given.
        client_cert_file: PEM for mutual TLS, with `client_key_file`.
        connect_timeout_s: for the connection and the TLS handshake.
        unverified: believe any certificate; only to fetch what is then held against a digest from elsewhere.

    Raises:
        ConfigError: a certificate file cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        ca_file: Path | None = None,
        client_cert_file: Path | None = None,
        client_key_file: Path | None = None,
        connect_timeout_s: float = 10.0,
        unverified: bool = False,
    ) -> None:
        parts = urlsplit(url)
        if not TARGET.fullmatch(parts.netloc + parts.path):
            raise ConfigError("mcp_url: expected ASCII letters, digits and punctuation only")
        self._host = parts.hostname or ""
        self._ca_file = ca_file
        self._tls = _tls_context(ca_file, client_cert_file, client_key_file) if parts.scheme == "https" else None
        if self._tls is not None and unverified:
            self._tls.check_hostname = False
            self._tls.verify_mode = ssl.CERT_NONE
        self._port = parts.port or (443 if self._tls else 80)
        self._prefix = parts.path.rstrip("/")
        self._host_header = parts.netloc
        self._connect_timeout_s = connect_timeout_s
        self._kept: _Line | None = None
        self._lock = asyncio.Lock()

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        """Send one request and read its whole answer, all within `timeout_s`.

        Raises:
            Unavailable: no connection, a cut or the deadline; the request may or may not have arrived.
            BadReply: the answer breaks HTTP or is too large.
            ConfigError: a header cannot be sent.
        """
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                return await self._exchange(method, path, dict(headers or {}), body)
        except TimeoutError as error:
            raise Unavailable(f"{self._host}: no whole answer within {timeout_s:g} s", code="timed_out") from error

    async def _exchange(self, method: str, path: str, headers: dict[str, str], body: bytes) -> HttpReply:
        if self._kept is not None:
            with contextlib.suppress(ClosedWhileIdle):
                return await self._once(method, path, headers, body)
        try:
            return await self._once(method, path, headers, body)
        except ClosedWhileIdle as error:
            raise Unavailable(f"{self._host}: the connection was closed before an answer", code="cut") from error

    async def _once(self, method: str, path: str, headers: dict[str, str], body: bytes) -> HttpReply:
        try:
            asked = request(method, self._prefix + path, self._host_header, headers, body)
        except CannotSend as error:
            raise ConfigError(f"{self._host}: the request's path or a header cannot be sent") from error
        line = self._kept or await self._connect()
        self._kept = None
        answer = Answer(method, self._host)
        try:
            reply = await line.exchange(asked, answer)
        except OSError as error:
            line.transport.abort()
            if isinstance(error, ssl.SSLError) and "ALERT" in str(error.reason):  # TLS 1.3 says no after the handshake
                raise Unavailable(
                    f"{self._host}: refuses this host's client certificate", code="certificate_refused"
                ) from error
            if answer.began:
                raise Unavailable(f"{self._host}: the connection was cut within the answer", code="cut") from error
            raise ClosedWhileIdle from error
        except NotHttp as error:
            line.transport.abort()
            if answer.ended:
                raise Unavailable(f"{self._host}: the connection was cut within the answer", code="cut") from error
            raise BadReply(f"{self._host}: the answer is not HTTP/1.1", code="bad_http") from error
        except BaseException:
            line.transport.abort()
            raise
        # An answer before it had read the request, or more than was asked for: not to be used again.
        if line.unspoilt and not answer.last_of_connection:
            self._kept = line
        else:
            line.transport.abort()
        return reply

    async def _connect(self) -> _Line:
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, line = await asyncio.get_running_loop().create_connection(
                    _Line, self._host, self._port, ssl=self._tls, server_hostname=self._host if self._tls else None
                )
        except ssl.SSLCertVerificationError as error:
            raise Unavailable(
                f"{self._host}: its certificate is not the one expected", code="bad_certificate"
            ) from error
        except ssl.SSLError as error:
            raise Unavailable(f"{self._host}: no TLS 1.3 connection", code="tls_failed") from error
        except (OSError, TimeoutError, ValueError) as error:  # ValueError: a name that cannot be one
            raise Unavailable(f"{self._host}:{self._port}: no connection", code="no_connection") from error
        return line

    def use_client_certificate(self, path: Path | None) -> None:
        """Show this certificate (PEM, with its key) from the next connection on; None shows none. The kept one is closed.

        Raises:
            ConfigError: the file cannot be used; nothing has changed.
        """
        if self._tls is None:
            return
        self._tls = _tls_context(self._ca_file, path, None)
        if self._kept is not None:
            line, self._kept = self._kept, None
            line.transport.abort()

    async def close(self) -> None:
        """Close the kept connection; a request under way is not waited for."""
        if self._kept is not None:
            line, self._kept = self._kept, None
            line.transport.close()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(1):
                    await line.over.wait()


class _Line(asyncio.BufferedProtocol):
    """One connection. Each piece of an answer is read where it arrives, so nothing of it waits unread for a task to run; and into
    memory of its own, for asyncio would ask for 256 KB of new memory each time, and give it back.
    """

    transport: asyncio.Transport

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self._piece = memoryview(bytearray(PIECE_BYTES))  # a view: asyncio's TLS reads into slices of it
        self._spoilt = False  # it ended, or something came that nobody had asked for
        self._asked: tuple[Answer, asyncio.Future[HttpReply]] | None = None

    @property
    def unspoilt(self) -> bool:
        """Whether it stands, what was sent has left, and nothing came that nobody had asked for."""
        return not self._spoilt and not self.transport.get_write_buffer_size()

    async def exchange(self, request: bytes, answer: Answer) -> HttpReply:
        """Send a request and wait for its whole answer. Nothing is drained: a server that refuses early answers before it has
        read all, and that answer is worth reading.

        Raises:
            ClosedWhileIdle, BadReply, NotHttp: as `Answer.take`.
            OSError: the connection is cut.
        """
        if self._spoilt:
            raise ClosedWhileIdle
        whole: asyncio.Future[HttpReply] = asyncio.get_running_loop().create_future()
        self._asked = answer, whole
        try:
            self.transport.write(request)
            return await whole
        finally:
            self._asked = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)  # what a connection over a socket gives

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._piece

    def buffer_updated(self, nbytes: int) -> None:
        if self._asked is None or self._asked[1].done():
            self._spoilt = True
            self.transport.abort()
        else:
            self._take(*self._asked, bytes(self._piece[:nbytes]))

    def eof_received(self) -> None:
        self._end(None)

    def connection_lost(self, error: Exception | None) -> None:
        self._end(error)
        self.over.set()

    def _end(self, error: Exception | None) -> None:
        first, self._spoilt = not self._spoilt, True
        if self._asked is None or self._asked[1].done():
            return
        if error is not None:
            self._asked[1].set_exception(error)
        elif first:
            self._take(*self._asked, b"")

    @staticmethod
    def _take(answer: Answer, whole: asyncio.Future[HttpReply], data: bytes) -> None:
        try:
            reply = answer.take(data)
        except Exception as error:  # the one who asked is told
            whole.set_exception(error)
        else:
            if reply is not None:
                whole.set_result(reply)


def to_server(config: AgentConfig) -> HttpTransport:
    """The way to the server that a configuration names, with the client certificate where there is one.

    Raises:
        ConfigError: there is no address, or a file of TLS cannot be used.
    """
    if config.mcp_url is None:
        raise ConfigError("mcp_url: required to deliver evidence")
    if config.client_key_file is not None:
        return HttpTransport(
            config.mcp_url,
            ca_file=config.mcp_ca_file,
            client_cert_file=config.client_cert_file,
            client_key_file=config.client_key_file,
        )
    transport = HttpTransport(config.mcp_url, ca_file=config.mcp_ca_file)
    if config.client_cert_file.exists():
        with contextlib.suppress(ConfigError):  # a damaged one is asked for anew (client_certificate.py)
            transport.use_client_certificate(config.client_cert_file)
    return transport


def _tls_context(ca_file: Path | None, cert_file: Path | None, key_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if cert_file:
            context.load_cert_chain(str(cert_file), str(key_file) if key_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError("mcp_ca_file, client_cert_file or client_key_file: not usable PEM") from error
    return context
