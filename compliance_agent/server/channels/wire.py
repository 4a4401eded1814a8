"""Connections to where alerts go: to a public address unless the channel says `private`, always with a deadline, never redirected.

A name is resolved once and connected to at that very address, so that a second answer of the name server cannot lead elsewhere
(DNS rebinding). Every address that it resolves to must be allowed. TLS checks the name that was configured.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlsplit

import h11

from compliance_agent.errors import ConfigError, Unavailable

DEADLINE_S = 15.0
MOST_ANSWER_BYTES = 65_536


def tls_context(ca_file: str | None) -> ssl.SSLContext:
    """TLS 1.2 or newer under the system's authorities, or the one that is named alone.

    Raises:
        ConfigError: the file holds no certificate.
    """
    try:
        made = ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"ca_file: {ca_file} holds no certificate in PEM") from error
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    return made


async def address_of(host: str, port: int, *, private: bool) -> str:
    """The address to connect to.

    Raises:
        Unavailable: the name is not known, or leads to an address that is not public, code `private_address`.
    """
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unavailable(f"{host}: the name is not known", code="unknown_name") from error
    addresses = [str(item[4][0]) for item in found]
    if not private and not all(_public(address) for address in addresses):
        raise Unavailable(
            f"{host}: leads to an address that is not public",
            code="private_address",
            hint="say `private: true` on the channel if that is meant",
        )
    return addresses[0]


def _public(address: str) -> bool:
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None) or getattr(found, "sixtofour", None)
    return found.is_global and not found.is_multicast and (mapped is None or mapped.is_global)


@contextlib.asynccontextmanager
async def connected(
    host: str, port: int, tls: ssl.SSLContext | None, *, private: bool
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection that is gone after the block; everything in it within the deadline.

    Raises:
        Unavailable: it was refused, cut, or took too long.
    """
    writer: asyncio.StreamWriter | None = None
    try:
        async with asyncio.timeout(DEADLINE_S):
            address = await address_of(host, port, private=private)
            name = host if tls is not None else None
            reader, writer = await asyncio.open_connection(
                address, port, limit=MOST_ANSWER_BYTES, ssl=tls, server_hostname=name
            )
            yield reader, writer
    except TimeoutError as error:
        raise Unavailable(f"{host}: no answer within {DEADLINE_S:g} s", code="timed_out") from error
    except ssl.SSLError as error:
        raise Unavailable(f"{host}: TLS failed", code="tls_failed") from error
    except (OSError, asyncio.IncompleteReadError) as error:
        raise Unavailable(f"{host}: the connection was refused or cut", code="cut") from error
    finally:
        if writer is not None:
            writer.transport.abort()


class Post:
    """POST to one URL.

    Raises:
        ConfigError: it cannot be used.
    """

    def __init__(self, url: str, ca_file: str | None, *, private: bool) -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError("url: cannot be read") from error
        if parts.scheme not in {"https", "http"} or not parts.hostname or parts.username or parts.fragment:
            raise ConfigError("url: expected https://NAME[:PORT]/PATH without a user")
        if parts.scheme == "http" and not private:
            raise ConfigError("url: expected https; plain http only where the channel is private")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise ConfigError("url: expected printable ASCII")
        self._host = parts.hostname
        self._name = parts.netloc
        self._tls = tls_context(ca_file) if parts.scheme == "https" else None
        self._port = port or (443 if self._tls else 80)
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._private = private

    async def __call__(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer; what it says is not read.

        Raises:
            Unavailable: no answer, or none that is HTTP.
        """
        sent = [("host", self._name), ("content-length", str(len(body))), ("connection", "close"), *headers.items()]
        wire = h11.Connection(h11.CLIENT)
        async with connected(self._host, self._port, self._tls, private=self._private) as (reader, writer):
            request = h11.Request(method="POST", target=self._target, headers=sent)
            for part in (request, h11.Data(body), h11.EndOfMessage()):
                writer.write(wire.send(part) or b"")
            try:
                while not isinstance(event := wire.next_event(), h11.Response):
                    if event is h11.NEED_DATA:
                        wire.receive_data(await reader.read(4_096))
                    elif isinstance(event, h11.ConnectionClosed):
                        raise Unavailable(f"{self._host}: the connection ended before an answer", code="cut")
            except h11.RemoteProtocolError as error:
                raise Unavailable(f"{self._host}: the answer is not HTTP", code="bad_reply") from error
            return int(event.status_code)
