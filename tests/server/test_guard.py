"""The wire: clients that take their time, or send what never ends, are refused while others go on."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
import uvicorn

from compliance_agent.server import guard
from compliance_agent.server.api import beside, edge
from compliance_agent.server.guard import Crowd, room
from compliance_agent.server.whole import answered_by
from tests.server.builder import Server, checkin_body

pytestmark = pytest.mark.anyio
SLOW = 2_000
App = Callable[..., Awaitable[None]]


async def echo(_scope: Any, receive: Any, send: Any) -> None:
    """Reads the body and answers with its length."""
    length = 0
    while (message := await receive())["type"] == "http.request":
        length += len(message["body"])
        if not message["more_body"]:
            break
    await answer(send, b"%d" % length)


async def careless(_scope: Any, _receive: Any, send: Any) -> None:
    """Answers without reading."""
    await answer(send, b"ok")


async def endless(_scope: Any, _receive: Any, send: Any) -> None:
    """An answer of 64 MB."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(1_000):
        await send({"type": "http.response.body", "body": b"x" * 65_536, "more_body": True})


async def answer(send: Any, body: bytes) -> None:
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@contextlib.asynccontextmanager
async def listening(app: App, most: int = 100) -> AsyncIterator[int]:
    """The app behind the guarded protocol on loopback, in this loop; its port."""
    protocol = answered_by(app.whole if isinstance(app, beside.App) else {}, Crowd(most))
    config = uvicorn.Config(app, http=protocol, ws="none", lifespan="off", log_config=None)
    config.load()
    state = uvicorn.Server(config).server_state
    with socket.create_server(("127.0.0.1", 0), backlog=4_096) as listener:
        server = await asyncio.get_running_loop().create_server(
            lambda: protocol(config=config, server_state=state, app_state={}),
            sock=listener,
            backlog=4_096,  # or it listens again, with a queue of a hundred
        )
        try:
            yield listener.getsockname()[1]
        finally:
            server.close()
            for connection in list(state.connections):
                connection.transport.abort()
            await server.wait_closed()


