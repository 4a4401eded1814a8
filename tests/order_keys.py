"""Signers of orders, and orders of theirs, for tests: keys in memory, every field replaceable."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from nacl.signing import SigningKey

from compliance_agent import crypto
from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import Order, Standing

NOW = datetime(2026, 11, 28, 12, 0, tzinfo=UTC)
HOST, NONCE, BASELINE = "ab" * 32, "12" * 16, "cd" * 32


@dataclass(frozen=True)
class Person:
    """Somebody with a key; the same name has the same key in every test."""

    name: str

    @property
    def key(self) -> SigningKey:
        return SigningKey(hashlib.sha256(self.name.encode()).digest())

    @property
    def public(self) -> bytes:
        return bytes(self.key.verify_key)

    @property
    def key_id(self) -> str:
        return crypto.key_id(self.public)

    def sign(self, payload: bytes, kind: str = orders.TYPE) -> bytes:
        return bytes(self.key.sign(crypto.pae(kind, payload)).signature)


ANNA, BEN, MALLORY = Person("anna"), Person("ben"), Person("mallory")


def keys_document(**changes: Any) -> dict[str, Any]:
    """What an order_keys_file says: Anna and Ben may sign everything."""
    signers = [
        {"name": person.name, "key": base64.b64encode(person.public).decode(), "kinds": None} for person in (ANNA, BEN)
    ]
    return {
        "schema": order_keys.SCHEMA,
        "version": 1,
        "tenant": "msp-1",
        "expires": "2027-11-30T00:00:00Z",
        "signers": signers,
        "thresholds": {},
        **changes,
    }


def keys_file(**changes: Any) -> bytes:
    return json.dumps(keys_document(**changes)).encode()


PARAMETERS: dict[str, dict[str, Any]] = {
    "check": {"checks": ["time_sync"]},
    "remediate": {"check": "time_sync"},
    "approve": {"check": "time_sync", "target": "steps-1"},
    "pause": {},
    "resume": {},
    "adopt_baseline": {"version": "2", "sha256": "ee" * 32},
    "rotate_key": {},
    "stop_all": {},
}


def order(kind: str = "check", *, by: Sequence[Person] = (ANNA, BEN), **changes: Any) -> Order:
    """A good order to the host of `standing()`."""
    numbered = orders.FORMS[kind].numbered
    made = Order(
        order_id="0" * 31 + "1",
        tenant="msp-1",
        site="clinic-1",
        host=HOST,
        kind=kind,
        parameters=PARAMETERS[kind],
        baseline_sha256=BASELINE if orders.FORMS[kind].bound else None,
        counter=1 if numbered else None,
        nonce=NONCE if numbered else None,
        not_before=NOW,
        expires=NOW + timedelta(minutes=15),
        signers=tuple(person.key_id for person in by),
    )
    return dataclasses.replace(made, **changes)


def signed(what: Order | bytes, by: Sequence[Person] = (ANNA, BEN)) -> bytes:
    """An envelope around a payload, signed by these."""
    body = what if isinstance(what, bytes) else orders.payload(what)
    return orders.envelope(body, {person.key_id: person.sign(body) for person in by})


def standing(**changes: Any) -> Standing:
    """A host that is ready for `order()`."""
    known = Standing(
        tenant="msp-1",
        site="clinic-1",
        host=HOST,
        keys=order_keys.parse(keys_file()),
        now=NOW + timedelta(minutes=1),
        nonces=(NONCE,),
        counter=0,
        stopped=False,
        baseline_sha256=BASELINE,
        checks=("time_sync", "logging"),
    )
    return dataclasses.replace(known, **changes)
