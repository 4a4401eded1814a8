"""No order but the right one, whole, in time, once and for this host; every gate is seen to matter."""

from __future__ import annotations

import base64
import dataclasses
import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest

from compliance_agent import crypto, documents
from compliance_agent.core import order_keys, orders
from compliance_agent.core.orders import Order, Refused, judge
from compliance_agent.errors import ConfigError, DocumentError
from compliance_agent.facts import NAME
from tests.order_keys import (
    ANNA,
    BASELINE,
    BEN,
    MALLORY,
    NOW,
    Person,
    keys_document,
    keys_file,
    order,
    signed,
    standing,
)

HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**53, "", " ", "\0", "\uff11\uff12", "1_0", "../x", "x" * 300, [], {}, ["a"], {"a": 1}, [[]],
    "0000-00-00T00:00:00Z", "9999-12-31T24:00:00Z", "ff" * 32, "\u202egnp", "\U0001f600",
)  # fmt: skip


def reason(raw: bytes, **changes: Any) -> str:
    """Why it is refused; `done` when it is not."""
    found = judge(raw, standing(**changes))
    return found.reason if isinstance(found, Refused) else "done"


@pytest.mark.parametrize("kind", order_keys.KINDS)
def test_a_good_order_of_each_kind_is_accepted_whole(kind: str) -> None:
    made = order(kind)
    assert judge(signed(made), standing()) == made


