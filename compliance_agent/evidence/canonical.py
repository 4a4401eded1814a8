"""The bytes that are signed: RFC 8785 (JCS), in a profile where the standard library writes exactly that.

Profile: objects with ASCII keys, arrays, strings without lone surrogates, integers within +-(2^53-1), true, false,
null. No floats. Within it `json.dumps` with sorted keys equals JCS byte for byte (tests compare with the independent
`rfc8785`), so the file on disk *is* the canonical form: what is hashed, signed, sent and shown are the same bytes.
"""

from __future__ import annotations

import json
from typing import Any

from compliance_agent.documents import MAX_DEPTH, read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.facts import LARGEST_INT

_ENCODER = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
)


def _refused(_text: str) -> Any:
    raise ValueError


_DECODER = json.JSONDecoder(parse_float=_refused, parse_constant=_refused)


def canonical(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        BadEvidence: code `not_canonical`; the value is outside the profile. The message holds no part of it.
    """
    _check(value, MAX_DEPTH)
    try:
        return _ENCODER.encode(value).encode("utf-8")
    except UnicodeEncodeError as error:
        raise _outside("a string holds a lone surrogate") from error


def is_canonical(raw: bytes) -> bool:
    """Whether these bytes are the canonical form of the value they hold: no other spelling of it passes."""
    try:
        return canonical(read_json(raw)) == raw
    except (DocumentError, BadEvidence):
        return False


def read_canonical(raw: bytes) -> Any:
    """The value of bytes that are plainly canonical, None for all others; numbers and depth are left to the schema.

    Fast, because what is written again and is the same bytes needs no other look: a key that stands twice, a second spelling or a
    space would be gone. Whoever has to say what is wrong asks `read_json` and `is_canonical`.
    """
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
        return value if _ENCODER.encode(value).encode("utf-8") == raw else None
    except (ValueError, RecursionError, BadEvidence):
        return None


def _outside(problem: str) -> BadEvidence:
    return BadEvidence(f"not canonical JSON: {problem}", code="not_canonical")


def _check(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is str or kind is bool or value is None:
        return
    if kind is int:
        if not -LARGEST_INT <= value <= LARGEST_INT:
            raise _outside("an integer is outside +-(2^53-1)")
        return
    if depth <= 0:
        raise _outside(f"nested deeper than {MAX_DEPTH} levels")
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii():
                raise _outside("a key is not ASCII text")
            _check(item, depth - 1)
    elif kind is list or kind is tuple:
        for item in value:
            _check(item, depth - 1)
    else:
        raise _outside("a value is not of a JSON type without fractions")
