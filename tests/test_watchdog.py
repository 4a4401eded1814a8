"""The watchdog is fed while the loop gets on, and not a moment longer; ready is said when the first look came back, not before."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters.database import Database
from compliance_agent.agent import ComplianceAgent
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import DriftResult, Result, Verdict
from compliance_agent.progress import STEP_S, Progress
from compliance_agent.watchdog import Watchdog, status_line
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio
WATCHDOG_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Manager:
    """Stands for the service manager: keeps what it was told, each time with the clock's time."""

    def __init__(self, clock: FakeClock) -> None:
        self.watchdog_s: float | None = WATCHDOG_S
        self.told: list[tuple[float, dict[str, str]]] = []
        self._clock = clock

    def tell(self, **values: str) -> None:
        self.told.append((self._clock.monotonic(), values))

    def times(self, name: str) -> list[float]:
        return [at for at, values in self.told if name in values]


class Steady(FakeClock):
    """A clock on which only the test lets time pass: who sleeps wakes when it is due, and nobody else moves it."""

    def __init__(self) -> None:
        super().__init__()
        self._moved = asyncio.Event()

    async def sleep(self, seconds: float) -> None:
        until = self.monotonic() + max(0.0, seconds)
        while self.monotonic() < until:
            await self._moved.wait()

    async def passes(self, seconds: float, *, until: Callable[[], bool] = lambda: False) -> None:
        """Let it pass second by second, everybody doing in each what is due."""
        for _ in range(int(seconds)):
            if until():
                return
            self.advance(1.0)
            self._moved.set()
            self._moved = asyncio.Event()
            for _ in range(20):
                await asyncio.sleep(0)


class Hanging(ComplianceAgent):
    """An agent that can be told to hang in the middle of an iteration."""

    hang = False

    async def _do_orders(self) -> None:
        if self.hang:
            await asyncio.Event().wait()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    scene = Scene(tmp_path, with_server=False)
    scene.clock = Steady()
    scene.detector.clock = scene.clock
    yield scene


async def test_a_loop_that_hangs_is_not_fed(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: everything else in the process goes on, the loop alone does not."""

    async def inline(_database: Database, fn: Callable[[], Any]) -> Any:
        return fn()  # a thread would take real time, and this clock's runs ahead

    monkeypatch.setattr(Database, "call", inline)
    monkeypatch.setattr("tests.agent_scene.ComplianceAgent", Hanging)
    clock, agent = scene.clock, scene.agent()
    assert isinstance(clock, Steady) and isinstance(agent, Hanging)
    manager = Manager(clock)
    life = asyncio.create_task(agent.start(handle_signals=False))
    beside = asyncio.create_task(Watchdog(agent, manager).run())
    await clock.passes(10, until=lambda: len(manager.times("READY")) > 0)
    assert len(manager.times("READY")) == 1
    await clock.passes(400)
    fed = manager.times("WATCHDOG")
    assert clock.monotonic() - fed[-1] < WATCHDOG_S / 2
    assert max(after - before for before, after in itertools.pairwise(fed)) <= WATCHDOG_S / 2

    agent.hang = True
    await clock.passes(STEP_S * 4)
    last = manager.times("WATCHDOG")[-1]
    assert clock.monotonic() - last > WATCHDOG_S, "a loop that hangs was fed"
    assert "hangs" in manager.told[-1][1]["STATUS"]
    for task in (beside, life):
        task.cancel()
    await asyncio.wait({beside, life}, timeout=10)


class Life:
    """What the watchdog looks at, without an agent."""

    def __init__(self) -> None:
        self.clock = Steady()
        self.progress = Progress(self.clock)
        self.shutdown_event = asyncio.Event()
        self.signalled = False
        self.latest: tuple[DriftResult, ...] = ()


async def test_ready_waits_for_the_first_look_and_is_said_once_and_at_once() -> None:
    life = Life()
    manager = Manager(life.clock)
    beside = asyncio.create_task(Watchdog(life, manager).run())
    await life.clock.passes(25)
    assert manager.times("READY") == []
    assert all(int(values["EXTEND_TIMEOUT_USEC"]) > 2 * 10_000_000 for _, values in manager.told)
    life.progress.looked.set()
    await life.clock.passes(1)
    assert len(manager.times("READY")) == 1, "it is said at once, not with the next feeding"
    for _ in range(3):
        life.progress.step()
        await life.clock.passes(20)
    assert len(manager.times("READY")) == 1
    assert "EXTEND_TIMEOUT_USEC" not in manager.told[-1][1]
    life.signalled = True
    life.shutdown_event.set()
    await asyncio.wait_for(beside, timeout=5)
    assert manager.told[-1][1]["STOPPING"] == "1"


async def test_a_start_that_hangs_gets_no_more_time() -> None:
    life = Life()
    manager = Manager(life.clock)
    beside = asyncio.create_task(Watchdog(life, manager).run())
    await life.clock.passes(STEP_S * 3)
    assert life.clock.monotonic() - manager.times("EXTEND_TIMEOUT_USEC")[-1] > STEP_S
    life.shutdown_event.set()  # no signal: another life follows
    await asyncio.wait_for(beside, timeout=5)
    assert manager.times("STOPPING") == []


async def test_a_long_step_may_take_as_long_as_it_said() -> None:
    clock = FakeClock()
    progress = Progress(clock)
    progress.step(1_800.0)
    clock.advance(1_800.0 + STEP_S)
    assert progress.overdue_s() == 0
    clock.advance(1.0)
    assert progress.overdue_s() == 1.0
    progress.step()
    assert progress.overdue_s() == 0


async def test_a_busy_loop_shows_as_lag() -> None:
    life = Life()
    watchdog = Watchdog(life, Manager(life.clock))
    beside = asyncio.create_task(watchdog.run())
    await life.clock.passes(15)
    assert watchdog.take_lag() == 0
    life.clock.advance(7.0)  # nobody else came to their turn
    await life.clock.passes(1)
    assert watchdog.take_lag() >= 2.0
    assert watchdog.take_lag() == 0
    beside.cancel()
    await asyncio.wait({beside})


def test_the_status_is_counts_alone() -> None:
    assert status_line(()) == "no verdict yet"
    looks = [
        DriftResult("a", drifted=False, verdict=Verdict(Result.PASS, "as_expected")),
        DriftResult("b", drifted=True, verdict=Verdict(Result.FAIL, "x")),
        DriftResult("c", drifted=False, verdict=Verdict(Result.PASS, "as_expected")),
    ]
    assert status_line(looks) == "3 checks: 2 pass, 1 fail"
