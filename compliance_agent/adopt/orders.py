"""An order for a baseline, judged as root: the first reason why not, or what it changes. Uses up nothing.

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
from compliance_agent.adopt.forms import KIND, ORDER, raw_of, time_of, unless
from compliance_agent.adopt.trust import Keys, Signed
from compliance_agent.heal.trouble import Refused

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


def judge(raw: bytes, baseline: bytes, signature: bytes, standing: Standing) -> dict[str, Any]:
    """What the order says, if its baseline is to be taken now.

    Raises:
        Refused: the first reason why not.
    """
    order = Signed(raw, "order", ORDER, "order_unreadable")
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
    unless(sha256(baseline).hexdigest() == says["parameters"]["sha256"], "other_baseline")
    unless(verify(raw_of(trust["baseline_key"]), signature, baseline), "baseline_signature")
    return says


def _may_sign(kinds: list[str] | None) -> bool:
    return kinds is None or KIND in kinds


def _signed(order: Signed, standing: Standing) -> None:
    keys, named = standing.keys, order.says["signers"]
    unless(standing.now < keys.expires, "order_keys_expired")
    for name in named:
        if name not in keys.signers or not _may_sign(keys.signers[name]["kinds"]):
            raise Refused("unknown_signer")
    good = order.by(keys.signers)
    unless(good.keys() == order.signatures.keys() == set(named), "order_signature")
    people = {item["name"] for item in good.values()}
    unless(len(people) >= max(LEAST_SIGNERS, keys.thresholds.get(KIND, 0)), "too_few_signers")