def test_every_kind_has_a_form_and_every_reason_a_sentence() -> None:
    assert set(orders.FORMS) == set(order_keys.KINDS)
    assert all(text and not text.endswith(".") for text in orders.REASONS.values())


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of each leaf, and of each container."""
    yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from leaves(inner, (*path, key))


def with_leaf(document: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copied = dict(document) if isinstance(document, dict) else list(document)
    copied[path[0]] = with_leaf(copied[path[0]], path[1:], value)
    return copied


def changed_payloads() -> Iterator[tuple[tuple[Any, ...], Any, bytes]]:
    """Payloads of every kind with one leaf replaced by something hostile."""
    for kind in order_keys.KINDS:
        document = json.loads(orders.payload(order(kind)))
        for path in leaves(document):
            for value in HOSTILE:
                changed = with_leaf(document, path, value)
                if changed != document or type(changed) is not type(document):
                    yield path, value, json.dumps(changed).encode()


def mutants_that_pass() -> list[tuple[tuple[Any, ...], Any]]:
    """What a forger gets through who changes a payload and keeps its signatures."""
    found, tried = [], 0
    for path, value, body in changed_payloads():
        whole = json.loads(signed(order("approve")))
        whole["payload"] = base64.b64encode(body).decode() or "AA=="
        tried += 1
        if reason(json.dumps(whole).encode()) == "done":
            found.append((path, value))
    assert tried > 1_000
    return found


def test_no_payload_passes_with_the_signatures_of_another() -> None:
    assert mutants_that_pass() == []


def test_without_the_look_at_signatures_mutants_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(orders, "_signed", lambda *_: None)
    assert mutants_that_pass() != []


def test_hostile_values_that_signers_really_signed_are_refused_but_for_what_is_a_value() -> None:
    """The parser alone, behind good signatures: types, forms and bounds of every leaf."""
    passed = set()
    for path, value, body in changed_payloads():
        document = json.loads(body) if body[:1] == b"{" else {}
        by = (ANNA, BEN) if document.get("signers") == [ANNA.key_id, BEN.key_id] else (ANNA,)
        said = reason(signed(body, by))
        assert said in {*orders.REASONS, "done"}
        if said == "done":
            passed.add((path[0], repr(value)))
    # A target is a name, and these are names; every other leaf has no second value here.
    assert {leaf for leaf, _ in passed} <= {"parameters", "baseline_sha256"}
    names = {repr(value) for value in HOSTILE if isinstance(value, str) and NAME.fullmatch(value)}
    assert {value for leaf, value in passed if leaf == "parameters"} <= names
    assert {value for leaf, value in passed if leaf == "baseline_sha256"} <= {"None"}  # of a kind that is bound to none


def doubled(raw: bytes) -> Iterator[bytes]:
    """The document with each key of its outer object once more, first or last, and a key nobody knows."""
    document = json.loads(raw)
    for key, value in document.items():
        pair = f"{json.dumps(key)}:{json.dumps(value)}"
        other = f"{json.dumps(key)}:{json.dumps('x' if key != 'kind' else 'pause')}"
        yield raw.replace(b"{", b"{" + other.encode() + b",", 1)
        yield raw.replace(b"{", b"{" + pair.encode() + b",", 1)
        yield raw[:-1] + b"," + other.encode() + b"}"
        yield json.dumps({name: item for name, item in document.items() if name != key}).encode()
    yield json.dumps({**document, "run": "rm"}).encode()


def doubles_that_pass() -> int:
    body, good = orders.payload(order()), signed(order())
    copies = [*map(signed, doubled(body)), *doubled(good)]
    assert len(copies) > 50
    return sum(reason(copy) == "done" for copy in copies)


def test_a_key_that_stands_twice_is_missing_or_is_not_known_is_refused() -> None:
    assert doubles_that_pass() == 0


def test_with_a_lenient_reader_doubled_keys_would_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    lenient = json.JSONDecoder()
    monkeypatch.setattr(documents, "_DECODER", lenient)
    assert doubles_that_pass() > 0


def test_no_flipped_bit_passes() -> None:
    good = signed(order("adopt_baseline"))
    assert reason(good) == "done"
    flips = 0
    for at in range(len(good)):
        for bit in (0, 3, 5):
            bad = bytearray(good)
            bad[at] ^= 1 << bit
            # An upper-case letter in the hex of a key id, or white space, is no longer an order either.
            assert reason(bytes(bad)) != "done", (at, bit)
            flips += 1
    assert flips > 3_000


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (b"", "not_json"), (b"\0", "not_text"), (b"\xef\xbb\xbf{}", "not_utf8"), (b"[" * 100_000, "too_large"),
        (b"[" * 9 + b"]" * 9, "too_deep"), (b'{"a":NaN}', "bad_number"), (b'{"a":1.0}', "bad_number"),
        (b'{"a":1e999}', "bad_number"), (b'{"a":9007199254740992}', "bad_number"), (b"{" + b" " * 16_384 + b"}", "too_large"),
        (b'{"a":"\\ud800"}', "not_utf8"), (b"null", "bad_order"), (b"{}", "bad_order"),
    ],
)  # fmt: skip
def test_what_is_no_order_is_named(raw: bytes, code: str) -> None:
    for read in (orders.read_envelope, orders.read_payload):
        with pytest.raises(DocumentError) as caught:
            read(raw)
        assert caught.value.code == code
    assert reason(raw) == "order_unreadable"


def test_a_kind_that_this_version_does_not_have_is_named() -> None:
    document = {**json.loads(orders.payload(order("pause"))), "kind": "run_command"}
    assert reason(signed(json.dumps(document).encode())) == "unknown_kind"


GATES: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("no_order_keys", {}, {"keys": None}),
    ("order_keys_expired", {}, {"keys": order_keys.parse(keys_file(expires="2026-11-28T12:01:00Z"))}),
    ("other_host", {"host": "ef" * 32}, {}),
    ("other_host", {"site": "clinic-2"}, {}),
    ("other_host", {"tenant": "msp-2"}, {}),
    ("other_host", {"tenant": "msp-2"}, {"tenant": "msp-2"}),  # the keys are another client's
    ("order_too_long", {"expires": NOW + timedelta(hours=24, seconds=1)}, {}),
    ("order_too_long", {"expires": NOW}, {}),
    ("order_too_long", {"expires": NOW - timedelta(minutes=1)}, {}),
    ("not_yet", {}, {"now": NOW - timedelta(seconds=1)}),
    ("not_yet", {}, {"now": NOW - timedelta(days=2)}),
    ("order_expired", {}, {"now": NOW + timedelta(minutes=15)}),
    ("order_expired", {}, {"now": NOW + timedelta(days=2)}),
    ("wrong_nonce", {"nonce": "34" * 16}, {}),
    ("wrong_nonce", {}, {"nonces": ()}),
    ("replayed", {}, {"counter": 1}),
    ("replayed", {}, {"counter": 7}),
    ("stopped", {}, {"stopped": True}),
    ("other_baseline", {"kind": "remediate", "parameters": {"check": "time_sync"}, "baseline_sha256": "00" * 32}, {}),
    ("other_baseline", {"baseline_sha256": "00" * 32}, {}),
    ("unknown_check", {"parameters": {"checks": ["time_sync", "backup"]}}, {}),
]  # fmt: skip


@pytest.mark.parametrize(("expected", "of_order", "of_host"), GATES)
def test_each_gate_names_itself(expected: str, of_order: dict[str, Any], of_host: dict[str, Any]) -> None:
    made = order(**of_order) if "kind" not in of_order else dataclasses.replace(order(), **of_order)
    assert reason(signed(made), **of_host) == expected
    assert reason(signed(order())) == "done"


@pytest.mark.parametrize(
    ("gate", "named"),
    [
        ("_signed", "keys"), ("_addressed", "other_host"), ("_timely", "order_expired"), ("_fresh", "replayed"),
        ("_fitting", "unknown_check"),
    ],
)  # fmt: skip
def test_without_a_gate_what_it_refuses_would_be_done(gate: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: no signature, no address, no expiry, no replay, no fit."""
    monkeypatch.setattr(orders, gate, lambda *_: None)
    for expected, of_order, of_host in GATES:
        if expected == named:
            assert reason(signed(order(**of_order)), **of_host) == "done"
    if named == "keys":
        assert reason(signed(order(by=(MALLORY,)), (MALLORY,))) == "done"


