"""A slow check and the agent: the firewall is cured and proven at the server while dpkg still reads files."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import rounds
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import Baseline, load
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import StorageFull
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.server import FakeServer
from compliance_agent.mcp_client import MCPClient
from compliance_agent.ports import Ran

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """In proportion to how fast time flows here; whoever is not held comes back long before."""
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.1)


class FlowingClock(FakeClock):
    """Time that flows by itself while `flow` runs, two minutes in a second; sleepers wake when their time has come."""

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + seconds
        while self.monotonic() < until:
            await asyncio.sleep(0.001)

    async def flow(self) -> None:
        """Until cancelled."""
        while True:
            await asyncio.sleep(0.002)
            self.advance(0.25)


class Clinic:
    """The real agent with the shipped baseline over a simulated host, whose dpkg reads for as long as it is held."""

    def __init__(self, root: Path, **file_integrity: Any) -> None:
        self.clock = FlowingClock()
        self.server = FakeServer()
        self.host = healthy_host(1, self.clock)
        self.dpkg_runs, self.go_on = 0, asyncio.Event()
        self._run = self.host.run
        self.host.run = self._held_run  # type: ignore[method-assign]
        config = AgentConfig(
            client_id="msp-1", site_id="clinic-1", host_id="srv-1", state_dir=root / "state",
            baseline_path=shipped_baseline(), mcp_url="https://mcp.example.com", mcp_poll_interval_sec=60,
        )  # fmt: skip
        signer = Ed25519Signer(config.signing_key_file)
        config = self.server.enrolled(config, signer)
        detector = DriftDetector(
            config, host=self.host, baseline=_with(load(shipped_baseline()), file_integrity), clock=self.clock
        )
        self.agent = ComplianceAgent(config, signer=signer, drift_detector=detector, clock=self.clock, mcp_client=None)
        self.agent.mcp_client = MCPClient(
            config, signer.key_id, transport=self.server, clock=self.clock, on_ack=self.agent.delivery.keep_ack
        )

    async def _held_run(self, argv: Sequence[str], **options: Any) -> Ran:
        if tuple(argv[:2]) == ("dpkg", "--verify"):
            self.dpkg_runs += 1
            await self.go_on.wait()
        return await self._run(argv, **options)

    @contextlib.asynccontextmanager
    async def life(self) -> AsyncIterator[None]:
        """The agent runs, and time flows."""
        flowing = asyncio.create_task(self.clock.flow())
        living = asyncio.create_task(self.agent.start(handle_signals=False))
        try:
            yield
        finally:
            self.agent.shutdown_event.set()
            await asyncio.wait_for(living, timeout=10)
            flowing.cancel()

    def records(self, check: str) -> list[tuple[str, str, str | None]]:
        """What the server holds of this check: result, reason, outcome."""
        documents = (held.document for held in self.server.stored())
        return [(item["result"], item["reason"], item["outcome"]) for item in documents if item["check"] == check]

    def heartbeats(self) -> list[dict[str, Any]]:
        return [held.document["states"] for held in self.server.stored() if held.document["kind"] == "heartbeat"]


def _with(baseline: Baseline, changes: dict[str, Any]) -> Baseline:
    entry = dataclasses.replace(baseline.entries["file_integrity"], **changes)
    return dataclasses.replace(baseline, entries={**baseline.entries, "file_integrity": entry})


async def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


CURED = ("fail", "no_firewall", "success")


async def test_a_slow_check_delays_neither_the_cure_of_another_nor_its_proof(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    async with clinic.life():
        await until(lambda: clinic.records("firewall") == [("pass", "as_expected", None)])
        injected = clinic.clock.monotonic()
        FAULTS["firewall_flushed"].inject(clinic.host)
        await until(lambda: CURED in clinic.records("firewall"))
        assert clinic.clock.monotonic() - injected < 120
        assert clinic.records("file_integrity") == [], "it still reads"
        assert clinic.heartbeats() == [], "a heartbeat states every verdict, so it waits for the first of each"
        clinic.go_on.set()
        await until(lambda: clinic.records("file_integrity") == [("pass", "as_expected", None)])
        await until(lambda: len(clinic.heartbeats()) == 1)
    assert set(clinic.heartbeats()[0]) == set(clinic.agent.drift_detector.baseline.entries)
    assert clinic.dpkg_runs == 1, "six hours have not passed"
    seqs = [held.seq for held in clinic.server.stored()]
    assert seqs == list(range(1, len(seqs) + 1))


async def test_the_old_way_fails_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: an iteration that waits for every look. Five minutes pass, and nothing is cured."""
    monkeypatch.setattr(DriftDetector, "check_due", DriftDetector.check_all)
    clinic = Clinic(tmp_path)
    async with clinic.life():
        FAULTS["firewall_flushed"].inject(clinic.host)
        began = clinic.clock.monotonic()
        await until(lambda: clinic.clock.monotonic() - began > 300)
        assert clinic.records("firewall") == []


async def test_a_check_that_hangs_is_timed_out_for_itself_alone(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path, deadline_s=1.5)
    async with clinic.life():
        await until(lambda: clinic.records("file_integrity") == [("unknown", "timed_out", None)])
        await until(lambda: len(clinic.heartbeats()) == 1)
    states = clinic.heartbeats()[0]
    assert {name for name, state in states.items() if state["result"] != "pass"} == {"file_integrity"}


async def test_the_agent_ends_in_time_while_a_look_is_under_way(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    loop = asyncio.get_running_loop()
    async with clinic.life():
        await until(lambda: clinic.agent.stats["loops_completed"] > 0)
        asked = loop.time()
    assert loop.time() - asked < 5
    assert not [task for task in asyncio.all_tasks() if "check_one" in repr(task)]


async def test_a_verdict_that_could_not_be_recorded_is_not_lost_until_the_next_look(tmp_path: Path) -> None:
    """The next look at these files is six hours away; what is known must not be unsaid for that long."""
    clinic = Clinic(tmp_path)
    clinic.go_on.set()
    store = clinic.agent.evidence_generator.store_evidence
    failures = 0

    async def full(*arguments: Any) -> Any:
        nonlocal failures
        if arguments[0].check == "file_integrity" and failures < 2:
            failures += 1
            raise StorageFull("no room")
        return await store(*arguments)

    clinic.agent.evidence_generator.store_evidence = full
    async with clinic.life():
        await until(lambda: clinic.records("file_integrity") == [("pass", "as_expected", None)])
    assert (failures, clinic.dpkg_runs) == (2, 1)


async def test_the_newest_verdict_of_what_was_cured_is_that_of_the_look_after(tmp_path: Path) -> None:
    clinic = Clinic(tmp_path)
    clinic.go_on.set()
    FAULTS["firewall_flushed"].inject(clinic.host)
    await clinic.agent._run_iteration()
    assert {result.check: result.result for result in clinic.agent.latest}["firewall"] == "pass"
    await clinic.agent.close()
