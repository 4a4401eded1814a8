"""The little of the D-Bus protocol that listening to the service manager and asking it takes (pure).

Of a signal only the head is read: its path and member say which unit has changed. Of answers three forms are read: a property of
texts, one that is a number, and the rows of ListUnitsByNames. Whatever breaks the form is `ValueError`, and the connection is given
up.
"""

from __future__ import annotations

import struct
from dataclasses import field

from compliance_agent.dataclass import dataclass

CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
MOST_BYTES = 1 << 20  # longest message taken; the protocol allows far longer ones
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)
_FIXED = 16
_TEXT = {"s", "o"}
_SIGNATURES: dict[type, str] = {str: "s", int: "u", tuple: "as"}
_NUMBERS = {b"\x01t\0": ("Q", 8), b"\x01u\0": ("I", 4)}  # as a property begins: the form, and where it stands
Argument = str | int | tuple[str, ...]


@dataclass(frozen=True)
class Message:
    """The head of a message: its type, and of its fields the textual ones and which call it answers."""

    type: int
    fields: dict[int, str] = field(default_factory=dict)
    answers: int = 0
    body: bytes = b""
    order: str = "<"

    @property
    def path(self) -> str:
        """The object it comes from."""
        return self.fields.get(_PATH, "")

    @property
    def member(self) -> str:
        """The signal's name."""
        return self.fields.get(_MEMBER, "")

    @property
    def signature(self) -> str:
        """Types of its body."""
        return self.fields.get(_SIGNATURE, "")

    @property
    def error(self) -> str:
        """The name of the error, of an error."""
        return self.fields.get(_ERROR_NAME, "")


def call(serial: int, destination: str, path: str, interface: str, member: str, *arguments: Argument) -> bytes:
    """A method call with these texts, numbers and lists of texts as arguments."""
    fields = [
        (_PATH, "o", path),
        (_INTERFACE, "s", interface),
        (_MEMBER, "s", member),
        (_DESTINATION, "s", destination),
    ]
    head = bytearray()
    for code, kind, value in fields:
        _pad(head, 8)
        head += bytes([code, 1]) + kind.encode() + b"\0"
        _add(head, value)
    body = bytearray()
    for argument in arguments:
        _add(body, argument)
    if arguments:
        _pad(head, 8)
        signature = "".join(_SIGNATURES[type(argument)] for argument in arguments)
        head += bytes([_SIGNATURE, 1]) + b"g\0" + bytes([len(signature)]) + signature.encode() + b"\0"
    message = bytearray(struct.pack("<cBBBIII", b"l", CALL, 0, 1, len(body), serial, len(head))) + head
    _pad(message, 8)
    return bytes(message + body)


def length(head: bytes) -> int:
    """How long the whole message is that begins with these 16 bytes.

    Raises:
        ValueError: not a message, or too long.
    """
    if len(head) < _FIXED or head[0:1] not in {b"l", b"B"} or head[3] != 1:
        raise ValueError("not a D-Bus message")
    body, _, fields = struct.unpack_from(f"{_order(head)}III", head, 4)
    whole = _FIXED + (fields + 7) // 8 * 8 + body
    if fields > MOST_BYTES or whole > MOST_BYTES:
        raise ValueError("a D-Bus message that is too long")
    return int(whole)


