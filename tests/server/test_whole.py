"""Short requests are answered in one step, and nobody can tell it from the answers."""

from __future__ import annotations

import asyncio
import base64
import re
from dataclasses import dataclass
from typing import Any

import pytest

from compliance_agent.evidence.canonical import canonical
from compliance_agent.server import guard
from compliance_agent.server.api import edge
from compliance_agent.server.whole import Whole
from tests.server.builder import FakeHost, Server, checkin_body, on_sqlite
from tests.server.test_guard import listening, opened, rest

pytestmark = [pytest.mark.anyio, on_sqlite]
EVIDENCE, CHECKIN = "/api/v1/evidence", "/api/v1/checkin"
USUAL = "content-encoding: identity\r\n"  # says nothing, and is not plain
_OWN = re.compile(rb'(x-request-id: |date: |"trace_id":"|"server_time":"|"document":"|"sig":")[^"\r]*')


@dataclass
class Counted:
    """How many answers were written in one step."""

    count: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    seen, right = Counted(), Whole._write

    def write(self: Whole, *arguments: Any) -> None:
        seen.count += 1
        right(self, *arguments)

    monkeypatch.setattr(Whole, "_write", write)
    return seen


def post(path: str, body: bytes, api_key: str = "", more: str = "", version: str = "1.1") -> bytes:
    key = f"authorization: Bearer {api_key}\r\n" if api_key else ""
    head = f"POST {path} HTTP/{version}\r\nhost: x\r\n{key}{more}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def bringing(host: FakeHost) -> bytes:
    """A request with the host's next bundle, as an agent spells it."""
    return canonical({"protocol": 1, "bundles": [host.next().item], "gaps": []})


async def answer_to(port: int, request: bytes) -> bytes:
    """All that comes back; the request says that the connection ends with it."""
    reader, writer = await opened(port, request)
    raw = await asyncio.wait_for(rest(reader), 5)
    writer.close()
    return raw


def plain(raw: bytes) -> tuple[list[bytes], bytes]:
    """An answer without what is of this one alone: its header lines, sorted, and its body."""
    head, _, body = _OWN.sub(rb"\1", raw).partition(b"\r\n\r\n")
    return sorted(head.lower().split(b"\r\n")), body


async def test_the_answers_are_those_of_the_usual_way(server: Server, counted: Counted) -> None:
    host, gone = await server.enrolled(), await server.enrolled("ws-09")
    await server.services.enrolment.revoke("clinic-1", gone.key_id, actor="test")
    first = bringing(host)
    asked: list[tuple[str, bytes, str]] = [
        (EVIDENCE, first, host.api_key),
        (EVIDENCE, first.replace(b'"sig":"', b'"sig":"AAAA'), host.api_key),
        (EVIDENCE, b'{"protocol":1,"bundles":[]}', host.api_key),
        (EVIDENCE, b"{", host.api_key),
        (EVIDENCE, b"", host.api_key),
        (EVIDENCE, first, ""),
        (EVIDENCE, first, gone.api_key),
        (CHECKIN, canonical(checkin_body(host)), host.api_key),
        (CHECKIN, canonical({"protocol": 9}), host.api_key),
    ]
    close, statuses = "connection: close\r\n", list[bytes]()
    async with listening(server.app) as port:
        await answer_to(port, post(EVIDENCE, first, host.api_key, close))  # known from here on
        await answer_to(port, post(CHECKIN, canonical(checkin_body(host)), host.api_key, close))
        before = counted.count
        for number, (path, body, key) in enumerate(asked, 1):
            one = await answer_to(port, post(path, body, key, close))
            assert counted.count == before + number
            usual = await answer_to(port, post(path, body, key, close + USUAL))
            assert counted.count == before + number, "not plain, and so the usual way"
            assert plain(one) == plain(usual)
            statuses.append(one[9:12])
    assert statuses == [b"200", b"422", b"422", b"400", b"400", b"401", b"403", b"200", b"422"]


@pytest.mark.parametrize(
    ("more", "version", "in_one_step"),
    [
        ("", "1.1", True),
        ("accept: */*\r\nuser-agent: x\r\n", "1.1", True),
        ("connection: close\r\n", "1.1", True),
        ("", "1.0", False),
        ("expect: 100-continue\r\n", "1.1", False),
        ("content-encoding: gzip\r\n", "1.1", False),
        ("connection: upgrade\r\nupgrade: h2c\r\n", "1.1", False),
    ],
)
async def test_only_what_is_plain_is_answered_in_one_step(
    server: Server, counted: Counted, more: str, version: str, in_one_step: bool
) -> None:
    host = await server.enrolled()
    body = bringing(host)
    async with listening(server.app) as port:
        reader, writer = await opened(port, post(EVIDENCE, body, host.api_key, more, version))
        raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert raw.startswith(b"HTTP/1.1 ")
        if b"100 Continue" in raw:
            raw = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        status = int(raw.split()[1])
        assert status == (400 if "gzip" in more or "h2c" in more else 200)  # no gzip, and what is no HTTP any more
        assert (b"connection: close" in raw) == ("close" in more or version == "1.0")
        assert counted.count == int(in_one_step)
        writer.close()


