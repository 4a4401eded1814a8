"""An interval is what follows from what was said, no more: held to the definition written down plainly, and to a simulated log."""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.entries import interval
from compliance_agent.entries.interval import SECOND_US, Timeline

TIMES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 10**9)), max_size=12)


@given(TIMES, TIMES, st.integers(0, 45))
def test_as_defined(said: list[tuple[int, int]], shown: list[tuple[int, int]], number: int) -> None:
    line = Timeline(said, shown)
    before = [time for index, time in said if index < number]
    after = [time for size, time in shown if size > number]
    assert line.not_before(number) == (max(before) if before else None)
    assert line.not_after(number) == (min(after) + SECOND_US if after else None)


@given(TIMES, TIMES, st.integers(0, 45), st.integers(0, 45))
def test_a_later_record_is_never_bounded_lower(
    said: list[tuple[int, int]], shown: list[tuple[int, int]], one: int, other: int
) -> None:
    """More entries under its head: no earlier. A higher index: no lower end above."""
    line, (low, high) = Timeline(said, shown), sorted((one, other))
    assert (line.not_before(low) or 0) <= (line.not_before(high) or 0)
    first, second = line.not_after(low), line.not_after(high)
    assert second is None or (first is not None and first <= second)


@given(TIMES, TIMES, st.integers(0, 40), st.integers(0, 10**9), st.integers(0, 45))
def test_more_that_is_said_only_narrows(
    said: list[tuple[int, int]], shown: list[tuple[int, int]], index: int, time: int, number: int
) -> None:
    line, more = Timeline(said, shown), Timeline([*said, (index, time)], [*shown, (index, time)])
    assert (more.not_before(number) or 0) >= (line.not_before(number) or 0)
    before, after = line.not_after(number), more.not_after(number)
    assert before is None or (after is not None and after <= before)


def test_where_nothing_is_said_nothing_is_guessed() -> None:
    line = Timeline()
    assert (line.not_before(0), line.not_before(99), line.not_after(0)) == (None, None, None)
    assert Timeline([(5, 1)]).not_before(5) is None, "the root of five entries does not cover entry 5"
    assert Timeline([(5, 1)]).not_before(6) == 1
    assert Timeline([], [(5, 1)]).not_after(5) is None, "a tree of five entries has none of index 5"
    assert Timeline([], [(5, 1)]).not_after(4) == 1 + SECOND_US


def simulated(seed: int) -> bool:
    """A log that lives: whether the true time of every record lies within its interval. Times are given in whole seconds."""
    rng, now, size = random.Random(seed), 0, 0
    said, shown, records = list[tuple[int, int]](), list[tuple[int, int]](), list[tuple[int, int, int]]()
    head, waiting = 0, list[tuple[int, int]]()
    for _ in range(60):
        now += rng.randrange(1, 5 * SECOND_US)
        match rng.randrange(5):
            case 0:
                head = size  # the host sees a checkpoint
            case 1:
                waiting.append((now, head))  # recorded, and not in the log yet
            case 4:
                records += [(at, seen, size + place) for place, (at, seen) in enumerate(waiting)]
                size, waiting = size + len(waiting), []
            case 2:
                shown.append((size, now // SECOND_US * SECOND_US))
            case _:
                said.append((size, now // SECOND_US * SECOND_US))
                size += 1
    line = Timeline(said, shown)
    return all(
        (line.not_before(head) or 0) <= at <= (line.not_after(index) if line.not_after(index) is not None else now)  # type: ignore[operator]
        for at, head, index in records
    )


@pytest.mark.parametrize("seed", range(40))
def test_the_truth_is_always_inside(seed: int) -> None:
    assert simulated(seed)


@pytest.mark.parametrize("name", ["one entry too many", "one tree too small", "no room for the second"])
def test_a_bound_that_is_wrong_by_one_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: each makes the simulated truth fall outside for some log."""
    match name:
        case "one entry too many":
            monkeypatch.setattr(interval, "bisect_left", bisect_right)
        case "one tree too small":
            monkeypatch.setattr(interval, "bisect_right", bisect_left)
        case _:
            monkeypatch.setattr(interval, "SECOND_US", 0)
    assert not all(simulated(seed) for seed in range(400))
