"""From when to when certificates hold (pure): of X.509 only what leads to its two dates, by RFC 5280, section 4.1.

A library for all of X.509 takes 9 MB of a process, for as long as it lives, and nothing else of a certificate is asked here: who it
is for and who vouches for it, openssl says. What breaks the form on the way to the dates or around them is an error, never a date.
"""

from __future__ import annotations

import base64
import binascii
import re
from datetime import UTC, datetime

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell

_BEGIN = re.compile(rb"-----BEGIN (?:X509 )?CERTIFICATE-----")
_PEM = re.compile(rb"-----BEGIN (X509 |)CERTIFICATE-----\s([A-Za-z0-9+/=\s]+)-----END \1CERTIFICATE-----")
_UTC_TIME = re.compile(rb"(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z")
_GENERALIZED_TIME = re.compile(rb"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z")
_INTEGER, _BIT_STRING, _SEQUENCE, _VERSION, _UTC, _GENERALIZED = 0x02, 0x03, 0x30, 0xA0, 0x17, 0x18
_OF_LENGTH = 4  # bytes at most that say how long something is


@dataclass(frozen=True)
class Validity:
    """When a certificate begins and ends to hold."""

    starts: datetime
    ends: datetime


def read_validities(raw: bytes) -> tuple[Validity, ...]:
    """Of each certificate in a PEM file, in their order.

    Raises:
        CannotTell: `unparsable`; none is there, or one makes no sense.
    """
    found = _PEM.findall(raw)
    if not found or len(found) != len(_BEGIN.findall(raw)):
        raise CannotTell("unparsable", "expected certificates in PEM form")
    try:
        return tuple(validity(base64.b64decode(b"".join(text.split()), validate=True)) for _, text in found)
    except (ValueError, binascii.Error) as error:
        raise CannotTell("unparsable", "expected certificates in PEM form") from error


def validity(der: bytes) -> Validity:
    """Of one certificate in DER.

    Raises:
        ValueError: it is none.
    """
    (whole,) = _items(der, _SEQUENCE)
    signed, _, _ = _items(whole, _SEQUENCE, _SEQUENCE, _BIT_STRING)
    fields = _split(signed)
    if fields and fields[0][0] == _VERSION:
        del fields[0]
    if [tag for tag, _ in fields[:6]] != [_INTEGER, *[_SEQUENCE] * 5]:
        raise ValueError("not the fields of a certificate")
    starts, ends = (_time(tag, text) for tag, text in _pair(_split(fields[3][1])))
    return Validity(starts, ends)


def _items(der: bytes, *tags: int) -> list[bytes]:
    """What these, one after the other and nothing else, hold."""
    found = _split(der)
    if tuple(tag for tag, _ in found) != tags:
        raise ValueError("not a certificate")
    return [content for _, content in found]


def _pair(times: list[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    if len(times) != 2:
        raise ValueError("not two dates")
    return times


def _split(der: bytes) -> list[tuple[int, bytes]]:
    """Tag and content of everything that stands here side by side."""
    at, found = 0, list[tuple[int, bytes]]()
    while at < len(der):
        tag, start, end = _item(der, at)
        found.append((tag, der[start:end]))
        at = end
    return found


def _item(der: bytes, at: int) -> tuple[int, int, int]:
    """Tag of what begins here, and where its content begins and ends. There is one way to write a length."""
    head = der[at : at + 2]
    if len(head) < 2:
        raise ValueError("cut short")
    size, start = head[1], at + 2
    if size >= 0x80:
        count = size - 0x80
        written = der[start : start + count]
        size, start = int.from_bytes(written, "big"), start + count
        if not 1 <= count <= _OF_LENGTH or written[:1] in {b"", b"\0"} or size < 0x80:
            raise ValueError("a length that is not written as it should be")
    if start + size > len(der):
        raise ValueError("cut short")
    return head[0], start, start + size


def _time(tag: int, text: bytes) -> datetime:
    form = {_UTC: _UTC_TIME, _GENERALIZED: _GENERALIZED_TIME}.get(tag)
    found = form.fullmatch(text) if form is not None else None
    if found is None:
        raise ValueError("not a date")
    year, month, day, hour, minute, second = map(int, found.groups())
    if tag == _UTC:
        year += 1900 if year >= 50 else 2000
    return datetime(year, month, day, hour, minute, second, tzinfo=UTC)