def test_a_stop_needs_neither_nonce_nor_number_and_beats_everything() -> None:
    stop = signed(order("stop_all"))
    assert reason(stop, nonces=(), counter=99, stopped=True) == "done"
    assert reason(stop, now=NOW + timedelta(days=2)) == "order_expired"  # an old one is not a weapon for ever
    assert reason(signed(order("stop_all", by=(MALLORY,)), (MALLORY,))) == "unknown_signer"
    numbered = {**json.loads(orders.payload(order("stop_all"))), "counter": 3, "nonce": "12" * 16}
    assert reason(signed(json.dumps(numbered).encode())) == "order_unreadable"


def test_the_end_of_a_stop_needs_two_people_and_of_a_pause_one() -> None:
    alone = signed(order("resume", by=(ANNA,)), (ANNA,))
    assert reason(alone) == "done"
    assert reason(alone, stopped=True) == "too_few_signers"
    assert reason(signed(order("resume")), stopped=True) == "done"


# Who signed


def test_signatures_are_of_exactly_those_that_the_payload_names() -> None:
    both = order()
    assert reason(signed(both, (ANNA,))) == "order_signature"
    assert reason(signed(order(by=(ANNA,)), (ANNA, BEN))) == "order_signature"
    assert reason(signed(both, (ANNA, MALLORY))) == "order_signature"
    assert reason(signed(order(by=(MALLORY,)), (MALLORY,))) == "unknown_signer"
    body = orders.payload(both)
    crossed = {ANNA.key_id: BEN.sign(body), BEN.key_id: ANNA.sign(body)}
    assert reason(orders.envelope(body, crossed)) == "order_signature"


def test_a_signature_over_another_type_is_none() -> None:
    """What the key signed as something else (a baseline, a packet's statement) is no order."""
    body = orders.payload(order(by=(ANNA,)))
    for kind in ("application/vnd.in-toto+json", ""):
        assert reason(orders.envelope(body, {ANNA.key_id: ANNA.sign(body, kind)})) == "order_signature"
    bare = bytes(ANNA.key.sign(body).signature)
    assert reason(orders.envelope(body, {ANNA.key_id: bare})) == "order_signature"


