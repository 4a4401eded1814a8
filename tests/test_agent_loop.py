"""The loop: one iteration at a time, at the interval with its jitter, skipped ticks said, errors waited out, ended by an event."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.errors import StateInUse, StorageFull
from compliance_agent.life import ERROR_BACKOFF_S
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    yield Scene(tmp_path)


async def looped(scene: Scene, looks: int, agent: ComplianceAgent | None = None) -> list[float]:
    """Run the whole life of an agent until so many looks; the monotonic time at which each began."""
    agent = agent or scene.agent()
    agent._rng = random.Random(3)
    began: list[float] = []
    look = scene.detector.check_all

    async def noted() -> object:
        began.append(scene.clock.monotonic())
        if len(began) >= looks:
            agent.shutdown_event.set()
        return await look()

    scene.detector.check_all = noted  # type: ignore[method-assign, assignment]
    try:
        await asyncio.wait_for(agent.start(handle_signals=False), timeout=30)
    finally:
        scene.detector.check_all = look  # type: ignore[method-assign]
    assert not agent.running
    return began


def gaps(times: list[float]) -> list[float]:
    return [after - before for before, after in itertools.pairwise(times)]


async def test_the_interval_is_kept_within_its_jitter(scene: Scene) -> None:
    agent = scene.agent()
    between = gaps(await looped(scene, 200, agent))
    assert all(54.0 <= gap <= 66.0 for gap in between)
    assert max(between) - min(between) > 8, "hosts that started together must not stay together"
    assert agent.stats["loops_completed"] == 200
    assert agent.ticks_skipped == 0


async def test_an_iteration_that_overruns_skips_ticks_and_never_piles_up(scene: Scene) -> None:
    scene.detector.delay_s = 150.0
    agent = scene.agent()
    between = gaps(await looped(scene, 10, agent))
    assert all(gap > 150 for gap in between), "two iterations at once, or one right after the other"
    assert all(gap <= 150 + 66 for gap in between)
    assert agent.ticks_skipped >= 18


async def test_a_loop_that_fails_waits_a_minute_and_goes_on(tmp_path: Path) -> None:
    scene = Scene(tmp_path, settings={"mcp_poll_interval_sec": 1})
    scene.detector.error = ValueError("patient jane")
    agent = scene.agent()
    times = await looped(scene, 4, agent)
    assert all(gap >= ERROR_BACKOFF_S for gap in gaps(times))
    assert agent.stats["loops_completed"] == 0
    scene.detector.error = None
    again = await looped(scene, 4)
    assert all(gap < 2 for gap in gaps(again))


async def test_another_process_with_our_state_ends_the_agent_loudly(scene: Scene) -> None:
    scene.detector.error = StateInUse("state is in use")
    with pytest.raises(StateInUse):
        await looped(scene, 3)


async def test_the_servers_interval_is_kept_but_cannot_silence_a_host(scene: Scene) -> None:
    scene.server.min_interval_s = 300
    assert all(gap >= 300 * 0.9 for gap in gaps(await looped(scene, 5))[1:])
    scene.server.min_interval_s = 86_400
    assert all(gap <= 3_600 * 1.1 for gap in gaps(await looped(scene, 5)))


async def test_statistics_are_saved_after_each_loop(scene: Scene) -> None:
    await looped(scene, 3)
    again = scene.agent()
    assert again.stats["loops_completed"] == 3
    await scene.close()


async def test_a_second_start_does_nothing(scene: Scene) -> None:
    agent = scene.agent()
    agent.running = True
    await agent.start(handle_signals=False)
    agent.running = False
    await scene.close()


class Patience:
    """A real clock for the tests below, whose sleep never ends by itself."""

    def __init__(self, scene: Scene) -> None:
        self.now, self.monotonic = scene.clock.now, scene.clock.monotonic

    async def sleep(self, seconds: float) -> None:
        await asyncio.Event().wait()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_the_event_ends_a_pause_at_once(scene: Scene) -> None:
    agent = scene.agent()
    agent.clock = Patience(scene)
    task = asyncio.ensure_future(agent.start(handle_signals=False))
    await until(lambda: agent.stats["loops_completed"] == 1)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    agent.shutdown_event.set()
    await asyncio.wait_for(task, timeout=10)
    assert loop.time() - asked < 2


@pytest.mark.parametrize("deaf", [False, True])
async def test_a_hung_look_does_not_keep_the_agent_from_ending(scene: Scene, deaf: bool) -> None:
    """Also one that ignores its cancellation."""
    over = asyncio.Event()

    async def hang() -> None:
        while not over.is_set():
            try:
                await over.wait()
            except asyncio.CancelledError:
                if not deaf:
                    raise

    scene.detector.check_all = hang  # type: ignore[method-assign, assignment]
    agent = scene.agent()
    task = asyncio.ensure_future(agent.start(handle_signals=False))
    await asyncio.sleep(0.05)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    agent.shutdown_event.set()
    await asyncio.wait_for(asyncio.shield(task), timeout=10)
    assert loop.time() - asked < 9
    assert agent.stats["loops_completed"] == 0
    over.set()


async def test_a_hung_upload_does_not_keep_the_agent_from_ending(scene: Scene) -> None:
    from compliance_agent.lab.server import Fault

    agent = scene.agent()
    scene.server.faults.extend([Fault.NONE, Fault.HANG])
    task = asyncio.ensure_future(agent.start(handle_signals=False))
    await until(lambda: len(scene.server.requests) == 2)
    loop = asyncio.get_running_loop()
    asked = loop.time()
    agent.shutdown_event.set()
    await asyncio.wait_for(task, timeout=10)
    assert loop.time() - asked < 9
    again = scene.agent()
    await scene.cycle(again)
    await scene.close()
    seqs = [held.seq for held in scene.server.stored()]
    assert seqs == sorted(set(seqs)), "lost or stored twice"
    assert len(seqs) == again.stats["evidence_generated"]


async def test_after_its_first_iteration_it_rehearses_a_record_once(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = scene.agent()
    rehearsed: list[int] = []

    async def rehearse() -> None:
        rehearsed.append(scene.detector.looks)
        raise StorageFull("no room")

    monkeypatch.setattr(agent.evidence_generator, "rehearse", rehearse)
    await looped(scene, 3, agent)
    assert rehearsed == [1]
