"""The agent: wires the real parts together, runs the loop, shuts down. It decides nothing itself.

    observe (drift_detector) -> judge -> decide and act (healing_engine) -> record (recording, evidence_generator, offline_queue)
        -> deliver (delivery, mcp_client)

One iteration looks at every check that is due, heals what may be healed, has recorded what is new, and gives delivery one bounded
turn at its end; what is not delivered then goes on by itself in its own task. A look that takes longer than a moment is not waited
for: its verdict is taken when it comes back. One check's trouble never stops the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import Awaitable, Coroutine, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import structlog

from compliance_agent.adapters import baseline_files, key_files, runner
from compliance_agent.adapters.agent_state import AgentState, TakenBaseline
from compliance_agent.adapters.clock import SystemClock
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.log_store import LogStore
from compliance_agent.adapters.offload import Offload
from compliance_agent.adapters.open_databases import release, shared
from compliance_agent.adapters.order_store import OrderStore, Taken
from compliance_agent.adapters.order_trust_store import OrderTrustStore
from compliance_agent.adapters.shed_store import ShedStore
from compliance_agent.api_key_rotation import ApiKeyRotation
from compliance_agent.baseline import Baseline, load, parse_signed
from compliance_agent.client_certificate import ClientCertificate
from compliance_agent.config import AgentConfig
from compliance_agent.core.pace import Pace
from compliance_agent.counts import Counts
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.delivery import Delivery, code_of, settled
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import AgentError, BadReply, CannotTell, ConfigError, ServerRefused, Unavailable
from compliance_agent.evidence import EvidenceGenerator
from compliance_agent.evidence.former import FormerKeys
from compliance_agent.healing import HealingEngine
from compliance_agent.health import health_of
from compliance_agent.life import Cycle, Life
from compliance_agent.logs import where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import (
    STATS,
    DriftResult,
    EvidenceBundle,
    Outcome,
    QueuedEvidence,
    RemediationResult,
    Result,
    Verdict,
)
from compliance_agent.order_trust import OrderTrust
from compliance_agent.ordering import Orders
from compliance_agent.otlp import sending
from compliance_agent.ports import Clock
from compliance_agent.queue import OfflineQueue
from compliance_agent.receipts import Receipts
from compliance_agent.recording import Done, Recording
from compliance_agent.root_key import RootKey
from compliance_agent.rotation import KeyRotation, Rotated
from compliance_agent.shedding import Shedding
from compliance_agent.site_lease import SiteLease
from compliance_agent.traces import Trace
from compliance_agent.tracing import traced_by
from compliance_agent.waking import standing_of, waking_for, woken_by
from compliance_agent.witness_role import beside

log = structlog.get_logger()

# From a signal to the end of the process systemd and the specification give 10 s: what life.py gives the iteration under way, then
# delivery, then closing.
DRAIN_DELIVERY_S, DRAIN_CLOSE_S = 1.5, 1.5
LONGEST_RECOVERY_S = 4 * 3_600.0  # each step of it ends by a deadline of its own
TOUCHED = {Outcome.SUCCESS, Outcome.FAILED, Outcome.REVERTED}  # outcomes of a remediation that changed something
_DEFAULT: Any = object()
_Answer = TypeVar("_Answer")


if TYPE_CHECKING:
    from compliance_agent.adapters.adopt_root import AdoptRoot
    from compliance_agent.adapters.subprocess_host import RealHost


def adopt_root_at(path: Path | None) -> AdoptRoot | None:
    """Root's side of orders, where it is another process."""
    if path is None:
        return None
    from compliance_agent.adapters.adopt_root import AdoptRoot

    return AdoptRoot(path)


def host_of(config: AgentConfig) -> RealHost:
    """This machine, as it is looked at for as long as an agent runs."""
    from compliance_agent.adapters.nft_library import NftLibrary
    from compliance_agent.adapters.subprocess_host import RealHost

    return RealHost(nft=NftLibrary(config.state_dir / "nft.mark"))