@pytest.mark.parametrize("kind", sorted(order_keys.TWO_SIGNERS))
def test_what_is_dangerous_needs_two_people_not_two_keys(kind: str) -> None:
    assert reason(signed(order(kind, by=(ANNA,)), (ANNA,))) == "too_few_signers"
    second = Person("anna's other device")
    listed = keys_document()["signers"]
    entry = {"name": "anna", "key": base64.b64encode(second.public).decode(), "kinds": None}
    keys = order_keys.parse(keys_file(signers=[*listed, entry]))
    assert reason(signed(order(kind, by=(ANNA, second)), (ANNA, second)), keys=keys) == "too_few_signers"
    assert reason(signed(order(kind, by=(second, BEN)), (second, BEN)), keys=keys) == "done"


def test_a_file_may_ask_for_more_people_and_give_a_key_fewer_kinds() -> None:
    stricter = order_keys.parse(keys_file(thresholds={"check": 2}))
    assert reason(signed(order(by=(ANNA,)), (ANNA,)), keys=stricter) == "too_few_signers"
    assert reason(signed(order()), keys=stricter) == "done"
    listed = keys_document()["signers"]
    listed[0]["kinds"] = ["pause"]
    narrow = order_keys.parse(keys_file(signers=listed))
    assert reason(signed(order(by=(ANNA,)), (ANNA,)), keys=narrow) == "unknown_signer"
    assert reason(signed(order("pause", by=(ANNA,)), (ANNA,)), keys=narrow) == "done"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"schema": "x"}, "schema"), ({"version": 0}, "version"), ({"version": True}, "version"), ({"tenant": ""}, "tenant"),
        ({"expires": "2027-02-30T00:00:00Z"}, "expires"), ({"signers": []}, "signers"), ({"signers": {}}, "signers"),
        ({"signers": [{"name": "a", "key": "AA==", "kinds": None}]}, "signers[0].key"),
        ({"signers": [{"name": "a", "key": base64.b64encode(b"\1" + bytes(31)).decode(), "kinds": None}]}, "signers[0].key"),
        ({"signers": [*keys_document()["signers"][:1] * 2]}, "signers[1].key"),
        ({"signers": [{**keys_document()["signers"][0], "kinds": ["run"]}]}, "signers[0].kinds"),
        ({"signers": [{**keys_document()["signers"][0], "kinds": []}]}, "signers[0].kinds"),
        ({"thresholds": {"adopt_baseline": 1}}, "thresholds.adopt_baseline"), ({"thresholds": {"run": 1}}, "thresholds"),
        ({"thresholds": {"check": 3}}, "thresholds.check"), ({"thresholds": {"check": True}}, "thresholds.check"),
        ({"more": 1}, "document"),
    ],
)  # fmt: skip
def test_a_file_of_keys_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(ConfigError) as caught:
        order_keys.parse(keys_file(**changes))
    assert str(caught.value).startswith(f"{field}: expected ")
    assert caught.value.code == "bad_order_keys"


def test_a_payload_says_what_it_was_made_of() -> None:
    for kind in order_keys.KINDS:
        made = order(kind)
        assert orders.read_payload(orders.payload(made)) == made
    with pytest.raises(DocumentError):
        orders.payload(order("remediate", baseline_sha256=None))
    assert orders.payload(order(baseline_sha256=BASELINE)) != orders.payload(order())


def test_the_signature_is_one_that_openssl_makes_too() -> None:
    """RFC 8032 over the DSSE bytes, nothing of ours around it."""
    body = orders.payload(order(by=(ANNA,)))
    assert crypto.verify(
        ANNA.public, ANNA.sign(body), b"DSSEv1 %d %b %d %b" % (len(orders.TYPE), orders.TYPE.encode(), len(body), body)
    )


def test_the_order_of_gates_tells_a_stranger_nothing_of_the_host() -> None:
    """Whoever cannot sign learns from a refusal only that."""
    made: Order = order(by=(MALLORY,), host="ef" * 32, nonce="99" * 16, counter=99)
    assert reason(signed(made, (MALLORY,))) == "unknown_signer"
