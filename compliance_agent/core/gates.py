"""May this drift be healed now? Every gate, in its order, as one pure function.

The gates of DESIGN 6. The first one that holds decides, and its reason code is stable: it is recorded, shown by `why`, and
translated on screens. What the gates look at is plain data (`Context`); who gathers it is the healing engine.

Time since an attempt comes from the monotonic clock within one boot, so that setting the wall clock changes nothing. Across
boots only the wall clock and the time since this boot are known, and the attempt is at least as old as this boot: an attempt
"in the future" therefore counts until the host has been up for the whole period, and a clock that was set back frees no budget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

from compliance_agent.core.leases import REASONS as LEASES
from compliance_agent.core.schedule import MaintenanceWindow
from compliance_agent.dataclass import dataclass
from compliance_agent.models import DriftResult, Mode, Outcome, Result

REASONS = {
    "no_cure": "there is no cure for what was seen; a person has to act",
    "mode_audit": "the baseline lets this check, or this host, only be looked at",
    "paused": "a person paused healing on this host",
    "exception": "an approved exception covers this failure",
    "cooldown": "this check was cured a moment ago",
    "budget": "this host used up its cures for the hour",
    "flapping": "something keeps undoing the cure (contended); a person has to find out what (then heal --again)",
    "rejected_target": "this cure was rolled back before and is not tried again before somebody looked into it (heal --again)",
    "outside_window": "users would notice, and the maintenance window is closed",
    "approval_required": "users would notice, and a person has to approve first",
    "lease_required": "users would notice, and the site has not given leave",
    **{name: f"users would notice, and {text}" for name, text in LEASES.items()},
    "lease_server_down": "users would notice, and the server that gives leave cannot be reached",
    "lease_refused": "users would notice, and the server refuses to give leave; its answer is in the log",
    "blocked": "something on the host is in the way for now",
    "allowed": "every gate is open",
}
BUDGET_PERIOD_S = 3600.0


@dataclass(frozen=True)
class Moment:
    """A point in time as this host can know it.

    Attributes:
        wall: UTC.
        monotonic_s: seconds since boot that never run back.
        boot_id: names the boot that `monotonic_s` counts from; empty where only the wall time is known.
    """

    wall: datetime
    monotonic_s: float
    boot_id: str

    def age_s(self, now: Moment) -> float:
        """Seconds from this moment to `now`, never negative; rather too young than too old."""
        by_wall = max(0.0, (now.wall - self.wall).total_seconds())
        if not self.boot_id:
            return by_wall
        if self.boot_id == now.boot_id:
            return max(0.0, now.monotonic_s - self.monotonic_s)
        return max(by_wall, now.monotonic_s)


@dataclass(frozen=True)
class Attempt:
    """One cure that was begun, however it ended. When a person looked into it (`forgiven`), only the budget counts it."""

    check: str
    target: str
    at: Moment
    outcome: str = "open"
    forgiven: bool = False


@dataclass(frozen=True)
class Limits:
    """How often may be healed.

    Attributes:
        cooldown_s: after an attempt, the same check waits so long.
        budget_per_hour: attempts in an hour, over all checks.
        flap_limit: attempts at one check within `flap_window_s`; one more would be a fight.
        flap_window_s: seconds; also how long a contended check is left alone.
    """

    cooldown_s: float = 300.0
    budget_per_hour: int = 20
    flap_limit: int = 5
    flap_window_s: float = 86_400.0


@dataclass(frozen=True)
class Context:
    """Everything the gates look at besides the drift.

    Attributes:
        now: this moment.
        mode: what the baseline allows for this check on this host.
        paused, paused_until: a person paused healing; when that ends by itself, if it does.
        exception_id: the approved exception that covers the failure.
        exception_until: when that exception ends.
        history: attempts on this host, any order, at least those of the longest period of `limits`.
        contended_since: when the flap breaker of this check tripped, if it did.
        limits: how often may be healed.
        rejected: this very target was rolled back under this very baseline.
        window: for disruptive plans; None means none is open, ever.
        approval_required: a person has to approve this plan.
        approved: a person did.
        lease_required: a lease of the site is needed for a disruptive plan.
        lease_held: this host holds one.
        lease_refusal, lease_not_before: why not, as one of `REASONS`, and when it makes sense to ask again.
        blocker: token of what is in the way on the host.
    """

    now: Moment
    mode: Mode = Mode.AUDIT
    paused: bool = False
    paused_until: datetime | None = None
    exception_id: str | None = None
    exception_until: datetime | None = None
    history: Sequence[Attempt] = ()
    contended_since: Moment | None = None
    limits: Limits = Limits()
    rejected: bool = False
    window: MaintenanceWindow | None = None
    approval_required: bool = False
    approved: bool = False
    lease_required: bool = False
    lease_held: bool = False
    lease_refusal: str = "lease_required"
    lease_not_before: datetime | None = None
    blocker: str | None = None


@dataclass(frozen=True)
class Decision:
    """What the gates say.

    Attributes:
        outcome: None when healing is allowed, else how the remediation ends without anything being changed.
        reason: key of `REASONS`, or the check's own token for having no cure.
        not_before: when the gate will open by itself (UTC), where that is known.
        trips: this is the attempt too many: from now on the check is contended.
        detail: token that says more (what blocks).
    """

    outcome: Outcome | None
    reason: str
    not_before: datetime | None = None
    trips: bool = False
    detail: str | None = None

    @property
    def allowed(self) -> bool:
        """Whether healing may begin."""
        return self.outcome is None


Gate = Callable[[DriftResult, Context], Decision | None]


def decide(drift: DriftResult, context: Context) -> Decision:
    """The first gate that holds this drift back, or leave to heal it.

    Raises:
        RuntimeError: the drift is not one (neither `fail` nor `exception`), which is a mistake of the caller.
    """
    if drift.result not in {Result.FAIL, Result.EXCEPTION}:
        raise RuntimeError(f"{drift.check}: a result of {drift.result.value} is nothing to heal")
    for gate in GATES:
        decision = gate(drift, context)
        if decision is not None:
            return decision
    return Decision(None, "allowed")


def _no_cure(drift: DriftResult, context: Context) -> Decision | None:
    if drift.plan is not None and drift.plan.steps:
        return None
    return None if drift.result is Result.EXCEPTION else Decision(Outcome.ALERT, drift.no_plan_reason or "no_cure")


def _mode(drift: DriftResult, context: Context) -> Decision | None:
    return Decision(Outcome.ALERT, "mode_audit") if context.mode is not Mode.ENFORCE else None


def _paused(drift: DriftResult, context: Context) -> Decision | None:
    return Decision(Outcome.DEFERRED, "paused", context.paused_until) if context.paused else None


def _exception(drift: DriftResult, context: Context) -> Decision | None:
    if context.exception_id is None and drift.result is not Result.EXCEPTION:
        return None
    return Decision(Outcome.DEFERRED, "exception", context.exception_until)


def _cooldown(drift: DriftResult, context: Context) -> Decision | None:
    ages = _ages(drift, context)
    left = context.limits.cooldown_s - min(ages, default=context.limits.cooldown_s)
    return Decision(Outcome.DEFERRED, "cooldown", _in(context, left)) if left > 0 else None


def _budget(drift: DriftResult, context: Context) -> Decision | None:
    ages = sorted(age for age in (item.at.age_s(context.now) for item in context.history) if age < BUDGET_PERIOD_S)
    allowed = context.limits.budget_per_hour
    if len(ages) < allowed:
        return None
    # It opens when so many have left the period that `allowed - 1` remain; a budget of 0 never opens.
    opens = _in(context, BUDGET_PERIOD_S - ages[allowed - 1]) if allowed else None
    return Decision(Outcome.DEFERRED, "budget", opens)


def _flapping(drift: DriftResult, context: Context) -> Decision | None:
    period = context.limits.flap_window_s
    if context.contended_since is not None:
        left = period - context.contended_since.age_s(context.now)
        if left > 0:  # told once, when it tripped; until then it is only held
            return Decision(Outcome.DEFERRED, "flapping", _in(context, left))
    recent = sum(age < period for age in _ages(drift, context))
    if recent < context.limits.flap_limit:
        return None
    return Decision(Outcome.ALERT, "flapping", _in(context, period), trips=True)


def _rejected(drift: DriftResult, context: Context) -> Decision | None:
    return Decision(Outcome.REJECTED, "rejected_target") if context.rejected else None


def _window(drift: DriftResult, context: Context) -> Decision | None:
    if not _disruptive(drift):
        return None
    if context.window is None:
        return Decision(Outcome.DEFERRED, "outside_window")
    if context.window.contains(context.now.wall):
        return None
    return Decision(Outcome.DEFERRED, "outside_window", context.window.next_start(context.now.wall))


def _approval(drift: DriftResult, context: Context) -> Decision | None:
    missing = context.approval_required and not context.approved
    return Decision(Outcome.DEFERRED, "approval_required") if missing else None


def _lease(drift: DriftResult, context: Context) -> Decision | None:
    missing = _disruptive(drift) and context.lease_required and not context.lease_held
    return Decision(Outcome.DEFERRED, context.lease_refusal, context.lease_not_before) if missing else None


def _blocked(drift: DriftResult, context: Context) -> Decision | None:
    return Decision(Outcome.DEFERRED, "blocked", detail=context.blocker) if context.blocker is not None else None


def _ages(drift: DriftResult, context: Context) -> list[float]:
    own = (item for item in context.history if item.check == drift.check and not item.forgiven)
    return [item.at.age_s(context.now) for item in own]


def _disruptive(drift: DriftResult) -> bool:
    return drift.plan is not None and drift.plan.disruptive


def _in(context: Context, seconds: float) -> datetime:
    return context.now.wall + timedelta(seconds=seconds)


GATES: tuple[Gate, ...] = (
    _no_cure,
    _mode,
    _paused,
    _exception,
    _cooldown,
    _budget,
    _flapping,
    _rejected,
    _window,
    _approval,
    _lease,
    _blocked,
)
