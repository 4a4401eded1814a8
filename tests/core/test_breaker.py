"""The breaker lets one probe through at a time, waits longer after each that fails, and never locks itself."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from compliance_agent.core.breaker import CircuitBreaker

THRESHOLD, OPEN_S, MAX_OPEN_S, PROBE_S = 3, 10.0, 100.0, 5.0


def breaker(kind: type[CircuitBreaker] = CircuitBreaker) -> CircuitBreaker:
    return kind(random.Random(7), threshold=THRESHOLD, open_s=OPEN_S, max_open_s=MAX_OPEN_S, probe_s=PROBE_S)


def test_it_opens_after_failures_in_a_row_and_closes_after_a_probe() -> None:
    it = breaker()
    it.failure(0.0)
    it.failure(0.0)
    it.success(0.0)  # a success in between starts the count anew
    it.failure(0.0)
    it.failure(0.0)
    assert it.state(0.0) == "closed"
    it.failure(0.0)
    assert it.state(0.0) == "open"
    assert not it.allow(0.0)
    ready = it.wait_s(0.0)
    assert OPEN_S / 2 <= ready <= OPEN_S
    assert it.allow(ready)
    assert it.state(ready) == "half_open"
    assert not it.allow(ready)
    it.success(ready)
    assert it.state(ready) == "closed"


def test_a_probe_that_never_reports_counts_as_failed() -> None:
    it = breaker()
    for _ in range(THRESHOLD):
        it.failure(0.0)
    probed = it.wait_s(0.0)
    assert it.allow(probed)
    assert not it.allow(probed + PROBE_S)
    assert it.state(probed + PROBE_S) == "open"
    later = probed + PROBE_S + it.wait_s(probed + PROBE_S)
    assert it.allow(later)


def test_each_failed_probe_waits_longer_up_to_the_cap() -> None:
    it = breaker()
    for _ in range(THRESHOLD):
        it.failure(0.0)
    now = 0.0
    for openings in range(12):
        longest = min(MAX_OPEN_S, OPEN_S * 2**openings)
        assert longest / 2 <= it.wait_s(now) <= longest
        now += it.wait_s(now)
        assert it.allow(now)
        it.failure(now)


def test_an_answer_from_before_it_opened_changes_nothing() -> None:
    it = breaker()
    for _ in range(THRESHOLD):
        it.failure(0.0)
    it.success(0.1)
    it.failure(0.1)
    assert it.state(0.1) == "open"


@pytest.mark.parametrize(
    "bad", [{"threshold": 0}, {"open_s": 0.0}, {"open_s": 9.0, "max_open_s": 8.0}, {"probe_s": 0.0}]
)
def test_settings_that_could_never_work_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="breaker"):
        CircuitBreaker(random.Random(1), **bad)  # type: ignore[arg-type]


class BreakerMachine(RuleBasedStateMachine):
    """Any order of calls, answers and waits."""

    kind: type[CircuitBreaker] = CircuitBreaker

    def __init__(self) -> None:
        super().__init__()
        self.it = breaker(self.kind)
        self.now = 0.0
        self.in_flight = 0
        self.row = 0  # failures in a row while closed
        self.probes: list[float] = []

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def wait_as_told(self) -> None:
        """Waiting as long as it says is enough: it never locks itself."""
        was_closed = self.it.state(self.now) == "closed"
        self.now += self.it.wait_s(self.now)
        self.now += self.it.wait_s(self.now)  # a probe that expired meanwhile opened it again
        self.now += 1e-6
        if not was_closed:
            assert self.it.state(self.now) == "half_open"

    @rule()
    def call(self) -> None:
        state = self.it.state(self.now)
        allowed = self.it.allow(self.now)
        assert allowed == (state == "closed" or (state == "half_open" and not self.probe_is_out()))
        if allowed and state == "half_open":
            self.probes.append(self.now)
        if allowed:
            self.in_flight += 1

    def probe_is_out(self) -> bool:
        return bool(self.probes) and self.now < self.probes[-1] + PROBE_S

    @precondition(lambda self: self.in_flight > 0)
    @rule(good=st.booleans())
    def answer(self, good: bool) -> None:
        self.in_flight -= 1
        before = self.it.state(self.now)
        (self.it.success if good else self.it.failure)(self.now)
        after = self.it.state(self.now)
        self.row = 0 if good or before != "closed" else self.row + 1
        if before == "closed":
            assert after == ("open" if self.row >= THRESHOLD else "closed")
            self.row = 0 if after == "open" else self.row
        elif before == "open":
            assert after == "open"
        elif self.probe_is_out():
            assert after == ("closed" if good else "open")
            self.probes.clear()

    @invariant()
    def waits_are_bounded(self) -> None:
        assert 0.0 <= self.it.wait_s(self.now) <= MAX_OPEN_S

    @invariant()
    def closed_never_waits(self) -> None:
        if self.it.state(self.now) == "closed":
            assert self.it.wait_s(self.now) == 0.0
        if self.it.state(self.now) == "open":
            assert self.it.wait_s(self.now) > 0.0


TestBreakerMachine = BreakerMachine.TestCase
TestBreakerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class ManyProbes(CircuitBreaker):
    """Planted: everybody may probe."""

    def allow(self, now: float) -> bool:
        return self.state(now) != "open" or super().allow(now)


class NeverOpens(CircuitBreaker):
    """Planted: failures are forgotten."""

    def failure(self, now: float) -> None:
        self._failures = 0
        super().failure(now)


class StuckProbe(CircuitBreaker):
    """Planted: a probe that never reports keeps it shut for good."""

    def _expire_probe(self, now: float) -> None:
        return


@pytest.mark.parametrize("planted", [ManyProbes, NeverOpens, StuckProbe])
def test_a_broken_breaker_is_caught(planted: type[CircuitBreaker]) -> None:
    machine = type("Planted", (BreakerMachine,), {"kind": planted})
    with pytest.raises(AssertionError):
        run_state_machine_as_test(
            machine,
            settings=settings(
                max_examples=200,
                stateful_step_count=40,
                deadline=None,
                database=None,
                derandomize=True,
                report_multiple_bugs=False,
                phases=[Phase.generate],
            ),
        )
