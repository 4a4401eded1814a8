"""HTTP to a server that breaks every rule: one whole answer within the deadline, or an error of our tree; bounded in all."""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from compliance_agent.errors import BadReply, ConfigError, Unavailable
from compliance_agent.ports import HttpReply
from compliance_agent.transport.answer import MAX_BODY_BYTES
from compliance_agent.transport.http import HttpTransport
from tests.transport.peer import Peer, Script, Talk, answering, answering_once, peer

pytestmark = pytest.mark.anyio
GOOD = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n{"ok":true}'
HEAD = b"HTTP/1.1 200 OK\r\n"
QUICK_S = 0.4


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@asynccontextmanager
async def speaking(script: Script, prefix: str = "") -> AsyncIterator[tuple[HttpTransport, Peer]]:
    async with peer(script) as known:
        transport = HttpTransport(f"http://127.0.0.1:{known.port}{prefix}")
        try:
            yield transport, known
        finally:
            await transport.close()


async def post(transport: HttpTransport, timeout_s: float = 5.0, body: bytes = b'{"a":1}') -> HttpReply:
    return await transport.request("POST", "/api/v1/evidence", headers={"x": "y"}, body=body, timeout_s=timeout_s)


async def test_a_request_and_its_answer() -> None:
    async with speaking(answering(GOOD), prefix="/base") as (transport, known):
        reply = await post(transport)
        assert (reply.status, reply.body, reply.headers["content-type"]) == (200, b'{"ok":true}', "application/json")
        assert (await post(transport)).status == 200
    assert known.connections == 1, "the connection is kept"
    assert known.requests[0].startswith(b"POST /base/api/v1/evidence HTTP/1.1\r\n")
    assert known.requests[0].count(b"content-length: 7") == 1 and known.requests[0].endswith(b'{"a":1}')


