"""apply_jitter moves an interval evenly, within its bounds, and with chance that can be handed in."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.utils import apply_jitter


@given(st.floats(0, 1e9), st.floats(0, 100), st.integers())
def test_the_result_stays_within_the_percentage(seconds: float, pct: float, seed: int) -> None:
    moved = apply_jitter(seconds, pct, rng=random.Random(seed))
    assert moved >= 0
    assert abs(moved - seconds) <= seconds * pct / 100 * (1 + 1e-9) + 1e-9


def test_it_reaches_both_sides_evenly() -> None:
    rng = random.Random(7)
    values = [apply_jitter(60.0, rng=rng) for _ in range(2_000)]
    assert min(values) < 54.3 and max(values) > 65.7
    assert abs(sum(values) / len(values) - 60.0) < 0.5


def test_no_jitter_gives_the_interval_back() -> None:
    assert apply_jitter(60.0, jitter_pct=0) == 60.0
    assert apply_jitter(0.0) == 0.0


def test_the_same_chance_gives_the_same_interval() -> None:
    assert apply_jitter(60, rng=random.Random(1)) == apply_jitter(60, rng=random.Random(1))


@pytest.mark.parametrize("seconds", [-1.0, math.inf, math.nan])
def test_an_interval_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        apply_jitter(seconds)


@pytest.mark.parametrize("pct", [-0.1, 100.1, math.nan])
def test_a_percentage_that_is_none_is_refused(pct: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        apply_jitter(60, pct)
