"""The healing transaction itself: capture, persist, act, look again, keep or undo.

The order is the product: every step's former state is captured and durable before the first change; "started" is durable
before a step runs; the cure is kept only after the check itself passes; whatever was started is undone in reverse order, also
a step that failed, since it may have failed after taking effect; and the undo is believed only when `capture` sees the former
state again. One cure is kept and not called healed: the one after which the check fails only for what a person has to end
anyway. A cancellation or a crash at any line leaves an open point, from which `resume` goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import field
from typing import Any

import structlog

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import AgentError, CannotTell, StepFailed, StorageError
from compliance_agent.facts import TOKEN
from compliance_agent.models import ActionTaken, DriftResult, Outcome, RemediationResult, Result, Step, Verdict
from compliance_agent.ports import ChangingHost, Clock
from compliance_agent.remedies.rollback import Journal, PointState, RollbackPoint, Stage
from compliance_agent.remedies.spec import Action

ENDINGS = {
    "healed": "the check itself passed again after the cure",
    "cured_in_part": "the cure did its part and is kept; what is left, a person has to end",
    "recovered": "the agent was cut off in the middle of the cure; at start the check itself passed",
    "step_failed": "a step of the cure failed",
    "check_not_passed": "every step succeeded, and the check still did not pass",
    "taken_back": "somebody undid on the host what the cure did, before the check could see it; it is tried once more",
    "interrupted": "the agent was cut off in the middle of the cure",
    "capture_failed": "the former state could not be read, so nothing was changed",
    "storage_failed": "the rollback point could not be kept, so nothing more was changed",
}
LEAVE_ENDED, NOT_APPROVED = "lease_ended", "not_approved"
TAKEN_BACK = "taken_back"
Observe = Callable[[str], Awaitable[DriftResult]]

log = structlog.get_logger()


@dataclass(frozen=True)
class World:
    """What a transaction acts through.

    Attributes:
        host: the machine.
        observe: looks at one check, the same way that found the drift.
        journal: where the rollback point is kept.
        clock: time.
        settle_s: waits before each look after the cure, until one passes; services take a moment to come up.
        leave_s: seconds for which users may still be disturbed, where that needs leave. Without any, no step begins or goes on;
            undoing needs none.
    """

    host: ChangingHost
    observe: Observe
    journal: Journal
    clock: Clock
    settle_s: Sequence[float] = (0.0, 1.0, 3.0)
    leave_s: Callable[[], float] | None = None


@dataclass(frozen=True)
class Trouble:
    """Why something did not work, as tokens that may be recorded."""

    reason: str
    code: str
    exit_code: int | None = None


@dataclass
class Transaction:
    """One cure from its persisted rollback point to its end. Used once."""

    world: World
    point: RollbackPoint
    actions: Sequence[Action]
    for_people: Collection[str] = ()
    recovered: bool = False
    last_time: bool = False  # it was cut off like this before: undone again, it is not tried again
    undone_before: Callable[[], Awaitable[bool]] | None = None  # whether the try before this one was undone, too
    taken: list[ActionTaken] = field(default_factory=list)
    stages: list[Stage] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = list(self.point.stages)

    async def run(self) -> RemediationResult:
        """Apply every step, look again, keep or undo. The point must be persisted already, and where nothing can come in between,
        with its first step as "started": that is one write less to wait for.
        """
        trouble = await self._apply_all()
        if trouble is None:
            seen = await self._look(self.world.settle_s)
            if self._did_its_part(seen):
                return await self._keep(seen)
            trouble = Trouble("check_not_passed", f"check_{seen.result.value}")
        reject = trouble.reason != "storage_failed" and trouble.code not in {LEAVE_ENDED, NOT_APPROVED}
        if reject and await self._is_taken_back(trouble):
            trouble = Trouble(TAKEN_BACK, trouble.code, trouble.exit_code)
            reject = self.undone_before is not None and await self.undone_before()
        return await self._undo_all(trouble, reject=reject)

    async def resume(self) -> RemediationResult:
        """Bring a cure that was cut off to its end: keep it if the check passes, undo it otherwise."""
        if self.point.state == "undoing":  # that decision stands, or half an undo could pass for a cure
            return await self._undo_all(Trouble(self.point.failure or "interrupted", "interrupted"), reject=True)
        if self.point.touched:
            seen = await self._look(self.world.settle_s)
            if self._did_its_part(seen):
                return await self._keep(seen)
        return await self._undo_all(Trouble("interrupted", "interrupted"), reject=self.last_time)

    # Forward

    async def _apply_all(self) -> Trouble | None:
        for number, (action, step) in enumerate(zip(self.actions, self.point.plan.steps, strict=True)):
            if self._leave_is_over():
                self._skip_from(number)
                return Trouble("step_failed", LEAVE_ENDED)
            trouble = await self._mark(number, "started") if self.stages[number] == "pending" else None
            if trouble is None:
                work = self._with_leave(action.apply(self.world.host, step.args))
                trouble = await self._timed(number, work, "ok", "failed")
                if trouble is None and number + 1 == len(self.actions):  # what is kept next is how it all ended
                    self.stages[number] = "done"
                    return None
                marked = await self._mark(number, "failed" if trouble else "done")
                trouble = trouble or marked
            if trouble is not None:
                self._skip_from(number + 1)
                return trouble
        return None

    def _leave_is_over(self) -> bool:
        return self.world.leave_s is not None and self.world.leave_s() <= 0

    async def _with_leave(self, work: Awaitable[None]) -> None:
        """Await a step as long as there is leave, which may be renewed meanwhile; then it is stopped."""
        if self.world.leave_s is None:
            await work
            return
        doing = asyncio.ensure_future(work)
        try:
            while not doing.done():
                if self._leave_is_over():
                    raise StepFailed("the leave to disturb users ended in the middle of a step", code=LEAVE_ENDED)
                await asyncio.wait({doing}, timeout=self.world.leave_s())
            await doing
        finally:
            doing.cancel()
            await asyncio.gather(doing, return_exceptions=True)

    async def _timed(self, number: int, work: Awaitable[None], good: str, bad: str) -> Trouble | None:
        """Do one piece of work within its action's deadline, and note how it went."""
        began = self.world.clock.monotonic()
        trouble = await attempt(work, self.actions[number].deadline_s)
        self._note(number, bad if trouble else good, trouble, began)
        return trouble

    def _skip_from(self, first: int) -> None:
        for number in range(first, len(self.actions)):
            self._note(number, "skipped", None, self.world.clock.monotonic())

    def _note(self, number: int, result: str, trouble: Trouble | None, began: float) -> None:
        self.taken.append(
            ActionTaken(
                action=self.actions[number].id,
                timestamp=self.world.clock.now(),
                result=result,
                step=number + 1,
                exit_code=trouble.exit_code if trouble else None,
                duration_ms=max(0, int((self.world.clock.monotonic() - began) * 1000)),
                code=trouble.code if trouble else None,
            )
        )

    async def _look(self, waits_s: Sequence[float]) -> DriftResult:
        seen = _not_seen(self.point.check, "not_found")
        for wait_s in waits_s:
            if wait_s > 0:
                await self.world.clock.sleep(wait_s)
            seen = await looked(self.world.observe, self.point.check)
            if self._did_its_part(seen):
                break
        return seen

    def _did_its_part(self, seen: DriftResult) -> bool:
        return seen.result is Result.PASS or (seen.result is Result.FAIL and seen.reason in self.for_people)

    async def _keep(self, seen: DriftResult) -> RemediationResult:
        # Only a check that passed is healed. A point that could not be closed stays open, and `recover` looks again.
        healed = seen.result is Result.PASS
        outcome = Outcome.SUCCESS if healed else Outcome.ALERT
        reason = ("recovered" if self.recovered else "healed") if healed else "cured_in_part"
        result = self._result(outcome, reason, None, seen)
        await self._close("kept", result, reject=False)
        return result

    async def _is_taken_back(self, trouble: Trouble) -> bool:
        """Whether somebody undid meanwhile what the cure had done: nothing of it is left, though every step succeeded, or there is
        what no step of it makes. That says nothing against the cure. Asked only where it failed, so a cure waits for nothing, and
        only of what can tell: a daemon that hangs keeps whoever looks at it waiting.
        """
        gone, unseen = list[bool](), trouble.reason == "check_not_passed"
        for number, (action, step) in enumerate(zip(self.actions, self.point.plan.steps, strict=True)):
            if self.stages[number] == "pending" or action.undo_is_empty or not (unseen or action.by_others):
                continue
            now, former = await capture(self.world.host, action, step), self.point.captured[number]
            if isinstance(now, Trouble):
                return False
            if action.by_others is not None and action.by_others(former, now):
                return True
            gone.append(action.restored(former, now))
        return unseen and bool(gone) and all(gone)

    # Back

    async def _undo_all(self, trouble: Trouble, *, reject: bool) -> RemediationResult:
        storage = await self._journalled(self.world.journal.undoing(self.point.id, trouble.reason))
        failed = await self._undo_steps()
        if failed is None:
            failed = await self._not_restored()
        seen = await self._look((0.0,))
        outcome = Outcome.FAILED if failed else Outcome.REVERTED
        result = self._result(outcome, trouble.reason, failed.code if failed else trouble.code, seen)
        closed = await self._close("undo_failed" if failed else "undone", result, reject=reject)
        if failed is None and closed is not None:  # the host is whole, but nothing durable says so
            failed = closed
            result = self._result(Outcome.FAILED, trouble.reason, closed.code, seen)
        log.info("healing.undone", check_id=self.point.check, complete=failed is None, storage=storage is None)
        return result

    async def _undo_steps(self) -> Trouble | None:
        """Undo whatever was started, last first. One undo that fails does not keep the others from being tried."""
        first_failure: Trouble | None = None
        for number in reversed(range(len(self.actions))):
            if self.stages[number] == "pending":
                continue
            action, step = self.actions[number], self.point.plan.steps[number]
            work = action.undo(self.world.host, step.args, self.point.captured[number])
            trouble = await self._timed(number, work, "undone", "undo_failed")
            first_failure = first_failure or trouble
            await self._mark(number, "undo_failed" if trouble else "undone")
        return first_failure

    async def _not_restored(self) -> Trouble | None:
        """Hold the host against what was captured. Steps may share a file, so only after every undo."""
        for number, (action, step) in enumerate(zip(self.actions, self.point.plan.steps, strict=True)):
            if self.stages[number] == "pending" or action.undo_is_empty:
                continue
            now = await capture(self.world.host, action, step)
            if isinstance(now, Trouble):
                return Trouble("step_failed", now.code)
            if not action.restored(self.point.captured[number], now):
                return Trouble("step_failed", "not_restored")
        return None

    # The journal

    async def _mark(self, number: int, stage: Stage) -> Trouble | None:
        trouble = await self._journalled(self.world.journal.mark(self.point.id, number, stage))
        if trouble is None or stage != "started":
            self.stages[number] = stage
        return trouble

    async def _close(self, state: PointState, result: RemediationResult, *, reject: bool) -> Trouble | None:
        return await self._journalled(self.world.journal.close(self.point, state, result, reject=reject))

    async def _journalled(self, work: Awaitable[None]) -> Trouble | None:
        try:
            await work
        except StorageError as error:
            log.error("healing.storage_failed", check_id=self.point.check, code=error.code)
            return Trouble("storage_failed", error.code)
        return None

    def _result(self, outcome: Outcome, reason: str, error: str | None, seen: DriftResult) -> RemediationResult:
        return RemediationResult(
            check=self.point.check,
            outcome=outcome.value,
            pre_state=self.point.pre_state,
            post_state=seen.pre_state,
            actions=tuple(self.taken),
            error=error,
            reason=reason,
            rollback_available=True,
            rollback_generation=_generation(self.point.captured),
            post_result=seen.result.value,
            post_reason=seen.reason,
            recovered=self.recovered,
            found=self.point.found,
            point_id=self.point.id,
        )


