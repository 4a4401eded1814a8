"""Events wake checks at once and in a burst once, lose nothing, and are no load whatever an opponent does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core.waking import CALM, HOUR_S, MOST_GAP_S, SETTLE_S, SHARE, Breath, Wakes, sources
from compliance_agent.ports import Source

GAP_S, BUDGET = 1.0, 50


@dataclass(frozen=True)
class Parameters:
    unit: str = "ssh.service"
    files: tuple[str, ...] | None = ("/a", "/b")
    none: tuple[str, ...] | None = None


def test_declarations_are_filled_from_the_baseline() -> None:
    reads = ("path:/etc/x", "path:{files}", "path:{none}", "unit:{unit}", "ruleset:", "path:{unit}/y")
    assert sources(reads, Parameters()) == {
        Source("path", "/etc/x"), Source("path", "/a"), Source("path", "/b"), Source("unit", "ssh.service"),
        Source("ruleset"), Source("path", "ssh.service/y"),
    }  # fmt: skip


@pytest.mark.parametrize("declared", ["path", "path:", "unit:", "ruleset:x", "mounts:/", "file:/etc/x", "", ":x"])
def test_what_is_no_declaration_is_refused(declared: str) -> None:
    with pytest.raises(ValueError, match="not a declaration"):
        sources((declared,), Parameters())


def run(moments: list[float], *, gap_s: float = GAP_S, budget: int = BUDGET, look_s: float = 0.0) -> list[float]:
    """When a check is woken that is told of at these moments, by a caller that asks in time."""
    wakes, woken = Wakes(gap_s, budget), []
    for moment in [*sorted(moments), None]:
        while (due := wakes.next_at()) is not None and (moment is None or due <= moment):
            woken += [due for _ in wakes.due(due)]
        if moment is not None:
            wakes.told("one", moment, look_s)
    return woken


MOMENTS = st.lists(st.floats(0, 20_000, allow_nan=False), min_size=1, max_size=200)


@given(MOMENTS)
def test_the_first_event_wakes_at_once(moments: list[float]) -> None:
    assert run(moments)[0] == pytest.approx(min(moments) + SETTLE_S)


@given(MOMENTS)
def test_no_event_is_lost(moments: list[float]) -> None:
    """After each there is a wake, and not later than the longest rest."""
    woken = run(moments, budget=10_000)
    for moment in moments:
        assert any(moment <= wake <= moment + MOST_GAP_S + SETTLE_S for wake in woken)


@given(MOMENTS, st.floats(0, 30))
def test_two_wakes_are_never_closer_than_the_rest(moments: list[float], look_s: float) -> None:
    for one, next_one in pairwise(run(moments, budget=10_000, look_s=look_s)):
        assert next_one - one >= max(GAP_S, SHARE * look_s) * 0.999


@given(st.lists(st.floats(0, 20_000), min_size=60, max_size=300), st.integers(0, 40))
def test_any_hour_has_at_most_its_budget(moments: list[float], budget: int) -> None:
    woken = run(moments, budget=budget)
    for wake in woken:
        assert sum(wake - HOUR_S < other <= wake for other in woken) <= budget


def test_a_burst_is_one_look() -> None:
    assert run([100.0 + n * SETTLE_S / 1_000 for n in range(1_000)]) == [100.0 + SETTLE_S]


def test_what_is_over_is_looked_at_at_once_and_never_within_a_rest() -> None:
    wakes = Wakes(GAP_S, BUDGET)
    wakes.told("one", 100.0)
    wakes.told("one", 100.0005, over=True)  # the writer closes what it had begun to write
    assert wakes.next_at() == 100.0005 and wakes.due(100.0005) == ["one"]
    wakes.told("one", 100.1, over=True)
    assert wakes.next_at() == pytest.approx(100.0005 + GAP_S)


def test_what_comes_after_the_look_began_is_looked_at_too() -> None:
    """A cure's own writes come right after the wake: they are one more look, not one for each."""
    assert run([0.0, 0.01, 0.02, 0.5]) == [SETTLE_S, pytest.approx(SETTLE_S + GAP_S)]


