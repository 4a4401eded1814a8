"""The agent: wires the real parts together, runs the loop, shuts down. It decides nothing itself.

    observe (drift_detector) -> judge -> decide and act (healing_engine) -> record (evidence_generator, offline_queue)
        -> deliver (delivery, mcp_client)

One iteration looks at every check that is due, heals what may be healed, records every change of verdict, every remediation and
every refusal whose reason changed, and gives delivery one bounded turn at its end; what is not delivered then goes on by itself in
its own task. A look that takes longer than a moment is not waited for: its verdict is taken when it comes back. A tick that comes
while an iteration still runs is skipped and counted, never piled up. What could not be recorded is tried again with the next
iteration: one check's trouble never stops the others.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from types import FrameType
from typing import Any, cast

import structlog

from compliance_agent.adapters import key_files, runner
from compliance_agent.adapters.agent_state import AgentState, Recorded
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.database import Database, release, shared
from compliance_agent.adapters.log_store import LogStore
from compliance_agent.adapters.offload import Offload
from compliance_agent.adapters.shed_store import ShedStore
from compliance_agent.baseline import Baseline
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.delivery import Delivery, code_of, settled
from compliance_agent.drift import DriftDetector
from compliance_agent.drills import Proof, kept
from compliance_agent.errors import AgentError, CannotTell, StateInUse
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.evidence.former import FormerKeys
from compliance_agent.healing import HealingEngine
from compliance_agent.logs import configure, where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import (
    STATS,
    BundleId,
    BundleKind,
    DriftResult,
    EvidenceBundle,
    Outcome,
    QueuedEvidence,
    RemediationResult,
    Result,
    Verdict,
)
from compliance_agent.ports import Clock
from compliance_agent.queue import OfflineQueue
from compliance_agent.receipts import Receipts
from compliance_agent.rotation import KeyRotation, Rotated
from compliance_agent.shedding import Shedding
from compliance_agent.utils import apply_jitter
from compliance_agent.witness_role import WitnessRole

log = structlog.get_logger()

JITTER_PCT = 10.0
ERROR_BACKOFF_S = 60.0
# From a signal to the end of the process, which systemd and the specification give 10 s: the iteration under way, its
# cancellation, delivery, closing.
DRAIN_ITERATION_S, DRAIN_CANCEL_S, DRAIN_DELIVERY_S, DRAIN_CLOSE_S = 3.0, 1.0, 1.5, 1.5
LONGEST_ASKED_INTERVAL_S = 3_600  # a server may slow this host down, but not silence it for longer than a heartbeat
MOST_UNRECORDED = 100
HEALTH_S = 10.0
TOUCHED = {Outcome.SUCCESS, Outcome.FAILED, Outcome.REVERTED}  # outcomes of a remediation that changed something
_DEFAULT: Any = object()


@dataclass(frozen=True)
class Done:
    """A remediation as it is to be recorded."""

    drift: DriftResult
    remediation: RemediationResult
    start: datetime
    end: datetime
    trigger: str = "schedule"


class ComplianceAgent:
    """The agent of one host.

    Args:
        config: everything it is told.
        signer, drift_detector, healing_engine, evidence_generator, offline_queue, mcp_client: collaborators to use in place of
            the real ones; `mcp_client` is None where there is no server to speak to.
        clock: time; the system's when not given.
        rng: for the jitter of the poll interval.

    Raises:
        ConfigError: configuration, baseline or key cannot be used.
        StorageError: the state directory cannot be used.
    """

    def __init__(
        self,
        config: AgentConfig,
        *,
        signer: Any = None,
        drift_detector: Any = None,
        healing_engine: Any = None,
        evidence_generator: Any = None,
        offline_queue: Any = None,
        mcp_client: Any = _DEFAULT,
        clock: Clock | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.config = config
        self.running = False
        self.shutdown_event = asyncio.Event()
        self.clock: Clock = clock if clock is not None else SystemClock()
        self.stats = dict.fromkeys(STATS, 0)
        self.ticks_skipped = 0
        self.delivery = Delivery(self, config.upload_turn_sec)

        self._rng = rng
        self._latest: dict[str, DriftResult] = {}
        self._unrecorded: list[Done] = []
        self._unrecorded_verdicts: dict[str, DriftResult] = {}
        self._unheld: set[str] = set()  # what could not be recorded, so that it is logged once
        self._paths: dict[str, tuple[str, str]] = {}  # of bundles that are stored and not yet submitted
        self._iterating = False
        self._signal = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database: Database = shared(config.database_path, reserve_kb=config.reserve_kb)
        try:
            self._state = AgentState(self._database)
            self.stats.update(self._state.statistics())
            self._recorded = self._state.recorded()
            self._log_store = LogStore(self._database, config.evidence_dir)
            self.receipts = Receipts(self._log_store, config.site_id, self.clock)
            self.shedding = Shedding(ShedStore(self._log_store), config.site_id, self.clock, config.keep_days)
            key_files.settle(config.signing_key_file, key_files.chain_key(self._database))
            self.signer: Any = signer if signer is not None else Ed25519Signer(config.signing_key_file)
            self.drift_detector: Any = (
                drift_detector if drift_detector is not None else DriftDetector(config, clock=self.clock)
            )
            self._adopt(getattr(self.drift_detector, "baseline", None))
            self.healing_engine: Any = healing_engine if healing_engine is not None else self._healing_engine()
            self.evidence_generator: Any = (
                evidence_generator if evidence_generator is not None else self._evidence_generator()
            )
            self.offline_queue: Any = (
                offline_queue
                if offline_queue is not None
                else OfflineQueue(config.database_path, evidence_dir=config.evidence_dir, clock=self.clock)
            )
            self.mcp_client: Any = mcp_client if mcp_client is not _DEFAULT else self._mcp_client()
            self.key_rotation = KeyRotation(self, config, self._database, FormerKeys(self._database), key_files)
        except BaseException:
            release(self._database)
            raise

    def use_signer(self, signer: Ed25519Signer) -> None:
        """From now on this key signs and is this host."""
        self.signer = self.evidence_generator.signer = signer
        if self.mcp_client is not None:
            self.mcp_client.use_key(signer.key_id)

    def _adopt(self, baseline: object) -> None:
        """Keep which baseline was last in force; a detector that was handed in need not have one."""
        if not isinstance(baseline, Baseline):
            return
        if self._state.adopt_baseline(baseline.version, baseline.sha256, self.clock.now()):
            log.info("baseline.adopted", version=baseline.version, sha256=baseline.sha256)

    def _healing_engine(self) -> HealingEngine:
        return HealingEngine(
            self.config,
            host=self.drift_detector.host,
            baseline=self.drift_detector.baseline,
            observe=self.drift_detector.check_one,
            clock=self.clock,
        )

    def _evidence_generator(self) -> EvidenceGenerator:
        return EvidenceGenerator(
            self.config,
            self.signer,
            clock=self.clock,
            host=getattr(self.drift_detector, "host", None),
            baseline=getattr(self.drift_detector, "baseline", None),
        )

    def _mcp_client(self) -> MCPClient | None:
        if self.config.mcp_url is None:
            return None
        return MCPClient(self.config, self.signer.key_id, clock=self.clock, on_ack=self.delivery.keep_ack)

    @property
    def latest(self) -> Sequence[DriftResult]:
        """The newest result of each check."""
        return tuple(result for _, result in sorted(self._latest.items()))

    def _detector(self) -> DriftDetector | None:
        """The detector, where it takes turns; one that was handed in need only have `check_all`."""
        return self.drift_detector if isinstance(self.drift_detector, DriftDetector) else None

    # Life

    async def start(self, *, handle_signals: bool = True) -> None:
        """Run until the shutdown event is set, by a signal or by a caller; then drain and close within 10 seconds.

        Args:
            handle_signals: take SIGTERM and SIGINT; not for several agents in one process.
        """
        if self.running:
            log.warning("agent.already_running")
            return
        self.running = True
        self._loop = asyncio.get_running_loop()
        if handle_signals:
            self._setup_signal_handlers()
        log.info("agent.started", site_id=self.config.site_id, host_id=self.config.host_id)
        try:
            await self.recover()
            async with self._witnessing():
                await self._run_loop()
        finally:
            await self._shutdown()

    @contextlib.asynccontextmanager
    async def _witnessing(self) -> AsyncIterator[None]:
        """In the witness role, look at logs of others beside the loop. Its trouble is said, and is not the agent's."""
        if self.config.witness_logs_file is None:
            yield
            return
        role = WitnessRole(self.config, self.clock)
        task = asyncio.create_task(role.run(self.config.mcp_poll_interval_sec))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait({task}, timeout=DRAIN_CANCEL_S)
            await role.close()

    async def close(self) -> None:
        """Save the statistics and give back what the constructor opened; `start` does it by itself.

        Raises:
            StorageError: the statistics were not saved; everything is given back all the same.
        """
        try:
            await self._save_statistics()
        finally:
            await self._close_parts()
            release(self._database)

    async def _close_parts(self) -> None:
        for part in (
            self.drift_detector,
            self.mcp_client,
            self.offline_queue,
            self.evidence_generator,
            self.healing_engine,
        ):
            closing = getattr(part, "close", None)
            if callable(closing):
                await settled(closing())

    async def _shutdown(self) -> None:
        """Drain and close, in bounded time whatever hangs."""
        self.running = False
        self.shutdown_event.set()
        if self._signal:
            log.info("agent.signal", number=self._signal)
        await self.delivery.stop(DRAIN_DELIVERY_S)
        try:
            async with asyncio.timeout(DRAIN_CLOSE_S):
                await self._save_statistics()
                await self._close_parts()
        except (AgentError, TimeoutError) as error:
            log.error("agent.close_failed", code=code_of(error))
        # Closing the database waits for its writer thread, and a dead disk is not waited for.
        with contextlib.suppress(CannotTell):
            await Offload().call("database", DRAIN_CLOSE_S, lambda: release(self._database))
        log.info("agent.stopped", **self.stats)

    def _setup_signal_handlers(self) -> None:
        """SIGTERM and SIGINT end the loop after what is under way; outside the main thread there are no signals to take."""

        def signal_handler(signum: int, _frame: FrameType | None) -> None:
            self._signal = int(signum)
            self.running = False
            self.shutdown_event.set()
            if self._loop is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for nothing but time

        try:
            signal.signal(signal.SIGTERM, signal_handler)
            signal.signal(signal.SIGINT, signal_handler)
        except ValueError:
            log.info("agent.no_signals")

    async def recover(self) -> None:
        """Finish what a crash left in the middle of a cure, and record how it ended; before that, how those ended that came to
        their end and not to their record.
        """
        unsaid = getattr(self.healing_engine, "unsaid", None)
        ended = await settled(unsaid()) if callable(unsaid) else ()
        results = await settled(self.healing_engine.recover())
        for result in [*(ended if isinstance(ended, tuple) else ()), *(results if isinstance(results, list) else ())]:
            now = self.clock.now()
            await self._record_or_keep(Done(self._drift_of(result), result, now, now, "start"))

    def _drift_of(self, result: RemediationResult) -> DriftResult:
        """The drift that this cure was for, as far as its rollback point kept it."""
        verdict = Verdict(Result.FAIL, result.found) if result.found else None
        drift = DriftResult(result.check, drifted=True, pre_state=result.pre_state, verdict=verdict)
        entry = getattr(getattr(self.drift_detector, "baseline", None), "entries", {}).get(result.check)
        return drift if entry is None else replace(drift, severity=entry.check.spec.severity.value)

    # The loop

    async def _run_loop(self) -> None:
        """Iterations at the poll interval, +-10 %; one at a time; an error waits a minute and never ends the loop."""
        while self.running and not self.shutdown_event.is_set():
            started = self.clock.monotonic()
            pause = apply_jitter(float(self._interval_s()), jitter_pct=JITTER_PCT, rng=self._rng)
            if not await self._went_well(self._run_iteration(), loops=1):
                pause = max(pause, ERROR_BACKOFF_S)
            await self._until_tick(self.clock.monotonic() + self._until_next_tick(started, pause), pause)

    async def _went_well(self, work: Coroutine[Any, Any, None], *, loops: int = 0) -> bool:
        """Do this, then what is to be done after it; an error is said."""
        try:
            if await self._until_shutdown(work):
                self.stats["loops_completed"] += loops
                await self._until_shutdown(self._heartbeat_if_due())
            await self._save_statistics()
        except StateInUse:
            raise
        except Exception as error:
            log.error("cycle.failed", code=code_of(error), at=where(error))
            return False
        return True

    def _until_next_tick(self, started: float, pause: float) -> float:
        """Seconds to the next tick that is still to come; those that passed during the iteration are skipped and said."""
        late = self.clock.monotonic() - started - pause
        if late <= 0:
            return -late
        self._skipped(1 + int(late // pause))
        return pause - late % pause

    def _skipped(self, ticks: int) -> None:
        self.ticks_skipped += ticks
        log.warning("cycle.ticks_skipped", count=ticks, total=self.ticks_skipped)

    async def _until_tick(self, tick: float, pause: float) -> None:
        """Pass the time to this tick. What comes back from slow looks meanwhile is judged at once."""
        while (left := tick - self.clock.monotonic()) > 0 and await self._wait(left):
            await self._went_well(self._late_turn())
        missed = int((self.clock.monotonic() - tick) // pause)
        if missed > 0:
            self._skipped(missed)

    def _interval_s(self) -> int:
        asked = getattr(self.mcp_client, "min_interval_s", None)
        if not isinstance(asked, int):
            return self.config.mcp_poll_interval_sec
        return max(self.config.mcp_poll_interval_sec, min(asked, LONGEST_ASKED_INTERVAL_S))

    async def _wait(self, seconds: float) -> bool:
        """Pass this time, or less when shutdown is asked for. Whether a slow look came back before it was over."""
        detector = self._detector()
        sleeping = asyncio.ensure_future(self.clock.sleep(seconds))
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        late = asyncio.ensure_future(detector.late() if detector is not None else asyncio.Event().wait())
        tasks = {sleeping, stopping, late}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done == {late}
        finally:
            for task in tasks:
                task.cancel()

    async def _until_shutdown(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; once shutdown is asked for it has a moment left, then it is cancelled. Whether it was finished."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=DRAIN_ITERATION_S)
            if task.done():
                task.result()
                return True
            log.warning("cycle.cancelled")
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # whenever that will be
            await asyncio.wait({task}, timeout=DRAIN_CANCEL_S)
            return False
        finally:
            stopping.cancel()
            task.cancel()

    async def _run_iteration(self) -> None:
        """Look at what is due, heal and record what drifted, record what else changed, deliver."""
        started = self.clock.monotonic()
        self._iterating = True
        try:
            await self._record_what_was_kept()
            detector = self._detector()
            look = self.drift_detector.check_all if detector is None else detector.check_due
            drifted = await self._take_in(await settled(look()))
            await self.record_drills()
        finally:
            self._iterating = False
        await self.delivery.turn()
        await self._rotate_key_if_due()
        log.info("cycle.completed", drifted=drifted, duration_ms=int((self.clock.monotonic() - started) * 1000))

    async def _late_turn(self) -> None:
        """Heal and record what slow looks have found."""
        detector = self._detector()
        if detector is None:
            return
        self._iterating = True
        try:
            await self._take_in(detector.came_back())
        finally:
            self._iterating = False
        await self.delivery.turn()

    async def _take_in(self, results: Sequence[DriftResult]) -> int:
        """Heal and record what these looks found; how many found drift."""
        checks = {drift.check for drift in results}
        drifted = [drift for drift in results if drift.drifted]
        self._latest.update((drift.check, drift) for drift in results)
        self.stats["drift_detected"] += len(drifted)
        try:
            for drift in results:
                self._tell(drift)
                self._unrecorded_verdicts.pop(drift.check, None)
                if not drift.drifted:
                    await self._record_verdict(drift)
            for drift in drifted:
                await self._remediate_and_record(drift)
        except Exception:
            if (detector := self._detector()) is not None:
                detector.due_again(checks)
            raise
        return len(drifted)

    async def _rotate_key_if_due(self) -> None:
        """Let a new key take this one's place when it is time and everything is delivered; trouble waits for the next turn."""
        try:
            since = await self._database.call(lambda: self._state.moment("key"))
            if since is None:
                now = self.clock.now()
                await self._database.call(lambda: self._state.set_moment("key", now))
            if self.key_rotation.due(since):
                await self.rotate_key()
        except AgentError as error:
            log.error("key.rotation_failed", code=error.code, at=where(error))

    async def rotate_key(self) -> Rotated:
        """Let a new key take this one's place now, if nothing is in the way; how that ended.

        Raises:
            StorageError, ConfigError: nothing was changed, or the next start completes it.
        """
        ended = await self.key_rotation.rotate()
        if ended.code == "rotated":
            now = self.clock.now()
            await self._database.call(lambda: self._state.set_moment("key", now))
        return ended

    def _tell(self, drift: DriftResult) -> None:
        """Say a verdict that is not the one that was recorded last."""
        known = self._recorded.get(drift.check)
        if known is None or (known.result, known.reason) != (drift.result, drift.reason):
            if drift.drifted:
                log.warning("drift.found", check_id=drift.check, result=drift.result, reason=drift.reason)
            else:
                log.info("verdict.changed", check_id=drift.check, result=drift.result, reason=drift.reason)

    # Heal

    async def heal_now(self, drift: DriftResult) -> RemediationResult:
        """One cure at a person's word, through the same gates, recorded the same way. Returns how it ended.

        Raises:
            StorageError: how it ended could not be recorded.
        """
        remediation = await self._remediate_and_record(drift, trigger="manual")
        if self._unrecorded:
            await self._record_remediation(self._unrecorded.pop())
        return remediation

    async def _remediate_and_record(self, drift: DriftResult, trigger: str = "schedule") -> RemediationResult:
        """Ask for the cure; record what was done, or why nothing was when that has not been recorded yet."""
        start = self.clock.now()
        remediation = await self._remediated(drift)
        touched = remediation.outcome in TOUCHED or bool(remediation.actions)
        if touched:
            self.stats["remediations_attempted"] += 1
            self._after_cure(drift, remediation)
        if remediation.outcome == Outcome.SUCCESS:
            self.stats["remediations_successful"] += 1
        held = Recorded(drift.result, drift.reason, str(remediation.outcome), remediation.reason)
        nothing_new = self._recorded.get(drift.check) == held
        if nothing_new and (not touched or remediation.reason == "crashed"):
            return remediation
        # The wall clock may have been set back meanwhile; no record ends before it begins.
        end = max(start, self.clock.now())
        await self._record_or_keep(Done(drift, remediation, start, end, trigger))
        return remediation

    def _after_cure(self, drift: DriftResult, remediation: RemediationResult) -> None:
        """What the check said after its cure is its newest verdict; looks that went on meanwhile may be of no worth."""
        if remediation.post_result is not None and drift.check in self._latest:
            verdict = Verdict(Result(remediation.post_result), remediation.post_reason or "as_expected")
            self._latest[drift.check] = replace(drift, drifted=verdict.result is Result.FAIL, verdict=verdict)
        if (detector := self._detector()) is not None:
            detector.host_changed()

    async def _remediated(self, drift: DriftResult) -> RemediationResult:
        try:
            return cast(RemediationResult, await settled(self.healing_engine.remediate(drift)))
        except Exception as error:
            log.error("heal.failed", check_id=drift.check, error_type=type(error).__name__, at=where(error))
            return RemediationResult(
                check=drift.check, outcome=Outcome.FAILED, pre_state=drift.pre_state, error="crashed", reason="crashed"
            )

    # Record

    async def _record_or_keep(self, done: Done) -> None:
        """Record it, or keep it for the next iteration: what was done to a host must not go unsaid."""
        try:
            evidence = await self._record_remediation(done)
        except Exception as error:
            self._unrecorded = [*self._unrecorded, done][-MOST_UNRECORDED:]
            self._say_unrecorded(done.drift.check, error)
        else:
            await self._submit_recorded(evidence)

    async def _record_what_was_kept(self) -> None:
        kept, self._unrecorded = self._unrecorded, []
        for done in kept:
            await self._record_or_keep(done)
        verdicts, self._unrecorded_verdicts = self._unrecorded_verdicts, {}
        for drift in verdicts.values():
            await self._record_verdict(drift)

    def _say_unrecorded(self, check: str, error: Exception) -> None:
        if check not in self._unheld:
            log.error("evidence.not_recorded", check_id=check, code=code_of(error), at=where(error))
        self._unheld.add(check)

    async def _submit_recorded(self, evidence: EvidenceBundle) -> None:
        """Submit what stands in the line already since it was recorded: a failure here loses nothing."""
        try:
            await self._submit_evidence(evidence)
        except Exception as error:
            self.delivery.withdraw(evidence.bundle_id)
            log.warning("evidence.not_submitted", bundle_id=evidence.bundle_id, code=code_of(error), at=where(error))

    async def _record_remediation(self, done: Done) -> EvidenceBundle:
        drift, remediation = done.drift, done.remediation
        evidence = await self._generate_evidence(done)
        said = getattr(self.healing_engine, "said", None)
        if callable(said):
            await settled(said(remediation))
        after = Recorded(drift.result, drift.reason, str(remediation.outcome), remediation.reason)
        if remediation.outcome == Outcome.SUCCESS:
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

    async def _record_verdict(self, drift: DriftResult) -> None:
        """Record a verdict other than `fail` when it is not the one that was recorded last."""
        known = self._recorded.get(drift.check)
        if known is not None and (known.result, known.reason) == (drift.result, drift.reason):
            return
        end = self.clock.now()
        try:
            evidence = await self._create(
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
            await self._submit_recorded(evidence)

    async def record_drills(self) -> list[EvidenceBundle]:
        """Record what drills have shown since the last time, each once. What cannot be recorded now is tried again."""
        recorded = []
        for proof in await self._database.call(self._new_proofs):
            try:
                evidence = await self._create(
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
                await self._database.call(
                    functools.partial(self._state.set_drilled, proof.drill, proof.at, fired=fired)
                )
            except Exception as error:
                self._say_unrecorded(proof.check, error)
                continue
            log.info("drill.recorded", check_id=proof.check, result=str(proof.result), bundle_id=evidence.bundle_id)
            await self._submit_recorded(evidence)
            recorded.append(evidence)
        return recorded

    def _new_proofs(self) -> list[Proof]:
        return [proof for proof in kept(self.config.drills_dir) if self._state.is_new_drill(proof.drill, proof.at)]

    async def _generate_evidence(self, done: Done) -> EvidenceBundle:
        drift, remediation = done.drift, done.remediation
        return await self._create(
            check=drift.check,
            outcome=remediation.outcome,
            kind=BundleKind.REMEDIATION,
            trigger=done.trigger,
            pre_state=drift.pre_state,
            post_state=remediation.post_state,
            post_result=remediation.post_result,
            post_reason=remediation.post_reason,
            actions=remediation.actions,
            error=None if remediation.outcome == Outcome.SUCCESS else remediation.error or remediation.reason or None,
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

    async def _create(self, **fields: Any) -> EvidenceBundle:
        """Make and store one bundle; it is durable, and in the line for delivery, when this returns."""
        evidence = await settled(self.evidence_generator.create_evidence(**fields))
        with self.delivery.recording(evidence.bundle_id):
            bundle_path, signature_path = await settled(self.evidence_generator.store_evidence(evidence))
        self.stats["evidence_generated"] += 1
        self._unheld.discard(str(fields.get("check")))
        self._paths[evidence.bundle_id] = (str(bundle_path), str(signature_path))
        return cast(EvidenceBundle, evidence)

    async def _remember(self, check_id: str, value: Recorded) -> None:
        self._recorded[check_id] = value
        at = self.clock.now()
        await self._database.call(lambda: self._state.set_recorded(check_id, value, at))

    async def _heartbeat_if_due(self) -> None:
        """Every hour (and at start) one signed statement of every verdict, the clock and the chain's head."""
        now = self.clock.now()
        last = await self._database.call(lambda: self._state.moment("heartbeat"))
        fresh = last is not None and 0 <= (now - last).total_seconds() < self.config.heartbeat_interval_sec
        detector = self._detector()
        # It states every verdict, so the first one waits for the slowest first look.
        whole = self._latest.keys() >= detector.baseline.entries.keys() if detector is not None else bool(self._latest)
        if fresh or not whole:
            return
        try:
            evidence = await self._create(
                check="",
                outcome=None,
                kind=BundleKind.HEARTBEAT,
                states={drift.check: (str(drift.result), drift.reason) for drift in self.latest},
                counts=dict(self.stats),
                timestamp_start=now,
                timestamp_end=now,
            )
        except Exception as error:
            self._say_unrecorded("", error)
            return
        await self._database.call(lambda: self._state.set_moment("heartbeat", now))
        await self._submit_recorded(evidence)

    async def _save_statistics(self) -> None:
        values = dict(self.stats)
        await self._database.call(lambda: self._state.save_statistics(values))

    # Deliver

    async def _submit_evidence(self, evidence: EvidenceBundle) -> None:
        """Put a stored bundle in line for delivery, and have it delivered soon; outside an iteration, now."""
        known = self._paths.pop(evidence.bundle_id) if evidence.bundle_id in self._paths else None
        bundle_path, signature_path = known or self._stored(evidence)
        place = {"bundle_id": evidence.bundle_id, "bundle_path": bundle_path, "signature_path": signature_path}
        queue_id = await settled(self.offline_queue.enqueue(**place))
        if self.mcp_client is None:
            self.delivery.withdraw(evidence.bundle_id)
            self.stats["evidence_queued"] += 1
            return
        created_at = datetime.now(UTC)
        self.delivery.add(QueuedEvidence(queue_id, evidence.bundle_id, bundle_path, signature_path, created_at))
        if self._iterating:
            self.delivery.wake()
        else:
            await self.delivery.turn()

    def _stored(self, evidence: EvidenceBundle) -> tuple[str, str]:
        """Where the bundle stands by the layout of the evidence directory."""
        day = f"{evidence.timestamp_start:%Y/%m/%d}"
        directory = self.config.evidence_dir / day / evidence.bundle_id
        return str(directory / "bundle.json"), str(directory / "bundle.sig")

    async def _process_offline_queue(self) -> None:
        """Deliver what waits, oldest first, until nothing is left or the server or network says no."""
        await self.delivery.process_queue()

    # Health

    async def health_check(self) -> dict[str, Any]:
        """Status, statistics, server and queue; never raises for any of them."""
        health: dict[str, Any] = {
            "status": "healthy" if self.running else "stopped",
            "timestamp": self.clock.now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            "site_id": self.config.site_id,
            "host_id": self.config.host_id,
            "stats": dict(self.stats),
            "mcp_server": "not_configured",
        }
        if self.mcp_client is not None:
            healthy = await self._answer(self.mcp_client.health_check)
            health["mcp_server"] = healthy if isinstance(healthy, str) else "healthy" if healthy else "unhealthy"
        queue = await self._answer(self.offline_queue.get_stats)
        if isinstance(self.mcp_client, MCPClient) and isinstance(queue, dict):
            client = self.mcp_client
            queue = {**queue, "log": await self._answer(lambda: self.receipts.health(client))}
        health["offline_queue"] = queue
        return health

    async def _answer(self, ask: Callable[[], Any]) -> Any:
        try:
            async with asyncio.timeout(HEALTH_S):
                return await settled(ask())
        except Exception as error:
            return f"error: {code_of(error)}"


async def main(arguments: Sequence[str] | None = None) -> None:
    """Run the agent of this machine until a signal ends it. Exits with a documented status and one line on any refusal."""
    parser = argparse.ArgumentParser(
        prog="python -m compliance_agent.agent", description="Compliance agent of one host"
    )
    parser.add_argument("--config", help="configuration file; MSP_* variables alone when not given")
    parser.add_argument(
        "--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], help="overrides the configuration"
    )
    given = parser.parse_args(arguments)
    try:
        config = AgentConfig.from_file(given.config) if given.config else AgentConfig.from_env()
        configure(given.log_level or config.log_level)
        await ComplianceAgent(config).start()
    except AgentError as error:
        print(f"compliance-agent: {error.line}", file=sys.stderr)  # noqa: T201  the one line for a person
        sys.exit(error.exit_status)


if __name__ == "__main__":
    runner.program(main())
