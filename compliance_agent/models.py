"""The words of the pipeline: frozen values, no I/O, standard library only.

`DriftResult` is what a check saw and how it was judged, `RemediationResult` what was done about it, `EvidenceBundle` the
record of both before it gets its place in the chain and its signature, `QueuedEvidence` such a record waiting for delivery.
The field names of the specification (docs/ARCHITECTURE.md, "Fixed names") are kept; the other fields have defaults.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, NewType

from compliance_agent.dataclass import dataclass

HostId = NewType("HostId", str)
SiteId = NewType("SiteId", str)
CheckId = NewType("CheckId", str)
BundleId = NewType("BundleId", str)
KeyId = NewType("KeyId", str)  # SHA-256 of the raw 32-byte public key, lower-case hex


class Result(StrEnum):
    """The five ways a check can end, after XCCDF's result words (its `error` is an `unknown` here)."""

    PASS = "pass"  # noqa: S105  a verdict
    FAIL = "fail"
    UNKNOWN = "unknown"
    NOT_APPLICABLE = "not_applicable"
    EXCEPTION = "exception"


class Severity(StrEnum):
    """How much an unmet item weighs, for order on a screen only."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    CRITICAL = "critical"


class Mode(StrEnum):
    """What the baseline allows for a check: only look, or also put back."""

    AUDIT = "audit"
    ENFORCE = "enforce"


class Outcome(StrEnum):
    """How a remediation, an order or a plain observation ended."""

    SUCCESS = "success"  # the check itself passed again after the cure
    FAILED = "failed"  # the cure failed and the former state could not be shown to be back
    REVERTED = "reverted"  # the cure failed or did not help, and the former state is back
    DEFERRED = "deferred"  # a gate holds it until a time or an act; nothing was changed
    ALERT = "alert"  # a person has to act; nothing was changed
    REJECTED = "rejected"  # refused for good (an order, a target that was rolled back before)
    EXPIRED = "expired"  # came too late


class BundleKind(StrEnum):
    """What a bundle records."""

    DRIFT = "drift"  # a change of verdict, in either direction
    REMEDIATION = "remediation"
    HEARTBEAT = "heartbeat"
    KEY_EVENT = "key_event"
    INCIDENT = "incident"
    DRILL = "drill"  # a detector was made to fire, or did not
    ORDER = "order"  # an order came: how it ended, or why it was refused


STATS = (
    "loops_completed",
    "drift_detected",
    "remediations_attempted",
    "remediations_successful",
    "evidence_generated",
    "evidence_uploaded",
    "evidence_queued",
)


@dataclass(frozen=True)
class Verdict:
    """How an observation was judged.

    Attributes:
        result: one of the five words.
        reason: a token the check declares (or one of `errors.CANNOT_TELL_REASONS`); recorded.
        sentence: expected and got, for a person at this host; never recorded and never sent.
    """

    result: Result
    reason: str
    sentence: str = ""


@dataclass(frozen=True)
class Step:
    """One idempotent action of a cure: the name of an action in the fixed table (`remedies/`) and its typed arguments."""

    action: str
    args: Mapping[str, str | int | bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """The ordered steps that cure one drift.

    Attributes:
        check: the check whose drift this cures.
        steps: in order; undone in reverse order.
        disruptive: users would notice; needs the maintenance window (and, where configured, approval and a lease).
        target: a token or digest naming what the host would be brought to; a rolled back target is not tried again.
        disturbs: what a disruptive plan does to users, as a token (`restarts_service`, `reboots`), empty when not disruptive.
    """

    check: str
    steps: tuple[Step, ...]
    disruptive: bool = False
    target: str = ""
    disturbs: str = ""


@dataclass(frozen=True)
class DriftResult:
    """What one check saw, and how it was judged.

    Attributes:
        check: id of the check.
        drifted: the verdict is `fail`; nothing else counts as drift, and nothing but `pass` counts as fine.
        pre_state: the declared facts, ready to be recorded.
        severity: weight of the check.
        recommended_action: first action of the plan, or None when there is no cure.
        hipaa_controls: citations of the check, `164.312(b)` form.
        verdict: result, reason and the local sentence. Defaults to what `drifted` says.
        plan: the cure, when the check has one for what it saw.
        no_plan_reason: why there is no cure (a token), when there is none.
        duration_ms: how long the look took.
        observed_at: when the look ended (UTC); None in values that did not come from a look.
        exception_id: the approved, unexpired exception that turned `fail` into `exception`.
    """

    check: str
    drifted: bool
    pre_state: Mapping[str, Any] = field(default_factory=dict)
    severity: str = "medium"
    recommended_action: str | None = None
    hipaa_controls: Sequence[str] | None = None
    verdict: Verdict | None = None
    plan: Plan | None = None
    no_plan_reason: str | None = None
    duration_ms: int = 0
    observed_at: datetime | None = None
    exception_id: str | None = None

    @property
    def result(self) -> Result:
        """One of the five words."""
        if self.verdict is not None:
            return self.verdict.result
        return Result.FAIL if self.drifted else Result.PASS

    @property
    def reason(self) -> str:
        """The token that says why."""
        return self.verdict.reason if self.verdict is not None else ("drifted" if self.drifted else "as_expected")


@dataclass(frozen=True)
class ActionTaken:
    """One step as it was carried out (or undone)."""

    action: str
    timestamp: datetime | None = None
    result: str = "ok"  # ok | failed | skipped | undone | undo_failed
    step: int = 1
    exit_code: int | None = None
    duration_ms: int = 0
    code: str | None = None  # token of the failure


@dataclass(frozen=True)
class RemediationResult:
    """What was done about one drift.

    Attributes:
        check: id of the check.
        outcome: one of the words of `Outcome`.
        pre_state: facts before.
        post_state: facts of the look after the cure (or after the undo); empty when nothing was changed.
        actions: steps as carried out, undo steps included.
        error: token of what went wrong (never free text), None on success.
        reason: token of the gate that held it back, or of how it ended.
        rollback_available: a rollback point exists for what was changed.
        rollback_generation: NixOS generation that the rollback point names.
        not_before: when a deferred remediation may be tried again (UTC), where known.
        post_result: verdict of the look after.
        recovered: this result was found at start, after a crash in the middle.
        found: the reason of the look that found the drift, where a rollback point kept it.
        point_id: the rollback point that it ended, empty where nothing was begun. Its record has this id, so it is made once.
    """

    check: str
    outcome: str
    pre_state: Mapping[str, Any] = field(default_factory=dict)
    post_state: Mapping[str, Any] = field(default_factory=dict)
    actions: Sequence[ActionTaken] = ()
    error: str | None = None
    reason: str = ""
    rollback_available: bool = False
    rollback_generation: int | None = None
    not_before: datetime | None = None
    post_result: str | None = None
    post_reason: str | None = None
    recovered: bool = False
    found: str = ""
    point_id: str = ""


@dataclass(frozen=True)
class ClockState:
    """What the host's kernel says of its clock (`adjtimex`, RFC 5905 terms) beside the identity of this boot.

    Attributes:
        source: what disciplines it.
        synchronized: the kernel's own word; None when it could not be read.
        offset_us: last measured offset, positive when the host is ahead.
        stratum: of the time source, None when not known.
        boot_id: the kernel's random id of this boot.
        monotonic_ns: monotonic clock at the same moment; runs back only between boots.
    """

    source: str  # chrony | ntpd | timesyncd | kernel | none | unknown
    synchronized: bool | None
    offset_us: int | None
    stratum: int | None
    boot_id: str
    monotonic_ns: int


def new_bundle_id() -> BundleId:
    """A random id (UUID version 4, 122 random bits), so that a bundle's digest leaks nothing of its content."""
    return BundleId(str(uuid.uuid4()))


