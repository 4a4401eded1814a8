"""HTTP/1.1 on the client's side, pure: a request as bytes, an answer from the pieces that come, everything bounded.

An answer in the plain form of our own server (its head whole in the first piece, one length, kept open) is read here, for a
quarter of the time; every other one, lawful or not, is h11's to read or to refuse. What is plain here h11 reads the same way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import h11

from compliance_agent.errors import BadReply
from compliance_agent.ports import HttpReply

MAX_HEAD_BYTES = 16_384
MAX_BODY_BYTES = 2_097_152
MAX_INFORMATIONAL = 8
TARGET = re.compile(r"[!-~]*")
_METHOD = re.compile(r"[A-Z]{1,16}")
_SENT_FIELD = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+: (?:[!-~](?:[ -~]*[!-~])?)?")  # RFC 9110 5.5, visible ASCII
_STATUS_LINE = re.compile(rb"HTTP/1\.1 ([2-5][0-9][0-9]) [ -~]*")
_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(rb"[ -~]*")
_LENGTH = re.compile(rb"[0-9]{1,7}")
_BODILESS = frozenset({204, 304})  # whatever length they name (RFC 9112 6.3)
_FRAMING = frozenset({b"transfer-encoding", b"connection", b"upgrade"})


class CannotSend(Exception):
    """A method, path or header that is not HTTP."""


class NotHttp(Exception):
    """What came is not HTTP/1.1, or was cut."""


class ClosedWhileIdle(Exception):
    """The connection was gone before any byte of an answer."""


def request(method: str, target: str, host: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """One request as it goes out.

    Raises:
        CannotSend: it would not be one request, or not this one.
    """
    lines = [f"host: {host}", f"content-length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    if not (
        _METHOD.fullmatch(method) and target and TARGET.fullmatch(target) and all(map(_SENT_FIELD.fullmatch, lines))
    ):
        raise CannotSend
    return "\r\n".join((f"{method} {target} HTTP/1.1", *lines, "\r\n")).encode("ascii") + body


class Answer:
    """One answer. `began`: a byte of it came. `ended`: the peer said that nothing more will come.

    Args:
        method: of the request that it answers.
        host: for messages.
    """

    def __init__(self, method: str, host: str) -> None:
        self.began = False
        self.ended = False
        self._method = method
        self._host = host
        self._status = 0
        self._headers = dict[str, str]()
        self._length = 0
        self._body = bytearray()
        self._informational = 0
        self._wire: h11.Connection | None = None

    @property
    def last_of_connection(self) -> bool:
        """Whether nothing may be asked after this one: it said so, or more came than was asked for."""
        if self._wire is None:
            return len(self._body) != self._length
        return self._wire.their_state is not h11.DONE or bool(self._wire.trailing_data[0])

    def take(self, data: bytes) -> HttpReply | None:
        """The whole answer, once its last piece came; no data is the end of the connection.

        Raises:
            ClosedWhileIdle: the connection was closed before its first byte.
            BadReply: it is too large, or goes on after it should have ended.
            NotHttp: it was cut, or is not HTTP.
        """
        if not data and not self.began:
            raise ClosedWhileIdle
        first, self.began, self.ended = not self.began, True, not data
        if first and not self._plain(data):
            self._wire = _asked(self._method)
        if self._wire is not None:
            return self._by_rules(self._wire, data)
        if not first:
            self._body += data
        if len(self._body) >= self._length:
            return HttpReply(self._status, self._headers, bytes(self._body[: self._length]))
        if self.ended:
            raise NotHttp
        return None

    def _plain(self, data: bytes) -> bool:
        """Whether the head is whole and in the plain form; it and what came after it are taken then."""
        head, end, rest = data.partition(b"\r\n\r\n")
        line, *lines = head.split(b"\r\n")
        status = _STATUS_LINE.fullmatch(line)
        if not end or status is None or len(head) > MAX_HEAD_BYTES // 2 or self._method == "HEAD":
            return False
        fields = _fields(lines) or {}
        length = fields.get(b"content-length", b"")
        if int(status[1]) in _BODILESS or not _LENGTH.fullmatch(length) or int(length) > MAX_BODY_BYTES:
            return False
        self._status, self._length = int(status[1]), int(length)
        self._headers = {name.decode("ascii"): value.decode("ascii") for name, value in fields.items()}
        self._body += rest
        return True

    def _by_rules(self, wire: h11.Connection, data: bytes) -> HttpReply | None:
        try:
            wire.receive_data(data)
            while True:
                event = wire.next_event()
                if event is h11.NEED_DATA:
                    return None
                if isinstance(event, h11.EndOfMessage):
                    return HttpReply(self._status, self._headers, bytes(self._body))
                self._note(event)
        except h11.RemoteProtocolError as error:
            raise NotHttp from error

    def _note(self, event: object) -> None:
        if isinstance(event, h11.Response):
            self._status = event.status_code
            self._headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
            self._refuse_above(MAX_HEAD_BYTES, sum(len(name) + len(value) for name, value in event.headers), "head")
        elif isinstance(event, h11.Data):
            self._body += event.data
            self._refuse_above(MAX_BODY_BYTES, len(self._body), "body")
        elif isinstance(event, h11.InformationalResponse) and self._informational < MAX_INFORMATIONAL:
            self._informational += 1
        else:
            raise BadReply(f"{self._host}: the answer is not one to this request", code="bad_http")

    def _refuse_above(self, most: int, found: int, what: str) -> None:
        if found > most:
            raise BadReply(f"{self._host}: the answer's {what} is larger than {most} bytes", code="too_large")


def _fields(lines: Iterable[bytes]) -> dict[bytes, bytes] | None:
    """The header's fields by lower-case name; None where one is not plain or says how the answer is framed, but for its length."""
    found = dict[bytes, bytes]()
    for line in lines:
        name, colon, value = line.partition(b":")
        name, value = name.lower(), value.strip(b" ")
        if not (colon and _NAME.fullmatch(name) and _VALUE.fullmatch(value)) or name in found:
            return None
        if name in _FRAMING and (name, value.lower()) != (b"connection", b"keep-alive"):
            return None
        found[name] = value
    return found


def _asked(method: str) -> h11.Connection:
    """h11 as it stands after a request of this method."""
    wire = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
    wire.send(h11.Request(method=method, target="/", headers=[("host", "-")]))
    wire.send(h11.EndOfMessage())
    return wire
