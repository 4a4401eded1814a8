"""The chain from a pinned root to the keys that may sign orders: what leads on, and that nothing else does."""

from __future__ import annotations

import base64
import copy
import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core import order_roots
from compliance_agent.core.order_roots import KEYS_TYPE, ROOT_TYPE, Trust, advance, begin, replay, with_keys
from compliance_agent.errors import DocumentError
from tests.order_keys import ANNA, BEN, MALLORY, Person, keys_document, keys_file
from tests.order_roots import CARA, DORA, EMIL, FAYE, HOLDERS, keys, pin, root, root_document, signed

ROOT = root()
START = begin(ROOT, pin(ROOT))
NEXT: dict[str, Any] = {"version": 2}


def refused(act: Callable[[], Any]) -> str:
    with pytest.raises(DocumentError) as caught:
        act()
    assert caught.value.code in order_roots.REASONS, caught.value
    return caught.value.code


def test_a_host_begins_with_the_root_it_is_pinned_to_and_with_no_other() -> None:
    assert (START.root.version, START.root.threshold, START.keys) == (1, 2, None)
    assert refused(lambda: begin(ROOT, "0" * 64)) == "trust_pin"
    assert refused(lambda: begin(root(by=[CARA]), pin(ROOT))) == "trust_threshold"
    other = root(holders=[MALLORY, ANNA, BEN], by=[MALLORY, ANNA])
    assert refused(lambda: begin(other, pin(ROOT))) == "trust_pin", "a server's own root"


def test_a_list_of_keys_counts_when_enough_holders_have_signed_it() -> None:
    trust = advance(START, keys())
    assert trust.keys is not None and {item.name for item in trust.keys.signers.values()} == {"anna", "ben"}
    assert advance(trust, keys()) == trust, "it comes again with every check-in"
    assert advance(trust, keys(by=HOLDERS)) == trust, "one more signature changes nothing"


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (keys(by=[CARA]), "trust_threshold"),
        (keys(by=[CARA, MALLORY]), "trust_signature"),
        (keys(by=[CARA, DORA, MALLORY]), "trust_signature"),
        (keys(by=[ANNA, BEN]), "trust_signature"),
        (keys(tenant="msp-2"), "trust_tenant"),
        (signed(KEYS_TYPE, keys_file(), [CARA, DORA], as_kind=ROOT_TYPE), "trust_signature"),
        (signed(KEYS_TYPE, keys_file(), [CARA, DORA], as_kind="application/json"), "trust_signature"),
        (signed(KEYS_TYPE, json.dumps(root_document(**NEXT)).encode(), [CARA, DORA]), "trust_unreadable"),
        (signed(ROOT_TYPE, keys_file(), [CARA, DORA]), "trust_unreadable"),
        (signed("application/json", keys_file(), [CARA, DORA]), "trust_unreadable"),
        (
            keys(signers=[{"name": "c", "key": base64.b64encode(CARA.public).decode(), "kinds": None}]),
            "trust_role",
        ),
    ],
)
def test_a_list_of_keys_that_is_not_the_roots_is_refused(raw: bytes, code: str) -> None:
    assert refused(lambda: advance(START, raw)) == code


def test_the_version_of_a_list_only_grows() -> None:
    trust = advance(START, keys(version=5))
    assert refused(lambda: advance(trust, keys(version=4))) == "trust_version"
    assert refused(lambda: advance(trust, keys(version=5, expires="2028-01-01T00:00:00Z"))) == "trust_version"
    assert advance(trust, keys(version=9)).keys_version == 9, "versions may be left out"


def test_an_expired_list_or_root_lets_no_order_through_and_still_takes_the_place_of_the_one_before() -> None:
    trust = advance(advance(START, keys()), keys(version=2, expires="2026-01-01T00:00:00Z"))
    now = trust.keys_now()
    assert now is not None and now.expires == datetime(2026, 1, 1, tzinfo=UTC)
    short = root(expires="2026-06-01T00:00:00Z")
    of_root = advance(begin(short, pin(short)), keys()).keys_now()
    assert of_root is not None and of_root.expires == datetime(2026, 6, 1, tzinfo=UTC), "whichever ends first"


@pytest.mark.parametrize(
    "by", list(itertools.combinations([CARA, DORA, EMIL, FAYE], 2)), ids=lambda by: "".join(p.name for p in by)
)
def test_one_lost_key_is_replaced_by_the_two_that_are_left(by: Any) -> None:
    """Emil lost his; Faye comes in. Old and new threshold are two, so both signers must be in both: Cara and Dora."""
    following = root(by=by, holders=[CARA, DORA, FAYE], **NEXT)
    if set(by) == {CARA, DORA}:
        assert advance(START, following).root.version == 2
    else:
        assert refused(lambda: advance(START, following)) == "trust_threshold"