async def attempt(work: Awaitable[Any], deadline_s: float) -> Trouble | None:
    """Await a piece of a cure within its deadline; None when it worked. A bug in an action is a failed step, too: what it
    did must be undone all the same.
    """
    try:
        async with asyncio.timeout(deadline_s):
            await work
    except TimeoutError:
        return Trouble("step_failed", "timed_out")
    except StepFailed as error:
        return Trouble("step_failed", _token(error.code), error.exit_status_of_step)
    except AgentError as error:
        return Trouble("step_failed", _token(error.code))
    except Exception as error:
        log.error("healing.action_crashed", error_type=type(error).__name__)
        return Trouble("step_failed", "crashed")
    return None


async def capture(host: ChangingHost, action: Action, step: Step) -> Any | Trouble:
    """What `action.undo` would need to bring the present state back, or why it cannot be read.

    Raises:
        RuntimeError: the action's `capture` gave something that is not JSON.
    """
    found: list[Any] = []

    async def look() -> None:
        found.append(await action.capture(host, step.args))

    trouble = await attempt(look(), action.deadline_s)
    if trouble is not None:
        return Trouble("capture_failed", trouble.code)
    try:
        return json.loads(json.dumps(found[0]))  # in the form in which it comes back from the journal
    except (TypeError, ValueError) as error:
        raise RuntimeError(f"{action.id}: `capture` must return plain JSON") from error


async def looked(observe: Observe, check: str) -> DriftResult:
    """A look that always ends in a verdict."""
    try:
        return await observe(check)
    except CannotTell as error:
        return _not_seen(check, error.reason)
    except Exception as error:
        log.error("healing.look_crashed", check_id=check, error_type=type(error).__name__)
        return _not_seen(check, "crashed")


def _not_seen(check: str, reason: str) -> DriftResult:
    return DriftResult(check, drifted=False, verdict=Verdict(Result.UNKNOWN, reason))


def _token(code: str) -> str:
    return code if TOKEN.fullmatch(code) else "step_failed"


def _generation(captured: Sequence[Any]) -> int | None:
    """The NixOS generation that an action captured, if one did."""
    for item in captured:
        if isinstance(item, dict) and type(item.get("generation")) is int:
            return int(item["generation"])
    return None
