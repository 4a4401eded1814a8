"""One drift, from the gates to the record. What happens when things fail in the middle is in tests/faults/."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.baseline import Exemption
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.healing import HealingEngine
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import DriftResult, Mode, Plan, Result, Step, Verdict
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Args
from compliance_agent.site_lease import NoLease
from tests.healing_bench import (
    FILE,
    PLAN,
    TABLE,
    UNIT,
    Bench,
    apply_unit,
    config,
    drifted_host,
    fingerprint,
    is_healed,
    toy_baseline,
)

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()


# --- the plain cases


async def test_a_cure_is_kept_when_the_check_itself_passes(bench: Bench) -> None:
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("success", "healed", None)
    assert [(taken.step, taken.action, taken.result) for taken in result.actions] == [
        (1, "put_word", "ok"),
        (2, "put_word", "ok"),
        (3, "start_toy", "ok"),
    ]
    assert (result.pre_state, result.post_state) == ({"on": False}, {"on": True})
    assert (result.post_result, result.rollback_available) == ("pass", True)
    assert bench.looks == 2
    assert is_healed(bench.host)
    assert bench.attempts() == ["success"]


async def test_a_failed_step_is_undone_with_all_before_it(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.host.script = {1: "after"}
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "step_failed", "injected_after")
    assert [(taken.step, taken.result, taken.code) for taken in result.actions] == [
        (1, "ok", None),
        (2, "failed", "injected_after"),
        (3, "skipped", None),
        (2, "undone", None),
        (1, "undone", None),
    ]
    assert (result.post_result, fingerprint(bench.host)) == ("fail", former)


async def test_the_exit_status_of_a_step_is_kept(bench: Bench) -> None:
    bench.host.script = {0: "before"}
    result = await bench.heal()
    assert (result.actions[0].exit_code, result.actions[0].code) == (7, "injected_before")


async def test_a_cure_that_does_not_help_is_undone(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.host.script = {2: "lie"}
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "check_not_passed", "check_fail")
    assert fingerprint(bench.host) == former


@pytest.mark.parametrize("how", ["cannot_tell", "crash"])
async def test_a_cure_that_cannot_be_confirmed_is_undone(bench: Bench, how: str) -> None:
    """Could not tell is never healed."""
    former, drift = fingerprint(bench.host), await bench.observe("toy")
    bench.blind = how == "cannot_tell"

    async def crash(check: str) -> DriftResult:
        raise KeyError(check)

    if how == "crash":
        bench.restart(observe=crash)
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.error, result.post_result) == ("reverted", "check_unknown", "unknown")
    assert fingerprint(bench.host) == former


async def test_a_cure_that_leaves_only_what_a_person_has_to_end_is_kept_and_not_called_healed(bench: Bench) -> None:
    bench.left = Verdict(Result.FAIL, "unsigned")
    result = await bench.heal()
    assert (result.outcome, result.reason, result.post_reason) == ("alert", "cured_in_part", "unsigned")
    assert [taken.result for taken in result.actions] == ["ok"] * 3
    assert is_healed(bench.host)
    assert bench.attempts() == ["alert"]  # the cure counts for cooldown and budget, and its target is not rejected
    assert not bench.engine.store.recall("toy", PLAN.target, bench.baseline.sha256).rejected


@pytest.mark.parametrize(("result", "reason"), [(Result.FAIL, "off"), (Result.UNKNOWN, "unsigned")])
async def test_a_cure_that_leaves_anything_else_is_undone(bench: Bench, result: Result, reason: str) -> None:
    former = fingerprint(bench.host)
    bench.left = Verdict(result, reason)
    assert (await bench.heal()).outcome == "reverted"
    assert fingerprint(bench.host) == former


async def test_it_waits_for_a_service_that_takes_a_moment(bench: Bench) -> None:
    bench.restart(settle_s=(0.0, 1.0, 3.0))
    drift = await bench.observe("toy")
    before = bench.clock.monotonic()
    answers = iter([True, False])

    async def slow(check: str) -> DriftResult:
        return drift if next(answers) else await bench.observe(check)

    bench.restart(settle_s=(0.0, 1.0, 3.0), observe=slow)
    assert (await bench.engine.remediate(drift)).outcome == "success"
    assert bench.clock.monotonic() - before == 1.0


async def test_a_step_that_hangs_is_given_up_and_undone(bench: Bench) -> None:
    former = fingerprint(bench.host)

    async def hang(host: ChangingHost, args: Args) -> None:
        await apply_unit(host, args)
        await asyncio.Event().wait()

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, apply=hang, deadline_s=0.02)})
    result = await bench.heal()
    assert (result.outcome, result.error) == ("reverted", "timed_out")
    assert fingerprint(bench.host) == former


async def test_a_bug_in_an_action_is_undone_like_any_failure(bench: Bench) -> None:
    former = fingerprint(bench.host)

    async def buggy(host: ChangingHost, args: Args) -> None:
        await apply_unit(host, args)
        raise ZeroDivisionError

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, apply=buggy)})
    result = await bench.heal()
    assert (result.outcome, result.error) == ("reverted", "crashed")
    assert fingerprint(bench.host) == former


async def test_without_the_former_state_nothing_is_changed(bench: Bench) -> None:
    drift = await bench.observe("toy")
    bench.host.faults.blind("unit:toy.service", "tool_missing")
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.reason, result.error) == ("alert", "capture_failed", "tool_missing")
    assert bench.host.changed == []
    assert bench.attempts() == []


@pytest.mark.parametrize("reason", ["no_cure", "needs_hands"])
async def test_drift_without_a_cure_is_an_alert(bench: Bench, reason: str) -> None:
    drift = replace(await bench.observe("toy"), plan=None, no_plan_reason=None if reason == "no_cure" else reason)
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.reason, bench.host.changed) == ("alert", reason, [])


@pytest.mark.parametrize(
    "step",
    [
        Step("no_such_action"),
        Step("start_toy"),
        Step("start_toy", {"unit": 1}),
        Step("start_toy", {"unit": "toy.service", "more": "x"}),
    ],
)
async def test_a_plan_outside_the_table_is_a_mistake_of_the_program(bench: Bench, step: Step) -> None:
    drift = replace(await bench.observe("toy"), plan=Plan("toy", (PLAN.steps[0], step)))
    with pytest.raises(RuntimeError, match="plan of toy, step 2"):
        await bench.engine.remediate(drift)
    assert bench.host.changed == []


async def test_a_capture_that_is_not_json_is_a_mistake_of_the_program(bench: Bench) -> None:
    async def bad(host: ChangingHost, args: Args) -> Any:
        return {"content": b"bytes"}

    bench.restart(table={**TABLE, "put_word": replace(FILE, capture=bad)})
    with pytest.raises(RuntimeError, match="plain JSON"):
        await bench.heal()
    assert bench.host.changed == []


# --- may we?


async def test_audit_mode_changes_nothing(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.engine.baseline = toy_baseline(mode=Mode.AUDIT)
    result = await bench.heal()
    assert (result.outcome, result.reason) == ("alert", "mode_audit")
    assert (fingerprint(bench.host), bench.host.changed, bench.attempts()) == (former, [], [])


async def test_a_check_that_the_baseline_does_not_list_is_only_looked_at(bench: Bench) -> None:
    result = await bench.heal("other")
    assert (result.outcome, result.reason, bench.host.changed) == ("alert", "mode_audit", [])


async def test_a_pause_survives_a_restart(bench: Bench) -> None:
    bench.engine.pause()
    bench.restart()
    assert bench.engine.paused
    assert (await bench.heal()).reason == "paused"
    bench.engine.resume()
    assert (await bench.heal()).outcome == "success"


async def test_an_exception_holds_it_back_until_it_ends(bench: Bench) -> None:
    until = datetime(2026, 11, 23, tzinfo=UTC)
    bench.engine.baseline = toy_baseline(exceptions=(Exemption("exc-1", "toy", ("off",), "j.doe", until),))
    result = await bench.heal()
    assert (result.outcome, result.reason, result.not_before) == ("deferred", "exception", until)
    bench.clock.advance(86_400)
    assert (await bench.heal()).outcome == "success"


async def taken_back_at(bench: Bench, looks: int) -> None:
    """Somebody undoes the cure, whole, before each of so many looks at it."""
    former = {path: bench.host.files.get(path) for path in ("/etc/a", "/etc/dir/b")}
    first = bench.looks + 2  # the one that finds the drift, then the one after the cure

    async def observe(check: str) -> DriftResult:
        if first <= bench.looks + 1 < first + looks:
            for path, node in former.items():
                bench.host.files.pop(path, None)
                if node is not None:
                    bench.host.place(path, node)
            bench.host.units_table["toy.service"].active = False
        return await bench.observe(check)

    bench.restart(observe=observe)


async def test_a_cure_that_somebody_took_back_is_tried_once_more(bench: Bench) -> None:
    """One well-timed act against a cure must not keep the host from being healed for good."""
    former = fingerprint(bench.host)
    await taken_back_at(bench, 1)
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "taken_back", "check_fail")
    assert fingerprint(bench.host) == former
    assert (await bench.heal()).outcome == "success"


async def test_and_not_a_third_time(bench: Bench) -> None:
    """It may be that the cure has no effect here, or somebody who would go on for ever."""
    await taken_back_at(bench, 100)
    assert [(await bench.heal()).reason for _ in range(3)] == ["taken_back", "taken_back", "rejected_target"]


async def test_a_cure_of_which_a_part_is_left_was_not_taken_back(bench: Bench) -> None:
    bench.host.script = {2: "lie"}
    assert (await bench.heal()).reason == "check_not_passed"
    assert (await bench.heal()).reason == "rejected_target"


async def test_what_no_step_makes_was_made_by_others(bench: Bench) -> None:
    """A unit that is masked in the middle: the step itself fails, and that says nothing against it."""
    masking = replace(UNIT, by_others=lambda former, now: now["active"] is False)
    bench.restart(table={**TABLE, "start_toy": masking})
    bench.host.script = {2: "before"}
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "taken_back", "injected_before")
    assert (await bench.heal()).outcome == "success"


async def test_after_a_step_that_failed_nobody_is_asked_who_cannot_tell_of_others(bench: Bench) -> None:
    """A daemon that hangs would keep the undo waiting: it is looked at before, and after it was brought back."""
    seen: list[str] = []

    async def capture(host: ChangingHost, args: Args) -> Any:
        seen.append("look")
        return await UNIT.capture(host, args)

    async def refused(host: ChangingHost, args: Args) -> None:
        seen.append("do")
        raise StepFailed("it hangs", code="injected_before")

    async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
        seen.append("undo")

    unit = replace(UNIT, capture=capture, apply=refused, undo=undo)
    bench.restart(table={**TABLE, "start_toy": unit})
    assert (await bench.heal()).reason == "step_failed"
    assert seen == ["look", "do", "undo", "look"]


async def test_want_of_leave_says_nothing_against_a_cure_whatever_others_did(bench: Bench) -> None:
    async def refused(host: ChangingHost, args: Args) -> None:
        raise StepFailed("root waits for an approval", code="not_approved")

    unit = replace(UNIT, apply=refused, by_others=lambda _former, _now: True)
    bench.restart(table={**TABLE, "start_toy": unit})
    assert [(await bench.heal()).reason for _ in range(3)] == ["step_failed"] * 3


async def test_what_was_rolled_back_is_not_tried_again(bench: Bench) -> None:
    bench.host.script = {2: "before"}
    assert (await bench.heal()).outcome == "reverted"
    bench.restart()
    assert (await bench.heal()).reason == "rejected_target"
    bench.engine.baseline = toy_baseline(sha256="b" * 64)  # the baseline changed: it may be another matter now
    assert (await bench.engine.preview(await bench.observe("toy"))).decision.allowed
    bench.engine.baseline = toy_baseline()
    drift = await bench.observe("toy")
    other_target = replace(drift, plan=replace(PLAN, target="toy-on-2"))
    assert (await bench.engine.preview(other_target)).decision.allowed
    bench.engine.forgive("toy")
    assert (await bench.heal()).outcome == "success"


async def test_a_disruptive_cure_waits_for_window_and_approval(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, approval_for_disruptive=True, maintenance_window_start=time(13), maintenance_window_end=time(14)
    )
    drift = await bench.observe("toy")
    drift = replace(drift, plan=replace(PLAN, disruptive=True, disturbs="restarts_service"))
    held = await bench.engine.remediate(drift)
    assert (held.reason, held.not_before) == ("outside_window", datetime(2026, 11, 22, 13, tzinfo=UTC))
    bench.clock.advance(3_600)
    assert (await bench.engine.remediate(drift)).reason == "approval_required"
    bench.engine.approve("toy", (await bench.engine.preview(drift)).target)
    bench.restart()
    assert (await bench.engine.remediate(drift)).outcome == "success"
    bench.host.put("/etc/a", "off\n", mode=0o600)
    assert (await bench.engine.remediate(drift)).reason == "approval_required"  # it stood for one cure
    bench.database.close()


async def test_an_approval_ends_after_seven_days(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, approval_for_disruptive=True, maintenance_window_start=time(0), maintenance_window_end=time(0)
    )
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    bench.engine.approve("toy", "toy-on")
    bench.clock.advance(7 * 86_400 - 1)
    assert (await bench.engine.preview(drift)).decision.allowed
    bench.clock.advance(1)
    assert (await bench.engine.preview(drift)).decision.reason == "approval_required"
    bench.database.close()


NOT_BEFORE = datetime(2026, 11, 22, 13, tzinfo=UTC)


class Leave:
    """A site's leave that answers as told."""

    def __init__(self, answers: list[NoLease | None]) -> None:
        self.answers, self.asked = answers, list[str]()
        self.left = [600.0]

    async def take(self, drift: DriftResult, work_s: float) -> NoLease | None:
        assert work_s > 0
        self.asked.append("taken")
        return self.answers.pop(0)

    async def release(self) -> None:
        self.asked.append("released")

    def left_s(self) -> float:
        return self.left.pop(0) if len(self.left) > 1 else self.left[0]

    def close(self) -> None:
        """Nothing runs."""