def read(message: bytes) -> Message:
    """The head of a whole message.

    Raises:
        ValueError: its fields break the form.
    """
    order, end = _order(message), _FIXED + struct.unpack_from(f"{_order(message)}I", message, 12)[0]
    at, fields, answers = _FIXED, dict[int, str](), 0
    try:
        while at < end:
            at = (at + 7) // 8 * 8
            code, signature_length = message[at], message[at + 1]
            signature = message[at + 2 : at + 2 + signature_length].decode("ascii")
            at += 3 + signature_length
            if signature in _TEXT:
                at = (at + 3) // 4 * 4
                (size,) = struct.unpack_from(f"{order}I", message, at)
                fields[code] = message[at + 4 : at + 4 + size].decode()
                at += 5 + size
            elif signature == "u":
                at = (at + 3) // 4 * 4
                (value,) = struct.unpack_from(f"{order}I", message, at)
                answers = value if code == _REPLY_SERIAL else answers
                at += 4
            elif signature == "g":
                fields[code] = message[at + 1 : at + 1 + message[at]].decode("ascii")
                at += 2 + message[at]
            else:
                raise ValueError("a field of a type that no head has")
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("a D-Bus message that is cut short") from error
    if at > end:
        raise ValueError("a D-Bus message that is cut short")
    return Message(message[1], fields, answers, message[(end + 7) // 8 * 8 :], order)


def property_of(answer: Message) -> str | tuple[str, ...]:
    """The value of a property that is a text or a list of texts, from the answer to `Properties.Get`.

    Raises:
        ValueError: it is neither.
    """
    body = _Body(answer)
    kind = body.take(body.body[0] + 2)[1:-1] if body.body else b""
    if answer.signature != "v" or kind not in {b"s", b"as"}:
        raise ValueError("not a property of texts")
    return body.text() if kind == b"s" else body.texts()


def number_of(answer: Message) -> int:
    """The value of a property that is a number without a sign of 64 or 32 bits, from the answer to `Properties.Get`.

    Raises:
        ValueError: it is another.
    """
    form, at = _NUMBERS.get(answer.body[:3], ("", 0))
    if answer.signature != "v" or not form or len(answer.body) != at + struct.calcsize(form):
        raise ValueError("not a property that is a number")
    return int(struct.unpack_from(f"{answer.order}{form}", answer.body, at)[0])


def unit_rows(answer: Message) -> list[tuple[str, str, str, str]]:
    """Id, load, active and sub state of each unit, from the answer to `ListUnitsByNames`.

    Raises:
        ValueError: another form.
    """
    if answer.signature != "a(ssssssouso)":
        raise ValueError("not rows of units")
    body, rows = _Body(answer), list[tuple[str, str, str, str]]()
    end = body.number() + (body.at + 7) // 8 * 8
    while body.at < end:
        body.align(8)
        name, _, load, active, sub, _, _ = (body.text() for _ in range(7))
        body.number()
        body.text()
        body.text()
        rows.append((name, load, active, sub))
    if body.at != end:
        raise ValueError("rows of units that do not end where they should")
    return rows


class _Body:
    """Reads values one after the other.

    Raises:
        ValueError: from any of its methods, where the body ends before the value.
    """

    def __init__(self, message: Message) -> None:
        self.body, self.at = message.body, 0
        self._order = message.order

    def align(self, to: int) -> None:
        self.at = (self.at + to - 1) // to * to

    def take(self, size: int) -> bytes:
        if self.at + size > len(self.body):
            raise ValueError("a D-Bus message that is cut short")
        self.at += size
        return self.body[self.at - size : self.at]

    def number(self) -> int:
        self.align(4)
        return int(struct.unpack(f"{self._order}I", self.take(4))[0])

    def text(self) -> str:
        raw = self.take(self.number() + 1)
        if raw.find(b"\0") != len(raw) - 1:
            raise ValueError("a text that does not end where it should")
        return raw[:-1].decode()

    def texts(self) -> tuple[str, ...]:
        end, found = self.number() + self.at, list[str]()
        while self.at < end:
            found.append(self.text())
        return tuple(found)


def object_path(unit: str) -> str:
    """The service manager's object for a unit: what is no letter or digit is written as `_` and two digits of hex."""
    first = unit[:1]
    escaped = "".join(c if c.isascii() and (c.isalpha() or c.isdigit()) else f"_{ord(c):02x}" for c in unit)
    if first.isdigit():
        escaped = f"_{ord(first):02x}{escaped[1:]}"
    return f"/org/freedesktop/systemd1/unit/{escaped}"


def _order(head: bytes) -> str:
    return "<" if head[0:1] == b"l" else ">"


def _pad(buffer: bytearray, to: int) -> None:
    buffer += bytes(-len(buffer) % to)


def _add(buffer: bytearray, value: Argument) -> None:
    _pad(buffer, 4)
    if isinstance(value, int):
        buffer += struct.pack("<I", value)
    elif isinstance(value, tuple):
        items = bytearray()
        for item in value:
            _add(items, item)
        buffer += struct.pack("<I", len(items)) + items
    else:
        raw = value.encode()
        buffer += struct.pack("<I", len(raw)) + raw + b"\0"
