"""The fields that every text format here shares, with one spelling each: a second spelling would let bytes change unseen."""

from __future__ import annotations

import base64
import binascii
import re

from compliance_agent.errors import BadEvidence

MAX_SIZE = 2**63 - 1  # of a tree, and of a cosignature's time (tlog-cosignature, "Format")
_DECIMAL = re.compile(r"0|[1-9][0-9]{0,18}")


def to_base64(raw: bytes) -> str:
    """Standard base64 with padding (RFC 4648, section 4)."""
    return base64.b64encode(raw).decode()


def from_base64(text: str, field: str, code: str) -> bytes:
    """The bytes of the only base64 text `to_base64` writes for them; BadEvidence names the field."""
    try:
        raw = base64.b64decode(text.encode("ascii"), validate=True)
    except (UnicodeEncodeError, binascii.Error):
        raw = b""
    if not raw or to_base64(raw) != text:
        raise BadEvidence(f"{field} is not canonical base64", code=code)
    return raw


def from_decimal(text: str, field: str, code: str) -> int:
    """A whole number up to 2^63-1, in ASCII digits without leading zeroes; BadEvidence names the field."""
    if not _DECIMAL.fullmatch(text) or int(text) > MAX_SIZE:
        raise BadEvidence(f"{field} is not a decimal number up to 2^63-1 without leading zeroes", code=code)
    return int(text)
