"""DSSE envelopes (protocol 1.0.2) around in-toto statements (v1): who made an export, over which bytes. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from compliance_agent import crypto
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.canonical import canonical, is_canonical

PAYLOAD_TYPE = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://oscal-compass.github.io/compliance-trestle/predicates/oscal-signing/v1"  # what trestle verifies
_SIGNED = {"canonicalization": "RFC8785", "digestAlgorithm": "sha256", "digestSource": "canonical-json"}


def statement(name: str, sha256: str, predicate: Mapping[str, Any]) -> bytes:
    """A statement about one file of canonical JSON, by the digest of its bytes, which are their own canonical form."""
    subject = [{"name": name, "digest": {"sha256": sha256}}]
    return canonical(
        {"_type": STATEMENT, "subject": subject, "predicateType": PREDICATE, "predicate": {**predicate, **_SIGNED}}
    )


def envelope(payload: bytes, public: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """The payload, signed."""
    signature = {"keyid": keyid(public), "sig": _b64(sign(crypto.pae(PAYLOAD_TYPE, payload)))}
    return canonical({"payload": _b64(payload), "payloadType": PAYLOAD_TYPE, "signatures": [signature]})


def verify(raw: bytes, public: bytes, name: str, sha256: str) -> None:
    """Hold an envelope to the key, and what it says to the file of this digest; code `bad_envelope`."""
    try:
        found = read_json(raw, limit_bytes=len(raw))
        payload = base64.b64decode(found["payload"], validate=True)
        signatures = [base64.b64decode(item["sig"], validate=True) for item in found["signatures"]]
        said = read_json(payload)
        subject = [(item["name"], item["digest"]["sha256"]) for item in said["subject"]]
        types = (found["payloadType"], said["_type"])
    except (DocumentError, KeyError, TypeError, ValueError, binascii.Error) as error:
        raise _bad("is not a DSSE envelope around an in-toto statement") from error
    if not any(crypto.verify(public, signature, crypto.pae(PAYLOAD_TYPE, payload)) for signature in signatures):
        raise _bad("is not signed by keys/packet.pem")
    if not is_canonical(raw) or [item.get("keyid") for item in found["signatures"]] != [keyid(public)]:
        raise _bad("is spelt in another way, or names another key")
    if types != (PAYLOAD_TYPE, STATEMENT) or subject != [(name, sha256)]:
        raise _bad(f"is not about {name} as it stands here")


def keyid(public: bytes) -> str:
    """The key id that securesystemslib computes for an Ed25519 key and compares; to the protocol it is only a hint."""
    key = {"keytype": "ed25519", "keyval": {"public": public.hex()}, "scheme": "ed25519"}
    return hashlib.sha256(canonical(key)).hexdigest()


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _bad(problem: str) -> BadEvidence:
    return BadEvidence(f"envelope {problem}", code="bad_envelope")
