"""Signed envelopes (DSSE): exact payload bytes, what they are, and signatures by key id. Pure; nothing is verified here.

    {"payloadType": TYPE, "payload": "<base64>", "signatures": [{"keyid": "<key id>", "sig": "<base64>"}]}

A signature is over the payload and its type (`crypto.pae`), so nothing depends on how JSON is spelt, and what was signed as one
thing is never taken for another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from compliance_agent import crypto
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.facts import SHA256
from compliance_agent.log.fields import from_base64, to_base64

MAX_DEPTH = 8


@dataclass(frozen=True)
class Envelope:
    """An envelope of the agreed form: payload bytes as signed, and signatures by key id."""

    payload: bytes
    signatures: Mapping[str, bytes]


def read(raw: bytes, *, payload_type: str, limit_bytes: int, most: int, least: int = 1) -> Envelope:
    """An envelope of exactly the agreed form.

    Args:
        raw: its bytes.
        payload_type: what it must hold.
        limit_bytes: refuse a longer one.
        most: signatures it may have.
        least: signatures it must have.

    Raises:
        DocumentError: anything else.
    """
    document = read_json(raw, limit_bytes=limit_bytes, max_depth=MAX_DEPTH)
    _exactly(document, {"payloadType", "payload", "signatures"})
    if document["payloadType"] != payload_type:
        raise _bad("payloadType", payload_type)
    listed = document["signatures"]
    if not isinstance(listed, list) or not least <= len(listed) <= most:
        raise _bad("signatures", f"a list of {least} to {most}")
    signatures: dict[str, bytes] = {}
    for item in listed:
        _exactly(item, {"keyid", "sig"})
        name = item["keyid"]
        if not isinstance(name, str) or not SHA256.fullmatch(name) or name in signatures:
            raise _bad("keyid", "the id of a key that stands here once")
        signatures[name] = _raw(item["sig"], "sig")
        if len(signatures[name]) != crypto.SIGNATURE_BYTES:
            raise _bad("sig", f"{crypto.SIGNATURE_BYTES} bytes")
    return Envelope(_raw(document["payload"], "payload"), signatures)


def write(payload_type: str, body: bytes, signatures: Mapping[str, bytes]) -> bytes:
    """Payload bytes with their signatures by key id."""
    listed = [{"keyid": name, "sig": to_base64(sig)} for name, sig in sorted(signatures.items())]
    return canonical({"payloadType": payload_type, "payload": to_base64(body), "signatures": listed})


def payload_type(raw: bytes, *, limit_bytes: int) -> str:
    """What an envelope says it holds; empty when that cannot be read."""
    try:
        document = read_json(raw, limit_bytes=limit_bytes, max_depth=MAX_DEPTH)
    except DocumentError:
        return ""
    said = document.get("payloadType") if isinstance(document, dict) else None
    return said if isinstance(said, str) else ""


def _exactly(value: Any, wanted: set[str]) -> None:
    if not isinstance(value, dict) or value.keys() != wanted:
        raise _bad("document", f"exactly the keys {', '.join(sorted(wanted))}")


def _raw(value: Any, field: str) -> bytes:
    if not isinstance(value, str):
        raise _bad(field, "base64")
    try:
        return from_base64(value, field, "bad_envelope")
    except BadEvidence as error:
        raise _bad(field, "base64") from error


def _bad(field: str, expected: str) -> DocumentError:
    return DocumentError(f"envelope: {field}: expected {expected}", code="bad_envelope")
