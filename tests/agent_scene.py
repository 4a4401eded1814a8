"""A scene for tests of the agent: real evidence, queue, client and database; a detector and a healer that hold state."""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import Baseline, parse
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.server import FakeServer
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import ActionTaken, DriftResult, Outcome, Plan, RemediationResult, Result, Step, Verdict
from compliance_agent.ports import Transport

BASELINE = (
    b'version: "1"\nchecks:\n  time_sync: {mode: enforce}\n  logging: {mode: enforce}\n  av_health: {mode: audit}\n'
)
FAIL, PASS = "not_synchronised", "as_expected"


class Detector:
    """Says of each check what `standing` says; counts its looks."""

    def __init__(self, clock: FakeClock) -> None:
        self.baseline: Baseline = parse(BASELINE)
        self.clock = clock
        self.host = healthy_host(clock=clock)
        self.standing: dict[str, Verdict] = {name: Verdict(Result.PASS, PASS) for name in self.baseline.entries}
        self.looks = 0
        self.delay_s = 0.0
        self.error: Exception | None = None

    def use_baseline(self, baseline: Baseline) -> None:
        self.baseline = baseline

    def drift(self, check: str, reason: str | None = None) -> None:
        """From now on it fails."""
        reason = reason or next(iter(self.baseline.entries[check].check.spec.reasons))
        self.standing[check] = Verdict(Result.FAIL, reason)

    def fix(self, check: str) -> None:
        """From now on it passes."""
        self.standing[check] = Verdict(Result.PASS, PASS)

    async def check_all(self) -> list[DriftResult]:
        self.looks += 1
        self.clock.advance(self.delay_s)
        if self.error is not None:
            raise self.error
        return [await self.check_one(name) for name in self.standing]

    async def check_one(self, check_id: str) -> DriftResult:
        verdict = self.standing[check_id]
        failed = verdict.result is Result.FAIL
        plan = Plan(check_id, (Step("restart_unit", {"unit": "chrony.service"}),)) if failed else None
        return DriftResult(
            check=check_id, drifted=failed, verdict=verdict, plan=plan, observed_at=self.clock.now(), severity="medium"
        )


class Healer:
    """Heals what it is allowed to; everything else is held back for the reason in `held`."""

    def __init__(self, detector: Detector) -> None:
        self.detector = detector
        self.held: dict[str, str] = {}
        self.in_part: set[str] = set()  # checks whose cure helps and still leaves work for a person
        self.asked: list[str] = []
        self.unfinished: list[RemediationResult] = []
        self.kept: dict[str, RemediationResult] = {}  # cures that ended, until they are said
        self.error: Exception | None = None
        self.paused = False
        self.approved: list[tuple[str, str]] = []
        self.cured: list[str] = []

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def approve(self, check: str, target: str) -> None:
        self.approved.append((check, target))

    async def remediate(self, drift: DriftResult) -> RemediationResult:
        self.asked.append(drift.check)
        if self.error is not None:
            raise self.error
        if self.paused:
            return RemediationResult(drift.check, Outcome.DEFERRED, reason="paused")
        if drift.check in self.held:
            return RemediationResult(drift.check, Outcome.DEFERRED, reason=self.held[drift.check])
        if drift.check in self.in_part:
            taken = ActionTaken("run_backup_unit")
            return RemediationResult(drift.check, Outcome.ALERT, actions=[taken], reason="cured_in_part")
        self.detector.fix(drift.check)
        self.cured.append(drift.check)
        point_id = str(uuid.uuid4())
        self.kept[point_id] = RemediationResult(
            drift.check,
            Outcome.SUCCESS,
            post_result=Result.PASS,
            post_reason=PASS,
            found=drift.reason,
            point_id=point_id,
        )
        return self.kept[point_id]

    async def unsaid(self) -> tuple[RemediationResult, ...]:
        return tuple(dataclasses.replace(result, recovered=True) for result in self.kept.values())

    async def said(self, result: RemediationResult) -> None:
        self.kept.pop(result.point_id, None)

    async def recover(self) -> list[RemediationResult]:
        found, self.unfinished = self.unfinished, []
        return found


@dataclasses.dataclass
class Scene:
    """One host and its server. `agent()` makes the agent; making it again is a restart."""

    root: Path
    with_server: bool = True
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        self.clock = FakeClock()
        self.server = FakeServer()
        config = AgentConfig(
            client_id="msp-1",
            site_id="clinic-1",
            host_id="srv-1",
            state_dir=self.root / "state",
            baseline_path=self.root / "baseline.yaml",
            mcp_url="https://mcp.example.com" if self.with_server else None,
            **{"mcp_poll_interval_sec": 60, **self.settings},
        )
        self.signer = Ed25519Signer(config.signing_key_file)
        self.config = self.server.enrolled(config, self.signer)
        self.detector = Detector(self.clock)
        self.healer = Healer(self.detector)
        self.live: ComplianceAgent | None = None
        self.way: Callable[[], Transport] = lambda: self.server  # to the server

    def agent(self) -> ComplianceAgent:
        """The agent of this host, new."""
        made = ComplianceAgent(
            self.config,
            signer=self.signer,
            drift_detector=self.detector,
            healing_engine=self.healer,
            clock=self.clock,
            mcp_client=None,
        )
        if self.with_server:
            made.mcp_client = MCPClient(
                self.config,
                self.signer.key_id,
                transport=self.way(),
                clock=self.clock,
                on_ack=made.delivery.keep_ack,
            )
        self.live = made
        return made

    async def restart(self) -> ComplianceAgent:
        """Close the agent and make it anew."""
        if self.live is not None:
            await self.live.close()
        return self.agent()

    async def close(self) -> None:
        """Take the scene down."""
        if self.live is not None:
            await self.live.close()

    async def cycle(self, agent: ComplianceAgent, count: int = 1, pause_s: float = 60.0) -> None:
        """Iterations with time between them."""
        for _ in range(count):
            await agent._run_iteration()
            await agent._heartbeat_if_due()
            self.clock.advance(pause_s)

    async def delivered(self, agent: ComplianceAgent) -> None:
        """Wait until delivery has nothing under way."""
        task = agent.delivery._task
        if task is not None:
            await asyncio.wait({task}, timeout=10)

    def kinds(self) -> list[tuple[str, str | None, str | None]]:
        """Kind, check and outcome of everything that the server holds, in order."""
        return [(item["kind"], item["check"], item["outcome"]) for item in self.documents()]

    def documents(self) -> Sequence[dict[str, Any]]:
        """Everything that the server holds."""
        return [held.document for held in self.server.stored()]
