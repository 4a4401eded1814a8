"""What the one expression matches is canonical and fits the schema, whatever was done to it; and honest records do match it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import facts
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence import allowlist, spelled
from compliance_agent.evidence.allowlist import Pattern, check_document, registry
from compliance_agent.evidence.canonical import canonical, is_canonical, read_canonical
from tests.evidence.test_accepting import KEPT, ODD, places, put, quick
from tests.evidence.world import World
from tests.server.builder import FakeHost


def fits(document: Any, raw: bytes) -> bool:
    """The slow way, as `check_bytes` goes it."""
    try:
        check_document(document)
    except BadEvidence:
        return False
    return is_canonical(raw)


def promised(raw: bytes) -> bool:
    """Whether the fast way lets it through; then the slow way has to, but for the words that both look at."""
    if not registry().spelled(raw):
        return False
    document = json.loads(raw)
    try:
        check_document(document, spelled=True)
    except BadEvidence:
        return False
    assert fits(document, raw), raw
    return True


def encoded(document: Any) -> bytes:
    """As canonical as it can be: what has no canonical form is written all the same."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "surrogatepass"
    )


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_place_with_every_odd_value(path: Path) -> None:
    document = json.loads(path.read_bytes())
    assert promised(path.read_bytes())
    for at in places(document):
        for odd in ODD:
            promised(encoded(put(document, at, odd)))
        if isinstance(at[-1], str):
            promised(encoded(put(document, (*at[:-1], "more"), 1)))


@pytest.mark.parametrize("path", KEPT, ids=lambda path: path.stem)
def test_every_byte_with_other_ones(path: Path) -> None:
    raw, rng = path.read_bytes(), random.Random(path.stem)
    found = 0
    for at in range(len(raw)):
        for other in (
            b"",
            b" ",
            b",",
            b'"',
            b"\\",
            b"0",
            b"-",
            b"}",
            bytes([raw[at] ^ 1]),
            bytes([rng.randrange(256)]),
        ):
            changed = raw[:at] + other + raw[at + 1 :]
            found += changed != raw and promised(changed)
    assert found  # another digit of a digest is as good a form


def test_what_hosts_write_is_matched() -> None:
    """Else nothing would be gained, and nobody would notice."""
    host = FakeHost()
    made = [record.body for record in World.live().records] + [host.heartbeat(time_sync="pass", logging="unknown").body]
    assert all(map(promised, made))


@given(st.integers(-(10**17), 10**17), st.integers(0, 10**17), st.data())
def test_numbers(low: int, width: int, data: st.DataObject) -> None:
    kind = facts.Int(low, low + width)
    form = re.compile(spelled._form(kind))
    edges = {
        low - 1,
        low,
        low + 1,
        low + width,
        low + width + 1,
        0,
        -1,
        1,
        *(s * 10**n for n in range(19) for s in (1, -1)),
    }
    for number in [*edges, *data.draw(st.lists(st.integers(low - 5, low + width + 5), max_size=8))]:
        assert not form.fullmatch(str(number)) or kind.accepts(number, {})
    assert not any(form.fullmatch(text) for text in ("-0", "00", "01", "-01", "+1", "1.0", "1e3", ""))


@pytest.mark.parametrize(("low", "high"), [(0, 16), (1, 1_000), (-256, 2**32 - 1), (0, facts.LARGEST_INT)])
def test_usual_numbers_are_matched(low: int, high: int) -> None:
    form = re.compile(spelled._form(facts.Int(low, high)))
    assert all(form.fullmatch(str(number)) for number in (0, 1, 9, 10, high // 2) if number >= low)


@pytest.mark.parametrize("year", [1000, 1999, 2024, 2026, 2100])
def test_days(year: int) -> None:
    kind = facts.Timestamp()
    form = re.compile(spelled._form(kind))
    for month in range(14):
        for day in range(33):
            text = f"{year:04}-{month:02}-{day:02}T00:00:00Z"
            real = kind.accepts(text, {})
            matched = form.fullmatch(f'"{text}"') is not None
            assert matched == real or (not matched and (month, day) == (2, 29))


@given(st.sampled_from(sorted(registry().facts_of)), st.data())
def test_every_fact_of_every_check(check: str, data: st.DataObject) -> None:
    declared = registry().facts_of[check]
    form = re.compile(spelled._some({name: allowlist.Maybe(kind) for name, kind in declared.items()}))
    assert form.fullmatch("{}") and form.fullmatch(json.dumps(dict.fromkeys(sorted(declared)), separators=(",", ":")))
    name, kind = data.draw(st.sampled_from(sorted(declared.items())))
    words = list(kind.words) if isinstance(kind, facts.Choice) else []
    value = data.draw(
        st.sampled_from([*ODD, *words, ["a"], "1.2", "v1", "2026-11-22", [1], ["x", "y"]]) | st.text(max_size=5)
    )
    try:
        raw = canonical({name: value})
    except BadEvidence:
        return
    if form.fullmatch(raw.decode("utf-8")):
        assert registry().accepts_facts[check](json.loads(raw)), "what is read back: JSON has lists and no tuples"
    for wrong in (
        "{,}",
        f'{{"{name}":null,}}',
        f'{{"{name}":null,"{name}":null}}',
        f'{{,"{name}":null}}',
        f'{{"{name}": null}}',
    ):
        assert not form.fullmatch(wrong)


@pytest.mark.parametrize("regex", [r"[^a]", r".", r"[ -~]", r"[a-z\"]", r"\w+", r'a"', r"[A-z]", r"\\", "[\u00e4]"])
def test_a_form_that_could_end_a_string_is_not_taken(regex: str) -> None:
    with pytest.raises(RuntimeError, match="might match"):
        spelled._form(Pattern("word", regex))


def test_an_expression_that_matches_too_much_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: with one leaf that lets more through, the comparison above fails."""
    lax = spelled.Spelling(
        allowlist.Registry(
            registry().checks, registry().common_reasons, (*registry().actions, "rm"), (*registry().codes, "x")
        )
    )
    monkeypatch.setitem(registry().__dict__, "spelled", lax)
    with pytest.raises(AssertionError):
        test_every_place_with_every_odd_value(KEPT[0])
    assert quick(read_canonical(KEPT[0].read_bytes()))