async def test_a_disruptive_cure_needs_the_lease_where_one_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, maintenance_window_start=time(0), maintenance_window_end=time(0))
    lease = Leave([NoLease("lease_busy", NOT_BEFORE), None])
    bench.restart(lease=lease)
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    assert (await bench.engine.preview(drift)).decision.allowed
    assert lease.asked == []  # a preview takes no lease
    held_back = await bench.engine.remediate(drift)
    assert (held_back.reason, held_back.not_before) == ("lease_busy", NOT_BEFORE)
    assert (await bench.engine.remediate(drift)).outcome == "success"
    assert lease.asked == ["taken", "released", "taken", "released"], "it lets go whatever came of it"
    bench.database.close()


@pytest.mark.parametrize(
    ("left", "done"),
    [
        ([0.0], ["skipped", "skipped", "skipped"]),
        ([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, -1.0], ["ok", "ok", "skipped"]),
        # The last step hangs: its leave is renewed once, runs out, and the step is stopped although its deadline is far.
        ([9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 0.01, 0.01, 0.01, 0.01, -1.0], ["ok", "ok", "failed"]),
    ],
)
async def test_a_cure_whose_leave_ends_is_stopped_and_undone_and_may_be_tried_again(
    tmp_path: Path, left: list[float], done: list[str]
) -> None:
    bench = Bench(tmp_path, maintenance_window_start=time(0), maintenance_window_end=time(0))
    hung = asyncio.Event()

    async def never(*_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            hung.set()

    lease = Leave([None, None])
    lease.left = left
    hangs = replace(UNIT, apply=never, deadline_s=3_600.0)
    bench.restart(lease=lease, table={**TABLE, "start_toy": hangs})
    former = fingerprint(bench.host)
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    result = await asyncio.wait_for(bench.engine.remediate(drift), 5)
    assert (result.outcome, result.reason, result.error) == ("reverted", "step_failed", "lease_ended")
    assert [item.result for item in result.actions][:3] == done and hung.is_set() is ("failed" in done)
    assert fingerprint(bench.host) == former and bench.engine.store.open_points() == ()
    lease.left = [600.0]
    bench.restart(lease=lease)
    assert (await bench.engine.remediate(drift)).outcome == "success", "the target was not at fault"
    bench.database.close()


async def test_leave_that_is_renewed_lets_a_long_step_end(tmp_path: Path) -> None:
    bench = Bench(tmp_path, maintenance_window_start=time(0), maintenance_window_end=time(0))

    async def slow(host: Any, args: Args) -> None:
        await asyncio.sleep(0.05)
        await UNIT.apply(host, args)

    lease = Leave([None])
    lease.left = [9.0] * 7 + [0.01] * 2 + [600.0]
    bench.restart(lease=lease, table={**TABLE, "start_toy": replace(UNIT, apply=slow)})
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    assert (await bench.engine.remediate(drift)).outcome == "success"
    bench.database.close()


@pytest.mark.parametrize(("said", "detail"), [("lock_held", "lock_held"), (None, None), ("blind", "tool_missing")])
async def test_an_action_may_say_what_is_in_the_way(bench: Bench, said: str | None, detail: str | None) -> None:
    async def blocked(host: Any, args: Args) -> str | None:
        if said == "blind":
            raise CannotTell("tool_missing")
        return said

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, blocked=blocked)})
    result = await bench.heal()
    assert (result.outcome, result.error) == (("deferred", detail) if detail else ("success", None))


