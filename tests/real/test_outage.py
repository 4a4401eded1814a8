"""A server that is away for the length of 500 recorded bundles: all arrive afterwards, once each, in order."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from compliance_agent.adapters.clock import SystemClock
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.drift import DriftDetector
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.models import BundleKind
from tests.real.stage import EnrolledHost, Server, arrived, enrolled, serving, troubles

pytestmark = [pytest.mark.real, pytest.mark.slow]
BUNDLES = 500
SETTLE_S = 30.0
DRAIN_S = 60.0  # the first tries after an outage wait at most a few seconds, and 500 bundles are five requests


async def waited_for(done: Callable[[], Awaitable[bool]], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not await done():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        await asyncio.sleep(0.05)


def agent_of(host: EnrolledHost) -> ComplianceAgent:
    """The real agent on a healthy simulated machine."""
    config, clock = host.config, SystemClock()
    detector = DriftDetector(config, host=healthy_host(1, clock), baseline=load(config.baseline_path), clock=clock)
    return ComplianceAgent(config, drift_detector=detector, clock=clock)


async def record(agent: ComplianceAgent, count: int) -> None:
    """So many bundles as the loop records them: stored, then put in line."""
    for number in range(count):
        bundle = await agent.evidence_generator.create_evidence(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )
        paths = await agent.evidence_generator.store_evidence(bundle)
        await agent.offline_queue.enqueue(bundle.bundle_id, *paths)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
async def test_500_bundles_recorded_while_the_server_is_away_arrive_once_each_in_order(
    tmp_path: Path, number: signal.Signals
) -> None:
    with serving(tmp_path / "server") as server:
        host = enrolled(server, tmp_path / "host", "riverside-01", "riverside-clinic")
        agent = agent_of(host)
        running = asyncio.create_task(agent.start(handle_signals=False))
        try:
            before = await outage(agent, server, host, number)
        finally:
            agent.shutdown_event.set()
            await asyncio.wait_for(running, 20)
        recorded, received = host.recorded(), arrived(server, host)
        assert len(recorded) >= before + BUNDLES
        assert [place[:2] for place in recorded] == [(0, seq) for seq in range(1, len(recorded) + 1)]
        assert received == recorded, "the server's rows, in the order they came, are the host's chain"
        assert host.states() == {"uploaded": len(recorded)}
        assert troubles(server) == {"forks": 0, "gaps": 0}
        assert host.statistics()["evidence_uploaded"] == len(recorded)
        report = verify_paths([host.evidence_dir], {host.key_id: agent.signer.public_bytes})
        assert report.ok and report.verified == len(recorded), report.problems[:3]


async def outage(agent: ComplianceAgent, server: Server, host: EnrolledHost, number: signal.Signals) -> int:
    """End the server, record, start it again on its port, wait until nothing is pending; bundles delivered before."""

    async def settled() -> bool:
        stats = await agent.offline_queue.get_stats()
        return agent.stats["loops_completed"] > 0 and stats["uploaded"] > 0 and not stats["pending"]

    await waited_for(settled, SETTLE_S, "the first evidence is delivered")
    before = len(arrived(server, host))
    assert before > 0
    server.stop(number)
    await record(agent, BUNDLES)
    assert (await agent.offline_queue.get_stats())["pending"] >= BUNDLES, "nothing is given up while it is away"
    server.start()

    async def drained() -> bool:
        return not (await agent.offline_queue.get_stats())["pending"]

    await waited_for(drained, DRAIN_S, "all of it is delivered")
    return before
