"""An order for root, judged as root: the first reason why not, or what it says. Uses up nothing.

The gates are those of `core/orders.py`, in its order and under its names; here they stand on what root knows: its file, the nonces
that it gave, and the highest number that it took.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import sha256
from typing import Any

from compliance_agent.adopt.ed25519 import verify
from compliance_agent.adopt.forms import ORDERS, raw_of, time_of, unless
from compliance_agent.adopt.trust import Keys, Signed

LEAST_SIGNERS = 2
LONGEST_LIFE = timedelta(hours=24)


@dataclass(frozen=True)
class Standing:
    """What root knows when an order comes.

    Attributes:
        trust: root's file (forms.TRUST).
        keys: whose orders count.
        now: the clock, or the latest time that an order began which was taken.
        nonces: those that are good.
        counter: of the last order that was taken.
        baseline: digest of the baseline that is permitted here.
    """

    trust: Mapping[str, Any]
    keys: Keys
    now: datetime
    nonces: frozenset[str]
    counter: int
    baseline: str


def judge(raw: bytes, kind: str, standing: Standing) -> dict[str, Any]:
    """What the order says, if it is one of this kind and to be followed now.

    Raises:
        Refused: the first reason why not.
    """
    order = Signed(raw, "order", ORDERS[kind], "order_unreadable")
    says = order.says
    unless(0 < len(set(says["signers"])) == len(says["signers"]), "order_unreadable")
    begins, ends = time_of(says["not_before"]), time_of(says["expires"])
    _signed(order, standing)
    trust = standing.trust
    unless(standing.keys.tenant == trust["tenant"], "other_host")
    unless(all(says[name] == trust[name] for name in ("tenant", "site", "host")), "other_host")
    unless(timedelta(0) < ends - begins <= LONGEST_LIFE, "order_too_long")
    unless(standing.now < ends, "order_expired")
    unless(standing.now >= begins, "not_yet")
    unless(says["nonce"] in standing.nonces, "wrong_nonce")
    unless(says["counter"] > standing.counter, "replayed")
    unless(says["baseline_sha256"] == standing.baseline, "other_baseline")
    return says


def hold(baseline: bytes, signature: bytes, says: Mapping[str, Any], trust: Mapping[str, Any]) -> None:
    """Raises `Refused` unless this is the baseline that an order names, signed by the key that root's file names."""
    unless(sha256(baseline).hexdigest() == says["parameters"]["sha256"], "other_baseline")
    unless(trust["baseline_key"] is not None, "no_baseline_key")
    unless(verify(raw_of(trust["baseline_key"]), signature, baseline), "baseline_signature")


def _signed(order: Signed, standing: Standing) -> None:
    keys, named, kind = standing.keys, order.says["signers"], order.says["kind"]
    unless(standing.now < keys.expires, "order_keys_expired")
    for name in named:
        may = keys.signers.get(name, {"kinds": []})["kinds"]
        unless(may is None or kind in may, "unknown_signer")
    good = order.by(keys.signers)
    unless(good.keys() == order.signatures.keys() == set(named), "order_signature")
    people = {item["name"] for item in good.values()}
    unless(len(people) >= max(LEAST_SIGNERS, keys.thresholds.get(kind, 0)), "too_few_signers")
