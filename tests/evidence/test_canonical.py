"""The bytes that are signed are RFC 8785, and no other spelling of a value is taken for them."""

from __future__ import annotations

import json

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.canonical import canonical, is_canonical

KEYS = st.text(st.characters(max_codepoint=127), max_size=8)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
LEAVES = st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | TEXT
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=20
)


@given(VALUES)
def test_equals_the_independent_implementation(value: object) -> None:
    raw = canonical(value)
    assert raw == rfc8785.dumps(value)  # type: ignore[arg-type]
    assert json.loads(raw) == value


@given(st.dictionaries(KEYS, VALUES, max_size=4))
def test_is_canonical_accepts_exactly_its_own_output(value: dict[str, object]) -> None:
    raw = canonical(value)
    assert is_canonical(raw) or b"\\u0000" in raw  # NUL is no text here
    for other in (json.dumps(value).encode(), json.dumps(value, indent=1).encode(), raw + b"\n", b" " + raw):
        assert other == raw or not is_canonical(other)


@pytest.mark.parametrize(
    "raw",
    [b'{"a":1,"a":1}', b'{"b":1,"a":2}', b'{"a":1.0}', b'{"a":1e3}', b'{"a":-0}', b'{"a":NaN}', b'{"a":"\\u0041"}',
     b'{"a":"\\/"}', b'\xef\xbb\xbf{}',
     b'{"a":9007199254740992}', b'{"a":"\\ud800"}', b"", b"\x00", b"[" * 5000, b'{"\xc3\xa9":1}'],
)  # fmt: skip
def test_other_spellings_are_refused(raw: bytes) -> None:
    assert not is_canonical(raw)


@pytest.mark.parametrize(
    "value",
    [
        1.0,
        float("nan"),
        float("inf"),
        2**53,
        -(2**53),
        {"é": 1},
        {1: 1},
        "\ud800",
        ["\udfff"],
        b"raw",
        {1, 2},
        object(),
    ],
)
def test_values_outside_the_profile_are_refused(value: object) -> None:
    with pytest.raises(BadEvidence) as caught:
        canonical(value)
    assert caught.value.code == "not_canonical"


def test_depth_is_bounded() -> None:
    value: object = 1
    for _ in range(5_000):
        value = [value]
    with pytest.raises(BadEvidence, match="nested"):
        canonical(value)
