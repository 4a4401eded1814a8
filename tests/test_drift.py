"""Every check on its own: whatever one of them does, the others' results arrive, and what could not be told is `unknown`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.baseline import Baseline, Entry, Exemption
from compliance_agent.checks.spec import Check, CheckSpec, Citation, Unreadable, failed, passed, unknown
from compliance_agent.config import AgentConfig
from compliance_agent.drift import GRACE_S, DriftDetector
from compliance_agent.errors import CannotTell, ConfigError
from compliance_agent.facts import Choice, Int, fact
from compliance_agent.lab.clock import START, FakeClock
from compliance_agent.lab.host import FakeHost
from compliance_agent.models import DriftResult, Mode, Plan, Result, Severity, Step, Verdict

pytestmark = pytest.mark.anyio
SECRET = "patient-jane-doe"
Observe = Callable[[Any, Any], Awaitable[Any]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass(frozen=True)
class Parameters:
    limit: int = 5


@dataclass(frozen=True)
class Seen:
    value: int | None = fact(Int(0, 99), "What was measured.")
    word: str | None = fact(Choice(("up", "down")), "What was said.")


@dataclass(frozen=True)
class Other:
    value: int | None = fact(Int(0, 99), "Not this check's observation.")


def judge(baseline: Any, seen: Any) -> Verdict:
    if seen.value is None:
        return unknown("unparsable", "no value")
    return (
        passed() if seen.value <= baseline.limit else failed("too_much", f"expected {baseline.limit}, got {seen.value}")
    )


def plan(_baseline: Any, _seen: Any) -> Plan | None:
    return Plan("toy", (Step("turn_down", {"by": 1}),))


async def fine(_host: Any, _baseline: Any) -> Any:
    return Seen(value=3, word="up")


async def too_much(_host: Any, _baseline: Any) -> Any:
    return Seen(value=9)


def toy(name: str, observe: Observe = fine, **functions: Any) -> Check:
    spec = CheckSpec(
        id=name,
        title="Toy",
        severity=Severity.HIGH,
        rationale="A toy.",
        citations=(Citation("164.312(b)", "because", "nothing", primary=True),),
        parameters=Parameters,
        observation=Seen,
        reasons={"too_much": "There is too much."},
    )
    return Check(spec, observe, functions.get("judge", judge), functions.get("plan", plan), ())


class Scene:
    """A detector over toy checks: `bad` is the one under test, and `good` ones stand around it."""

    def __init__(self, tmp_path: Path, bad: Check | None = None, *, deadline_s: float = 0.05, **baseline: Any) -> None:
        checks = [toy("a_good"), toy("z_good"), *([bad] if bad else [])]
        entries = {
            check.id: Entry(check, Mode.ENFORCE, 60, deadline_s, Parameters(), {})
            for check in sorted(checks, key=lambda check: check.id)
        }
        self.clock = FakeClock()
        self.baseline = Baseline("1", "0" * 64, Mode.ENFORCE, entries, **baseline)
        config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=tmp_path)
        self.detector = DriftDetector(config, host=FakeHost(self.clock), baseline=self.baseline, clock=self.clock)

    async def results(self) -> dict[str, DriftResult]:
        found = {result.check: result for result in await self.detector.check_all()}
        for name in ("a_good", "z_good"):
            assert found[name].result is Result.PASS and found[name].pre_state == {"value": 3, "word": "up"}
        return found

    async def bad(self) -> DriftResult:
        return (await self.results())["bad"]


async def test_a_pass_carries_its_facts_and_citations(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    result = (await scene.results())["a_good"]
    assert (result.drifted, result.reason, result.severity) == (False, "as_expected", "high")
    assert result.hipaa_controls == ["164.312(b)"]
    assert result.observed_at == START and result.plan is None
    assert [item.check for item in await scene.detector.check_all()] == ["a_good", "z_good"]


async def test_a_failure_carries_its_cure(tmp_path: Path) -> None:
    result = await Scene(tmp_path, toy("bad", too_much)).bad()
    assert (result.drifted, result.reason, result.recommended_action) == (True, "too_much", "turn_down")
    assert result.plan is not None and result.no_plan_reason is None


async def hangs(_host: Any, _baseline: Any) -> Any:
    await asyncio.Event().wait()


async def cancels_itself(_host: Any, _baseline: Any) -> Any:
    raise asyncio.CancelledError


async def crashes(_host: Any, _baseline: Any) -> Any:
    raise ValueError(SECRET)


async def exits(_host: Any, _baseline: Any) -> Any:
    raise SystemExit(SECRET)


async def recurses(host: Any, baseline: Any) -> Any:
    return await recurses(host, baseline)


def is_no_coroutine(_host: Any, _baseline: Any) -> Any:
    raise TypeError(SECRET)


async def cannot_tell(_host: Any, _baseline: Any) -> Any:
    raise CannotTell("not_permitted", SECRET, errno_name="EACCES")


async def returns_unreadable(_host: Any, _baseline: Any) -> Any:
    return Unreadable("tool_missing")


async def invents_a_reason(_host: Any, _baseline: Any) -> Any:
    return Unreadable(SECRET)


async def returns_nothing(_host: Any, _baseline: Any) -> Any:
    return None


async def returns_open_text(_host: Any, _baseline: Any) -> Any:
    return {"value": SECRET}


async def returns_another_observation(_host: Any, _baseline: Any) -> Any:
    return Other(value=3)


async def breaks_a_fact(_host: Any, _baseline: Any) -> Any:
    return Seen(value=3, word=SECRET)


async def breaks_a_bound(_host: Any, _baseline: Any) -> Any:
    return Seen(value=100)


MISBEHAVING: dict[str, tuple[Observe, str]] = {
    "hangs": (hangs, "timed_out"),
    "cancels itself": (cancels_itself, "crashed"),
    "crashes": (crashes, "crashed"),
    "exits": (exits, "crashed"),
    "recurses": (recurses, "crashed"),
    "is no coroutine": (is_no_coroutine, "crashed"),
    "cannot tell": (cannot_tell, "not_permitted"),
    "returns unreadable": (returns_unreadable, "tool_missing"),
    "invents a reason": (invents_a_reason, "crashed"),
    "returns nothing": (returns_nothing, "crashed"),
    "returns open text": (returns_open_text, "crashed"),
    "returns another's observation": (returns_another_observation, "crashed"),
    "breaks a fact": (breaks_a_fact, "fact_refused"),
    "breaks a bound": (breaks_a_bound, "fact_refused"),
}


@pytest.mark.parametrize("name", MISBEHAVING)
async def test_a_misbehaving_look_is_unknown_and_alone(tmp_path: Path, name: str, capfd: Any) -> None:
    observe, reason = MISBEHAVING[name]
    result = await Scene(tmp_path, toy("bad", observe)).bad()
    assert (result.result, result.reason, result.drifted) == (Result.UNKNOWN, reason, False)
    assert result.pre_state == {} and result.plan is None
    assert SECRET not in str({**vars(result), "verdict": None})
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err


def judge_crash(_baseline: Any, _seen: Any) -> Verdict:
    raise KeyError(SECRET)


def judge_undeclared(_baseline: Any, _seen: Any) -> Verdict:
    return Verdict(Result.FAIL, "because")


def judge_exception(_baseline: Any, _seen: Any) -> Verdict:
    return Verdict(Result.EXCEPTION, "too_much")


def judge_nothing(_baseline: Any, _seen: Any) -> Any:
    return None


@pytest.mark.parametrize("function", [judge_crash, judge_undeclared, judge_exception, judge_nothing])
async def test_a_misbehaving_judgement_is_unknown_and_alone(tmp_path: Path, function: Any) -> None:
    result = await Scene(tmp_path, toy("bad", judge=function)).bad()
    assert (result.result, result.reason, result.pre_state) == (Result.UNKNOWN, "crashed", {})


def plan_crash(_baseline: Any, _seen: Any) -> Any:
    raise KeyError(SECRET)


@pytest.mark.parametrize(
    ("function", "why"),
    [
        (plan_crash, "crashed"),
        (lambda _b, _s: "restart it", "crashed"),
        (lambda _b, _s: None, "no_cure"),
        (lambda _b, _s: Plan("bad", ()), "no_cure"),
    ],
)
async def test_a_failure_without_a_usable_cure_is_a_failure_all_the_same(
    tmp_path: Path, function: Any, why: str
) -> None:
    result = await Scene(tmp_path, toy("bad", too_much, plan=function)).bad()
    assert (result.result, result.plan, result.no_plan_reason) == (Result.FAIL, None, why)


async def test_a_look_that_ignores_its_cancellation_costs_one_task_and_one_deadline(tmp_path: Path) -> None:
    over, started = asyncio.Event(), 0

    async def deaf(_host: Any, _baseline: Any) -> Any:
        nonlocal started
        started += 1
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                continue
        raise ValueError(SECRET)  # much later, when nobody listens

    scene = Scene(tmp_path, toy("bad", deaf))
    began = time.monotonic()
    assert (await scene.bad()).reason == "timed_out"
    assert time.monotonic() - began < 0.05 + GRACE_S + 1
    before = len(asyncio.all_tasks())
    for _ in range(5):
        began = time.monotonic()
        assert (await scene.bad()).reason == "timed_out"
        assert time.monotonic() - began < 0.3, "it is not even tried"
    assert started == 1 and len(asyncio.all_tasks()) == before
    over.set()
    await asyncio.sleep(0.01)
    assert started == 1


async def test_a_look_that_came_back_is_tried_again(tmp_path: Path) -> None:
    slow = True

    async def sometimes(host: Any, baseline: Any) -> Any:
        return await hangs(host, baseline) if slow else await fine(host, baseline)

    scene = Scene(tmp_path, toy("bad", sometimes))
    assert (await scene.bad()).reason == "timed_out"
    slow = False
    assert (await scene.bad()).result is Result.PASS


async def test_all_looks_go_on_at_once(tmp_path: Path) -> None:
    async def slow(_host: Any, _baseline: Any) -> Any:
        await asyncio.sleep(0.2)
        return Seen(value=1)

    scene = Scene(tmp_path, deadline_s=5)
    entry = scene.baseline.entries["a_good"]
    many = {
        f"c{number:02d}": Entry(toy(f"c{number:02d}", slow), *tuple(vars(entry).values())[1:]) for number in range(20)
    }
    config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=tmp_path)
    baseline = Baseline("1", "0" * 64, Mode.AUDIT, many)
    began = time.monotonic()
    results = await DriftDetector(config, host=FakeHost(FakeClock()), baseline=baseline, clock=FakeClock()).check_all()
    assert [result.check for result in results] == sorted(many)
    assert time.monotonic() - began < 2


async def test_cancelling_the_whole_look_cancels_every_check(tmp_path: Path) -> None:
    ended: list[str] = []

    async def noting(_host: Any, _baseline: Any) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("bad")

    scene = Scene(tmp_path, toy("bad", noting), deadline_s=60)
    task = asyncio.ensure_future(scene.detector.check_all())
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert ended == ["bad"]


def exempt(**changes: Any) -> tuple[Exemption, ...]:
    values = {
        "id": "exc-7", "check": "bad", "reasons": (), "approver": "j.doe", "expires": START + timedelta(days=1), **changes,
    }  # fmt: skip
    return (Exemption(**values),)


async def test_an_approved_exception_covers_a_failure_until_it_expires(tmp_path: Path) -> None:
    scene = Scene(tmp_path, toy("bad", too_much), exceptions=exempt())
    result = await scene.bad()
    assert (result.result, result.exception_id, result.drifted) == (Result.EXCEPTION, "exc-7", False)
    assert result.pre_state["value"] == 9 and result.plan is None, "what was seen stays on record"
    scene.clock.advance(86_400)
    assert (await scene.bad()).result is Result.FAIL


@pytest.mark.parametrize("changes", [{"check": "a_good"}, {"reasons": ("another",)}, {"expires": START}])
async def test_an_exception_covers_nothing_else(tmp_path: Path, changes: dict[str, Any]) -> None:
    scene = Scene(tmp_path, toy("bad", too_much), exceptions=exempt(**changes))
    assert (await scene.bad()).result is Result.FAIL


async def test_an_exception_never_covers_what_could_not_be_told(tmp_path: Path) -> None:
    scene = Scene(tmp_path, toy("bad", crashes), exceptions=exempt())
    assert (await scene.bad()).result is Result.UNKNOWN


async def test_a_turn_looks_at_what_is_due_by_its_own_interval(tmp_path: Path) -> None:
    scene = Scene(tmp_path, toy("bad"))
    scene.baseline.entries["bad"] = replace(scene.baseline.entries["bad"], interval_s=300)  # type: ignore[index]
    seen = []
    for _ in range(6):
        seen.append([item.check for item in await scene.detector.check_due()])
        scene.clock.advance(60)
    assert seen == [["a_good", "bad", "z_good"], *[["a_good", "z_good"]] * 4, ["a_good", "bad", "z_good"]]
    assert len(await scene.detector.check_all()) == 3, "who asks for everything gets everything"


async def test_a_look_at_one_check_waits_for_the_one_under_way(tmp_path: Path) -> None:
    """The look after a cure must neither run beside an earlier one nor take its answer."""
    under_way, most, looks = 0, 0, 0

    async def counting(_host: Any, _baseline: Any) -> Any:
        nonlocal under_way, most, looks
        under_way, looks = under_way + 1, looks + 1
        most = max(most, under_way)
        await asyncio.sleep(0.02)
        under_way -= 1
        return Seen(value=looks)

    detector = Scene(tmp_path, toy("bad", counting), deadline_s=5).detector
    both = await asyncio.gather(detector.check_one("bad"), detector.check_one("bad"))
    assert (most, [item.pre_state["value"] for item in both]) == (1, [1, 2])


async def test_a_check_that_is_not_in_the_baseline_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nosuch"):
        await Scene(tmp_path).detector.check_one("nosuch")
