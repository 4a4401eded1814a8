"""Whose orders count here: root's file names a pin, and the documents that `run` brings lead from it to keys; or it names a list.

    pin -> root 1 -> root 2 -> ... -> root n -> list of keys          (core/order_roots.py says why it is so)

Every document is verified anew for each order. That none is older than those of an order that was taken is for the caller, who
keeps the versions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from compliance_agent.adopt.ed25519 import is_key, verify
from compliance_agent.adopt.forms import KEYS, ROOT, SIGNED, raw_of, strict, time_of, unless
from compliance_agent.frames import Form

TYPES = "application/vnd.compliance-agent.{}.v1+json"
MOST_ORDER_BYTES, MOST_TRUST_BYTES = 16_384, 131_072
Listed = dict[str, Any]


class Signed:
    """A document with its signatures (DSSE) of this type and form; nothing of it is believed yet.

    Raises:
        Refused: with this code: it is another one.
    """

    def __init__(self, raw: bytes, name: str, form: Form, code: str) -> None:
        kind = TYPES.format(name)
        unless(len(raw) <= (MOST_ORDER_BYTES if name == "order" else MOST_TRUST_BYTES), code)
        outer = strict(raw, SIGNED, code)
        payload = raw_of(outer["payload"], code)
        unless(outer["payloadType"] == kind, code)
        self.says, self.sha256 = strict(payload, form, code), sha256(payload).hexdigest()
        self.signatures = {item["keyid"]: raw_of(item["sig"], code) for item in outer["signatures"]}
        unless(len(self.signatures) == len(outer["signatures"]), code)
        self._message = b"DSSEv1 %d %b %d %b" % (len(kind), kind.encode(), len(payload), payload)

    def by(self, listed: dict[str, Listed]) -> dict[str, Listed]:
        """Those of the listed, by key id, whose signature stands here and is good."""
        return {
            name: listed[name]
            for name, signature in self.signatures.items()
            if name in listed and verify(raw_of(listed[name]["key"]), signature, self._message)
        }

    def needs(self, root: dict[str, Any]) -> None:
        """Raises `Refused` unless enough holders of the root have signed."""
        unless(len(self.by(by_id(root["keys"]))) >= root["threshold"], "trust_threshold")


@dataclass(frozen=True)
class Keys:
    """Whose orders count now, until when, and by which versions of root and list (0 where a file of root's says it)."""

    tenant: str
    expires: datetime
    signers: dict[str, Listed]
    thresholds: dict[str, int]
    root: int = 0
    version: int = 0


def by_id(listed: Sequence[Listed]) -> dict[str, Listed]:
    """Keys by their ids; a list that names one twice, or one that is none, is of no use."""
    found = {sha256(raw_of(item["key"], "trust_unreadable")).hexdigest(): item for item in listed}
    unless(found and len(found) == len(listed), "trust_unreadable")
    unless(all(is_key(raw_of(item["key"])) for item in listed), "trust_unreadable")
    return found


def by_file(raw: bytes) -> Keys:
    """By a list that root put here.

    Raises:
        Refused: `bad_order_keys`.
    """
    return _keys(strict(raw, KEYS, "bad_order_keys"))


def by_root(pin: str, roots: Sequence[bytes], keys: bytes) -> Keys:
    """By the chain from the pin.

    Raises:
        Refused: a document does not follow from the one before.
    """
    root: dict[str, Any] = {}
    for raw in roots:
        signed = Signed(raw, "order-root", ROOT, "trust_unreadable")
        says = signed.says
        unless(
            len({item["name"] for item in says["keys"]}) == len(says["keys"]) >= says["threshold"], "trust_unreadable"
        )
        if root:
            unless(says["tenant"] == root["tenant"], "trust_tenant")
            unless(says["version"] == root["version"] + 1, "trust_version")
            signed.needs(root)
        else:
            unless(signed.sha256 == pin, "trust_pin")
        signed.needs(says)
        root = says
    signed = Signed(keys, "order-keys", KEYS, "trust_unreadable")
    signed.needs(root)
    unless(signed.says["tenant"] == root["tenant"], "trust_tenant")
    found = _keys(signed.says)
    unless(found.signers.keys().isdisjoint(by_id(root["keys"])), "trust_role")
    expires = min(found.expires, time_of(root["expires"], "trust_unreadable"))
    return Keys(found.tenant, expires, found.signers, found.thresholds, root["version"], found.version)


def _keys(says: dict[str, Any]) -> Keys:
    expires = time_of(says["expires"], "trust_unreadable")
    return Keys(says["tenant"], expires, by_id(says["signers"]), says["thresholds"], version=says["version"])
