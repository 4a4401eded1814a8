"""A hostile HTTP peer on loopback: it follows a script byte by byte, and remembers what it was sent."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Script = Callable[["Talk"], Awaitable[None]]


@dataclass
class Talk:
    """One connection, seen from the peer."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    number: int

    async def request(self) -> bytes:
        """Read one whole request."""
        head = await self.reader.readuntil(b"\r\n\r\n")
        length = next(
            (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
        )
        return head + await self.reader.readexactly(length)

    async def say(self, data: bytes) -> None:
        """Send bytes; a client that has gone is fine."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    def cut(self) -> None:
        """Reset the connection: no orderly end, an error at the other side."""
        connection = self.writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


@dataclass
class Peer:
    """The listening side."""

    port: int = 0
    requests: list[bytes] = field(default_factory=list)
    connections: int = 0


@contextlib.asynccontextmanager
async def peer(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Peer]:
    """Serve each connection by the script until the block ends; nothing of it outlives the block."""
    known = Peer()
    tasks: set[asyncio.Task[None]] = set()
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        known.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        writers.add(writer)
        talk = Talk(reader, writer, known.connections)
        read = talk.request

        async def noted() -> bytes:
            known.requests.append(await read())
            return known.requests[-1]

        talk.request = noted  # type: ignore[method-assign]
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError, ssl.SSLError):
            await script(talk)
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    known.port = server.sockets[0].getsockname()[1]
    try:
        yield known
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        for writer in writers:
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=2)
        await asyncio.sleep(0)


def answering(reply: bytes) -> Script:
    """Answer every request of a connection with these bytes, and keep it open."""

    async def script(talk: Talk) -> None:
        while True:
            await talk.request()
            await talk.say(reply)

    return script


def answering_once(reply: bytes, *, then_wait: bool = False) -> Script:
    """Answer one request, then close or fall silent."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.say(reply)
        if then_wait:
            await asyncio.Event().wait()
        talk.writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await talk.writer.wait_closed()

    return script


# --- certificates --------------------------------------------------------------------------------


@dataclass
class Authority:
    """A certificate authority made for one test."""

    directory: Path
    name: str = "test authority"

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = _certificate(self.name, self.key, self.name, self.key, authority=True)
        self.pem = self.directory / f"{self.name.replace(' ', '-')}.pem"
        self.pem.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def server(self, host: str = "localhost", *, expired: bool = False, future: bool = False) -> ssl.SSLContext:
        """A server's side with a certificate from here."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = _certificate(host, key, self.name, self.key, expired=expired, future=future)
        return _context(self.directory, key, made)

    def self_signed(self, host: str = "localhost") -> ssl.SSLContext:
        """A server's side that vouches for itself."""
        key = ec.generate_private_key(ec.SECP256R1())
        return _context(self.directory, key, _certificate(host, key, host, key))


def _certificate(
    subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, issuer_key: ec.EllipticCurvePrivateKey, *,
    authority: bool = False, expired: bool = False, future: bool = False,
) -> x509.Certificate:  # fmt: skip
    now = datetime.now(UTC)
    begin = now + timedelta(days=1) if future else now - timedelta(days=30)
    end = now - timedelta(days=1) if expired else now + timedelta(days=30)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    builder = (
        x509.CertificateBuilder()
        .subject_name(name(subject))
        .issuer_name(name(issuer))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )
    if authority:
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = builder.add_extension(usage, critical=True)
    else:
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(subject)]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    return builder.sign(issuer_key, hashes.SHA256())


def _context(directory: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> ssl.SSLContext:
    path = directory / "server.pem"
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)
    return context