async def opened(port: int, first: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(first)
    return reader, writer


async def rest(reader: asyncio.StreamReader) -> bytes:
    """What comes until the connection ends. Where the client was still sending, its end may overtake the reason."""
    taken = b""
    with contextlib.suppress(ConnectionError):
        while piece := await reader.read(1 << 20):
            taken += piece
    return taken


def refused(raw: bytes) -> tuple[int, str]:
    """Status and code of the only answer on a connection that ended, which is a problem document."""
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head and b"connection: close" in head
    document = json.loads(body)
    assert document["status"] == int(head.split()[1]) and document["trace_id"].encode() in head
    return document["status"], document["code"]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Deadlines that a test can wait for."""
    monkeypatch.setattr(guard, "HEAD_DEADLINE_S", 0.2)
    monkeypatch.setattr(guard, "BODY_DEADLINE_S", 0.2)
    monkeypatch.setattr(guard, "GRACE_S", 0.0)
    monkeypatch.setattr(guard, "STALL_DEADLINE_S", 0.2)


HEAD = b"POST /x HTTP/1.1\r\nhost: x\r\n"


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (HEAD, b"a: b\r\n"),
        (HEAD + b"x: ", b"y"),
        (b"POST /", b"a"),
        (HEAD + b"content-length: 100000\r\n\r\n", b"x"),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        (b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n", b"\r\n"),
        (b"GET /x HTTP/1.1\r\nhost: x\r\n\r\nPOST /", b"a"),
    ],
    ids=["nothing", "empty lines", "headers", "a header", "an address", "a body", "chunks", "lines after", "a second"],
)
@pytest.mark.parametrize("app", [echo, careless])
async def test_dripping_is_no_way_to_stay(quick: None, app: App, first: bytes, drip: bytes) -> None:
    async with listening(app) as port:
        reader, writer = await opened(port, first)

        async def dripping() -> None:
            while drip:
                writer.write(drip[:1])
                await asyncio.sleep(0.02)
                writer.write(drip[1:])

        task = asyncio.create_task(dripping())
        raw = await asyncio.wait_for(rest(reader), 3)
        task.cancel()
        writer.close()
    assert raw or drip
    if b"HTTP/1.1 4" in raw:
        assert refused(raw[raw.rindex(b"HTTP/1.1") :]) == (408, "too_slow")


async def test_without_the_guard_it_would_stay(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard.Guarded, "_watch", lambda self: None)
    async with listening(echo) as port:
        reader, writer = await opened(port, HEAD)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(), 0.5)
        writer.close()


@pytest.mark.parametrize(
    "sent",
    [
        HEAD + b"x: " + b"y" * 20_000 + b"\r\n\r\n",
        HEAD + b"x: " + b"y" * 200_000,
        HEAD + b"a: b\r\n" * 4_000 + b"\r\n",
        b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        HEAD + b"transfer-encoding: chunked\r\n\r\n0\r\n" + b"a: b\r\n" * 40_000 + b"\r\n",
    ],
    ids=["one long", "one endless", "many", "a long address", "trailers"],
)
async def test_a_head_is_16_kb_at_most(sent: bytes) -> None:
    async with listening(echo) as port:
        reader, writer = await opened(port, sent)
        raw = await asyncio.wait_for(rest(reader), 3)
        assert not raw or refused(raw) == (431, "head_too_large")
        writer.close()


async def test_a_head_of_almost_16_kb_is_taken_in_pieces_too() -> None:
    async with listening(echo) as port:
        reader, writer = await opened(port)
        for piece in (HEAD, b"x: " + b"y" * 8_000, b"y" * 8_000 + b"\r\ncontent-length: 2\r\n\r\n", b"o", b"k"):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.01)
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n2"), 3)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_chunks_are_counted_with_what_frames_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MOST_WIRE_BYTES", 60_000)
    async with listening(careless) as port:
        reader, writer = await opened(port, HEAD + b"transfer-encoding: chunked\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), 3)).startswith(b"HTTP/1.1 200")
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(b"1\r\nx\r\n" * 1_000)
                await writer.drain()
                await asyncio.sleep(0.01)
        raw = await asyncio.wait_for(rest(reader), 3)
        assert not raw or refused(raw) == (413, "too_large")
        writer.close()


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"GET /x HTTP/9.9\r\n\r\n", b"\0" * 40])
async def test_what_is_not_http_is_a_problem_too(sent: bytes) -> None:
    async with listening(echo) as port:
        reader, writer = await opened(port, sent)
        assert refused(await asyncio.wait_for(reader.read(), 3)) == (400, "bad_http")
        writer.close()


async def test_an_answer_that_nobody_reads_is_given_up(quick: None) -> None:
    async with listening(endless) as port:
        reader, writer = await opened(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        await asyncio.sleep(0.8)  # the pipes are full, and then it is over
        assert len(await asyncio.wait_for(rest(reader), 3)) < 60_000_000
        writer.close()


async def test_an_idle_connection_holds_nothing_of_its_last_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests that came on the heels of each other are answered all the same, and so is the next after a pause."""
    made = list[guard.Guarded]()
    right = guard.Crowd.came

    def came(self: Crowd, connection: guard.Guarded) -> None:
        made.append(connection)
        right(self, connection)

    monkeypatch.setattr(guard.Crowd, "came", came)
    request = HEAD + b"content-length: 3\r\n\r\nabc"
    async with listening(echo) as port:
        reader, writer = await opened(port)
        for number in (1, 3, 1):
            writer.write(request * number)
            for _ in range(number):
                raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n3"), 3)
                assert raw.startswith(b"HTTP/1.1 200")
            await asyncio.sleep(0)
            held: list[Any] = [made[0].cycle, made[0].scope, made[0].headers]
            assert held == [None, None, []]
        writer.write(request[:-1])
        await asyncio.sleep(0.05)
        assert made[0].cycle is not None  # under way
        writer.write(b"c")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n3"), 3)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_the_longest_idle_makes_room() -> None:
    async with listening(echo, most=3) as port:
        used = await opened(port)
        idle = await opened(port)
        await asyncio.sleep(0.05)
        used[1].write(HEAD + b"content-length: 1\r\n\r\n")  # under way: it is not idle, though older
        other = await opened(port)
        await asyncio.sleep(0.05)
        new = await opened(port, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        assert await asyncio.wait_for(rest(idle[0]), 3) == b""
        used[1].write(b"x")
        for reader, length in ((new[0], b"0"), (used[0], b"1")):
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n" + length), 3)
            assert raw.startswith(b"HTTP/1.1 200")
        assert not other[0].at_eof()
        for _, writer in (used, idle, other, new):
            writer.close()


async def test_two_thousand_slow_clients_end_while_another_clinic_checks_in(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert room() > 2 * SLOW, "this test needs 4,500 open files"
    monkeypatch.setattr(guard, "HEAD_DEADLINE_S", 2.0)
    host = await server.enrolled("ws-02", "clinic-2")
    async with listening(server.app, most=SLOW + 50) as port:
        slow = await asyncio.gather(*(opened(port, HEAD) for _ in range(SLOW)))
        base_url = f"http://127.0.0.1:{port}"
        async with httpx2.AsyncClient(base_url=base_url, headers=host.headers, timeout=10) as client:
            for number in range(50):
                for _, writer in slow[number::50]:
                    writer.write(b"x")
                reply = await client.post("/api/v1/checkin", json=checkin_body(host))
                assert reply.status_code == 200, reply.text
            answers = await asyncio.wait_for(asyncio.gather(*(rest(reader) for reader, _ in slow)), 10)
            assert {refused(raw) for raw in answers if raw} == {(408, "too_slow")}
            assert (await client.post("/api/v1/checkin", json=checkin_body(host))).status_code == 200
        for _, writer in slow:
            writer.close()


async def test_an_answer_that_does_not_begin_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(_store: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(edge, "ANSWER_DEADLINE_S", 0.05)
    monkeypatch.setattr(type(server.services.store), "ready", never)
    reply = await server.client.get("/readyz")
    assert (reply.status_code, reply.json()["code"], reply.headers["retry-after"]) == (503, "too_late", "5")
