"""Healing: may we? -> rollback point -> steps -> the same check again -> keep, or undo.

`HealingEngine.remediate` asks the gates (core/gates.py), has every step's former state captured and made durable, and hands the
cure to the transaction (remedies/transaction.py). `recover` ends at start what a crash or a shutdown cut off. One cure runs
at a time. Trouble with the host or the disk ends in a result with a reason; what raises is a mistake in the program.
"""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from compliance_agent.baseline import Baseline, load
from compliance_agent.core.gates import REASONS, Context, Decision, Limits, Moment, decide
from compliance_agent.core.pausing import Pause
from compliance_agent.core.schedule import MaintenanceWindow
from compliance_agent.dataclass import dataclass
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import CannotTell, StorageError
from compliance_agent.frames import HANDLE
from compliance_agent.models import DriftResult, Mode, Outcome, Plan, RemediationResult, Result
from compliance_agent.ports import ChangingHost, Clock
from compliance_agent.remedies import actions
from compliance_agent.remedies.plan import lines, resolve, target_of
from compliance_agent.remedies.rollback import RollbackPoint
from compliance_agent.remedies.spec import Action
from compliance_agent.remedies.transaction import (
    ENDINGS,
    LEAVE_ENDED,
    NOT_APPROVED,
    Observe,
    Transaction,
    Trouble,
    World,
    attempt,
    capture,
)
from compliance_agent.site_lease import NoLease

if TYPE_CHECKING:
    from compliance_agent.adapters.database import Database
    from compliance_agent.adapters.healing_store import HealingStore, Memory
    from compliance_agent.config import AgentConfig

APPROVAL_VALID_S = 7 * 86_400.0
DOWN_AGAIN_WITHIN_S = 7 * 86_400.0
SETTLE_S = (0.0, 1.0, 3.0)
# What blocks it, its former state, the change, whether somebody took that back, the undo, whether the former state is back.
PARTS_OF_A_STEP = 6
# What `error` of a result may say besides the codes of steps, blockers and storage; with ENDINGS and the gates' reasons
# these are the words of healing in evidence.
CODES = {
    **ENDINGS,
    **{f"check_{result.value}": "what the check said after the cure" for result in Result if result is not Result.PASS},
    LEAVE_ENDED: "the leave of the site to disturb users ran out in the middle of the cure, which was stopped and undone",
    "not_restored": "the undo reported success, and the former state is not back",
    "heal_refused": "the root side has no leave for it: neither towards the permitted baseline nor back to what it found",
    NOT_APPROVED: "root waits for people's approval of what users notice, and has none for this that is good and unused",
    "heal_unreachable": "the root side could not be asked, or did not answer",
    "not_verified": "a program reported success, and the root side found the host other than it should be",
    "recovery_pending": "a cure that was cut off has to be ended first",
    "unknown_action": "the cure that was cut off used an action that this version does not have",
    "unreadable_point": "the rollback point of the cure that was cut off is damaged",
}


class Lease(Protocol):
    """Leave of the site to disturb users (site_lease.py)."""

    async def take(self, drift: DriftResult, work_s: float) -> NoLease | None:
        """Ask; None when it is given."""
        ...

    def left_s(self) -> float:
        """Seconds for which it lasts, as far as is known now."""
        ...

    async def release(self) -> None:
        """Give back what is held; nothing when nothing is."""
        ...

    def close(self) -> None:
        """Stop what keeps it; it ends by itself."""
        ...


log = structlog.get_logger()


