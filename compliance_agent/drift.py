"""Every registered check, each on its own: a deadline, a failure or a hang of one never reaches another.

`observe` (through the Host port) -> `judge` (pure) -> export of the declared facts. A look that fails, a fact that is not what
it declares and a check that crashes all end in `unknown` with their reason.

A look that passes its deadline is cancelled, and abandoned when it does not heed that. While an abandoned look has not come back,
the same check is not looked at again: one that hangs for ever costs one task, not one for each cycle. `check_all` waits for every
look; the agent takes turns (rounds.py), so that a slow look keeps nobody waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import structlog

from compliance_agent import facts
from compliance_agent.baseline import Baseline, Entry, load
from compliance_agent.checks.spec import COMMON_REASONS, Check, Unreadable, judge_seen
from compliance_agent.errors import CannotTell, ConfigError, FactRefused
from compliance_agent.logs import where
from compliance_agent.models import DriftResult, Plan, Result, Verdict
from compliance_agent.rounds import Rounds

if TYPE_CHECKING:
    from compliance_agent.config import AgentConfig
    from compliance_agent.ports import Clock, Host

log = structlog.get_logger()
GRACE_S = 0.5  # a cancelled look has this long to clean up; then it is abandoned


class DriftDetector:
    """Runs the baseline's checks on one host.

    Args:
        config: where the baseline stands.
        host: the machine; the real one when not given.
        baseline: already loaded; read from `config.baseline_path` when not given.
        clock: time; the system's when not given.

    Raises:
        ConfigError: the baseline cannot be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        host: Host | None = None,
        baseline: Baseline | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.baseline = (
            baseline if baseline is not None else load(config.baseline_path, signed_by=config.baseline_key_file)
        )
        self.clock = clock if clock is not None else _system_clock()
        self.host = host if host is not None else _real_host()
        self._rounds = Rounds(self.check_one, self.clock)
        self._looks: Looks = {}
        self._one_look: dict[str, asyncio.Lock] = {}
        self._woken: set[str] = set()

    async def check_all(self) -> list[DriftResult]:
        """Look at every check at once and wait for all of them; in the order of their ids."""
        return list(await asyncio.gather(*(self.check_one(name) for name in sorted(self.baseline.entries))))

    async def check_due(self) -> list[DriftResult]:
        """Start a look at every check that is due; what came back within a moment, or since the last time."""
        return await self._rounds.turn(self.baseline.entries)

    async def late(self) -> None:
        """Return when a look that took longer than that moment has come back."""
        await self._rounds.late()

    def came_back(self) -> list[DriftResult]:
        """The results of such looks, each once."""
        return self._rounds.taken()

    def look_now(self, checks: Collection[str]) -> None:
        """Look at these now, between two turns; their results come with `late`."""
        for name in checks:
            if name in self.baseline.entries:
                self._rounds.look_now(name)

    def due_again(self, checks: Collection[str]) -> None:
        """These have to be looked at anew with the next turn."""
        self._rounds.due_again(checks)

    def use_baseline(self, baseline: Baseline) -> None:
        """From now on the host is held to this one; every check is due."""
        self.baseline = baseline
        self._rounds.due_again(baseline.entries)

    def wake(self, check_id: str) -> None:
        """Something that this check reads has changed: look at it now; its result comes with `late`."""
        if check_id in self.baseline.entries:
            self._woken.add(check_id)
            self._rounds.wake(check_id)

    def trigger_of(self, check_id: str) -> str:
        """What the result that was given last was looked for by; an event is said once."""
        told = check_id in self._woken
        self._woken.discard(check_id)
        return "event" if told else "schedule"

    def took_s(self, check_id: str) -> float:
        """How long the last look at this check took."""
        return self._rounds.took_s(check_id)

    def host_changed(self) -> None:
        """A cure has changed the host; a look that went on meanwhile may have seen half of each."""
        self._rounds.disturbed()

    async def close(self) -> None:
        """Give up the looks under way."""
        await self._rounds.close(2 * GRACE_S)

    async def check_one(self, check_id: str) -> DriftResult:
        """Look at one check now; after a look at it that is under way.

        Raises:
            ConfigError: the baseline has no entry for it.
        """
        entry = self.baseline.entries.get(check_id)
        if entry is None:
            raise ConfigError(f"checks.{check_id}: the baseline has no such entry")
        async with self._one_look.setdefault(check_id, asyncio.Lock()):
            started = self.clock.monotonic()
            self._rounds.begun(check_id, entry.interval_s)
            result = await look(entry, self.baseline, self.host, self.clock.now, self._looks)
            result = _timed(result, int((self.clock.monotonic() - started) * 1000), self.clock.now())
            self._rounds.ended(check_id, result)
        return result


Looks = dict[str, "asyncio.Task[Any]"]


async def look(
    entry: Entry, baseline: Baseline, host: Host, now: Callable[[], datetime], looks: Looks | None = None
) -> DriftResult:
    """One check's result; never raises for anything the host or the check did.

    Args:
        entry: the check's line in the baseline.
        baseline: for its exceptions.
        host: the machine.
        now: UTC, asked after the look.
        looks: the last look of each check; one of these that has not come back is not started again.
    """
    seen = await _observed(entry, host, looks if looks is not None else {})
    try:
        return _judged(entry, baseline, seen, now())
    except Exception as error:  # so that a mistake in here costs one check, not all
        log.error("check.crashed", check_id=entry.check.id, error_type=type(error).__name__, at=where(error))
        return _crashed(entry.check, error)


