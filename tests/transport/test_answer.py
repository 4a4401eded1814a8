"""What goes out is one request, and what is read without h11 is what h11 would have read."""

from __future__ import annotations

import itertools

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadReply
from compliance_agent.ports import HttpReply
from compliance_agent.transport.answer import Answer, CannotSend, ClosedWhileIdle, NotHttp, request
from tests.transport.test_http import BAD, GOOD

LINES = (
    b"content-length: 5", b"Content-Length:5", b"content-length: 6", b"content-length:\t5", b"content-length: 5, 5",
    b"content-length: +5", b"content-length: 0", b"content-length: 00000005", b"content-length: 2097153",
    b"content-length : 5", b" content-length: 5", b"", b"transfer-encoding: chunked", b"Transfer-Encoding: identity",
    b"connection: close", b"Connection: keep-alive", b"connection: x, close", b"upgrade: h2c", b"x: \xff", b"x: a\tb",
    b"x: a\x00b", b"x: a\rb", b"x: a\nb", b"x:", b"x y: z", b"no colon", b": no name", b"content-type: text/plain ",
)  # fmt: skip
STATUS = (
    b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.0 200 OK", b"HTTP/1.1 100 Continue",
    b"HTTP/1.1 204 No Content", b"HTTP/1.1 304 Not Modified", b"HTTP/1.1 503 \xff", b"HTTP/1.1 101 Switching",
    b"HTTP/1.1  200 OK", b"http/1.1 200 OK", b"HTTP/1.1 600 ?",
)  # fmt: skip
BODIES = (b"hello", b"hell", b"hello!", b"5\r\nhello\r\n0\r\n\r\n")
Outcome = tuple[HttpReply | type[Exception] | None, bool]


class ByH11(Answer):
    def _plain(self, data: bytes) -> bool:
        return False


def outcome(answer: Answer, pieces: list[bytes]) -> Outcome:
    """What came of these pieces, and whether the connection may be used again."""
    try:
        for piece in pieces:
            if (reply := answer.take(piece)) is not None:
                return reply, answer.last_of_connection
    except (BadReply, NotHttp, ClosedWhileIdle) as error:
        return type(error), True
    return None, True


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("body", BODIES)
def test_whatever_is_read_here_h11_reads_the_same(method: str, body: bytes) -> None:
    """Every status with every line beside a length of 5, before and after it, and alone; whole, and cut within head and body."""
    for status, line in itertools.product(STATUS, LINES):
        for lines in ((line,), (line, b"content-length: 5"), (b"content-length: 5", line)):
            data = b"\r\n".join((status, *lines, b"", body))
            for place in (len(data), len(data) - 2, 30):
                pieces = [data[:place], *filter(None, (data[place:],)), b""]
                assert outcome(Answer(method, "peer"), pieces) == outcome(ByH11(method, "peer"), pieces), pieces


@pytest.mark.parametrize("name", BAD)
def test_no_answer_that_breaks_the_rules_is_read_here(name: str) -> None:
    assert outcome(Answer("POST", "peer"), [BAD[name], b""])[0] in {BadReply, NotHttp}


def test_the_plain_form_is_read_without_h11(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_h11(*_: object, **__: object) -> None:
        raise AssertionError("h11 was asked")

    monkeypatch.setattr(h11, "Connection", no_h11)
    for length in range(GOOD.index(b"{"), len(GOOD) + 1):
        reply, last = outcome(Answer("POST", "peer"), [*filter(None, (GOOD[:length], GOOD[length:])), b""])
        assert isinstance(reply, HttpReply) and (reply.status, reply.body, last) == (200, b'{"ok":true}', False)


SOUND = st.dictionaries(
    st.from_regex(r"x-[a-z]{1,5}", fullmatch=True), st.from_regex(r"[!-~]{1,9}", fullmatch=True), max_size=2
)
ANY = st.dictionaries(st.text(max_size=5), st.text(max_size=9), max_size=2)


@given(
    st.sampled_from(("GET", "POST", "G T", "")), st.text(st.characters(max_codepoint=0x17F), max_size=9),
    SOUND | ANY,
    st.binary(max_size=40),
)  # fmt: skip
def test_what_goes_out_is_one_request_and_this_one(
    method: str, path: str, headers: dict[str, str], body: bytes
) -> None:
    try:
        sent = request(method, "/" + path, "peer:1", headers, body)
    except CannotSend:
        return
    wire = h11.Connection(h11.SERVER)
    wire.receive_data(sent)
    asked = wire.next_event()
    assert isinstance(asked, h11.Request) and (asked.method.decode(), asked.target.decode()) == (method, "/" + path)
    given_headers = {name.lower(): value for name, value in headers.items()}
    assert {name.decode(): value.decode() for name, value in asked.headers} == {
        "host": "peer:1", "content-length": str(len(body)), **given_headers,
    }  # fmt: skip
    read = b""
    while isinstance(event := wire.next_event(), h11.Data):
        read += event.data
    assert read == body and isinstance(event, h11.EndOfMessage) and wire.trailing_data == (b"", False)
