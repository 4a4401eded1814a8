"""Roots of orders for tests: holders with keys in memory, and documents with every field replaceable."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from typing import Any

from compliance_agent import crypto
from compliance_agent.core import envelopes, order_roots
from compliance_agent.core.order_roots import KEYS_TYPE, ROOT_TYPE
from tests.order_keys import Person, keys_file

CARA, DORA, EMIL, FAYE = Person("cara"), Person("dora"), Person("emil"), Person("faye")
HOLDERS = (CARA, DORA, EMIL)


def root_document(holders: Sequence[Person] = HOLDERS, **changes: Any) -> dict[str, Any]:
    """Cara, Dora and Emil; two of them must sign."""
    return {
        "schema": order_roots.SCHEMA,
        "version": 1,
        "tenant": "msp-1",
        "expires": "2029-11-30T00:00:00Z",
        "threshold": 2,
        "keys": [{"name": item.name, "key": base64.b64encode(item.public).decode()} for item in holders],
        **changes,
    }


def signed(kind: str, body: bytes, by: Sequence[Person], *, as_kind: str | None = None) -> bytes:
    """An envelope with these people's signatures; `as_kind` is what they believed they signed."""
    message = crypto.pae(as_kind or kind, body)
    return envelopes.write(kind, body, {item.key_id: bytes(item.key.sign(message).signature) for item in by})


def root(by: Sequence[Person] = (CARA, DORA), holders: Sequence[Person] = HOLDERS, **changes: Any) -> bytes:
    return signed(ROOT_TYPE, json.dumps(root_document(holders, **changes)).encode(), by)


def keys(by: Sequence[Person] = (CARA, DORA), **changes: Any) -> bytes:
    """The list of `order_keys.keys_document`, signed by holders of the root."""
    return signed(KEYS_TYPE, keys_file(**changes), by)


def pin(raw: bytes) -> str:
    payload = envelopes.read(raw, payload_type=ROOT_TYPE, limit_bytes=order_roots.MAX_BYTES, most=32).payload
    return hashlib.sha256(payload).hexdigest()
