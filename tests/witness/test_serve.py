"""The HTTP server under a witness: bounded in every direction, also against peers that send bytes one by one or never."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.ports import HttpReply
from compliance_agent.transport.http import HttpTransport
from compliance_agent.transport.serve import HttpServer, tls_context

NOON = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


class Echo:
    """Answers with what it was asked; `hold` makes it wait."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, bytes]] = []
        self.hold: asyncio.Event | None = None
        self.entered = asyncio.Event()

    async def __call__(self, method: str, target: str, body: bytes) -> HttpReply:
        self.seen.append((method, target, body))
        self.entered.set()
        if target == "/bug":
            raise KeyError("secret")
        if self.hold:
            await self.hold.wait()
        return HttpReply(200, {"content-type": "text/plain"}, body or b"hello\n")


@asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[tuple[Echo, HttpServer, int]]:
    echo = Echo()
    server = HttpServer(echo, lambda: NOON, **options)
    port = await server.start("127.0.0.1", 0)
    try:
        yield echo, server, port
    finally:
        await server.stop(0.1)


async def raw(port: int, *parts: bytes, eof: bool = False) -> bytes:
    """All that comes back until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        for part in parts:
            writer.write(part)
            await writer.drain()
        if eof:
            writer.write_eof()
        async with asyncio.timeout(5):
            return await reader.read()
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def ask(port: int, method: str, target: str, body: bytes = b"") -> HttpReply:
    transport = HttpTransport(f"http://127.0.0.1:{port}")
    try:
        return await transport.request(method, target, body=body)
    finally:
        await transport.close()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


async def test_a_kept_connection_answers_again_and_again() -> None:
    async with serving() as (echo, _, port):
        transport = HttpTransport(f"http://127.0.0.1:{port}")
        for number in range(20):
            reply = await transport.request("POST", f"/{number}", body=b"%d" % number)
            assert (reply.status, reply.body) == (200, b"%d" % number)
            assert reply.headers["date"] == "Sun, 22 Nov 2026 12:00:00 GMT"
        await transport.close()
    assert len(echo.seen) == 20


async def test_pipelined_and_byte_by_byte() -> None:
    one = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nhi"
    last = b"GET /b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    async with serving() as (echo, _, port):
        answer = await raw(port, *(bytes([byte]) for byte in one), one + last)
        assert answer.count(b"HTTP/1.1 200") == 3
    assert echo.seen == [("POST", "/a", b"hi")] * 2 + [("GET", "/b", b"")]


async def test_chunked_bodies_continue_and_head() -> None:
    async with serving(max_body_bytes=10) as (echo, _, port):
        chunked = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
        assert status(await raw(port, chunked, b"3\r\nabc\r\n0\r\n\r\n")) == 200
        assert status(await raw(port, chunked, b"b\r\n" + b"x" * 11 + b"\r\n0\r\n\r\n")) == 413
        waits = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\nConnection: close\r\n\r\n"
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(waits)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100")
        writer.write(b"ok")
        assert status(await reader.read()) == 200
        writer.close()
        await writer.wait_closed()
        head = await raw(port, b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert status(head) == 200 and head.endswith(b"\r\n\r\n")
    assert [body for _, _, body in echo.seen] == [b"abc", b"ok", b""]


async def test_too_large_is_refused_before_it_is_sent() -> None:
    """The refusal arrives although the peer goes on sending."""
    async with serving(max_body_bytes=65_536) as (echo, _, port):
        reply = await ask(port, "POST", "/", bytes(1_000_000))
        assert reply.status == 413
        assert (await ask(port, "POST", "/", bytes(65_536))).status == 200
    assert [len(body) for _, _, body in echo.seen] == [65_536]


@pytest.mark.parametrize(
    "sent",
    [
        b"hello\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"\x16\x03\x01\x00\xa5\x01\x00",
        b"\0" * 40 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000,
    ],
)
async def test_what_is_not_http_is_refused(sent: bytes) -> None:
    async with serving() as (echo, _, port):
        answer = await raw(port, sent, eof=True)
        assert status(answer) in {400, 431, 501, 505}
    assert not echo.seen


async def test_a_cut_request_is_never_answered_by_the_handler() -> None:
    async with serving() as (echo, _, port):
        await raw(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc", eof=True)
    assert not echo.seen


async def test_slow_requests_idle_peers_and_slow_answers_end() -> None:
    async with serving(deadline_s=0.1, idle_s=0.1) as (echo, _, port):
        assert await raw(port) == b""
        assert status(await raw(port, b"GET / HT")) == 408
        assert status(await raw(port, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")) == 408
        echo.hold = asyncio.Event()
        assert status(await raw(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")) == 503


async def test_a_bug_is_a_500_without_words() -> None:
    async with serving() as (_, _, port):
        reply = await ask(port, "GET", "/bug")
        assert (reply.status, reply.body) == (500, b"500\n")


async def test_more_connections_than_allowed_are_closed() -> None:
    async with serving(max_connections=2) as (_, _, port):
        kept = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        for _, writer in kept:
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert [(await reader.readuntil(b"\r\n"))[:12] for reader, _ in kept] == [b"HTTP/1.1 200"] * 2
        with pytest.raises(AgentError):
            await ask(port, "GET", "/")
        for _, writer in kept:
            writer.close()


async def test_stopping_finishes_what_was_begun() -> None:
    async with serving() as (echo, server, port):
        echo.hold = asyncio.Event()
        idle_reader, idle = await asyncio.open_connection("127.0.0.1", port)
        asked = asyncio.create_task(ask(port, "GET", "/"))
        await echo.entered.wait()
        stopping = asyncio.create_task(server.stop(5))
        await asyncio.sleep(0)
        echo.hold.set()
        assert (await asked).status == 200
        await stopping
        assert await idle_reader.read() == b""
        idle.close()


async def test_an_address_that_is_taken() -> None:
    async with serving() as (_, _, port):
        with pytest.raises(AgentError) as refused:
            await HttpServer(Echo(), lambda: NOON).start("127.0.0.1", port)
        assert "EADDRINUSE" in str(refused.value)


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("text")
    with pytest.raises(ConfigError):
        tls_context(tmp_path / "x.pem", tmp_path / "x.pem")
    with pytest.raises(ConfigError):
        tls_context(tmp_path / "absent", tmp_path / "x.pem")
    assert issubclass(ssl.SSLError, OSError)