@dataclass(frozen=True)
class EvidenceBundle:
    """What is to be recorded, before the store gives it epoch, seq and prev and the signer signs it.

    `states` is only for heartbeats: check id -> (result, reason); `incident` only for a log that contradicted itself:
    origin, both signed notes (base64) and code. All values are facts, tokens or times; the
    allow-list (evidence/allowlist.py) refuses anything else when the bundle is stored.
    """

    site_id: str
    host_id: str
    deployment_mode: str
    timestamp_start: datetime
    timestamp_end: datetime
    policy_version: str
    check: str
    outcome: str
    bundle_id: str = field(default_factory=new_bundle_id)
    kind: str = "drift"
    client_id: str = ""
    trigger: str = "schedule"  # schedule | event | manual | order | start
    result: str | None = None
    reason: str = ""
    severity: str | None = None
    hipaa_controls: Sequence[str] | None = None
    pre_state: Mapping[str, Any] = field(default_factory=dict)
    post_state: Mapping[str, Any] = field(default_factory=dict)
    post_result: str | None = None
    post_reason: str | None = None
    action_taken: Sequence[ActionTaken] = ()
    rollback_available: bool = False
    rollback_generation: int | None = None
    error: str | None = None
    order_id: str | None = None
    exception_id: str | None = None
    recovered: bool = False
    states: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    incident: Mapping[str, str] | None = None
    artifacts: Sequence[Mapping[str, Any]] = ()  # of an order: name, digest and length of its exact bytes


@dataclass(frozen=True)
class QueuedEvidence:
    """A recorded bundle that the server has not yet acknowledged."""

    id: int
    bundle_id: str
    bundle_path: str
    signature_path: str
    created_at: datetime
    retry_count: int = 0
    last_error: str | None = None
    epoch: int | None = None
    seq: int | None = None
    body: bytes | None = field(default=None, repr=False)  # the two files' content, where the line itself holds it
    signature: bytes | None = field(default=None, repr=False)
    traceparent: str | None = None  # of the drift that it records

    @property
    def directory(self) -> Path:
        """The evidence directory the two files stand in."""
        return Path(self.bundle_path).parent