@pytest.mark.parametrize("every_s", [0.01, 1.0, 3.0])
def test_an_opponent_who_never_rests_gets_a_look_every_few_minutes(every_s: float) -> None:
    """A day of changes, faster than the shortest rest: no more than the poll would look."""
    day = run([n * every_s for n in range(int(86_400 / every_s))], budget=10_000)
    assert len(day) <= 86_400 / MOST_GAP_S + 10
    assert all(later - wake <= MOST_GAP_S + every_s for wake, later in pairwise(day))


def test_rare_changes_are_each_looked_at_at_once() -> None:
    moments = [n * GAP_S * (CALM + 1) for n in range(40)]
    assert run(moments) == [pytest.approx(moment + SETTLE_S) for moment in moments]


def cures(every_s: float, count: int) -> tuple[list[float], list[float]]:
    """A drift now and then, cured at once: when the check was looked at for a drift, and for the cure's own change."""
    wakes, for_drifts, for_cures = Wakes(GAP_S, BUDGET), list[float](), list[float]()
    for number in range(count):
        now = number * every_s
        wakes.told("one", now)
        due = wakes.next_at()
        assert due is not None and wakes.due(due) == ["one"]
        for_drifts.append(due - now)
        wakes.told("one", due + 0.01)  # the cure writes, ends, and is told of once more
        wakes.cured("one", due + 0.02)
        wakes.told("one", due + 0.03)
        echo = wakes.next_at()
        assert echo is not None and echo <= due + GAP_S + 0.04 and wakes.due(echo) == ["one"]
        assert wakes.next_at() is None
        for_cures.append(echo)
    return for_drifts, for_cures


def test_the_change_that_a_cure_makes_is_looked_at_and_lengthens_no_rest() -> None:
    """Without, the rest of a check whose drifts are cured every few seconds grew until a drift waited for the round."""
    for_drifts, for_cures = cures(20 * GAP_S, 20)
    assert max(for_drifts) == pytest.approx(SETTLE_S) and len(for_cures) == 20


def test_a_cure_excuses_one_look_and_no_more() -> None:
    """What an opponent does in the shadow of a cure is unrest like any other from its second look on."""
    wakes, woken, now = Wakes(GAP_S, BUDGET), list[float](), 0.0
    wakes.told("one", now)
    for _ in range(6):
        now = wakes.next_at() or 0.0
        woken += [now for _ in wakes.due(now)]
        if len(woken) == 1:
            wakes.cured("one", now)
        wakes.told("one", now + 0.01)
    rests = [after - before for before, after in pairwise(woken)]
    assert rests == pytest.approx([GAP_S, GAP_S, 2 * GAP_S, 4 * GAP_S, 8 * GAP_S], rel=0.02)


def test_a_spent_budget_counts_nothing_and_comes_back_by_itself() -> None:
    wakes = Wakes(GAP_S, 4)
    for number in range(4):
        assert wakes.told(f"check-{number}", 10.0 * number)
        assert wakes.due(10.0 * number + SETTLE_S) == [f"check-{number}"]
    assert not wakes.told("check-9", 40.0)
    assert wakes.spent(40.0)
    assert wakes.next_at() is None
    assert wakes.looks(40.0) == 4
    assert wakes.spent(HOUR_S + 19.0)  # half of them must be an hour old
    assert not wakes.spent(HOUR_S + 21.0)
    assert wakes.told("check-9", HOUR_S + 21.0)


def test_a_flood_is_read_in_few_pieces_and_calm_at_once() -> None:
    breath, now, pieces = Breath(most_s=0.5), 100.0, 0
    assert breath.after(now) == 0.0
    while now < 160.0:
        pieces += 1
        now += breath.after(now) + 0.0001
    assert pieces < 140
    assert breath.after(now + 2.0) == 0.0


def test_the_rest_of_a_reader_never_grows_beyond_its_most() -> None:
    breath, now = Breath(most_s=0.25), 0.0
    for _ in range(100):
        rest = breath.after(now)
        assert 0.0 <= rest <= 0.25
        now += rest
