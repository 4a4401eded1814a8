"""The schema as functions says what walking it says, for every leaf of every bundle ever kept and for every damage to one."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import facts
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence import accepting, allowlist
from compliance_agent.evidence.allowlist import _check, registry
from compliance_agent.evidence.canonical import canonical, is_canonical, read_canonical

KEPT = sorted((Path(__file__).parent.parent / "fixtures" / "bundles").glob("*.json"))
ODD: list[Any] = [
    None, True, False, 0, 1, -1, 2**53, 2**53 - 1, "", "pass", "x", "ü", "a" * 64, "0" * 64, "2026-11-22T10:00:00Z",
    "2026-02-30T10:00:00Z", "0001-01-01T00:00:00Z", "9999-12-31T23:59:59Z", "2026-11-22T10:00:00.5Z\n", [], {}, [{}], {"a": 1},
    [None], "\ud800", "\uff11", 1.0, [1] * 300, ("pass",),
]  # fmt: skip


def walked(document: Any) -> bool:
    """The slow way."""
    try:
        _check(document, registry().schema, "")
        for field in ("pre_state", "post_state"):
            check = document["check"]
            declared = {} if check is None else registry().facts_of[check]
            for name, value in document[field].items() if check is not None else ():
                if name not in declared or (
                    value is not None and not allowlist._fact_fits(declared[name], value, None)
                ):
                    return False
    except BadEvidence:
        return False
    return True


def quick(document: Any) -> bool:
    """The fast way."""
    known = registry()
    if not known.accepts(document):
        return False
    check = document["check"]
    return check is None or all(known.accepts_facts[check](document[field]) for field in ("pre_state", "post_state"))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if at:
        yield at
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inner:
        yield from places(item, (*at, key))


def put(document: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(document)
    holder = changed
    for key in at[:-1]:
        holder = holder[key]
    holder[at[-1]] = value
    return changed


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_place_with_every_odd_value(path: Path) -> None:
    document = json.loads(path.read_bytes())
    assert quick(document) and walked(document)
    for at in places(document):
        for odd in ODD:
            changed = put(document, at, odd)
            assert quick(changed) == walked(changed), (at, odd)
        holder = document
        for key in at[:-1]:
            holder = holder[key]
        if isinstance(holder, dict):
            gone = copy.deepcopy(document)
            inner = gone
            for key in at[:-1]:
                inner = inner[key]
            del inner[at[-1]]
            assert quick(gone) == walked(gone), at
            more = put(document, (*at[:-1], "more"), 1)
            assert quick(more) == walked(more), at


@given(st.sampled_from(sorted(registry().facts_of)), st.data())
def test_every_fact_of_every_check(check: str, data: st.DataObject) -> None:
    name, kind = data.draw(st.sampled_from(sorted(registry().facts_of[check].items())))
    edges = [kind.low - 1, kind.low, kind.high, kind.high + 1] if isinstance(kind, facts.Int) else []
    words = list(kind.words) if isinstance(kind, facts.Choice) else []
    value = data.draw(st.sampled_from([*ODD, *edges, *words, ["a"], ["a b"], "1.2", "v1"]) | st.text(max_size=5))
    expected = value is None or allowlist._fact_fits(kind, value, None)
    if isinstance(value, tuple):
        return  # no JSON reader makes one
    assert registry().accepts_facts[check]({name: value}) == expected
    assert not registry().accepts_facts[check]({"no_such_fact": value})


def test_a_new_type_of_fact_is_not_let_through() -> None:
    class New(facts.FactType):
        pass

    with pytest.raises(RuntimeError, match="no function"):
        accepting.leaf(New())


def test_a_function_that_accepts_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: with one leaf that lets all through, the comparison above fails."""
    lax = accepting.accepting({**registry().schema, "trigger": allowlist.NATURAL})
    monkeypatch.setitem(registry().__dict__, "accepts", lax)
    with pytest.raises(AssertionError):
        test_every_place_with_every_odd_value(KEPT[0])


# Reading canonical bytes fast


def slow(raw: bytes) -> Any:
    try:
        return read_json(raw) if is_canonical(raw) else None
    except DocumentError:
        return None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(1 - 10**15, 10**15 - 1) | st.text(),  # so far below the limit that no flip exceeds it
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(max_codepoint=127)), inner, max_size=4),
    max_leaves=12,
)  # fmt: skip


@given(JSON, st.randoms())
def test_what_is_read_fast_is_what_is_read_slowly(value: Any, rng: random.Random) -> None:
    try:
        raw = canonical(value)
    except BadEvidence:
        return
    assert read_canonical(raw) == value or slow(raw) is None
    changed = bytearray(raw)
    at = rng.randrange(len(raw))
    changed[at] ^= 1 << rng.randrange(8)
    fast = read_canonical(bytes(changed))
    assert fast is None or fast == slow(bytes(changed))


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":1}', b'{"a": 1}', b'{"b":1,"a":1}', b"1.0", b"1e3", b"-0", b"NaN", b"01", b'"\\u0041"', b'"\\ud800"',
     b"\xef\xbb\xbf1", b"\xff", b"", b"[" * 100_000, b"1 ", b'"\x00"', b'"\\/"', b'{"a":1.5}', b"Infinity"],
    ids=lambda raw: repr(raw[:16]),
)  # fmt: skip
def test_another_spelling_is_not_read_at_all(raw: bytes) -> None:
    assert read_canonical(raw) is None