async def test_a_preview_shows_the_plan_that_would_run_and_changes_nothing(bench: Bench) -> None:
    former = fingerprint(bench.host)
    preview = await bench.engine.preview(await bench.observe("toy"))
    assert preview.text().splitlines() == [
        "toy: would run now",
        "  1. Write on to /etc/a",
        "  2. Write on to /etc/dir/b",
        "  3. Start toy.service",
    ]
    document = preview.as_document()
    assert (document["allowed"], document["reason"], document["target"]) == (True, "allowed", "toy-on")
    assert json.loads(json.dumps(document)) == document
    bench.engine.pause()
    assert (await bench.engine.preview(await bench.observe("toy"))).text().startswith("toy: held back: paused (")
    assert (fingerprint(bench.host), bench.host.changed, bench.attempts()) == (former, [], [])


async def test_what_disturbs_nobody_asks_for_no_lease(bench: Bench) -> None:
    lease = Leave([])
    bench.restart(lease=lease)
    assert (await bench.heal()).outcome == "success"
    assert "taken" not in lease.asked


async def test_a_blocked_cure_gives_its_lease_back_and_a_cancelled_one_only_after_recovery(tmp_path: Path) -> None:
    bench = Bench(tmp_path, maintenance_window_start=time(0), maintenance_window_end=time(0))

    async def blocked(host: Any, args: Args) -> str | None:
        return "lock_held"

    lease = Leave([None])
    bench.restart(lease=lease, table={**TABLE, "start_toy": replace(UNIT, blocked=blocked)})
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    assert (await bench.engine.remediate(drift)).reason == "blocked"
    assert lease.asked == ["taken", "released"]

    async def never(*_: Any) -> None:
        await asyncio.Event().wait()

    lease = Leave([None])
    bench.restart(lease=lease, table={**TABLE, "start_toy": replace(UNIT, apply=never)})
    cut = asyncio.create_task(bench.engine.remediate(drift))
    while not lease.asked:
        await asyncio.sleep(0)
    for _ in range(50):
        await asyncio.sleep(0)
    cut.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cut
    assert lease.asked == ["taken"], "half a cure keeps the others away"
    bench.restart(lease=lease)
    await bench.engine.recover()
    assert lease.asked == ["taken", "released"]
    bench.database.close()


