"""One spelling for each value."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import from_base64, from_decimal, to_base64


@given(st.binary(min_size=1))
def test_base64_round_trip(raw: bytes) -> None:
    assert from_base64(to_base64(raw), "x", "c") == raw


@pytest.mark.parametrize(
    "text", ["", "A", "AA", "AA=", "AB==", "AAB=", "AA==\n", " AA==", "A A==", "AA==AA==", "__8=", "é"]
)
def test_other_base64_is_refused(text: str) -> None:
    """Spare bits, missing padding, spaces, the URL alphabet: each names the field."""
    with pytest.raises(BadEvidence, match="the field") as refused:
        from_base64(text, "the field", "the_code")
    assert refused.value.code == "the_code"


@given(st.integers(0, 2**63 - 1))
@example(2**63 - 1)
def test_decimal_round_trip(number: int) -> None:
    assert from_decimal(str(number), "x", "c") == number


@pytest.mark.parametrize(
    "text", ["", "00", "01", "-1", "+1", " 1", "1 ", "1\n", "1_0", "1.0", "\u0663", "9223372036854775808", "9" * 5000]
)
def test_other_decimals_are_refused(text: str) -> None:
    """Leading zeroes, signs, spaces, other alphabets' digits, and what is too large."""
    with pytest.raises(BadEvidence, match="the field"):
        from_decimal(text, "the field", "c")
