"""Root never takes an order that the agent would refuse: both judge the same bytes, whatever is changed in them."""

from __future__ import annotations

import hashlib
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent.adopt import orders as root
from compliance_agent.adopt import trust
from compliance_agent.core import order_roots
from compliance_agent.core import orders as agent
from compliance_agent.heal import trouble
from compliance_agent.log.fields import to_base64
from tests import order_roots as roots
from tests.adopt.scene import KEY, NEWER
from tests.order_keys import ANNA, BASELINE, BEN, HOST, MALLORY, NONCE, NOW, keys_file, order, signed, standing

SHA256 = hashlib.sha256(NEWER).hexdigest()
GOOD = order("adopt_baseline", parameters={"version": "2", "sha256": SHA256})
SIGNATURE = bytes(KEY.sign(NEWER).signature)
TRUST: dict[str, Any] = {
    "tenant": "msp-1", "site": "clinic-1", "host": HOST, "baseline_key": to_base64(bytes(KEY.verify_key)),
}  # fmt: skip


APPROVAL = order("approve")


def by_root(raw: bytes, now: datetime, counter: int, kind: str = "adopt_baseline") -> str:
    keys = trust.by_file(keys_file())
    try:
        says = root.judge(raw, kind, root.Standing(TRUST, keys, now, frozenset({NONCE}), counter, BASELINE))
        if kind == "adopt_baseline":
            root.hold(NEWER, SIGNATURE, says, TRUST)
    except trouble.Refused as error:
        return error.code
    return ""


def by_agent(raw: bytes, now: datetime, counter: int) -> str:
    verdict = agent.judge(raw, standing(now=now, counter=counter))
    return verdict.reason if isinstance(verdict, agent.Refused) else ""


VALUES: dict[str, st.SearchStrategy[Any]] = {
    "parameters": st.sampled_from([{"check": "time_sync", "target": "x" * length} for length in (0, 96, 97)]),
    "schema": st.sampled_from(["compliance-agent/order/v1", "compliance-agent/order/v2"]),
    "order_id": st.sampled_from(["0" * 32, "0" * 31, "A" * 32, 1]),
    "tenant": st.sampled_from(["msp-1", "msp-2", "", "-x", "m" * 63, "m" * 64, None]),
    "site": st.sampled_from(["clinic-1", "clinic-2", "clinic-1\n"]),
    "host": st.sampled_from([HOST, "ba" * 32, HOST.upper()]),
    "counter": st.sampled_from([0, 1, 2, 2**53 - 1, 2**53, -1, True, 1.0, "1", None]),
    "nonce": st.sampled_from([NONCE, "ab" * 16, None]),
    "baseline_sha256": st.sampled_from([BASELINE, "ab" * 32, None]),
    "not_before": st.sampled_from(["2026-11-28T12:00:00Z", "2026-11-28T12:00:00", "2026-02-30T00:00:00Z", "0000-01-01T00:00:00Z"]),
    "expires": st.sampled_from(["2026-11-28T12:15:00Z", "2026-11-29T12:00:01Z", "9999-12-31T23:59:59Z", ""]),
    "signers": st.lists(st.sampled_from([ANNA.key_id, BEN.key_id, MALLORY.key_id, "x"]), max_size=5),
    "also": st.just(1),
}  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(
    changes=st.dictionaries(st.sampled_from(sorted(VALUES)), st.integers(0, 10**6), max_size=2),
    data=st.data(),
    minutes=st.sampled_from([-1, 0, 1, 14, 15, 10_000]),
    counter=st.sampled_from([0, 1]),
    by=st.sampled_from([(ANNA, BEN), (ANNA,), (ANNA, MALLORY), (ANNA, BEN, MALLORY)]),
    good=st.sampled_from([GOOD, APPROVAL]),
)
def test_what_root_takes_the_agent_takes(
    changes: dict[str, int], data: st.DataObject, minutes: int, counter: int, by: tuple[Any, ...], good: agent.Order
) -> None:
    document = json.loads(agent.payload(good))
    document |= {name: data.draw(VALUES[name]) for name in changes}
    raw = signed(json.dumps(document).encode(), by)
    now = NOW + timedelta(minutes=minutes)
    said = by_root(raw, now, counter, good.kind), by_agent(raw, now, counter)
    assert said[0] == said[1] or "" not in said, said


@pytest.mark.parametrize("bit", range(0, 8 * len(signed(GOOD)), 97))
def test_one_flipped_bit_is_refused_by_both(bit: int) -> None:
    raw = bytearray(signed(GOOD))
    raw[bit // 8] ^= 1 << bit % 8
    now = NOW + timedelta(minutes=1)
    assert by_root(bytes(raw), now, 0) and by_agent(bytes(raw), now, 0)


def test_the_good_one_is_taken_by_both() -> None:
    assert (by_root(signed(GOOD), NOW, 0), by_agent(signed(GOOD), NOW, 0)) == ("", "")
    assert (by_root(signed(APPROVAL), NOW, 0, "approve"), by_agent(signed(APPROVAL), NOW, 0)) == ("", "")


CHAINS: dict[str, list[bytes]] = {
    "one root": [roots.root()],
    "two roots": [roots.root(), roots.root(version=2)],
    "another holder": [roots.root(), roots.root([roots.CARA, roots.DORA], [roots.CARA, roots.DORA, roots.FAYE], version=2)],
    "one signature": [roots.root([roots.CARA])],
    "a threshold of one": [roots.root(threshold=1)],
    "a gap": [roots.root(), roots.root(version=3)],
    "a name twice": [roots.root(holders=[roots.CARA, roots.CARA, roots.DORA])],
    "a stranger": [roots.root(), roots.root([roots.FAYE, roots.EMIL], [roots.FAYE, roots.EMIL], version=2)],
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("by", [(roots.CARA, roots.DORA), (roots.CARA,), (roots.CARA, roots.FAYE), (ANNA, BEN)])
def test_documents_lead_both_to_the_same_keys(chain: str, by: tuple[Any, ...]) -> None:
    documents, keys = CHAINS[chain], roots.keys(by)
    pin = roots.pin(documents[0])
    try:
        theirs = order_roots.replay(pin, documents, keys)
        known = theirs.keys_now() if theirs is not None else None
    except Exception:
        known = None
    try:
        ours = trust.by_root(pin, documents, keys)
    except trouble.Refused:
        assert known is None
        return
    assert known is not None
    assert (ours.tenant, ours.expires.astimezone(UTC), ours.version) == (known.tenant, known.expires, known.version)
    assert ours.signers.keys() == known.signers.keys()