async def test_a_preview_says_when_the_gate_opens(bench: Bench) -> None:
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    preview = await bench.engine.preview(drift)
    assert preview.text().startswith("toy: held back: outside_window until 2026-11-23T02:00:00Z (users would")
    nothing = await bench.engine.preview(replace(drift, plan=None))
    assert nothing.text() == "toy: held back: no_cure (there is no cure for what was seen; a person has to act)"
    assert nothing.as_document()["allowed"] is False


# --- it never fights


def revert(bench: Bench) -> None:
    """The opponent: back to off, every second, so before every look."""
    bench.host.put("/etc/a", "off\n", mode=0o600)


@pytest.mark.parametrize("flap_window_s", [3_600, 86_400])
async def test_an_opponent_who_reverts_for_a_day_is_not_fought(tmp_path: Path, flap_window_s: int) -> None:
    bench = Bench(tmp_path, flap_window_sec=flap_window_s, healing_cooldown_sec=300)
    healed_at: list[float] = []
    alerts: list[float] = []
    cycles = itertools.count()
    start = bench.clock.monotonic()
    while bench.clock.monotonic() - start < 86_400:
        if next(cycles) % 97 == 50:  # the agent restarts and somebody plays with the wall clock
            bench.restart()
            bench.clock.step(-3_000 if next(cycles) % 2 else 3_000)
        revert(bench)
        result = await bench.heal()
        now = bench.clock.monotonic()
        healed_at += [now] * (result.outcome == "success")
        alerts += [now] * (result.outcome == "alert")
        assert result.outcome in {"success", "deferred", "alert"}
        bench.clock.advance(60)
    for moment in healed_at:
        assert sum(moment <= other < moment + flap_window_s for other in healed_at) <= 5
    for moment in alerts:
        assert sum(moment <= other < moment + flap_window_s for other in alerts) == 1
    assert len(healed_at) >= 5
    assert len(alerts) >= 1
    if flap_window_s == 86_400:
        assert (len(healed_at), len(alerts)) == (5, 1)
    bench.database.close()


