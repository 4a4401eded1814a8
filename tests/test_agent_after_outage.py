"""After an outage what waits goes when the breaker lets a try through, not with the next round; nobody is pressed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.lab.server import Fault
from compliance_agent.models import BundleKind
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


class Timers:
    """What was asked to be called later. Time is the scene's, and nothing is called but by `pass_time`."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self.waiting: list[asyncio.TimerHandle] = []

    def later(self, seconds: float, call: Callable[[], None]) -> asyncio.TimerHandle:
        due = self._scene.clock.monotonic() + seconds
        self.waiting.append(asyncio.TimerHandle(due, call, (), asyncio.get_running_loop()))
        return self.waiting[-1]

    def left_s(self) -> list[float]:
        """Seconds to each call that still stands."""
        self.waiting = [one for one in self.waiting if not one.cancelled()]
        return [one.when() - self._scene.clock.monotonic() for one in self.waiting]

    async def pass_time(self, agent: ComplianceAgent, seconds: float) -> None:
        """So much time, and what is due by then."""
        self._scene.clock.advance(seconds)
        self.left_s()
        due = [one for one in self.waiting if one.when() <= self._scene.clock.monotonic()]
        self.waiting = [one for one in self.waiting if one not in due]
        for one in due:
            one._run()
        await self._scene.delivered(agent)


async def record(agent: ComplianceAgent) -> None:
    agent._iterating = True
    evidence = await agent.recording.create(check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected")
    await agent._submit_evidence(evidence)
    agent._iterating = False


async def turn(scene: Scene, agent: ComplianceAgent) -> None:
    await agent.delivery.turn()
    await scene.delivered(agent)


async def out(scene: Scene) -> tuple[ComplianceAgent, Timers]:
    """An agent with one record, whose server is away so long that the breaker has opened just now."""
    agent, timers = scene.agent(), Timers(scene)
    agent.delivery._later = timers.later
    await turn(scene, agent)
    scene.server.down = True
    await record(agent)
    await scene.delivered(agent)
    while agent.mcp_client.breaker.state(scene.clock.monotonic()) == "closed":
        assert timers.left_s() == [], "while the breaker is closed, one try in a round is enough"
        scene.clock.advance(60)
        await turn(scene, agent)
    return agent, timers


async def test_what_waits_goes_when_the_breaker_lets_it(scene: Scene) -> None:
    agent, timers = await out(scene)
    (left_s,) = timers.left_s()
    assert left_s == agent.mcp_client.let_in_s() and 5 <= left_s <= 10
    scene.server.down = False
    await timers.pass_time(agent, left_s - 0.01)
    assert scene.documents() == []
    await timers.pass_time(agent, 0.01)
    assert len(scene.documents()) == 1 and agent.delivery.trouble == "" and timers.left_s() == []


async def test_a_timer_that_is_early_by_the_agents_clock_waits_for_the_rest(scene: Scene) -> None:
    agent, timers = await out(scene)
    (left_s,) = timers.left_s()
    scene.server.down, before = False, len(scene.server.requests)
    early = timers.waiting.pop()
    scene.clock.advance(left_s / 2)
    early._run()
    await scene.delivered(agent)
    assert timers.left_s() == pytest.approx([left_s / 2]) and len(scene.server.requests) == before


async def test_a_server_that_stays_away_is_asked_less_and_less(scene: Scene) -> None:
    """One request for each try, the pauses doubling; what failed meanwhile are check-ins, so that no bundle makes the line wait."""
    agent, timers = await out(scene)
    pauses = []
    for _ in range(6):
        pauses += timers.left_s()
        before = len(scene.server.requests)
        await timers.pass_time(agent, pauses[-1])
        assert len(scene.server.requests) - before == 1
    assert all(5 * 2**number <= pause <= 10 * 2**number for number, pause in enumerate(pauses)) and len(pauses) == 6
    scene.server.down = False
    await timers.pass_time(agent, *timers.left_s())
    assert len(scene.documents()) == 1


async def test_the_next_turn_takes_the_place_of_the_timer(scene: Scene) -> None:
    agent, timers = await out(scene)
    scene.clock.advance(60)
    scene.server.down = False
    await turn(scene, agent)
    before = len(scene.server.requests)
    await timers.pass_time(agent, 0)
    assert len(scene.documents()) == 1 and len(scene.server.requests) == before


async def test_a_wait_that_the_server_asked_for_ends_with_a_round(scene: Scene) -> None:
    """It is the same for every host of a server; rounds have a jitter."""
    agent, timers = await out(scene)
    scene.server.down = False
    scene.server.faults.append(Fault.refuse(503, retry_after_s=600))
    await timers.pass_time(agent, *timers.left_s())
    assert agent.delivery.trouble and timers.left_s() == []


async def test_nothing_is_tried_after_the_end(scene: Scene) -> None:
    agent, timers = await out(scene)
    agent.shutdown_event.set()
    await agent.delivery.stop(1.0)
    assert timers.left_s() == []
