"""The agent: wires the real parts together, runs the loop, shuts down. It decides nothing itself.

    observe (drift_detector) -> judge -> decide and act (healing_engine) -> record (evidence_generator, offline_queue)
        -> deliver (mcp_client)

One iteration looks at every check, heals what may be healed, records every change of verdict, every remediation and every
refusal whose reason changed, and gives delivery one bounded turn at its end; what is not delivered then goes on by itself in its
own task. A tick that comes while an iteration still runs is skipped and counted, never piled up.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import signal
import sys
from collections.abc import Awaitable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, cast

import structlog

from compliance_agent.adapters.agent_state import AgentState, Recorded
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.database import Database, release, shared
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import AgentError, ServerRefused, StateInUse
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.healing import HealingEngine
from compliance_agent.logs import configure, where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import (
    STATS,
    BundleKind,
    DriftResult,
    EvidenceBundle,
    Outcome,
    QueuedEvidence,
    RemediationResult,
    Result,
)
from compliance_agent.ports import Clock
from compliance_agent.queue import OfflineQueue
from compliance_agent.transport.protocol import Acknowledged, CheckinReply
from compliance_agent.utils import apply_jitter

log = structlog.get_logger()

JITTER_PCT = 10.0
ERROR_BACKOFF_S = 60.0
DRAIN_S = 8.0  # from the signal to the end of the process; systemd and the issue allow 10
TOUCHED = {Outcome.SUCCESS, Outcome.FAILED, Outcome.REVERTED}  # outcomes of a remediation that changed something
_DEFAULT: Any = object()


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

        self._rng = rng
        self._database: Database = shared(config.database_path, reserve_kb=config.reserve_kb)
        self._state = AgentState(self._database)
        self.stats.update(self._state.statistics())
        self._recorded = self._state.recorded()
        self._acks: dict[str, bytes] = {}
        self._fresh: list[QueuedEvidence] = []
        self._latest: list[DriftResult] = []
        self._iterating = False
        self._delivery: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

        self.signer = signer if signer is not None else Ed25519Signer(config.signing_key_file)
        self.drift_detector = drift_detector if drift_detector is not None else DriftDetector(config, clock=self.clock)
        self.healing_engine = (
            healing_engine
            if healing_engine is not None
            else HealingEngine(
                config,
                host=self.drift_detector.host,
                baseline=self.drift_detector.baseline,
                observe=self.drift_detector.check_one,
                clock=self.clock,
            )
        )
        self.evidence_generator = (
            evidence_generator
            if evidence_generator is not None
            else EvidenceGenerator(
                config,
                self.signer,
                clock=self.clock,
                host=getattr(self.drift_detector, "host", None),
                baseline=getattr(self.drift_detector, "baseline", None),
            )
        )
        self.offline_queue = (
            offline_queue
            if offline_queue is not None
            else OfflineQueue(config.database_path, evidence_dir=config.evidence_dir, clock=self.clock)
        )
        self.mcp_client = mcp_client
        if mcp_client is _DEFAULT:
            self.mcp_client = (
                MCPClient(config, self.signer.key_id, clock=self.clock, on_ack=self._keep_ack)
                if config.mcp_url
                else None
            )

    @property
    def latest(self) -> list[DriftResult]:
        """What the last iteration saw, in the order of the checks' ids."""
        return list(self._latest)

    # Life

    async def start(self, *, handle_signals: bool = True) -> None:
        """Run until the shutdown event is set, by a signal or by a caller; then drain and close within 10 seconds.

        Args:
            handle_signals: take SIGTERM and SIGINT; False where several agents live in one process (the demo).
        """
        if self.running:
            log.warning("agent.already_running")
            return
        self.running = True
        self._loop = asyncio.get_running_loop()
        if handle_signals:
            self._setup_signal_handlers()
        log.info(
            "agent.started",
            site_id=self.config.site_id,
            host_id=self.config.host_id,
            server=self.mcp_client is not None,
        )
        try:
            await self._recover()
            await self._run_loop()
        finally:
            await self._shutdown()

    async def close(self) -> None:
        """Give back what the constructor opened, for an agent that is not started."""
        if self.mcp_client is not None:
            await self.mcp_client.close()
        for part in (self.offline_queue, self.evidence_generator, self.healing_engine):
            closing = getattr(part, "close", None)
            if callable(closing):
                outcome = closing()
                if asyncio.iscoroutine(outcome):
                    await outcome
        release(self._database)

    async def _shutdown(self) -> None:
        self.running = False
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DRAIN_S / 4):
                await self._deliver_turn()
        if self._delivery is not None and not self._delivery.done():
            self._delivery.cancel()
            await asyncio.wait({self._delivery}, timeout=1)
        try:
            await self._save_statistics()
            await self.close()
        except AgentError as error:
            log.error("agent.close_failed", code=error.code)
        log.info("agent.stopped", **self.stats)

    def _setup_signal_handlers(self) -> None:
        """SIGTERM and SIGINT end the loop after what is under way; outside the main thread there are no signals to take."""

        def signal_handler(signum: int, _frame: FrameType | None) -> None:
            self.running = False
            self.shutdown_event.set()
            if self._loop is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for nothing but time
            log.info("agent.signal", number=int(signum))

        try:
            signal.signal(signal.SIGTERM, signal_handler)
            signal.signal(signal.SIGINT, signal_handler)
        except ValueError:
            log.info("agent.no_signals")

    async def _recover(self) -> None:
        """Finish what a crash left in the middle of a cure, and record how it ended."""
        results = await self.healing_engine.recover()
        for result in results if isinstance(results, list) else ():
            drift = DriftResult(check=result.check, drifted=True, pre_state=result.pre_state)
            now = self.clock.now()
            await self._record_remediation(drift, result, now, now, trigger="start")

    # The loop

    async def _run_loop(self) -> None:
        """Iterations at the poll interval, +-10 %; one at a time; an error waits a minute and never ends the loop."""
        while self.running and not self.shutdown_event.is_set():
            started = self.clock.monotonic()
            pause = apply_jitter(float(self._interval_s()), jitter_pct=JITTER_PCT, rng=self._rng)
            try:
                await self._until_shutdown(self._run_iteration())
                self.stats["loops_completed"] += 1
                await self._save_statistics()
            except StateInUse:
                raise
            except Exception as error:
                code = error.code if isinstance(error, AgentError) else type(error).__name__
                log.error("cycle.failed", code=code, at=where(error))
                pause = min(ERROR_BACKOFF_S, pause)
            await self._wait(self._until_next_tick(started, pause))

    def _until_next_tick(self, started: float, pause: float) -> float:
        """Seconds to the next tick that is still to come; those that passed during the iteration are skipped and said."""
        late = self.clock.monotonic() - started - pause
        if late <= 0:
            return -late
        missed = 1 + int(late // pause)
        self.ticks_skipped += missed
        log.warning("cycle.ticks_skipped", count=missed, total=self.ticks_skipped)
        return pause - late % pause

    def _interval_s(self) -> int:
        asked = getattr(self.mcp_client, "min_interval_s", None)
        return max(self.config.mcp_poll_interval_sec, asked if isinstance(asked, int) else 0)

    async def _wait(self, seconds: float) -> None:
        """Pass this time, or less when shutdown is asked for."""
        sleeping = asyncio.ensure_future(self.clock.sleep(seconds))
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        await asyncio.wait({sleeping, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (sleeping, stopping):
            task.cancel()
        await asyncio.wait({sleeping, stopping})

    async def _until_shutdown(self, work: Awaitable[None]) -> None:
        """Do the work; once shutdown is asked for it has half the drain time left, then it is cancelled."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=DRAIN_S / 2)
            if not task.done():
                log.warning("cycle.cancelled")
                task.cancel()
                await asyncio.wait({task}, timeout=1)
            elif not task.cancelled():
                task.result()
        finally:
            stopping.cancel()
            task.cancel()

    async def _run_iteration(self) -> None:
        """Look at everything, heal and record what drifted, record what else changed, deliver."""
        started = self.clock.monotonic()
        self._iterating = True
        try:
            drift_results = await self.drift_detector.check_all()
            self._latest = list(drift_results)
            drifted = [drift for drift in drift_results if drift.drifted]
            self.stats["drift_detected"] += len(drifted)
            for drift in drift_results:
                if not drift.drifted:
                    await self._record_verdict(drift)
            for drift in drifted:
                await self._remediate_and_record(drift)
            await self._heartbeat_if_due()
        finally:
            self._iterating = False
        if self.mcp_client is not None:
            await self._deliver_turn()
        log.info("cycle.completed", drifted=len(drifted), duration_ms=int((self.clock.monotonic() - started) * 1000))

    # Record

    async def heal_now(self, drift: DriftResult) -> RemediationResult:
        """One cure at a person's word, through the same gates, recorded the same way. Returns how it ended."""
        return await self._remediate_and_record(drift, trigger="manual")

    async def _remediate_and_record(self, drift: DriftResult, trigger: str = "schedule") -> RemediationResult:
        """Ask for the cure; record what was done, or why nothing was when that has not been recorded yet."""
        timestamp_start = self.clock.now()
        try:
            remediation = await self.healing_engine.remediate(drift)
        except Exception as error:
            log.error("heal.failed", check_id=drift.check, error_type=type(error).__name__, at=where(error))
            remediation = RemediationResult(
                check=drift.check, outcome=Outcome.FAILED, pre_state=drift.pre_state, error="crashed", reason="crashed"
            )
        if remediation.outcome in TOUCHED:
            self.stats["remediations_attempted"] += 1
        if remediation.outcome == Outcome.SUCCESS:
            self.stats["remediations_successful"] += 1
        held = Recorded(drift.result, drift.reason, str(remediation.outcome), remediation.reason)
        if remediation.outcome not in TOUCHED and self._recorded.get(drift.check) == held:
            return remediation
        await self._record_remediation(drift, remediation, timestamp_start, self.clock.now(), trigger)
        return remediation

    async def _record_remediation(
        self,
        drift: DriftResult,
        remediation: RemediationResult,
        start: datetime,
        end: datetime,
        trigger: str = "schedule",
    ) -> None:
        log.info("drift.found", check_id=drift.check, reason=drift.reason)
        evidence = await self._generate_evidence(drift, remediation, start, end, trigger)
        await self._submit_evidence(evidence)
        log.info(
            "heal.finished",
            check_id=drift.check,
            outcome=str(remediation.outcome),
            reason=remediation.reason,
            bundle_id=evidence.bundle_id,
        )
        after = Recorded(drift.result, drift.reason, str(remediation.outcome), remediation.reason)
        if remediation.outcome == Outcome.SUCCESS:
            after = Recorded(Result.PASS, "as_expected")
        await self._remember(drift.check, after)

    async def _record_verdict(self, drift: DriftResult) -> None:
        """Record a verdict other than `fail` when it is not the one that was recorded last."""
        seen = Recorded(drift.result, drift.reason)
        known = self._recorded.get(drift.check)
        if known is not None and (known.result, known.reason) == (seen.result, seen.reason):
            return
        now = self.clock.now()
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
            timestamp_start=drift.observed_at or now,
            timestamp_end=now,
        )
        await self._submit_evidence(evidence)
        log.info("verdict.changed", check_id=drift.check, result=str(drift.result), reason=drift.reason)
        await self._remember(drift.check, seen)

    async def _generate_evidence(
        self, drift: DriftResult, remediation: RemediationResult, start: datetime, end: datetime, trigger: str
    ) -> EvidenceBundle:
        healed = remediation.outcome == Outcome.SUCCESS
        return await self._create(
            check=drift.check,
            outcome=remediation.outcome,
            kind=BundleKind.REMEDIATION,
            trigger=trigger,
            pre_state=drift.pre_state,
            post_state=remediation.post_state,
            post_result=remediation.post_result,
            post_reason=remediation.post_reason,
            actions=remediation.actions,
            error=remediation.error or (None if healed else remediation.reason or None),
            result=drift.result,
            reason=drift.reason,
            severity=drift.severity,
            hipaa_controls=drift.hipaa_controls,
            rollback_available=remediation.rollback_available,
            rollback_generation=remediation.rollback_generation,
            recovered=remediation.recovered,
            timestamp_start=start,
            timestamp_end=end,
        )

    async def _create(self, **fields: Any) -> EvidenceBundle:
        """Make and store one bundle; it is durable when this returns."""
        evidence = await self.evidence_generator.create_evidence(**fields)
        bundle_path, signature_path = await self.evidence_generator.store_evidence(evidence)
        self.stats["evidence_generated"] += 1
        self._fresh.append(
            QueuedEvidence(0, evidence.bundle_id, str(bundle_path), str(signature_path), datetime.now(UTC))
        )
        log.info(
            "evidence.stored", bundle_id=evidence.bundle_id, check_id=fields.get("check"), outcome=fields.get("outcome")
        )
        return cast(EvidenceBundle, evidence)

    async def _remember(self, check_id: str, value: Recorded) -> None:
        self._recorded[check_id] = value
        await self._database.call(lambda: self._state.set_recorded(check_id, value, self.clock.now()))

    async def _heartbeat_if_due(self) -> None:
        """Every hour (and at start) one signed statement of every verdict, the clock and the chain's head."""
        now = self.clock.now()
        last = await self._database.call(lambda: self._state.moment("heartbeat"))
        if last is not None and 0 <= (now - last).total_seconds() < self.config.heartbeat_interval_sec:
            return
        evidence = await self._create(
            check="heartbeat",
            outcome=None,
            kind=BundleKind.HEARTBEAT,
            states={drift.check: (str(drift.result), drift.reason) for drift in self._latest},
            counts=dict(self.stats),
            timestamp_start=now,
            timestamp_end=now,
        )
        await self._submit_evidence(evidence)
        await self._database.call(lambda: self._state.set_moment("heartbeat", now))

    async def _save_statistics(self) -> None:
        values = dict(self.stats)
        await self._database.call(lambda: self._state.save_statistics(values))

    # Deliver

    async def _submit_evidence(self, evidence: EvidenceBundle) -> None:
        """Put a stored bundle in line for delivery; outside an iteration it is also delivered now."""
        item = next((fresh for fresh in self._fresh if fresh.bundle_id == evidence.bundle_id), None) or self._stored(
            evidence
        )
        queue_id = await self.offline_queue.enqueue(
            bundle_id=item.bundle_id, bundle_path=item.bundle_path, signature_path=item.signature_path
        )
        self._fresh = [fresh for fresh in self._fresh if fresh.bundle_id != item.bundle_id]
        self._fresh.append(
            QueuedEvidence(queue_id, item.bundle_id, item.bundle_path, item.signature_path, item.created_at)
        )
        if self.mcp_client is None:
            self._fresh.clear()
            self.stats["evidence_queued"] += 1
        elif not self._iterating:
            await self._deliver_turn()

    def _stored(self, evidence: EvidenceBundle) -> QueuedEvidence:
        """Where the bundle stands by the layout of the evidence directory."""
        date = evidence.timestamp_start
        directory = self.config.evidence_dir / f"{date:%Y}" / f"{date:%m}" / f"{date:%d}" / evidence.bundle_id
        return QueuedEvidence(
            0, evidence.bundle_id, str(directory / "bundle.json"), str(directory / "bundle.sig"), datetime.now(UTC)
        )

    async def _deliver_turn(self) -> None:
        """Give delivery a bounded turn. What it does not finish goes on in its own task while the checks go on in theirs."""
        if self.mcp_client is None:
            return
        if self._delivery is None or self._delivery.done():
            self._delivery = asyncio.ensure_future(self._deliver())
        await asyncio.wait({self._delivery}, timeout=self.config.upload_turn_sec)

    async def _deliver(self) -> None:
        try:
            await self._check_in()
            await self._deliver_fresh()
            await self._process_offline_queue()
        except Exception as error:
            code = error.code if isinstance(error, AgentError) else type(error).__name__
            log.error("delivery.failed", code=code, at=where(error))

    async def _deliver_fresh(self) -> None:
        """Deliver what was recorded just now, unless older evidence waits: then the chain's order decides."""
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        waiting = (await self.offline_queue.get_stats()).get("pending")
        if isinstance(waiting, int) and waiting > len(fresh):
            self.stats["evidence_queued"] += len(fresh)
            return
        delivered = await self._upload_in_order(fresh)
        self.stats["evidence_queued"] += len(fresh) - delivered

    async def _process_offline_queue(self) -> None:
        """Deliver what waits, oldest first, until nothing is left or the server or network says no."""
        tried: set[int] = set()
        while pending := await self.offline_queue.get_pending():
            batch = [item for item in pending if item.id not in tried]
            if not batch:
                return
            tried.update(item.id for item in batch)
            if await self._upload_in_order(batch) < len(batch):
                return

    async def _upload_in_order(self, items: Sequence[QueuedEvidence]) -> int:
        """Try to deliver these; they leave together where the client can. Returns how many were acknowledged."""
        uploads = (self.mcp_client.upload_evidence(Path(item.bundle_path), Path(item.signature_path)) for item in items)
        answers = await asyncio.gather(*uploads, return_exceptions=True)
        delivered, failed = 0, False
        for item, answer in zip(items, answers, strict=True):
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            if answer is True:
                await self._mark_uploaded(item)
                delivered += 1
            elif not failed:
                failed = True
                await self._delivery_failed(item, answer)
        return delivered

    async def _mark_uploaded(self, item: QueuedEvidence) -> None:
        ack = self._acks.pop(item.bundle_id, None)
        if ack is None:
            await self.offline_queue.mark_uploaded(item.id)
        else:
            await self.offline_queue.mark_uploaded(item.id, ack)
        self.stats["evidence_uploaded"] += 1
        log.info("evidence.delivered", bundle_id=item.bundle_id, receipt=ack is not None)

    async def _delivery_failed(self, item: QueuedEvidence, answer: Any) -> None:
        """Keep the bundle, remember why, and do what the server's answer asks for."""
        code = getattr(answer, "code", None) or ("refused" if answer is False else type(answer).__name__)
        log.warning("delivery.refused", bundle_id=item.bundle_id, code=code)
        refusal = answer if isinstance(answer, ServerRefused) else None
        wanted = refusal.expected if refusal is not None and refusal.code == "seq_gap" else None
        if wanted is not None and await self.offline_queue.requeue_from(*wanted):
            return
        if refusal is not None and refusal.retry_after_s is not None:
            await self.offline_queue.increment_retry(item.id, error=code, retry_after_s=refusal.retry_after_s)
        else:
            await self.offline_queue.increment_retry(item.id, error=code)

    def _keep_ack(self, ack: Acknowledged) -> None:
        self._acks[ack.bundle_id] = ack.signature + ack.document

    async def _check_in(self) -> None:
        """Say that this host lives, and learn whether the server's copy of the chain is ahead of ours (a restored disk)."""
        check_in = getattr(self.mcp_client, "check_in", None)
        head = getattr(self.evidence_generator, "head", None)
        if check_in is None or head is None:
            return
        try:
            position = await head()
            stats = await self.offline_queue.get_stats()
            baseline = self.drift_detector.baseline
            answer = await check_in(
                head=position,
                pending=stats["pending"],
                baseline=(baseline.version, baseline.sha256),
                checks={drift.check: (str(drift.result), drift.reason) for drift in self._latest},
            )
        except (AgentError, TypeError, KeyError, AttributeError) as error:
            log.info("checkin.failed", code=getattr(error, "code", type(error).__name__))
            return
        if isinstance(answer, CheckinReply):
            await self.evidence_generator.reconcile(answer.known)

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
            try:
                health["mcp_server"] = "healthy" if await self.mcp_client.health_check() else "unhealthy"
            except Exception as error:
                health["mcp_server"] = f"error: {getattr(error, 'code', type(error).__name__)}"
        try:
            health["offline_queue"] = await self.offline_queue.get_stats()
        except Exception as error:
            health["offline_queue"] = f"error: {getattr(error, 'code', type(error).__name__)}"
        return health


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
    asyncio.run(main())
