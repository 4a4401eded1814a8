"""The interval follows what happens, within bounds, and comes back by itself."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core.pace import MOST_S, OLD_S, SOONEST_S, Pace


def test_a_change_is_looked_after_and_then_left_alone() -> None:
    pace = Pace()
    assert (pace.next_s(60, None, 0, 0), pace.why) == (60, "configured")
    pace.changed()
    assert [(pace.next_s(60, None, 0, 0), pace.why) for _ in range(3)] == [
        (15, "changed"), (30, "changed"), (60, "configured"),
    ]  # fmt: skip


def test_the_server_may_slow_it_down_and_not_silence_it() -> None:
    pace = Pace()
    pace.changed()
    assert (pace.next_s(60, 300, 0, 0), pace.why) == (300, "server")
    assert pace.next_s(60, 86_400, 0, 0) == 3_600
    assert pace.next_s(60, 1, 0, 0) == 60


@pytest.mark.parametrize(
    ("depth", "oldest_s", "expected"),
    [(999, 0, 60), (1_000, 0, 120), (10_000, 0, 240), (1, OLD_S, 120), (0, OLD_S, 60), (10**9, 10**9, 240)],
)
def test_pressure_makes_it_slower(depth: int, oldest_s: float, expected: float) -> None:
    assert Pace().next_s(60, None, depth, oldest_s) == expected


def test_pressure_ends_at_half_of_what_began_it() -> None:
    pace = Pace()
    seen = [pace.next_s(60, None, depth, 0) for depth in (999, 1_000, 999, 500, 499, 999)]
    assert seen == [60, 120, 120, 120, 60, 60]


@given(st.floats(1, 86_400), st.none() | st.floats(0, 10**6), st.integers(0, 10**6), st.floats(0, 10**8), st.booleans())
def test_it_is_always_bounded(base: float, asked: float | None, depth: int, oldest: float, changed: bool) -> None:
    pace = Pace()
    if changed:
        pace.changed()
    found = pace.next_s(base, asked, depth, oldest)
    assert min(base, SOONEST_S) <= found <= max(base, MOST_S, min(asked or 0, 3_600))