def test_with_two_lost_keys_no_next_root_is_taken() -> None:
    """Only Cara is left of the former root. However many new ones sign, it is one of the two that must have."""
    following = root(by=[CARA, FAYE, ANNA], holders=[CARA, FAYE, ANNA], **NEXT)
    assert refused(lambda: advance(START, following)) == "trust_threshold"


def test_all_holders_may_change_when_enough_of_both_sign() -> None:
    new = (FAYE, Person("gus"), Person("hana"))
    assert refused(lambda: advance(START, root(by=[CARA, DORA], holders=new, **NEXT))) == "trust_threshold"
    assert refused(lambda: advance(START, root(by=[CARA, DORA, FAYE], holders=new, **NEXT))) == "trust_threshold"
    trust = advance(START, root(by=[CARA, DORA, *new[:2]], holders=new, **NEXT))
    assert refused(lambda: advance(trust, keys())) == "trust_signature", "the former holders decide nothing any more"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"version": 1, "expires": "2030-11-30T00:00:00Z"}, "trust_version"),
        ({"version": 3}, "trust_version"),
        ({"version": 2, "tenant": "msp-2"}, "trust_tenant"),
    ],
)
def test_a_next_root_has_the_next_version_of_the_same_client(changes: dict[str, Any], code: str) -> None:
    assert refused(lambda: advance(START, root(**changes))) == code


def test_an_older_root_is_never_taken_again() -> None:
    trust = advance(START, root(**NEXT))
    assert refused(lambda: advance(trust, ROOT)) == "trust_version"
    assert advance(trust, root(**NEXT)) == trust


def test_a_list_stands_on_under_a_next_root_only_while_that_roots_keys_carry_it() -> None:
    raw = keys(version=3, by=[CARA, EMIL])
    trust = advance(START, raw)
    following = root(by=[CARA, DORA], holders=[CARA, DORA, FAYE], **NEXT)
    after = with_keys(advance(trust, following), raw)
    assert after.keys is None and after.keys_version == 3, "Emil's signature has gone with him"
    assert refused(lambda: advance(after, keys(version=2))) == "trust_version", "and nothing older comes back"
    assert advance(after, keys(version=4)).keys is not None
    kept = keys(version=3, by=[CARA, DORA])
    assert with_keys(advance(advance(START, kept), following), kept).keys is not None


def test_what_was_taken_is_held_to_the_same_rules_at_each_start() -> None:
    following = root(by=[CARA, DORA], holders=[CARA, DORA, FAYE], **NEXT)
    trust = replay(pin(ROOT), [ROOT, following], keys(version=7))
    assert trust is not None and (trust.root.version, trust.keys_version) == (2, 7)
    assert trust == advance(advance(START, following), keys(version=7))
    assert replay(pin(ROOT), [], keys()) is None, "without its root a list is nothing"
    assert refused(lambda: replay("0" * 64, [ROOT], None)) == "trust_pin"
    assert refused(lambda: replay(pin(ROOT), [ROOT, root(by=[CARA], **NEXT)], None)) == "trust_threshold"
    forged = replay(pin(ROOT), [ROOT], keys(by=[MALLORY, ANNA], version=99))
    assert forged is not None and forged.keys is None


# Mutations