async def test_the_budget_of_the_host_holds_over_restarts_and_clock_jumps(tmp_path: Path) -> None:
    names = [f"toy_{number}" for number in range(30)]
    bench = Bench(tmp_path, healing_budget_per_hour=20)
    bench.baseline = toy_baseline(*names)
    bench.restart()
    outcomes = []
    for number, name in enumerate(names):
        if number % 3 == 0:
            bench.restart()
            bench.clock.step((-1) ** number * 7_200.0)
        revert(bench)
        result = await bench.heal(name)
        outcomes.append(result.outcome if result.outcome == "success" else result.reason)
        bench.clock.advance(10)
    assert outcomes == ["success"] * 20 + ["budget"] * 10
    bench.clock.advance(3_600)
    revert(bench)
    assert (await bench.heal(names[-1])).outcome == "success"
    bench.database.close()


async def test_by_default_it_remembers_in_the_agents_database(tmp_path: Path) -> None:
    """`HealingEngine(config)` needs nothing else; here with a host and a clock of its own, and the writer thread."""
    host = drifted_host()
    bench = Bench(tmp_path / "other")
    engine = HealingEngine(
        config(tmp_path), host=host, baseline=toy_baseline(), clock=FakeClock(), table=TABLE, observe=bench.observe
    )
    bench.host = host
    assert (await engine.remediate(await bench.observe("toy"))).outcome == "success"
    bench.database.close()
    engine.close()
    database = Database(tmp_path / "agent.db", threaded=False)
    assert [attempt.outcome for attempt in HealingStore(database).recall("toy", "", "").history] == ["success"]
    database.close()


async def test_without_a_boot_id_limits_hold_all_the_same(tmp_path: Path) -> None:
    """Where the host will not say which boot this is, a clock that is set back still frees nothing."""
    bench = Bench(tmp_path, healing_cooldown_sec=300)
    bench.host.faults.blind("clock:", "not_permitted")
    assert (await bench.heal()).outcome == "success"
    revert(bench)
    bench.restart()
    bench.clock.step(-86_400)
    assert (await bench.heal()).reason == "cooldown"
    bench.clock.advance(299)
    assert (await bench.heal()).reason == "cooldown"
    bench.clock.advance(1)
    assert (await bench.heal()).outcome == "success"
    bench.database.close()


async def test_two_drifts_at_once_are_healed_one_after_the_other(bench: Bench) -> None:
    bench.engine.baseline = toy_baseline("toy", "toy_2")
    drifts = [await bench.observe("toy"), await bench.observe("toy_2")]
    results = await asyncio.gather(*(bench.engine.remediate(drift) for drift in drifts))
    assert [result.outcome for result in results] == ["success", "success"]
    assert bench.host.changed == ["path:/etc/a", "path:/etc/dir/b", "unit:toy.service"] * 2