@pytest.mark.parametrize(
    "reply",
    [
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;x=y\r\nh\r\n4\r\nello\r\n0\r\nTrailer: 1\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD + b"Content-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 8 + HEAD + b"Content-Length: 5\r\n\r\nhello",
        HEAD + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
async def test_every_lawful_form_of_an_answer_is_read(reply: bytes) -> None:
    async with speaking(answering(reply)) as (transport, _):
        for _ in range(2):
            assert (await post(transport)).body == b"hello"


async def test_an_answer_without_a_length_ends_with_the_connection() -> None:
    async with speaking(answering_once(b"HTTP/1.0 200 OK\r\n\r\nhello")) as (transport, _):
        assert (await post(transport)).body == b"hello"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    async with peer(answering(GOOD)) as elsewhere:
        location = f"http://127.0.0.1:{elsewhere.port}/".encode()
        reply = b"HTTP/1.1 %d Moved\r\nLocation: %s\r\nContent-Length: 0\r\n\r\n" % (status, location)
        async with speaking(answering(reply)) as (transport, known):
            assert (await post(transport)).status == status
        assert elsewhere.connections == 0 and len(known.requests) == 1


BAD: dict[str, bytes] = {
    "garbage": b"\x00\xff\x16\x03\x01garbage\r\n\r\n",
    "HTTP/0.9": b"<html>hello</html>",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "no status": b"HTTP/1.1 OK\r\n\r\n",
    "status 20": b"HTTP/1.1 20 OK\r\n\r\n",
    "status 1000": b"HTTP/1.1 1000 OK\r\n\r\n",
    "full-width status": "HTTP/1.1 \uff12\uff10\uff10 OK\r\n\r\n".encode(),
    "header without colon": HEAD + b"nothing here\r\n\r\n",
    "header with a space before its colon": HEAD + b"Content-Length : 5\r\n\r\nhello",
    "header with NUL": HEAD + b"A: b\x00c\r\n\r\n",
    "folded header": HEAD + b"Content-Length: 5\r\n Transfer-Encoding: chunked\r\n\r\nhello",
    "negative length": HEAD + b"Content-Length: -1\r\n\r\n",
    "length of letters": HEAD + b"Content-Length: abc\r\n\r\n",
    "length 1_0": HEAD + b"Content-Length: 1_0\r\n\r\n0123456789",
    "two lengths": HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length of 5,000 digits": HEAD + b"Content-Length: " + b"9" * 5_000 + b"\r\n\r\n",
    "unknown transfer coding": HEAD + b"Transfer-Encoding: gzip\r\n\r\nhello",
    "chunk size of letters": HEAD + b"Transfer-Encoding: chunked\r\n\r\nxyz\r\nhello\r\n",
    "chunk size negative": HEAD + b"Transfer-Encoding: chunked\r\n\r\n-5\r\nhello\r\n",
    "chunk size huge": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n",
    "chunk without its end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhelloXX5\r\n",
    "a chunk extension without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"x" * 70_000,
    "trailers without end": HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"A: b\r\n" * 20_000,
    "a header without end": HEAD + b"A: " + b"x" * 200_000,
    "many headers": HEAD + b"A: b\r\n" * 20_000 + b"\r\n",
    "a head of 60 KB at once": HEAD + b"A: " + b"x" * 60_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "a status line without end": b"HTTP/1.1 200 " + b"x" * 200_000,
    "informational answers without end": b"HTTP/1.1 100 Continue\r\n\r\n" * 10_000,
    "switching protocols": b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "a body that is too large": HEAD + b"Content-Length: 2097153\r\n\r\n" + b"x" * (MAX_BODY_BYTES + 1),
    "chunks that are too large": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 40,
    "a body to the end that is too large": HEAD + b"\r\n" + b"x" * (MAX_BODY_BYTES + 1),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("then_wait", [False, True], ids=["closed", "silent"])
async def test_an_answer_that_breaks_the_rules_is_refused(name: str, then_wait: bool) -> None:
    async with speaking(answering_once(BAD[name], then_wait=then_wait)) as (transport, known):
        with pytest.raises((BadReply, Unavailable)) as refused:
            await post(transport, timeout_s=QUICK_S if then_wait else 5.0)
        assert "\n" not in refused.value.line and "hello" not in refused.value.line
    assert len(known.requests) == 1, "what may have arrived is not sent twice"


async def test_an_answer_cut_at_every_byte_is_none() -> None:
    for length in range(len(GOOD)):

        async def script(talk: Talk, length: int = length) -> None:
            await talk.request()
            await talk.say(GOOD[:length])
            if length % 2:
                await asyncio.sleep(0.002)
                talk.cut()

        async with speaking(script) as (transport, known):
            with pytest.raises((BadReply, Unavailable)):
                await post(transport)
            assert len(known.requests) == 1


async def test_a_slow_drip_is_given_up_at_the_deadline() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        for byte in HEAD + b"Content-Length: 100000\r\n\r\n" + b"x" * 100_000:
            await talk.say(bytes([byte]))
            await asyncio.sleep(0.02)

    async with speaking(script) as (transport, _):
        began = time.monotonic()
        with pytest.raises(Unavailable) as given_up:
            await post(transport, timeout_s=QUICK_S)
        assert given_up.value.code == "timed_out"
        assert QUICK_S <= time.monotonic() - began < QUICK_S + 1


@pytest.mark.parametrize("reads", [True, False])
async def test_a_half_open_connection_is_given_up_at_the_deadline(reads: bool) -> None:
    """The peer takes the connection, or even the request, and never says a word."""

    async def script(talk: Talk) -> None:
        if reads:
            await talk.request()
        await asyncio.Event().wait()

    async with speaking(script) as (transport, _):
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await post(transport, timeout_s=QUICK_S, body=b"x" * 3_000_000)
        assert time.monotonic() - began < QUICK_S + 1


async def test_waiting_for_another_request_counts_towards_the_deadline() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await asyncio.Event().wait()

    async with speaking(script) as (transport, _):
        first = asyncio.ensure_future(post(transport, timeout_s=1.5))
        await asyncio.sleep(0.05)
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await post(transport, timeout_s=QUICK_S)
        assert time.monotonic() - began < QUICK_S + 0.5
        with pytest.raises(Unavailable):
            await first


async def test_a_kept_connection_that_was_closed_is_replaced_once() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.say(GOOD)

    async with speaking(script) as (transport, known):
        for _ in range(3):
            assert (await post(transport)).status == 200
            await asyncio.sleep(0.02)
        assert known.connections == 3


async def test_an_answer_that_begins_is_never_asked_for_again() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.say(GOOD)
        await talk.request()
        await talk.say(GOOD[:30])
        await asyncio.sleep(0.05)
        talk.cut()

    async with speaking(script) as (transport, known):
        await post(transport)
        with pytest.raises((Unavailable, BadReply)):
            await post(transport)
        assert len(known.requests) == 2


async def test_an_answer_to_the_next_request_is_not_taken_in_advance() -> None:
    async with speaking(answering(GOOD + GOOD.replace(b"true", b"evil"))) as (transport, known):
        for _ in range(3):
            assert (await post(transport)).body == b'{"ok":true}'
        assert known.connections == 3


async def test_what_is_said_before_it_is_asked_is_no_answer() -> None:
    """As a server does that says 408 to a connection at rest: the next request goes out on another one."""

    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.say(GOOD)
        await asyncio.sleep(0.02)
        await talk.say(GOOD.replace(b"true", b"evil"))
        await talk.request()
        await talk.say(GOOD.replace(b"true", b"evil"))

    async with speaking(script) as (transport, known):
        for number in (1, 2):
            assert (await post(transport)).body == b'{"ok":true}'
            await asyncio.sleep(0.1)
            assert known.connections == number


async def test_an_early_refusal_is_read_although_the_request_was_not() -> None:
    async def script(talk: Talk) -> None:
        await talk.reader.readuntil(b"\r\n\r\n")
        await talk.say(b"HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        await asyncio.sleep(0.3)

    async with speaking(script) as (transport, _):
        assert (await post(transport, body=b"x" * 20_000_000)).status == 413


async def test_nobody_there_and_no_such_name() -> None:
    async with peer(answering(GOOD)) as known:
        port = known.port
    for url in (f"http://127.0.0.1:{port}", "https://a..b", f"https://{'x' * 70}.example", "https://host.invalid"):
        transport = HttpTransport(url, connect_timeout_s=5)
        with pytest.raises(Unavailable):
            await post(transport)
        await transport.close()


@pytest.mark.parametrize("headers", [{"x": "a\r\nb: c"}, {"x": "a\0"}, {"a b": "c"}, {"x": "ü"}])
async def test_a_header_that_cannot_be_sent_is_a_mistake_of_ours(headers: dict[str, str]) -> None:
    async with speaking(answering(GOOD)) as (transport, known):
        with pytest.raises(ConfigError):
            await transport.request("GET", "/", headers=headers)
        assert known.requests == []


@pytest.mark.parametrize("url", ["https://mcp.example/ü", "https://mcp.example/a b"])
def test_an_address_that_cannot_be_asked_for_is_refused(url: str) -> None:
    with pytest.raises(ConfigError):
        HttpTransport(url)


async def test_a_cancelled_request_leaves_a_usable_transport() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        if talk.number == 1:
            await asyncio.Event().wait()
        await talk.say(GOOD)

    async with speaking(script) as (transport, _):
        task = asyncio.ensure_future(post(transport))
        await asyncio.sleep(0.05)
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled()
        assert (await post(transport)).status == 200


async def test_memory_stays_bounded_whatever_is_sent() -> None:
    async def script(talk: Talk) -> None:
        await talk.request()
        await talk.say(HEAD + b"Content-Length: 1000000000\r\n\r\n")
        for _ in range(1_000):
            await talk.say(b"x" * 1_000_000)

    gc.collect()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        async with speaking(script) as (transport, _):
            with pytest.raises(BadReply):
                await post(transport)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60_000, "KiB"