async def _observed(entry: Entry, host: Host, looks: Looks) -> Any:
    """What the check saw within its deadline, or why it saw nothing."""
    earlier = looks.get(entry.check.id)
    if earlier is not None and not earlier.done():
        return Unreadable("timed_out", message="an earlier look has not come back yet")
    task = looks[entry.check.id] = asyncio.ensure_future(_asked(entry, host))
    try:
        done, _ = await asyncio.wait({task}, timeout=entry.deadline_s)
        if not done:
            return Unreadable("timed_out", message=f"no answer within {entry.deadline_s:g} s")
        if task.cancelled():
            return Unreadable("crashed", message="the check cancelled itself")
        return task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=GRACE_S)
            task.add_done_callback(_forget)


async def _asked(entry: Entry, host: Host) -> Any:
    """The check's own answer; a failure of any kind is an answer too."""
    name = entry.check.id
    try:
        seen = await entry.check.observe(host, entry.parameters)
    except CannotTell as error:
        return Unreadable(error.reason, error.errno_name, str(error))
    except (Exception, SystemExit) as error:
        log.error("check.crashed", check_id=name, error_type=type(error).__name__, at=where(error))
        return Unreadable("crashed", message=f"the check failed: {type(error).__name__}")
    if isinstance(seen, Unreadable):
        declared = seen.reason in COMMON_REASONS or seen.reason in entry.check.spec.reasons
        return seen if declared else Unreadable("crashed", message="the check gave a reason it does not declare")
    if type(seen) is not entry.check.spec.observation:
        log.error("check.crashed", check_id=name, error_type=type(seen).__name__)
        return Unreadable("crashed", message="the check did not return its own observation")
    return seen


def _forget(task: asyncio.Task[Any]) -> None:
    """Take the outcome of an abandoned look, so that its text is not logged by the event loop."""
    if not task.cancelled():
        task.exception()


def _judged(entry: Entry, baseline: Baseline, seen: Any, now: datetime) -> DriftResult:
    check = entry.check
    try:
        verdict = judge_seen(check, entry.parameters, seen)
        state = {} if isinstance(seen, Unreadable) else facts.export(seen, entry.names)
    except FactRefused as error:
        log.error("check.fact_refused", check_id=check.id, at=where(error))
        return _result(check, Verdict(Result.UNKNOWN, "fact_refused", str(error)), {}, None, None, None)
    except Exception as error:
        log.error("check.crashed", check_id=check.id, error_type=type(error).__name__, at=where(error))
        return _crashed(check, error)
    if isinstance(seen, Unreadable) and seen.errno_name:
        log.debug("check.unreadable", check_id=check.id, reason=seen.reason, errno_name=seen.errno_name)
    if verdict.result is not Result.FAIL:
        return _result(check, verdict, state, None, None, None)
    exemption = baseline.exception_for(check.id, verdict.reason, now)
    if exemption is not None:
        accepted = Verdict(Result.EXCEPTION, verdict.reason, f"{verdict.sentence}; accepted by {exemption.id}")
        return _result(check, accepted, state, None, None, exemption.id)
    plan, why_not = _planned(check, entry, seen)
    return _result(check, verdict, state, plan, why_not, None)


def _crashed(check: Check, error: BaseException) -> DriftResult:
    verdict = Verdict(Result.UNKNOWN, "crashed", f"the check failed: {type(error).__name__}")
    return _result(check, verdict, {}, None, None, None)


def _planned(check: Check, entry: Entry, seen: Any) -> tuple[Plan | None, str | None]:
    try:
        plan: Any = check.plan(entry.parameters, seen)
    except Exception as error:
        log.error("check.plan_crashed", check_id=check.id, error_type=type(error).__name__, at=where(error))
        return None, "crashed"
    if plan is not None and not isinstance(plan, Plan):
        log.error("check.plan_crashed", check_id=check.id, error_type=type(plan).__name__)
        return None, "crashed"
    return (plan, None) if plan is not None and plan.steps else (None, "no_cure")


def _result(
    check: Check,
    verdict: Verdict,
    state: Mapping[str, Any],
    plan: Plan | None,
    why_not: str | None,
    exception_id: str | None,
) -> DriftResult:
    return DriftResult(
        check=check.id,
        drifted=verdict.result is Result.FAIL,
        pre_state=state,
        severity=check.spec.severity.value,
        recommended_action=plan.steps[0].action if plan else None,
        hipaa_controls=[citation.section for citation in check.spec.citations],
        verdict=verdict,
        plan=plan,
        no_plan_reason=why_not,
        exception_id=exception_id,
    )


def _timed(result: DriftResult, duration_ms: int, at: datetime) -> DriftResult:
    return replace(result, duration_ms=duration_ms, observed_at=at.astimezone(UTC))


def _real_host() -> Host:
    from compliance_agent.adapters.subprocess_host import RealHost

    return RealHost()


def _system_clock() -> Clock:
    from compliance_agent.adapters.clock import SystemClock

    return SystemClock()
