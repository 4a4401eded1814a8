"""The documents, to the last field. What is not exactly of its form is refused as a whole; nothing is believed here."""

from __future__ import annotations

import base64
from datetime import UTC, datetime
from typing import Any

from compliance_agent.errors import BadFrame
from compliance_agent.frames import Fields, Form, Maybe, Named, Several, Text, Whole, Word, strict_object
from compliance_agent.heal.approvals import TARGET
from compliance_agent.heal.protocol import PATH, SHA256
from compliance_agent.heal.trouble import Refused

KINDS = {"take": "adopt_baseline", "approve": "approve"}  # question -> kind of the order that is brought
MOST_ROOTS = 32  # from the pin to the present one
COUNT, NONCE, LABEL = Whole(1, 2**53 - 1), Text(32, r"[0-9a-f]{32}"), Text(63, r"[A-Za-z0-9][A-Za-z0-9._-]*")
BASE64, KEY = Text(1_500_000, r"[A-Za-z0-9+/]*={0,2}"), Text(44, r"[A-Za-z0-9+/]{43}=")
TIME = Text(27, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,6})?Z")

SIGNED = Fields({
    "payloadType": Text(100), "payload": BASE64, "signatures": Several(Fields({"keyid": SHA256, "sig": BASE64}), 32),
})  # fmt: skip
ROOT = Fields({
    "schema": Word(("compliance-agent/order-root/v1",)), "version": COUNT, "tenant": LABEL, "expires": TIME,
    "threshold": Whole(2, 16), "keys": Several(Fields({"name": LABEL, "key": KEY}), 16),
})  # fmt: skip
KEYS = Fields({
    "schema": Word(("compliance-agent/order-keys/v1",)), "version": COUNT, "tenant": LABEL, "expires": TIME,
    "signers": Several(Fields({"name": LABEL, "key": KEY, "kinds": Maybe(Several(Text(40), 16))}), 64),
    "thresholds": Named(Text(40), Whole(1, 4), 16),
})  # fmt: skip
PARAMETERS = {
    "adopt_baseline": Fields({"version": Text(40), "sha256": SHA256}),
    "approve": Fields({"check": Text(40, r"[a-z][a-z0-9_]*"), "target": TARGET}),
}
ORDERS = {kind: Fields({
    "schema": Word(("compliance-agent/order/v1",)), "order_id": NONCE, "tenant": LABEL, "site": LABEL, "host": SHA256,
    "kind": Word((kind,)), "parameters": parameters, "baseline_sha256": SHA256,
    "counter": COUNT, "nonce": NONCE, "not_before": TIME, "expires": TIME, "signers": Several(SHA256, 4),
}) for kind, parameters in PARAMETERS.items()}  # fmt: skip
# What `run` brings: the order, what leads from the pinned root to the keys that sign orders; with a baseline, it and its signature.
_ORDER: dict[str, Form] = {"order": BASE64, "roots": Several(BASE64, MOST_ROOTS), "keys": Maybe(BASE64)}
BROUGHT = {"approve": Fields(_ORDER), "take": Fields({**_ORDER, "baseline": BASE64, "signature": BASE64})}
# Root's word: who this host is, whose orders and whose baselines (nobody's: null), and where its baseline stands.
TRUST = Fields({
    "schema": Word(("compliance-agent/adopt/v1",)), "tenant": LABEL, "site": LABEL, "host": SHA256,
    "order_root": Maybe(SHA256), "order_keys": Maybe(PATH), "baseline_key": Maybe(KEY), "baseline": PATH,
})  # fmt: skip


def strict(raw: bytes, form: Form, code: str) -> dict[str, Any]:
    """The one object of a document.

    Raises:
        Refused: with this code: it is not of this form.
    """
    try:
        document = strict_object(raw)
    except BadFrame as error:
        raise Refused(code) from error
    unless(form.fits(document), code)
    return document


def raw_of(text: str, code: str = "order_unreadable") -> bytes:
    """The bytes that base64 spells in the one way.

    Raises:
        Refused: another spelling.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:
        raise Refused(code) from error
    unless(spelt(raw) == text, code)
    return raw


def spelt(raw: bytes) -> str:
    """Bytes in base64."""
    return base64.b64encode(raw).decode("ascii")


def time_of(text: str, code: str = "order_unreadable") -> datetime:
    """The time of a TIME.

    Raises:
        Refused: there is no such day or hour.
    """
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise Refused(code) from error


def unless(holds: object, code: str) -> None:
    """Raises `Refused` with this code unless it holds."""
    if not holds:
        raise Refused(code)