class ComplianceAgent(Life):
    """The agent of one host. Its loop is `Life`, its records are `Recording`, its side towards the server is `Delivery`.

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
        super().__init__(clock if clock is not None else SystemClock(), rng)
        self.config = config
        self.stats = dict.fromkeys(STATS, 0)
        self.pace = Pace()
        self.delivery = Delivery(self, config.upload_turn_sec)
        self._latest: dict[str, DriftResult] = {}
        self._iterating = False
        self.rehearsed = asyncio.Event()
        self._database: Database = shared(config.database_path, reserve_kb=config.reserve_kb)
        try:
            self._state = AgentState(self._database)
            # Root's side first: what it was stopped in the middle of is whole when it answers, and the baseline can be read.
            self.adopt_root = adopt_root_at(config.adopt_socket)
            nonce = self.adopt_root.nonce() if self.adopt_root is not None else None
            baseline_files.settle(self._state, config.baseline_path, config.baseline_key_file)
            self.stats.update(self._state.statistics())
            self.counts = Counts(self._state.counts())
            self.recording = Recording(self, self._state, self._submit_evidence)
            self._log_store = LogStore(self._database, config.evidence_dir)
            self.tracer, self.otlp = traced_by(config, self.clock)
            self.receipts = Receipts(self._log_store, config.site_id, self.clock, self.tracer)
            self.shedding = Shedding(ShedStore(self._log_store), config.site_id, self.clock, config.keep_days)
            key_files.settle(config.signing_key_file, key_files.chain_key(self._database))
            self.signer: Any = signer if signer is not None else Ed25519Signer(config.signing_key_file)
            self.drift_detector: Any = (
                drift_detector
                if drift_detector is not None
                else DriftDetector(config, host=host_of(config), clock=self.clock)
            )
            self._adopt(getattr(self.drift_detector, "baseline", None))
            self.waking = waking_for(self.drift_detector, config, self.clock)
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
            self.api_key_rotation = ApiKeyRotation(self, config)
            self.key_rotation = KeyRotation(self, config, self._database, FormerKeys(self._database), key_files)
            self.root_key = RootKey(self, FormerKeys(self._database))
            self.client_certificate = ClientCertificate(self, config)
            trust = OrderTrust(config, OrderTrustStore(self._database), self._database.call)
            self.orders = Orders(self, config, OrderStore(self._database), Taken, trust, self.adopt_root, nonce)
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

    async def adopt_baseline(
        self,
        version: str,
        sha256: str,
        order: bytes = b"",
        documents: tuple[Sequence[bytes], bytes | None] = ((), None),
    ) -> None:
        """Fetch a signed baseline and take it in place of the present one, whole or not at all.

        Raises:
            ConfigError: it is not there, not what was asked for, not signed as this host wants it, older, or cannot be used; or
                root, where it is root who writes it, did not take it.
            StorageError: it could not be kept; the former one stands.
        """
        try:
            body, sig = await self.mcp_client.fetch_baseline(sha256)
        except (ServerRefused, Unavailable, BadReply) as error:
            raise ConfigError(f"baseline: cannot be fetched: {error}", code="baseline_unavailable") from error
        baseline = parse_signed(body, sig, self.config.baseline_key_file)
        if (baseline.version, baseline.sha256) != (version, sha256):
            raise ConfigError("baseline: another one than the order names", code="other_baseline")
        taken = TakenBaseline(version, sha256, body, sig, self.clock.now())
        if self.adopt_root is None:
            await self._database.call(lambda: baseline_files.adopt(self._state, self.config.baseline_path, taken))
        else:
            await self._database.call(lambda: self._state.refuse_older(version))
            await self._led(self.adopt_root.take(order, documents, body, sig))
            await self._database.call(lambda: self._state.adopt_baseline(version, sha256, taken.at))
        self._use_baseline(baseline)

    async def approve_by_root(self, order: bytes, documents: tuple[Sequence[bytes], bytes | None]) -> None:
        """Have root note what this order approves, where it is root who acts and waits for that.

        Raises:
            ConfigError: root did not.
        """
        if self.adopt_root is not None and not await self._led(self.adopt_root.approve(order, documents)):
            log.info("approve.not_asked")

    async def _led(self, asked: Awaitable[_Answer]) -> _Answer:
        """Ask root when it knows this host by its present key, or was told of it.

        Raises:
            ConfigError: as what is asked; `root_other_key` where root does not know that key.
        """
        await self.root_key.lead(now=True)
        try:
            return await asked
        except ConfigError as error:
            raise self.root_key.explained(error) from error

    async def follow_baseline(self, version: str, sha256: str) -> bool:
        """Go on with a baseline that was ordered, if it is what root's files hold by now; whether it is.

        Raises:
            ConfigError: the files cannot be used.
            StorageError: it could not be kept; the former one stands.
        """
        config = self.config
        baseline = await self._database.call(lambda: load(config.baseline_path, signed_by=config.baseline_key_file))
        if (baseline.version, baseline.sha256) != (version, sha256):
            return False
        await self._database.call(lambda: self._state.adopt_baseline(version, sha256, self.clock.now()))
        self._use_baseline(baseline)
        return True

    def _use_baseline(self, baseline: Baseline) -> None:
        self.healing_engine.baseline = baseline
        for part in (self.drift_detector, self.evidence_generator):
            part.use_baseline(baseline)
        self._latest = {check: drift for check, drift in self._latest.items() if check in baseline.entries}
        log.info("baseline.adopted", version=baseline.version, sha256=baseline.sha256)

    async def baseline_held(self) -> str | None:
        """Version of the baseline that this host is held to.

        Raises:
            StorageError: the database cannot be read.
        """
        return next((version for version, _, _ in await self._database.call(self._state.held)), None)

    def _healing_engine(self) -> HealingEngine:
        return HealingEngine(
            self.config,
            host=self.drift_detector.host,
            baseline=self.drift_detector.baseline,
            observe=self.drift_detector.check_one,
            clock=self.clock,
            lease=SiteLease(self, self.config.state_dir) if self.config.mcp_url and self.config.leases else None,
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
        if handle_signals:
            self._setup_signal_handlers()
        log.info("agent.started", site_id=self.config.site_id, host_id=self.config.host_id)
        async with sending(self.otlp):
            try:
                self.progress.step(LONGEST_RECOVERY_S)
                await self.recover()
                async with beside(self.config, self.clock), woken_by(self.waking):
                    await self._run_loop()
            finally:
                await self._shutdown()

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
            self.otlp,
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

    async def recover(self) -> None:
        """Finish what a crash left in the middle of a cure, and record how it ended; before that, how those ended that came to
        their end and not to their record.
        """
        unsaid = getattr(self.healing_engine, "unsaid", None)
        ended = await settled(unsaid()) if callable(unsaid) else ()
        results = await settled(self.healing_engine.recover())
        for result in [*(ended if isinstance(ended, tuple) else ()), *(results if isinstance(results, list) else ())]:
            now = self.clock.now()
            await self.recording.remediation(Done(self._drift_of(result), result, now, now, "start"))
        await self.orders.recover()

    def _drift_of(self, result: RemediationResult) -> DriftResult:
        """The drift that this cure was for, as far as its rollback point kept it."""
        verdict = Verdict(Result.FAIL, result.found) if result.found else None
        drift = DriftResult(result.check, drifted=True, pre_state=result.pre_state, verdict=verdict)
        entry = getattr(getattr(self.drift_detector, "baseline", None), "entries", {}).get(result.check)
        return drift if entry is None else replace(drift, severity=entry.check.spec.severity.value)

    # One iteration

    def _interval_s(self) -> float:
        asked = getattr(self.mcp_client, "min_interval_s", None)
        depth, oldest = self.delivery.backlog
        oldest_s = (self.clock.now() - oldest).total_seconds() if oldest is not None else 0.0
        asked_s = float(asked) if isinstance(asked, int) else None
        return self.pace.next_s(float(self.config.mcp_poll_interval_sec), asked_s, depth, oldest_s)

    async def _after(self, work: Coroutine[Any, Any, None], *, iteration: bool) -> None:
        if await self._until_shutdown(work):
            self.stats["loops_completed"] += iteration
            await self._until_shutdown(self._heartbeat_if_due())
            await self._until_shutdown(self._rehearse())
        await self._save_statistics()

    async def _run_iteration(self) -> None:
        """Look at what is due, heal and record what drifted, record what else changed, deliver."""
        started = self.clock.monotonic()
        self._iterating = True
        if self.waking is not None:
            self.waking.nudge()
        try:
            await self.recording.what_was_kept()
            await self.orders.record_again()
            detector = self._detector()
            look = self.drift_detector.check_all if detector is None else detector.check_due
            results = await settled(look())
            self.progress.looked.set()
            drifted = await self._take_in(results)
            await self.record_drills()
        finally:
            self._iterating = False
        self.progress.step(self.config.upload_turn_sec)
        await self.delivery.turn()
        self.progress.step()
        await self._do_orders()
        await self._rotate_key_if_due()
        await self.root_key.lead()
        await self.rotate_api_key_if_due()
        if await self.client_certificate.keep():
            self.delivery.wake()
        self.cycle = Cycle(self.clock.now(), self.clock.monotonic() - started)
        self.counts.cycle(self.cycle.seconds)
        log.info("cycle.completed", drifted=drifted, duration_ms=int(self.cycle.seconds * 1000))

    async def _rehearse(self) -> None:
        """Once, after the first iteration: load what else the first cure and its record would wait for."""
        if self.rehearsed.is_set():
            return
        try:
            if isinstance(self.healing_engine, HealingEngine):
                await self.healing_engine.rehearse()
            if isinstance(self.evidence_generator, EvidenceGenerator):
                await self.evidence_generator.rehearse()
        except AgentError as error:  # the first record says it again, and is tried again
            log.warning("agent.not_rehearsed", code=error.code, at=where(error))
        finally:
            self.rehearsed.set()

    async def _late(self) -> None:
        detector = self._detector()
        late = detector.late() if detector is not None else asyncio.Event().wait()
        waiting = [asyncio.ensure_future(each) for each in (late, self.orders.offered())]
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()

    async def _late_turn(self) -> None:
        """Heal and record what slow looks have found, and do orders that came between two ticks."""
        detector = self._detector()
        self._iterating = True
        try:
            if detector is not None:
                await self._take_in(detector.came_back())
        finally:
            self._iterating = False
        await self._do_orders()
        await self.delivery.turn()

    async def _do_orders(self) -> None:
        """Do what the server forwarded, one after the other; records go out in the background meanwhile."""
        self._iterating = True
        try:
            await self.orders.run()
        finally:
            self._iterating = False

    async def order_look(self, checks: Sequence[str], order_id: str) -> list[DriftResult]:
        """Look at these now, by order; heal and record what they found as after any look."""
        found = list(await asyncio.gather(*(self.drift_detector.check_one(name) for name in checks)))
        await self._take_in(found, trigger="order", order_id=order_id)
        return found

    async def order_cure(self, drift: DriftResult, order_id: str) -> RemediationResult:
        """Ask for one cure, by order, through the same gates, recorded the same way."""
        return await self._remediate_and_record(drift, "order", order_id)

    async def _take_in(
        self, results: Sequence[DriftResult], trigger: str = "schedule", order_id: str | None = None
    ) -> int:
        """Heal and record what these looks found; how many found drift. A check that is not listed any more is no one's."""
        baseline, detector = getattr(self.drift_detector, "baseline", None), self._detector()
        if isinstance(baseline, Baseline):
            results = [drift for drift in results if drift.check in baseline.entries]
        checks = {drift.check for drift in results}
        drifted = [drift for drift in results if drift.drifted]
        if any(_is_another(drift, self._latest.get(drift.check)) for drift in results):
            self.pace.changed()
        self._latest.update((drift.check, drift) for drift in results)
        self.counts.looked(results)
        self.stats["drift_detected"] += len(drifted)
        try:
            for drift in results:
                self.recording.tell(drift)
                if not drift.drifted:
                    await self.recording.verdict(drift)
            for drift in drifted:
                how = detector.trigger_of(drift.check) if detector is not None and not order_id else trigger
                await self._remediate_and_record(drift, *((how, order_id) if order_id or how != "schedule" else ()))
        except Exception:  # whatever it was: these verdicts were taken and not dealt with, so they are looked for anew
            if detector is not None:
                detector.due_again(checks)
            raise
        return len(drifted)

    async def _rotate_key_if_due(self) -> None:
        """Let a new key take this one's place when it is time and everything is delivered; trouble waits for the next turn."""
        try:
            since = await self._state.last("key")
            if since is None:
                now = self.clock.now()
                await self._database.call(lambda: self._state.set_moment("key", now))
            if self.key_rotation.due(since):
                await self.rotate_key()
        except AgentError as error:
            log.error("key.rotation_failed", code=error.code, at=where(error))

    async def rotate_api_key_if_due(self) -> bool:
        """Let a new API key take this one's place when it is time; whether it has. Trouble waits for the next turn."""
        done = False
        try:
            since = await self._state.last("api_key")
            done = await self.api_key_rotation.keep(since)
            if done or since is None:
                now = self.clock.now()
                await self._database.call(lambda: self._state.set_moment("api_key", now))
        except AgentError as error:
            log.error("key.api_rotation_failed", code=error.code, at=where(error))
        return done

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

    # Heal

    async def heal_now(self, drift: DriftResult) -> RemediationResult:
        """One cure at a person's word, through the same gates, recorded the same way. Returns how it ended.

        Raises:
            StorageError: how it ended could not be recorded.
        """
        remediation = await self._remediate_and_record(drift, trigger="manual")
        await self.recording.insist()
        return remediation

    async def _remediate_and_record(
        self, drift: DriftResult, trigger: str = "schedule", order_id: str | None = None
    ) -> RemediationResult:
        """Ask for the cure; record what was done, or why nothing was when that has not been recorded yet."""
        start = self.clock.now()
        trace = self._traced(drift, start)
        engine = self.healing_engine
        self.progress.step(engine.longest_s(drift) if isinstance(engine, HealingEngine) else 0.0)
        remediation = await self._remediated(drift)
        self.progress.step()
        touched = remediation.outcome in TOUCHED or bool(remediation.actions)
        if touched:
            self.stats["remediations_attempted"] += 1
            self._after_cure(drift, remediation)
            self.pace.changed()
        if remediation.outcome == Outcome.SUCCESS:
            self.stats["remediations_successful"] += 1
        if self.recording.knows(drift, remediation) and (not touched or remediation.reason == "crashed"):
            return remediation
        # The wall clock may have been set back meanwhile; no record ends before it begins.
        end = max(start, self.clock.now())
        trace.took("heal", start, end)
        await self.recording.remediation(Done(drift, remediation, start, end, trigger, order_id, trace))
        return remediation

    def _traced(self, drift: DriftResult, now: datetime) -> Trace:
        """The trace that begins with the look that found this."""
        seen = min(drift.observed_at or now, now)
        return self.tracer.drift(drift.check, seen - timedelta(milliseconds=drift.duration_ms or 0), seen)

    def _after_cure(self, drift: DriftResult, remediation: RemediationResult) -> None:
        """What the check said after its cure is its newest verdict; looks that went on meanwhile may be of no worth."""
        if remediation.post_result is not None and drift.check in self._latest:
            verdict = Verdict(Result(remediation.post_result), remediation.post_reason or "as_expected")
            self._latest[drift.check] = replace(drift, drifted=verdict.result is Result.FAIL, verdict=verdict)
        if self.waking is not None:
            self.waking.cured(drift.check)
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

    async def record_drills(self) -> list[EvidenceBundle]:
        """Record what drills have shown since the last time, each once. What cannot be recorded now is tried again."""
        return await self.recording.drills()

    async def _heartbeat_if_due(self) -> None:
        """Every hour (and at start) one signed statement of every verdict; the first waits for the slowest first look."""
        detector = self._detector()
        if detector is None or self._latest.keys() >= detector.baseline.entries.keys():
            await self.recording.heartbeat_if_due(
                {drift.check: (str(drift.result), drift.reason) for drift in self.latest}
            )

    async def _save_statistics(self) -> None:
        values, counts, events = dict(self.stats), self.counts.snapshot(), standing_of(self.waking)
        await self._database.call(lambda: self._state.save_statistics(values, counts, events))

    # Deliver

    async def _submit_evidence(self, evidence: EvidenceBundle) -> None:
        """Put a stored bundle in line for delivery, and have it delivered soon; outside an iteration, now."""
        bundle_path, signature_path = self.recording.path_of(evidence.bundle_id) or self._stored(evidence)
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
        return await health_of(self)


def _is_another(drift: DriftResult, former: DriftResult | None) -> bool:
    return former is not None and (drift.result, drift.reason) != (former.result, former.reason)


async def main(arguments: Sequence[str] | None = None) -> None:
    """Run the agent of this machine until a signal ends it. Exits with a documented status and one line on any refusal."""
    import argparse

    from compliance_agent.service import serve

    parser = argparse.ArgumentParser(
        prog="python -m compliance_agent.agent", description="Compliance agent of one host"
    )
    parser.add_argument("--config", help="configuration file; MSP_* variables alone when not given")
    parser.add_argument(
        "--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], help="overrides the configuration"
    )
    given = parser.parse_args(arguments)
    try:
        await serve(
            lambda: AgentConfig.from_file(given.config) if given.config else AgentConfig.from_env(), given.log_level
        )
    except AgentError as error:
        print(f"compliance-agent: {error.line}", file=sys.stderr)  # noqa: T201  the one line for a person
        sys.exit(error.exit_status)


if __name__ == "__main__":
    runner.program(main())
