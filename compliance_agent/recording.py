"""What an agent records, and when.

Every change of verdict, every remediation, every refusal whose reason changed, every drill, and heartbeats. An unchanged drift is
not recorded again each cycle. What was last recorded of each check survives a restart. What could not be recorded is kept and
tried again with the next iteration: what was seen on a host, or done to it, must not go unsaid. What could not be kept either (a
verdict that another one followed, a cure too many) is counted, and one signed record says how many and over which time.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any, Protocol, cast

import structlog

from compliance_agent.adapters.agent_state import AgentState, Recorded
from compliance_agent.config import AgentConfig
from compliance_agent.dataclass import dataclass
from compliance_agent.delivery import Delivery, code_of, settled
from compliance_agent.drills import Proof, kept, state_of
from compliance_agent.logs import where
from compliance_agent.models import (
    BundleId,
    BundleKind,
    DriftResult,
    EvidenceBundle,
    Outcome,
    RemediationResult,
    Result,
)
from compliance_agent.ports import Clock
from compliance_agent.traces import Trace, recording

log = structlog.get_logger()
MOST_UNRECORDED = 100


@dataclass(frozen=True)
class Done:
    """A remediation as it is to be recorded."""

    drift: DriftResult
    remediation: RemediationResult
    start: datetime
    end: datetime
    trigger: str = "schedule"
    order_id: str | None = None
    trace: Trace | None = None


@dataclass(frozen=True)
class Gap:
    """What could not be recorded, nor kept until it could: how many, from when to when."""

    count: int
    since: datetime
    until: datetime


class Parts(Protocol):
    """What recording needs of the agent, read anew each time: parts may be replaced."""

    config: AgentConfig
    clock: Clock
    stats: dict[str, int]
    healing_engine: Any
    evidence_generator: Any
    delivery: Delivery


class Recording:
    """The records of one agent.

    Args:
        parts: the agent.
        state: what it still knows after a restart.
        submit: puts a stored bundle in line for delivery.
    """

    def __init__(self, parts: Parts, state: AgentState, submit: Callable[[EvidenceBundle], Awaitable[None]]) -> None:
        self._parts = parts
        self._state = state
        self._submit = submit
        self._recorded = state.recorded()
        self._unrecorded: list[Done] = []
        self._gap: Gap | None = None
        self._unrecorded_verdicts: dict[str, DriftResult] = {}
        self._unheld: set[str] = set()  # what could not be recorded, so that it is logged once
        self._drills: tuple[int, int] | None = None  # the state of the drills' directory that had nothing new
        self._paths: dict[str, tuple[str, str]] = {}  # of bundles that are stored and not yet submitted

    # What is known

    def tell(self, drift: DriftResult) -> None:
        """Say a verdict that is not the one that was recorded last."""
        kept_back = self._unrecorded_verdicts.pop(drift.check, None)
        if kept_back is not None and (kept_back.result, kept_back.reason) != (drift.result, drift.reason):
            self._lost(kept_back.observed_at)
        known = self._recorded.get(drift.check)
        if known is None or (known.result, known.reason) != (drift.result, drift.reason):
            if drift.drifted:
                log.warning("drift.found", check_id=drift.check, result=drift.result, reason=drift.reason)
            else:
                log.info("verdict.changed", check_id=drift.check, result=drift.result, reason=drift.reason)

    def knows(self, drift: DriftResult, remediation: RemediationResult) -> bool:
        """Whether this very drift with this very answer to it is what was recorded last."""
        return self._recorded.get(drift.check) == _after(drift, remediation)

    def path_of(self, bundle_id: str) -> tuple[str, str] | None:
        """Where a bundle that is about to be submitted was stored, once."""
        return self._paths.pop(bundle_id, None)

    # Verdicts and remediations

    async def verdict(self, drift: DriftResult) -> None:
        """Record a verdict other than `fail` when it is not the one that was recorded last."""
        known = self._recorded.get(drift.check)
        if known is not None and (known.result, known.reason) == (drift.result, drift.reason):
            return
        end = self._parts.clock.now()
        try:
            evidence = await self.create(
                check=drift.check,
                outcome=None,
                kind=BundleKind.DRIFT,
                pre_state=drift.pre_state,
                result=drift.result,
                reason=drift.reason,
                severity=drift.severity,
                hipaa_controls=drift.hipaa_controls,
                exception_id=drift.exception_id,
                timestamp_start=min(drift.observed_at or end, end),
                timestamp_end=end,
            )
            await self._remember(drift.check, Recorded(drift.result, drift.reason))
        except Exception as error:
            self._unrecorded_verdicts[drift.check] = drift
            self._say_unrecorded(drift.check, error)
        else:
            await self.submitted(evidence)

    async def remediation(self, done: Done) -> None:
        """Record it, or keep it for the next iteration."""
        try:
            evidence = await self._remediation(done)
        except Exception as error:
            self._unrecorded.append(done)
            if len(self._unrecorded) > MOST_UNRECORDED:
                self._lost(self._unrecorded.pop(0).start)
            self._say_unrecorded(done.drift.check, error)
        else:
            await self.submitted(evidence)

    async def insist(self) -> None:
        """Record the last of what was kept, now.

        Raises:
            StorageError: it could not be recorded.
        """
        if self._unrecorded:
            await self._remediation(self._unrecorded.pop())

    async def what_was_kept(self) -> None:
        """Try again what could not be recorded."""
        kept_back, self._unrecorded = self._unrecorded, []
        for done in kept_back:
            await self.remediation(done)
        verdicts, self._unrecorded_verdicts = self._unrecorded_verdicts, {}
        for drift in verdicts.values():
            await self.verdict(drift)
        await self._say_gap()

    def _lost(self, at: datetime | None) -> None:
        now, gap = self._parts.clock.now(), self._gap
        since = gap.since if gap is not None else min(at or now, now)
        self._gap = Gap(gap.count + 1 if gap is not None else 1, since, max(since, now))

    async def _say_gap(self) -> None:
        """Once there is room again: one record of how much is missing, and over which time."""
        gap = self._gap
        if gap is None or self._unrecorded or self._unrecorded_verdicts:
            return
        try:
            evidence = await self.create(
                check="",
                outcome=None,
                kind=BundleKind.INCIDENT,
                reason="not_recorded",
                counts={"gaps": gap.count},
                timestamp_start=gap.since,
                timestamp_end=gap.until,
            )
        except Exception as error:
            self._say_unrecorded("", error)
            return
        self._gap = None
        log.error("evidence.gap_recorded", count=gap.count, bundle_id=evidence.bundle_id)
        await self.submitted(evidence)

    async def _remediation(self, done: Done) -> EvidenceBundle:
        trace, began = done.trace, self._parts.clock.now()
        with recording(trace.root.context if trace is not None else None):
            evidence = await self._recorded_remediation(done)
        if trace is not None:
            trace.recorded(began, self._parts.clock.now(), str(done.remediation.outcome))
        return evidence

    async def _recorded_remediation(self, done: Done) -> EvidenceBundle:
        drift, remediation = done.drift, done.remediation
        cured = remediation.outcome == Outcome.SUCCESS
        evidence = await self.create(
            check=drift.check,
            outcome=remediation.outcome,
            kind=BundleKind.REMEDIATION,
            trigger=done.trigger,
            order_id=done.order_id,
            pre_state=drift.pre_state,
            post_state=remediation.post_state,
            post_result=remediation.post_result,
            post_reason=remediation.post_reason,
            actions=remediation.actions,
            error=None if cured else remediation.error or remediation.reason or None,
            result=drift.result,
            reason=drift.reason,
            severity=drift.severity,
            hipaa_controls=drift.hipaa_controls,
            rollback_available=remediation.rollback_available,
            rollback_generation=remediation.rollback_generation,
            recovered=remediation.recovered,
            **({"bundle_id": BundleId(remediation.point_id)} if remediation.point_id else {}),
            timestamp_start=done.start,
            timestamp_end=done.end,
        )
        said = getattr(self._parts.healing_engine, "said", None)
        if callable(said):
            await settled(said(remediation))
        after = _after(drift, remediation)
        if cured:
            after = Recorded(remediation.post_result or Result.PASS, remediation.post_reason or "as_expected")
        await self._remember(drift.check, after)
        log.info(
            "heal.finished",
            check_id=drift.check,
            outcome=str(remediation.outcome),
            reason=remediation.reason,
            bundle_id=evidence.bundle_id,
        )
        return evidence

    # Drills and heartbeats

    async def drills(self) -> list[EvidenceBundle]:
        """Record what drills have shown since the last time, each once. What cannot be recorded now is tried again."""
        recorded = []
        for proof in await self._state.database.call(self._new_proofs):
            try:
                evidence = await self.create(
                    check=proof.check,
                    outcome=None,
                    kind=BundleKind.DRILL,
                    trigger="manual",
                    pre_state=proof.facts,
                    result=proof.result,
                    reason=proof.reason,
                    timestamp_start=proof.at,
                    timestamp_end=proof.at,
                )
                fired = proof.result == Result.PASS
                await self._state.database.call(
                    functools.partial(self._state.set_drilled, proof.drill, proof.at, fired=fired)
                )
            except Exception as error:
                self._say_unrecorded(proof.check, error)
                continue
            log.info("drill.recorded", check_id=proof.check, result=str(proof.result), bundle_id=evidence.bundle_id)
            await self.submitted(evidence)
            recorded.append(evidence)
        return recorded

    def _new_proofs(self) -> list[Proof]:
        directory = self._parts.config.drills_dir
        state = state_of(directory)
        if state is not None and state == self._drills:
            return []
        new = [proof for proof in kept(directory) if self._state.is_new_drill(proof.drill, proof.at)]
        self._drills = None if new else state
        return new

    async def heartbeat_if_due(self, states: Mapping[str, tuple[str, str]]) -> None:
        """Every hour (and at start) one signed statement of every verdict, the clock and the chain's head."""
        now = self._parts.clock.now()
        last = await self._state.last("heartbeat")
        every_s = self._parts.config.heartbeat_interval_sec
        if not states or (last is not None and 0 <= (now - last).total_seconds() < every_s):
            return
        try:
            evidence = await self.create(
                check="",
                outcome=None,
                kind=BundleKind.HEARTBEAT,
                states=states,
                counts=dict(self._parts.stats),
                timestamp_start=now,
                timestamp_end=now,
            )
        except Exception as error:
            self._say_unrecorded("", error)
            return
        self._state.note_moment("heartbeat", now)  # where a stop takes that back, there is one heartbeat more
        await self.submitted(evidence)

    # One bundle

    async def create(self, **fields: Any) -> EvidenceBundle:
        """Make and store one bundle; it is durable, and in the line for delivery, when this returns."""
        generator = self._parts.evidence_generator
        evidence = await settled(generator.create_evidence(**fields))
        with self._parts.delivery.recording(evidence.bundle_id):
            bundle_path, signature_path = await settled(generator.store_evidence(evidence))
        self._parts.stats["evidence_generated"] += 1
        self._unheld.discard(str(fields.get("check")))
        self._paths[evidence.bundle_id] = (str(bundle_path), str(signature_path))
        return cast(EvidenceBundle, evidence)

    async def submitted(self, evidence: EvidenceBundle) -> None:
        """Submit what stands in the line already since it was recorded: a failure here loses nothing."""
        try:
            await self._submit(evidence)
        except Exception as error:
            self._parts.delivery.withdraw(evidence.bundle_id)
            log.warning("evidence.not_submitted", bundle_id=evidence.bundle_id, code=code_of(error), at=where(error))

    async def _remember(self, check_id: str, value: Recorded) -> None:
        self._recorded[check_id] = value
        at = self._parts.clock.now()
        await self._state.database.call(lambda: self._state.set_recorded(check_id, value, at))

    def _say_unrecorded(self, check: str, error: Exception) -> None:
        if check not in self._unheld:
            log.error("evidence.not_recorded", check_id=check, code=code_of(error), at=where(error))
        self._unheld.add(check)


def _after(drift: DriftResult, remediation: RemediationResult) -> Recorded:
    return Recorded(drift.result, drift.reason, str(remediation.outcome), remediation.reason)
