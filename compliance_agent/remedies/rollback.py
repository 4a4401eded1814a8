"""Rollback points: what a cure is about to change and what was there before, durable before the first change.

A point is `open` while its cure runs, `undoing` from the moment it was decided to take the cure back, and closed in one of
`kept undone undo_failed`. A point that is still open at start belongs to a cure that was cut off. How a cure ended stays beside
its point until evidence says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, Literal, Protocol

from compliance_agent.core.gates import Moment
from compliance_agent.dataclass import dataclass
from compliance_agent.models import Plan, RemediationResult

PointState = Literal["open", "undoing", "kept", "undone", "undo_failed"]
Stage = Literal["pending", "started", "done", "failed", "undone", "undo_failed"]


@dataclass(frozen=True)
class RollbackPoint:
    """One cure, as persisted.

    Attributes:
        id: names the point.
        plan: the steps, in order.
        target: what the plan would bring the host to.
        captured: former state for each step, as its action's `capture` gave it. Local only; never recorded as evidence.
        pre_state: facts of the look that found the drift.
        baseline_sha256: the baseline under which it was begun.
        created: when it was begun.
        stages: how far each step is.
        state: of the point.
        failure: token of why it is being undone, empty before that.
        found: the reason of the look that found the drift.
    """

    id: str
    plan: Plan
    target: str
    captured: tuple[Any, ...]
    pre_state: Mapping[str, Any]
    baseline_sha256: str
    created: Moment
    stages: tuple[Stage, ...] = field(default=())
    state: PointState = "open"
    failure: str = ""
    found: str = ""

    @property
    def check(self) -> str:
        """The check whose drift is cured."""
        return self.plan.check

    @property
    def touched(self) -> bool:
        """Whether any step may have changed the host."""
        return any(stage != "pending" for stage in self.stages)


class Journal(Protocol):
    """Where points are kept. Every method is durable when it returns, and raises `StorageError` when it may not be; but for what
    the power may take back without harm, which is durable with the next write: a step that is "done" (it is "started" then, and
    is dealt with in the same way), and a point that is "kept" (it is open then, so the check is looked at again and that recorded).
    """

    async def begin(self, point: RollbackPoint) -> None:
        """Persist a new point, its steps at their stages, and the attempt it stands for."""
        ...

    async def mark(self, point_id: str, step: int, stage: Stage) -> None:
        """One step (from 0) came to this stage."""
        ...

    async def undoing(self, point_id: str, failure: str) -> None:
        """The cure is being taken back from now on, for this reason."""
        ...

    async def close(self, point: RollbackPoint, state: PointState, result: RemediationResult, *, reject: bool) -> None:
        """The point is done with; `reject` keeps its target from being tried again. `result` is kept until it is recorded."""
        ...
