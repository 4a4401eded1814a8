"""Each gate alone, their order, and what the clock may do to the history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core import gates
from compliance_agent.core.gates import Attempt, Context, Decision, Limits, Moment, decide
from compliance_agent.core.schedule import MaintenanceWindow
from compliance_agent.facts import TOKEN
from compliance_agent.models import DriftResult, Mode, Outcome, Plan, Result, Step, Verdict

WALL = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
NOW = Moment(WALL, 100_000.0, "boot-b")
CLOSED = MaintenanceWindow(time(2), time(4))
PLAN = Plan("toy", (Step("do"),), disruptive=True, target="t-1")
DRIFT = DriftResult("toy", True, plan=PLAN)
LIMITS = Limits(cooldown_s=300, budget_per_hour=4, flap_limit=3, flap_window_s=7_200)


def ago(seconds: float, *, check: str = "toy", forgiven: bool = False) -> Attempt:
    at = Moment(WALL - timedelta(seconds=seconds), NOW.monotonic_s - seconds, "boot-b")
    return Attempt(check, "t-0", at, "success", forgiven)


OPEN = Context(now=NOW, mode=Mode.ENFORCE, limits=LIMITS, window=MaintenanceWindow(time(0), time(0)))

# In the order of DESIGN 6: how each gate is closed, and how it then ends.
CLOSINGS: list[tuple[str, dict[str, Any], Outcome]] = [
    ("mode_audit", {"mode": Mode.AUDIT}, Outcome.ALERT),
    ("paused", {"paused": True}, Outcome.DEFERRED),
    ("exception", {"exception_id": "exc-1", "exception_until": WALL + timedelta(days=3)}, Outcome.DEFERRED),
    ("cooldown", {"history": (ago(10),)}, Outcome.DEFERRED),
    ("budget", {"history": tuple(ago(1_000 + n, check="other") for n in range(4))}, Outcome.DEFERRED),
    ("flapping", {"contended_since": ago(600).at}, Outcome.DEFERRED),
    ("rejected_target", {"rejected": True}, Outcome.REJECTED),
    ("outside_window", {"window": CLOSED}, Outcome.DEFERRED),
    ("approval_required", {"approval_required": True}, Outcome.DEFERRED),
    ("lease_required", {"lease_required": True}, Outcome.DEFERRED),
    ("blocked", {"blocker": "package_manager_lock"}, Outcome.DEFERRED),
]


def test_with_every_gate_open_it_is_allowed() -> None:
    assert decide(DRIFT, OPEN) == Decision(None, "allowed")
    assert decide(DRIFT, OPEN).allowed


@pytest.mark.parametrize(("reason", "closing", "outcome"), CLOSINGS, ids=[reason for reason, _, _ in CLOSINGS])
def test_each_gate_alone_holds_it_back(reason: str, closing: dict[str, Any], outcome: Outcome) -> None:
    decision = decide(DRIFT, replace(OPEN, **closing))
    assert (decision.reason, decision.outcome, decision.allowed) == (reason, outcome, False)


@pytest.mark.parametrize("first", range(len(CLOSINGS)))
def test_the_first_closed_gate_decides(first: int) -> None:
    """With this gate and all later ones closed, this one gives the reason."""
    closed: dict[str, Any] = {}
    for _, closing, _ in reversed(CLOSINGS[first:]):
        closed |= closing
    assert decide(DRIFT, replace(OPEN, **closed)).reason == CLOSINGS[first][0]


def test_a_swapped_order_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: two gates change places."""
    swapped = list(gates.GATES)
    swapped[2], swapped[3] = swapped[3], swapped[2]
    monkeypatch.setattr(gates, "GATES", tuple(swapped))
    with pytest.raises(AssertionError):
        for first in range(len(CLOSINGS)):
            test_the_first_closed_gate_decides(first)


def test_every_reason_is_a_declared_token() -> None:
    assert {reason for reason, _, _ in CLOSINGS} <= set(gates.REASONS)
    assert all(TOKEN.fullmatch(reason) for reason in gates.REASONS)


def test_no_cure_is_an_alert_whatever_else_holds() -> None:
    without = DriftResult("toy", True, no_plan_reason="needs_hands")
    assert decide(without, replace(OPEN, paused=True)) == Decision(Outcome.ALERT, "needs_hands")
    assert decide(DriftResult("toy", True), OPEN).reason == "no_cure"
    assert decide(replace(DRIFT, plan=Plan("toy", ())), OPEN).reason == "no_cure"


def test_an_excepted_failure_is_held_until_the_exception_ends() -> None:
    excepted = DriftResult("toy", False, verdict=Verdict(Result.EXCEPTION, "off"), exception_id="exc-1")
    assert decide(excepted, OPEN).reason == "exception"


@pytest.mark.parametrize("result", [Result.PASS, Result.UNKNOWN, Result.NOT_APPLICABLE])
def test_healing_what_is_no_drift_is_a_mistake_of_the_caller(result: Result) -> None:
    with pytest.raises(RuntimeError, match="nothing to heal"):
        decide(DriftResult("toy", False, verdict=Verdict(result, "as_expected")), OPEN)


@pytest.mark.parametrize("closing", [{"window": CLOSED}, {"window": None}, {"lease_required": True}])
def test_what_disturbs_nobody_needs_no_window_and_no_lease(closing: dict[str, Any]) -> None:
    quiet = replace(DRIFT, plan=replace(PLAN, disruptive=False))
    assert decide(quiet, replace(OPEN, **closing)).allowed


