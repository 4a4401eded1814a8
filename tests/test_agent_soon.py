"""Recorded, so delivered: evidence leaves the host while the iteration that made it still goes on, and no faster than is decent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.delivery import Delivery
from compliance_agent.lab.server import Fault
from compliance_agent.models import BundleKind, DriftResult, EvidenceBundle, RemediationResult
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    await made.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def hold(scene: Scene, check: str) -> asyncio.Event:
    """The cure of this check takes until the event is set."""
    go_on, remediate = asyncio.Event(), scene.healer.remediate

    async def slowly(drift: DriftResult) -> RemediationResult:
        if drift.check == check:
            await go_on.wait()
        return await remediate(drift)

    scene.healer.remediate = slowly  # type: ignore[method-assign]
    return go_on


HEALED, PASSED = ("remediation", "logging", "success"), ("drift", "av_health", None)


async def test_evidence_is_at_the_server_while_a_cure_runs(scene: Scene) -> None:
    agent = scene.agent()
    for check in ("time_sync", "logging"):
        scene.detector.drift(check)
    go_on = hold(scene, "time_sync")
    iteration = asyncio.ensure_future(agent._run_iteration())
    await until(lambda: HEALED in scene.kinds())
    assert PASSED in scene.kinds() and not iteration.done()
    go_on.set()
    await iteration
    assert scene.kinds() == [PASSED, HEALED, ("remediation", "time_sync", "success")]
    assert (agent.stats["evidence_uploaded"], agent.stats["evidence_queued"]) == (3, 0)


async def test_the_old_way_fails_that(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: nobody is woken, so nothing leaves before the iteration is over."""
    monkeypatch.setattr(Delivery, "wake", lambda _self: None)
    agent = scene.agent()
    for check in ("time_sync", "logging"):
        scene.detector.drift(check)
    go_on = hold(scene, "time_sync")
    iteration = asyncio.ensure_future(agent._run_iteration())
    with pytest.raises(TimeoutError):
        await until(lambda: bool(scene.kinds()), seconds=0.5)
    go_on.set()
    await iteration
    assert len(scene.kinds()) == 3


async def made(agent: ComplianceAgent, number: int) -> EvidenceBundle:
    return await agent.recording.create(
        check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
    )


async def burst(agent: ComplianceAgent, count: int) -> None:
    """So many records in the middle of an iteration."""
    agent._iterating = True
    for number in range(count):
        await agent._submit_evidence(await made(agent, number))
    agent._iterating = False


async def test_a_burst_arrives_once_each_in_order(scene: Scene) -> None:
    agent = scene.agent()
    await burst(agent, 60)
    await agent.delivery.turn()
    assert [item["counts"]["pending"] for item in scene.documents()] == list(range(60))
    assert (agent.stats["evidence_uploaded"], agent.stats["evidence_queued"]) == (60, 0)


async def test_what_was_delivered_before_it_was_submitted_counts_once(scene: Scene) -> None:
    """It is in the line from the moment it is durable, so delivery may be faster than whoever recorded it."""
    agent = scene.agent()
    evidence = await made(agent, 1)
    agent.delivery.wake()
    await scene.delivered(agent)
    assert len(scene.documents()) == 1
    agent._iterating = True
    await agent._submit_evidence(evidence)
    await scene.delivered(agent)
    assert (agent.stats["evidence_uploaded"], agent.stats["evidence_queued"]) == (1, 0)


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_REQUEST, Fault.GARBAGE, Fault.refuse(500), Fault.refuse(503, retry_after_s=900)]
)
async def test_a_server_in_trouble_is_asked_no_more_often_than_before(scene: Scene, fault: Fault) -> None:
    """Fifty records and the turn at the end: one try, as if nobody had been woken."""
    agent = scene.agent()
    await scene.cycle(agent)
    for _ in range(3):
        scene.clock.advance(3_700)
        scene.server.faults.extend([fault] * 200)
        before = len(scene.server.requests)
        await burst(agent, 50)
        await agent.delivery.turn()
        await scene.delivered(agent)
        asked = len(scene.server.requests) - before
        assert asked <= 2, f"{asked} requests: a check-in and an upload at most"
        scene.server.faults.clear()
    scene.clock.advance(3_700)
    await agent.delivery.turn()
    await scene.delivered(agent)
    places = [(held.epoch, held.seq) for held in scene.server.stored()]
    assert places == [(0, seq) for seq in range(1, len(places) + 1)]
    assert len(places) == agent.stats["evidence_generated"] == agent.stats["evidence_uploaded"]


async def test_retry_after_holds_for_whoever_is_woken(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    scene.server.faults.append(Fault.refuse(503, retry_after_s=600))
    await burst(agent, 1)
    await scene.delivered(agent)
    count = len(scene.server.requests)
    for _ in range(5):
        scene.clock.advance(100)
        await burst(agent, 3)
        await agent.delivery.turn()
        await scene.delivered(agent)
        assert len(scene.server.requests) == count, "asked again before the server allowed it"
    scene.clock.advance(200)
    await agent.delivery.turn()
    await scene.delivered(agent)
    assert len(scene.server.stored()) == agent.stats["evidence_generated"]


async def test_an_iteration_that_records_checks_in_no_more_often_than_one_that_does_not(scene: Scene) -> None:
    agent = scene.agent()
    for _ in range(10):
        scene.detector.drift("time_sync")
        await scene.cycle(agent)
    assert len(scene.server.check_ins) <= 12


async def test_nobody_is_woken_once_shutdown_is_asked_for(scene: Scene) -> None:
    agent = scene.agent()
    agent.shutdown_event.set()
    await burst(agent, 3)
    assert agent.delivery._task is None
    await agent.delivery.stop(5.0)
    assert len(scene.documents()) == 3


async def test_a_line_that_fails_keeps_no_account_open(scene: Scene) -> None:
    agent = scene.agent()
    enqueue = agent.offline_queue.enqueue

    async def fails(**_: Any) -> int:
        raise ConnectionError("patient jane")

    agent.offline_queue.enqueue = fails
    await agent.recording.submitted(await made(agent, 1))
    agent.offline_queue.enqueue = enqueue
    await agent.delivery.turn()
    assert len(scene.documents()) == 1 and not agent.delivery._coming
