"""Versions are ordered as people count them, and the order is one."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core.versions import older, order
from compliance_agent.facts import VERSION

VERSIONS = st.from_regex(VERSION, fullmatch=True)


@pytest.mark.parametrize(
    ("first", "second"),
    [("2026.11.9", "2026.11.10"), ("2026.9.1", "2026.11.1"), ("1.0", "1.0.1"), ("1.0-rc2", "1.0.1"), ("9", "10"),
     ("clinic-1", "clinic-2"), ("2026.11.1+a", "2026.11.1+b"), ("007", "8")],
)  # fmt: skip
def test_the_first_is_older(first: str, second: str) -> None:
    assert older(first, second)
    assert not older(second, first)


@pytest.mark.parametrize(("one", "other"), [("1.0", "1.0"), ("1.0", "1-0"), ("01.0", "1.0")])
def test_neither_is_older(one: str, other: str) -> None:
    assert not older(one, other)
    assert not older(other, one)


@given(VERSIONS, VERSIONS, VERSIONS)
def test_it_is_an_order(a: str, b: str, c: str) -> None:
    assert not older(a, a)
    assert not (older(a, b) and older(b, a))
    if older(a, b) and older(b, c):
        assert older(a, c)
    assert sorted([a, b, c], key=order)