@dataclass(frozen=True)
class Preview:
    """What `remediate` would do now.

    Attributes:
        check: id of the check.
        decision: what the gates say.
        steps: what each step does, one sentence each; the very text of the run.
        target: what the plan would bring the host to; `approve` takes it.
        disruptive: users would notice.
        disturbs: what they would notice, as a token.
    """

    check: str
    decision: Decision
    steps: tuple[str, ...] = ()
    target: str = ""
    disruptive: bool = False
    disturbs: str = ""

    def as_document(self) -> dict[str, Any]:
        """The preview as JSON values."""
        until, outcome = self.decision.not_before, self.decision.outcome
        return {
            "check": self.check,
            "allowed": self.decision.allowed,
            "outcome": outcome.value if outcome is not None else None,
            "reason": self.decision.reason,
            "detail": self.decision.detail,
            "not_before": until.strftime("%Y-%m-%dT%H:%M:%SZ") if until is not None else None,
            "steps": list(self.steps),
            "target": self.target,
            "disruptive": self.disruptive,
            "disturbs": self.disturbs,
        }

    def text(self) -> str:
        """The preview for a person at this host."""
        until = self.decision.not_before
        reason = self.decision.reason
        verdict = "would run now" if self.decision.allowed else f"held back: {reason}"
        if until is not None:
            verdict += f" until {until:%Y-%m-%dT%H:%M:%SZ}"
        if not self.decision.allowed and reason in REASONS:
            verdict += f" ({REASONS[reason]})"
        numbered = [f"  {number}. {sentence}" for number, sentence in enumerate(self.steps, start=1)]
        return "\n".join([f"{self.check}: {verdict}", *numbered])