# --- when it opens again


@pytest.mark.parametrize(
    ("closing", "opens"),
    [
        ({"history": (ago(10),)}, WALL + timedelta(seconds=290)),
        ({"history": tuple(ago(age, check="x") for age in (100, 200, 300, 3_000))}, WALL + timedelta(seconds=600)),
        ({"history": tuple(ago(age, check="x") for age in (1, 2, 3, 4, 5, 6))}, WALL + timedelta(seconds=3_596)),
        ({"contended_since": ago(7_000).at}, WALL + timedelta(seconds=200)),
        ({"window": CLOSED}, WALL.replace(hour=2) + timedelta(days=1)),
    ],
)
def test_not_before_is_when_the_gate_opens(closing: dict[str, Any], opens: datetime) -> None:
    context = replace(OPEN, **closing)
    assert decide(DRIFT, context).not_before == opens
    wait = (opens - WALL).total_seconds()
    just_before, then = (
        replace(context, now=Moment(WALL + timedelta(seconds=s), NOW.monotonic_s + s, "boot-b"))
        for s in (wait - 0.01, wait)
    )
    assert not decide(DRIFT, just_before).allowed
    assert decide(DRIFT, then).allowed


def test_a_budget_of_nothing_never_opens() -> None:
    decision = decide(DRIFT, replace(OPEN, limits=replace(LIMITS, budget_per_hour=0)))
    assert (decision.reason, decision.not_before) == ("budget", None)


# --- the flap breaker


def test_one_attempt_too_many_trips_the_breaker_once() -> None:
    fought = replace(OPEN, history=tuple(ago(age) for age in (400, 800, 1_200)))
    tripping = decide(DRIFT, fought)
    assert (tripping.reason, tripping.outcome, tripping.trips) == ("flapping", Outcome.ALERT, True)
    held = decide(DRIFT, replace(fought, contended_since=NOW))
    assert (held.reason, held.outcome, held.trips) == ("flapping", Outcome.DEFERRED, False)


def test_attempts_at_other_checks_and_forgiven_ones_are_no_flapping() -> None:
    history = (ago(400), ago(800), ago(1_200, forgiven=True), ago(1_300, check="other"))
    assert decide(DRIFT, replace(OPEN, limits=replace(LIMITS, budget_per_hour=9), history=history)).allowed


# --- clocks


def check_no_free_budget(age_s: Callable[[Moment, Moment], float], jump_s: float, *, reboot: bool, up_s: float) -> None:
    """However the wall is set back, an attempt is never taken for older than the time that passed since."""
    began = Moment(WALL, 5_000.0, "boot-a")
    if reboot:
        now = Moment(WALL + timedelta(seconds=up_s + jump_s), up_s, "boot-b")
    else:
        now = Moment(WALL + timedelta(seconds=up_s + jump_s), 5_000.0 + up_s, "boot-a")
    assert 0.0 <= age_s(began, now) <= up_s + 1e-6


back = st.floats(-400 * 86_400.0, 0.0)
up = st.floats(0.0, 30 * 86_400.0)


@given(back, st.booleans(), up)
def test_a_clock_that_was_set_back_frees_nothing(jump_s: float, reboot: bool, up_s: float) -> None:
    check_no_free_budget(Moment.age_s, jump_s, reboot=reboot, up_s=up_s)


@given(st.floats(-400 * 86_400.0, 26_000 * 86_400.0), up)
def test_within_one_boot_the_wall_clock_changes_nothing(jump_s: float, up_s: float) -> None:
    now = Moment(WALL + timedelta(seconds=jump_s), 5_000.0 + up_s, "boot-a")
    assert Moment(WALL, 5_000.0, "boot-a").age_s(now) == pytest.approx(up_s, abs=1e-6)


@pytest.mark.parametrize(
    "planted",
    [
        lambda began, now: abs((now.wall - began.wall).total_seconds()),  # the future counts as the past
        lambda began, now: now.monotonic_s - began.monotonic_s,  # forgets the reboot: negative
    ],
)
def test_a_careless_age_is_caught(planted: Callable[[Moment, Moment], float]) -> None:
    with pytest.raises(AssertionError):
        check_no_free_budget(planted, -90_000.0, reboot=True, up_s=60.0)


def test_an_attempt_in_the_future_counts_until_the_host_was_up_long_enough() -> None:
    """An attempt of 2099, made before the clock was put right, holds back for the period and not for 73 years."""
    future = Attempt("toy", "t-0", Moment(datetime(2099, 1, 1, tzinfo=UTC), 50.0, "boot-a"))
    just_up = replace(OPEN, history=(future,), now=Moment(WALL, 60.0, "boot-b"))
    assert decide(DRIFT, just_up).reason == "cooldown"
    assert decide(DRIFT, replace(just_up, now=Moment(WALL, 301.0, "boot-b"))).allowed


@given(st.lists(st.floats(0.0, 10_000.0), max_size=12), st.lists(st.floats(0.0, 10_000.0), max_size=12))
def test_what_is_allowed_is_within_every_limit(own: list[float], others: list[float]) -> None:
    history = (*(ago(age) for age in own), *(ago(age, check="other") for age in others))
    allowed = decide(DRIFT, replace(OPEN, history=history)).allowed
    in_hour = sum(age < 3_600 for age in (*own, *others))
    assert allowed == (all(age >= 300 for age in own) and in_hour < 4 and sum(age < 7_200 for age in own) < 3)
