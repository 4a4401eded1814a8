"""The little of the D-Bus protocol that listening takes: calls with plain arguments, and the heads of what comes back (pure).

Bodies are not read: a signal's path and member say which unit has changed, and the check asks for the rest itself. Whatever breaks
the form is `ValueError`, and the connection is given up.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

CALL, REPLY, ERROR, SIGNAL = 1, 2, 3, 4
MOST_BYTES = 1 << 20  # longest message taken; the protocol allows far longer ones
_PATH, _INTERFACE, _MEMBER, _ERROR_NAME, _REPLY_SERIAL, _DESTINATION, _SENDER, _SIGNATURE = range(1, 9)
_FIXED = 16
_TEXT = {"s", "o"}


@dataclass(frozen=True)
class Message:
    """The head of a message: its type, and of its fields the textual ones and which call it answers."""

    type: int
    fields: dict[int, str] = field(default_factory=dict)
    answers: int = 0

    @property
    def path(self) -> str:
        """The object it comes from."""
        return self.fields.get(_PATH, "")

    @property
    def member(self) -> str:
        """The signal's name."""
        return self.fields.get(_MEMBER, "")

    @property
    def error(self) -> str:
        """The name of the error, of an error."""
        return self.fields.get(_ERROR_NAME, "")


def call(serial: int, destination: str, path: str, interface: str, member: str, *arguments: str | int) -> bytes:
    """A method call with these texts and numbers as arguments."""
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
        signature = "".join("u" if isinstance(argument, int) else "s" for argument in arguments)
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
                at += 2 + message[at]
            else:
                raise ValueError("a field of a type that no head has")
    except (IndexError, struct.error, UnicodeDecodeError) as error:
        raise ValueError("a D-Bus message that is cut short") from error
    if at > end:
        raise ValueError("a D-Bus message that is cut short")
    return Message(message[1], fields, answers)


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


def _add(buffer: bytearray, value: str | int) -> None:
    _pad(buffer, 4)
    if isinstance(value, int):
        buffer += struct.pack("<I", value)
    else:
        raw = value.encode()
        buffer += struct.pack("<I", len(raw)) + raw + b"\0"