class HealingEngine:
    """Puts back what has drifted, where that is allowed.

    Args:
        config: limits, maintenance window, and where the defaults below are found.
        host: the machine; the real one when not given.
        baseline: already loaded; read from `config.baseline_path` when not given. May be replaced while running.
        observe: looks at one check by id; the drift detector's own look when not given.
        store: what healing remembers; in the agent's database when not given.
        clock: time; the system's when not given.
        table: the actions that exist; the product's own when not given.
        lease: asks for the site's lease before a disruptive cure; no lease is needed when not given.
        settle_s: waits before each look after a cure, until one passes.
        hands: what changes the host in one cure, given what looks at it, the cure's id and the baseline's digest; the root side
            where the configuration names its socket, else the host itself.

    Raises:
        ConfigError: the maintenance window cannot be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        host: ChangingHost | None = None,
        baseline: Baseline | None = None,
        observe: Observe | None = None,
        store: HealingStore | None = None,
        clock: Clock | None = None,
        table: Mapping[str, Action] | None = None,
        lease: Lease | None = None,
        settle_s: Sequence[float] = SETTLE_S,
        hands: Callable[[ChangingHost, str, str], ChangingHost] | None = None,
    ) -> None:
        self.config = config
        self.window = MaintenanceWindow(
            config.maintenance_window_start, config.maintenance_window_end, config.maintenance_window_zone
        )
        self.limits = Limits(
            cooldown_s=config.healing_cooldown_sec,
            budget_per_hour=config.healing_budget_per_hour,
            flap_limit=config.flap_limit,
            flap_window_s=config.flap_window_sec,
        )
        self._given_host, self._given_baseline, self._given_observe = host, baseline, observe
        self._given_store, self._given_clock, self._given_table = store, clock, table
        self._lease = lease
        self._settle_s = tuple(settle_s)
        self._hands = hands if hands is not None else _hands_of(config)
        self._one_at_a_time = asyncio.Lock()
        self._boot: tuple[str, float] | None = None
        self._opened: Database | None = None
        self._held: dict[str, str] = {}  # the reason last logged for each check

    # What it works with, made on first use when not given

    @property
    def host(self) -> ChangingHost:
        """The machine."""
        if self._given_host is None:
            from compliance_agent.adapters.subprocess_host import RealHost

            self._given_host = RealHost()
        return self._given_host

    @property
    def clock(self) -> Clock:
        """Time."""
        if self._given_clock is None:
            from compliance_agent.adapters.clock import SystemClock

            self._given_clock = SystemClock()
        return self._given_clock

    @property
    def store(self) -> HealingStore:
        """What healing remembers."""
        if self._given_store is None:
            from compliance_agent.adapters.healing_store import HealingStore
            from compliance_agent.adapters.open_databases import shared

            self._opened = shared(self.config.database_path)
            self._given_store = HealingStore(self._opened)
        return self._given_store

    @property
    def baseline(self) -> Baseline:
        """What may be done about what."""
        if self._given_baseline is None:
            self._given_baseline = load(self.config.baseline_path, signed_by=self.config.baseline_key_file)
        return self._given_baseline

    @baseline.setter
    def baseline(self, baseline: Baseline) -> None:
        self._given_baseline = baseline

    @property
    def table(self) -> Mapping[str, Action]:
        """The actions that exist."""
        return actions() if self._given_table is None else self._given_table

    async def rehearse(self) -> None:
        """Have the actions at hand, and what the gates ask of the database, where any check may be cured, so that the first cure
        does not wait for them.

        Raises:
            StorageError: what healing remembers cannot be read.
        """
        if any(self.baseline.mode_of(check) is Mode.ENFORCE for check in self.baseline.entries):
            self.table  # noqa: B018  loads them
            await self._now()
            await self._ask(lambda: self.store.recall("", "", ""))

    def close(self) -> None:
        """Give back the database, if this engine opened it."""
        if self._lease is not None:
            self._lease.close()
        if self._opened is not None:
            from compliance_agent.adapters.open_databases import release

            release(self._opened)
            self._opened = self._given_store = None

    # What people and the agent ask

    async def remediate(self, drift: DriftResult) -> RemediationResult:
        """Heal one drift, if every gate is open.

        A cancellation is honoured at once: the step in flight is given up, and the rollback point stays open and durable
        for `recover`.

        Raises:
            RuntimeError: the result is no drift, or its plan does not fit the table of actions.
        """
        async with self._one_at_a_time:
            try:
                result = await self._remediate(drift)
            except StorageError as error:
                log.error("healing.storage_failed", check_id=drift.check, code=error.code)
                result = _untouched(drift, Decision(Outcome.ALERT, "storage_failed", detail=error.code))
            await self._let_go()
            return result

    async def recover(self) -> list[RemediationResult]:
        """End every cure that was cut off: keep it when the check passes now, undo it otherwise.

        To be called at start, before anything else is healed, and whenever `remediate` was cancelled.

        Raises:
            StorageError: the rollback points cannot be read, so nothing may be healed.
        """
        async with self._one_at_a_time:
            points = await self._ask(self.store.open_points)
            ended = [await self._resume(point) for point in points]
            await self._let_go()
            return ended

    async def unsaid(self) -> tuple[RemediationResult, ...]:
        """Cures that ended, and of which the agent was cut off before it could record that, oldest first.

        Raises:
            StorageError: they cannot be read.
        """
        found = await self._ask(self.store.unsaid)
        return tuple(replace(result, recovered=True) for result in found)

    async def said(self, result: RemediationResult) -> None:
        """How this cure ended is recorded.

        Raises:
            StorageError: that was not kept; to record it again gives the same record.
        """
        if result.point_id:
            await self._ask(lambda: self.store.said(result.point_id))

    async def preview(self, drift: DriftResult) -> Preview:
        """What `remediate` would do now. Changes nothing and asks for no lease.

        Raises:
            StorageError: what healing remembers cannot be read.
            RuntimeError: as `remediate`.
        """
        decision, _ = await self._decide(drift, acting=False)
        plan = drift.plan
        if plan is None:
            return Preview(drift.check, decision)
        steps = lines(plan, resolve(plan, self.table))
        return Preview(drift.check, decision, steps, target_of(plan), plan.disruptive, plan.disturbs)

    def longest_s(self, drift: DriftResult) -> float:
        """How long `remediate` takes at most: everything in it ends by a deadline, and this is their sum."""
        if drift.plan is None:
            return 0.0
        entry = self.baseline.entries.get(drift.check)
        looks = (len(self._settle_s) + 1) * (entry.deadline_s if entry is not None else 0.0) + sum(self._settle_s)
        known = [self.table[step.action] for step in drift.plan.steps if step.action in self.table]
        return looks + PARTS_OF_A_STEP * sum(action.deadline_s for action in known)

    @property
    def paused(self) -> bool:
        """Whether an order paused healing on this host."""
        return self.store.paused()

    def pause(self) -> None:
        """Heal nothing until `resume`; survives a restart."""
        self.store.pause()
        log.info("healing.paused")

    def resume(self) -> None:
        """End the pause."""
        self.store.resume()
        log.info("healing.resumed")

    async def pause_here(self, reason: str, uid: int, seconds: int) -> Pause:
        """A person at this host asks to heal nothing for so long; survives a restart, and ends by itself.

        Raises:
            StorageError: it could not be kept; nothing was paused.
        """
        pause = Pause(reason, uid, await self._now(), seconds)
        await self._ask(lambda: self.store.pause_for(pause))
        log.info("healing.paused_here", reason=reason, uid=uid, seconds=seconds)
        return pause

    async def resume_here(self, uid: int) -> None:
        """End that; a pause by order stays.

        Raises:
            StorageError: it stands.
        """
        await self._ask(self.store.end_pause)
        log.info("healing.resumed_here", uid=uid)

    async def standing_pause(self) -> Pause | None:
        """What a person at this host asked for, while it lasts.

        Raises:
            StorageError: that cannot be read.
        """
        pause, now = await self._ask(self.store.pause_here), await self._now()
        return pause if pause is not None and pause.left_s(now) > 0 else None

    def approve(self, check: str, target: str) -> None:
        """A person lets this one plan (`Preview.target`) run, once, within seven days."""
        self.store.approve(check, target, Moment(self.clock.now(), 0.0, boot_id=""))
        log.info("healing.approved", check_id=check)

    def forgive(self, check: str) -> None:
        """A person looked into it: rejected targets, contention and cooldown of this check are forgotten."""
        self.store.forgive(check)
        log.info("healing.forgiven", check_id=check)

    # One drift

    async def _remediate(self, drift: DriftResult) -> RemediationResult:
        decision, now = await self._decide(drift, acting=True)
        if not decision.allowed or drift.plan is None:
            self._log_held(drift.check, decision.reason)
            return _untouched(drift, decision)
        chosen = resolve(drift.plan, self.table)
        captured = await self._capture(drift.plan, chosen)
        if isinstance(captured, Trouble):
            return _untouched(drift, Decision(Outcome.ALERT, captured.reason, detail=captured.code))
        point = self._point(drift, drift.plan, captured, now)
        self._held.pop(drift.check, None)
        log.info("healing.begun", check_id=drift.check, steps=len(chosen))
        lease = self._lease if drift.plan.disruptive else None
        world = replace(self._world(point), leave_s=lease.left_s if lease is not None else None)
        if lease is None:  # nothing is asked between the point and its first step
            point = replace(point, stages=("started", *point.stages[1:]))
        await world.journal.begin(point)
        undone_before = partial(self._undone_before, point)
        people = self._for_people(point.check)
        result = await Transaction(world, point, chosen, people, undone_before=undone_before).run()
        self._log_end(result)
        return result

    async def _decide(self, drift: DriftResult, *, acting: bool) -> tuple[Decision, Moment]:
        plan = drift.plan
        target = target_of(plan) if plan is not None else ""
        now = await self._now()
        memory = await self._ask(lambda: self.store.recall(drift.check, target, self.baseline.sha256))
        context = self._context(drift, memory, now)
        decision = decide(drift, context)
        if decision.allowed and plan is not None and acting:
            refused = await self._leased(drift, plan)
            if refused is not None:
                context = replace(
                    context, lease_held=False, lease_refusal=refused.reason, lease_not_before=refused.not_before
                )
            decision = decide(drift, context)
        if decision.allowed and plan is not None:
            decision = decide(drift, replace(context, blocker=await self._blocker(plan)))
        if decision.trips and acting:
            await self._ask(lambda: self.store.trip(drift.check, now))
            log.error("healing.contended", check_id=drift.check)
        return decision, now

    def _context(self, drift: DriftResult, memory: Memory, now: Moment) -> Context:
        exemption = self.baseline.exception_for(drift.check, drift.reason, now.wall)
        approved_at, pause = memory.approved_at, memory.pause
        paused_until = pause.until if pause is not None and pause.left_s(now) > 0 else None
        return Context(
            now=now,
            mode=self.baseline.mode_of(drift.check),
            paused=memory.paused or paused_until is not None,
            paused_until=None if memory.paused else paused_until,
            exception_id=exemption.id if exemption else drift.exception_id,
            exception_until=exemption.expires if exemption else None,
            history=memory.history,
            contended_since=memory.contended_since,
            limits=self.limits,
            rejected=memory.rejected,
            window=self.window,
            approval_required=self.config.approval_for_disruptive and drift.plan is not None and drift.plan.disruptive,
            approved=approved_at is not None and approved_at.age_s(now) < APPROVAL_VALID_S,
            lease_required=self._lease is not None,
            lease_held=True,  # asked for last, and only to act
            blocker="recovery_pending" if memory.interrupted else None,
        )

    async def _undone_before(self, point: RollbackPoint) -> bool:
        """Whether the try before this one was undone not long ago, too. When that cannot be told, it was."""
        try:
            memory = await self._ask(lambda: self.store.recall(point.check, point.target, point.baseline_sha256))
            now = await self._now()
        except StorageError:
            return True
        ended = [one for one in memory.history if (one.check, one.target) == (point.check, point.target)][:-1]
        return bool(ended) and (
            ended[-1].outcome in {Outcome.REVERTED, Outcome.FAILED}
            and not ended[-1].forgiven
            and ended[-1].at.age_s(now) < self.limits.flap_window_s
        )

    async def _leased(self, drift: DriftResult, plan: Plan) -> NoLease | None:
        """Why there is no leave to disturb users; None when there is, or none is needed."""
        if self._lease is None or not plan.disruptive:
            return None
        # Each step may be done and undone, and the check looks before and after.
        return await self._lease.take(drift, 2 * sum(action.deadline_s for action in resolve(plan, self.table)))

    async def _let_go(self) -> None:
        if self._lease is not None:
            await self._lease.release()

    async def _blocker(self, plan: Plan) -> str | None:
        """What an action says is in the way. When that cannot be told, something is."""
        for action, step in zip(resolve(plan, self.table), plan.steps, strict=True):
            if action.blocked is None:
                continue
            said: list[str | None] = []
            trouble = await attempt(_into(said, action.blocked(self.host, step.args)), action.deadline_s)
            if trouble is not None:
                return trouble.code
            if said[0] is not None:
                return said[0]
        return None

    async def _capture(self, plan: Plan, chosen: Sequence[Action]) -> tuple[Any, ...] | Trouble:
        captured = []
        for action, step in zip(chosen, plan.steps, strict=True):
            state = await capture(self.host, action, step)
            if isinstance(state, Trouble):
                return state
            captured.append(state)
        return tuple(captured)

    def _point(self, drift: DriftResult, plan: Plan, captured: tuple[Any, ...], now: Moment) -> RollbackPoint:
        return RollbackPoint(
            id=str(uuid.uuid4()),
            plan=plan,
            target=target_of(plan),
            captured=captured,
            pre_state=drift.pre_state,
            baseline_sha256=self.baseline.sha256,
            created=now,
            stages=tuple("pending" for _ in plan.steps),
            found=drift.reason,
        )

    # One cure that was cut off

    async def _resume(self, point: RollbackPoint) -> RemediationResult:
        if not point.plan.steps:
            return await self._abandon(point, "unreadable_point")
        try:
            chosen = resolve(point.plan, self.table)
        except RuntimeError:  # another version of the product wrote it: this one cannot undo what it does not know
            return await self._abandon(point, "unknown_action")
        people, again = self._for_people(point.check), await self._down_again(point)
        result = await Transaction(self._world(point), point, chosen, people, recovered=True, last_time=again).resume()
        self._log_end(result)
        return result

    async def _down_again(self, point: RollbackPoint) -> bool:
        """Whether the host went down in the middle of this cure, and did so before not long ago. Once may be a power cut; a cure
        that takes its host down is not tried a third time.
        """
        now = await self._now()
        if point.created.boot_id == now.boot_id:
            return False
        memory = await self._ask(lambda: self.store.recall(point.check, point.target, point.baseline_sha256))
        return any(
            (attempt.check, attempt.target) == (point.check, point.target)
            and attempt.outcome in {Outcome.REVERTED, Outcome.FAILED}
            and not attempt.forgiven
            and attempt.at.boot_id != point.created.boot_id
            and attempt.at.age_s(now) < DOWN_AGAIN_WITHIN_S
            for attempt in memory.history
        )

    async def _abandon(self, point: RollbackPoint, code: str) -> RemediationResult:
        log.error("healing.abandoned", check_id=point.check, code=code)
        result = RemediationResult(
            check=point.check,
            outcome=Outcome.FAILED.value,
            pre_state=point.pre_state,
            error=code,
            reason="interrupted",
            recovered=True,
            found=point.found,
            point_id=point.id,
        )
        await self._world(point).journal.close(point, "undo_failed", result, reject=True)
        return result

    # Small things

    def _for_people(self, check: str) -> tuple[str, ...]:
        entry = self.baseline.entries.get(check)
        return entry.check.spec.for_people if entry is not None else ()

    def _world(self, point: RollbackPoint) -> World:
        host = self._acting(point.id)
        return World(host, self._observe, self.store.journal, self.clock, self._settle_s)

    def _acting(self, cure: str) -> ChangingHost:
        """What changes the host in this cure."""
        return self.host if self._hands is None else self._hands(self.host, cure, self.baseline.sha256)

    async def _observe(self, check_id: str) -> DriftResult:
        if self._given_observe is not None:
            return await self._given_observe(check_id)
        detector = DriftDetector(self.config, host=self.host, baseline=self.baseline, clock=self.clock)
        return await detector.check_one(check_id)

    async def _ask(self, fn: Callable[[], Any]) -> Any:
        return await self.store.call(fn)

    async def _now(self) -> Moment:
        """This moment. Where the host will not say which boot this is, this engine's life stands in for one."""
        if self._boot is None:
            try:
                self._boot = ((await self.host.clock_state()).boot_id, 0.0)
            except CannotTell:
                self._boot = (f"engine-{uuid.uuid4()}", self.clock.monotonic())
        boot_id, origin = self._boot
        return Moment(self.clock.now(), self.clock.monotonic() - origin, boot_id)

    def _log_held(self, check: str, reason: str) -> None:
        if self._held.get(check) != reason:
            log.info("healing.held", check_id=check, reason=reason)
        self._held[check] = reason

    def _log_end(self, result: RemediationResult) -> None:
        tell = log.error if result.outcome == Outcome.FAILED.value else log.info
        tell("healing.ended", check_id=result.check, outcome=result.outcome, reason=result.reason, error=result.error)


def _hands_of(config: AgentConfig) -> Callable[[ChangingHost, str, str], ChangingHost] | None:
    """What acts in this process's place: a root side at its socket, or at the pair that this process was started with (pair.py).
    None where it acts itself.
    """
    if config.heal_socket is None and HANDLE not in os.environ:
        return None
    from compliance_agent.adapters.heal_host import HealHost, Root, held

    root = Root(config.heal_socket) if config.heal_socket is not None else held(os.environ[HANDLE])
    return lambda host, cure, baseline: HealHost(host, root.ask, cure, baseline)


async def _into(said: list[str | None], answer: Awaitable[str | None]) -> None:
    said.append(await answer)


def _untouched(drift: DriftResult, decision: Decision) -> RemediationResult:
    """The result of a remediation that changed nothing."""
    outcome = decision.outcome or Outcome.ALERT
    return RemediationResult(
        check=drift.check,
        outcome=outcome.value,
        pre_state=drift.pre_state,
        error=decision.detail,
        reason=decision.reason,
        not_before=decision.not_before,
    )


__all__ = ["HealingEngine", "Preview"]