@pytest.mark.parametrize("path", [f"{EVIDENCE}?a=b", EVIDENCE.replace("evidence", "evidenc%65"), "/api/v1/receipts"])
async def test_another_path_goes_the_usual_way(server: Server, counted: Counted, path: str) -> None:
    host = await server.enrolled()
    async with listening(server.app) as port:
        raw = await answer_to(port, post(path, bringing(host), host.api_key, "connection: close\r\n"))
    assert raw[9:12] in {b"200", b"422"} and counted.count == 0


async def test_a_long_body_waits_until_its_host_is_known(server: Server, counted: Counted) -> None:
    async with listening(server.app) as port:
        head = post(EVIDENCE, b"x" * 65_537).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        reader, writer = await opened(port, head)  # no byte of the body
        assert b" 401 " in await asyncio.wait_for(reader.readline(), 5)
        assert counted.count == 0
        reader, other = await opened(port, head.replace(b"65537", b"65536"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), 0.1)
        other.write(b"x" * 65_536)
        assert b" 401 " in await asyncio.wait_for(reader.readline(), 5)
        assert counted.count == 1
        writer.close()
        other.close()


async def test_pieces_and_requests_on_each_others_heels(server: Server, counted: Counted) -> None:
    host = await server.enrolled()
    requests = [post(EVIDENCE, bringing(host), host.api_key) for _ in range(6)]
    async with listening(server.app) as port:
        reader, writer = await opened(port)
        for at in range(0, len(requests[0]), 300):
            writer.write(requests[0][at : at + 300])
            await asyncio.sleep(0.001)
        assert b'"stored"' in await _body(reader) and counted.count == 1
        get = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(requests[1] + requests[2] + get + requests[3][:-7])
        assert [b'"stored"' in await _body(reader) for _ in range(3)] == [True, True, False]
        writer.write(requests[3][-7:] + requests[4])
        assert [b'"stored"' in await _body(reader) for _ in range(2)] == [True, True]
        await asyncio.sleep(0.01)
        writer.write(requests[5])
        assert b'"stored"' in await _body(reader)
        writer.close()
    assert counted.count >= 3


async def _body(reader: asyncio.StreamReader) -> bytes:
    """Of one answer; the acknowledgement in it decoded."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 200")
    found = re.search(rb"content-length: ([0-9]+)", head)
    assert found is not None
    raw = await reader.readexactly(int(found[1]))
    document = re.search(rb'"document":"([^"]+)"', raw)
    return raw if document is None else base64.b64decode(document[1])


async def test_a_body_that_does_not_come_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "BODY_DEADLINE_S", 0.1)
    monkeypatch.setattr(guard, "GRACE_S", 0.0)
    host = await server.enrolled()
    async with listening(server.app) as port:
        raw = await answer_to(port, post(EVIDENCE, bringing(host), host.api_key)[:-1])
    assert raw.startswith(b"HTTP/1.1 408") and b'"too_slow"' in raw


async def test_a_bug_and_a_late_answer_are_problems(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await server.enrolled()
    request = post(EVIDENCE, bringing(host), host.api_key, "connection: close\r\n")

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("planted")

    async def never(*_: object) -> None:
        await asyncio.Event().wait()

    async with listening(server.app) as port:
        monkeypatch.setattr(type(server.services.ingest), "submit", broken)
        raw = await answer_to(port, request)
        assert raw.startswith(b"HTTP/1.1 500") and b"planted" not in raw
        monkeypatch.setattr(type(server.services.ingest), "submit", never)
        monkeypatch.setattr(edge, "ANSWER_DEADLINE_S", 0.05)
        raw = await answer_to(port, request)
        assert raw.startswith(b"HTTP/1.1 503") and b'"too_late"' in raw and b"retry-after: 5" in raw.lower()


async def test_a_client_that_went_costs_nothing_more(server: Server, counted: Counted) -> None:
    """Its bundle is stored all the same, and what was not sent whole is not."""
    host = await server.enrolled()
    first, second = (bringing(host) for _ in range(2))
    async with listening(server.app) as port:
        hurried = "prefer: wait=0\r\n"
        for request in (post(EVIDENCE, first, host.api_key, hurried), post(EVIDENCE, second, host.api_key)[:-1]):
            _, writer = await opened(port, request)
            await asyncio.sleep(0.02)
            writer.close()
        await asyncio.sleep(0.1)
        assert counted.count == 1
        assert server.services.ingest.totals.stored == 1