def leaves(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from leaves(item, (*at, key))
    if not isinstance(value, dict | list):
        yield at


def put(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    spot = changed
    for key in at[:-1]:
        spot = spot[key]
    spot[at[-1]] = value
    return changed


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    3,
    2**53,
    "",
    "x",
    "Jane Roe",
    "\u202e",
    [],
    {},
    "2026-13-01T00:00:00Z",
)
DOCUMENTS = {ROOT_TYPE: root_document(**NEXT), KEYS_TYPE: keys_document(version=2)}


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_no_altered_field_gets_by_under_the_signatures_of_the_good_document(kind: str) -> None:
    """Whoever carries it changes one leaf and keeps the signatures."""
    document, count = DOCUMENTS[kind], 0
    good = json.loads(signed(kind, json.dumps(document).encode(), [CARA, DORA]))
    for at in leaves(document):
        for value in ODD:
            changed = put(document, at, value)
            if json.dumps(changed) in {json.dumps(document), json.dumps(root_document())}:
                continue
            raw = {**good, "payload": base64.b64encode(json.dumps(changed).encode()).decode()}
            refused(lambda raw=raw: advance(START, json.dumps(raw).encode()))  # type: ignore[misc]
            count += 1
    assert count > 100


@pytest.mark.parametrize("at", list(leaves(root_document(**NEXT))))
def test_a_root_that_its_holders_signed_with_an_odd_value_is_not_read_as_another(at: tuple[Any, ...]) -> None:
    """Each leaf takes few values; what can be read at all says what was written."""
    for value in ODD:
        changed = put(root_document(**NEXT), at, value)
        try:
            trust = advance(START, signed(ROOT_TYPE, json.dumps(changed).encode(), [CARA, DORA]))
        except DocumentError as error:
            assert error.code in order_roots.REASONS
            continue
        if trust == START:  # the very bytes of the root that is there
            assert json.dumps(changed) == json.dumps(root_document())
            continue
        said = (trust.root.version, trust.root.threshold, [item.name for item in trust.root.keys.values()])
        assert said == (changed["version"], changed["threshold"], [item["name"] for item in changed["keys"]])
        assert said[0] == 2 and 2 <= said[1] <= 3


@pytest.mark.parametrize(
    "changes",
    [
        {"threshold": 1},
        {"threshold": 4},
        {"threshold": 0},
        {"keys": root_document([CARA])["keys"]},
        {"keys": root_document([CARA, CARA, DORA])["keys"]},
        {"keys": [*root_document([CARA, DORA])["keys"], {**root_document([CARA])["keys"][0], "name": "other"}]},
        {"keys": [*root_document([CARA, DORA])["keys"], {**root_document([EMIL])["keys"][0], "name": "cara"}]},
        {"keys": [*root_document([CARA, DORA])["keys"], {"name": "weak", "key": base64.b64encode(bytes(32)).decode()}]},
        {"keys": root_document([CARA, DORA])["keys"] * 9},
        {"comment": "more"},
        {"version": "2"},
        {"version": 2.0},
    ],
)
def test_a_root_of_another_form_is_refused(changes: dict[str, Any]) -> None:
    assert refused(lambda: advance(START, root(by=HOLDERS, **{**NEXT, **changes}))) == "trust_unreadable"


def test_one_key_is_counted_once_however_it_is_written() -> None:
    good = json.loads(root(by=[CARA], **NEXT))
    [signature] = good["signatures"]
    twice = {**good, "signatures": [signature, signature]}
    assert refused(lambda: advance(START, json.dumps(twice).encode())) == "trust_unreadable"
    upper = {**signature, "keyid": signature["keyid"].upper()}
    assert (
        refused(lambda: advance(START, json.dumps({**good, "signatures": [signature, upper]}).encode()))
        == "trust_unreadable"
    )
    lent = {**signature, "keyid": DORA.key_id}
    assert (
        refused(lambda: advance(START, json.dumps({**good, "signatures": [signature, lent]}).encode()))
        == "trust_signature"
    )


def test_keys_that_stand_twice_and_odd_envelopes_are_refused() -> None:
    text = root(**NEXT).decode()
    for raw in (
        text.replace('"payloadType"', '"payloadType":"x","payloadType"'),
        text.replace('"payload":', '"comment":1,"payload":'),
        text[:-1],
        "",
        "[]",
        "null",
        '{"signatures":[]}',
        text + " " * order_roots.MAX_BYTES,
    ):
        assert refused(lambda raw=raw: advance(START, raw.encode())) == "trust_unreadable"  # type: ignore[misc]
    body = json.dumps(root_document(**NEXT))
    doubled = body.replace('"threshold": 2', '"threshold": 2, "threshold": 2')
    assert refused(lambda: advance(START, signed(ROOT_TYPE, doubled.encode(), HOLDERS))) == "trust_unreadable"


@given(st.data())
def test_no_flipped_bit_changes_what_a_host_trusts(data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.sampled_from([root(**NEXT), keys(version=2)])))
    trust = advance(START, keys())
    good = advance(trust, bytes(raw))
    at = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[at // 8] ^= 1 << at % 8
    try:
        after = advance(trust, bytes(raw))
    except DocumentError as error:
        assert error.code in order_roots.REASONS
    else:
        assert after in (good, trust)


@given(st.lists(st.sampled_from([CARA, DORA, EMIL, FAYE, MALLORY]), unique=True, min_size=1))
def test_exactly_the_sets_of_signers_that_meet_the_threshold_are_taken(by: list[Any]) -> None:
    taken = True
    try:
        advance(START, keys(by=by))
    except DocumentError:
        taken = False
    assert taken is (set(by) <= set(HOLDERS) and len(by) >= 2)


def test_a_trust_says_nothing_by_itself() -> None:
    assert dataclasses.replace(START).keys_now() is None and Trust(START.root).keys_version == 0
