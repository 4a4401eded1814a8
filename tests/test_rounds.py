"""Rounds: each check by its own interval, slow ones without holding up others, and never one twice at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from compliance_agent import rounds
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import DriftResult, Result, Verdict
from compliance_agent.rounds import Rounds

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A held look costs a test less; whoever is not held comes back long before."""
    monkeypatch.setattr(rounds, "PATIENCE_S", 0.05)


class Looks:
    """Looks that answer what they are told, at once or when they are let go."""

    def __init__(self, *checks: str, interval_s: float = 60) -> None:
        self.clock = FakeClock()
        self.rounds = Rounds(self.look, self.clock)
        self.checks = checks
        self.interval_s = dict.fromkeys(checks, interval_s)
        self.result = dict.fromkeys(checks, Result.PASS)
        self.takes_s = dict.fromkeys(checks, 0.0)
        self.held: dict[str, asyncio.Event] = {}
        self.begun: list[str] = []
        self.under_way: list[str] = []
        self.error: Exception | None = None

    async def look(self, name: str) -> DriftResult:
        """Where it can be, this is `DriftDetector.check_one`."""
        assert name not in self.under_way, "twice at the same time"
        self.rounds.begun(name, self.interval_s[name])
        self.begun.append(name)
        self.under_way.append(name)
        try:
            saw = self.result[name]
            if name in self.held:
                await self.held[name].wait()
            if self.error is not None:
                raise self.error
            self.clock.advance(self.takes_s[name])
        finally:
            self.under_way.remove(name)
        result = DriftResult(
            name, saw is Result.FAIL, verdict=Verdict(saw, "x"), duration_ms=int(self.takes_s[name] * 1000)
        )
        self.rounds.ended(name, result)
        return result

    def hold(self, name: str) -> asyncio.Event:
        self.held[name] = asyncio.Event()
        return self.held[name]

    async def turn(self) -> list[str]:
        return [result.check for result in await self.rounds.turn(self.checks)]

    async def settle(self) -> None:
        """Let tasks that can go on do so."""
        for _ in range(10):
            await asyncio.sleep(0)


@pytest.fixture
async def scene() -> AsyncIterator[Looks]:
    looks = Looks("b_quick", "a_quick", "slow")
    yield looks
    await looks.rounds.close(1.0)


async def test_a_slow_look_holds_up_nobody_and_is_given_when_it_is_back(scene: Looks) -> None:
    go_on = scene.hold("slow")
    for _ in range(5):
        assert await scene.turn() == ["a_quick", "b_quick"]
        scene.clock.advance(60)
    assert scene.begun.count("slow") == 1, "begun again while it was under way"
    late = asyncio.ensure_future(scene.rounds.late())
    await scene.settle()
    assert not late.done()
    go_on.set()
    await asyncio.wait_for(late, timeout=5)
    assert [result.check for result in scene.rounds.taken()] == ["slow"]
    assert scene.rounds.taken() == [], "given twice"


async def test_what_comes_back_together_is_given_in_the_order_of_the_ids(scene: Looks) -> None:
    assert await scene.turn() == ["a_quick", "b_quick", "slow"]


async def test_what_came_back_between_two_turns_is_given_with_the_next(scene: Looks) -> None:
    go_on = scene.hold("slow")
    await scene.turn()
    go_on.set()
    await scene.settle()
    assert await scene.turn() == ["slow"]


@pytest.mark.parametrize("early", [0.0, 0.099])
async def test_a_check_of_the_ticks_own_interval_is_looked_at_with_every_tick(scene: Looks, early: float) -> None:
    scene.interval_s["slow"] = 120
    seen = []
    for _ in range(5):
        seen.append(await scene.turn())
        scene.clock.advance(60 * (1 - early))
    assert seen == [["a_quick", "b_quick", "slow"], ["a_quick", "b_quick"]] * 2 + [["a_quick", "b_quick", "slow"]]


@pytest.mark.parametrize("result", [Result.FAIL, Result.UNKNOWN])
async def test_what_does_not_pass_is_due_sooner_but_takes_no_more_than_a_tenth(scene: Looks, result: Result) -> None:
    scene.interval_s = dict.fromkeys(scene.checks, 21_600.0)
    scene.result |= {"a_quick": result, "slow": result}
    scene.takes_s["slow"] = 20.0
    began = scene.clock.monotonic()
    for _ in range(60):
        await scene.turn()
        scene.clock.advance(60 - scene.takes_s["slow"] * ("slow" in scene.under_way))
    spent = scene.clock.monotonic() - began
    assert scene.begun.count("b_quick") == 1
    assert scene.begun.count("a_quick") == 60
    assert scene.begun.count("slow") >= 10 and scene.begun.count("slow") * 20.0 <= spent / 10 + 20


@pytest.mark.parametrize("result", [Result.PASS, Result.NOT_APPLICABLE, Result.EXCEPTION])
async def test_what_is_well_waits_for_its_interval(scene: Looks, result: Result) -> None:
    scene.interval_s["slow"] = 21_600
    scene.result["slow"] = result
    for _ in range(10):
        await scene.turn()
        scene.clock.advance(60)
    assert scene.begun.count("slow") == 1


async def test_a_look_during_a_cure_counts_only_if_it_passes(scene: Looks) -> None:
    """A package's files half replaced by an upgrade of ours are no finding."""
    go_on = scene.hold("slow")
    scene.result["slow"] = Result.FAIL
    await scene.turn()
    scene.rounds.disturbed()
    scene.result["slow"] = Result.PASS  # as it is once the cure is over
    go_on.set()
    await asyncio.wait_for(scene.rounds.late(), timeout=5)
    (result,) = scene.rounds.taken()
    assert (result.result, scene.begun.count("slow")) == (Result.PASS, 2)


async def test_a_look_that_came_back_during_a_cure_is_no_better(scene: Looks) -> None:
    go_on = scene.hold("slow")
    scene.result["slow"] = Result.UNKNOWN
    await scene.turn()
    go_on.set()
    await scene.settle()
    scene.result["slow"] = Result.PASS
    scene.rounds.disturbed()
    await asyncio.wait_for(scene.rounds.late(), timeout=5)
    assert [result.result for result in scene.rounds.taken()] == [Result.PASS]


async def test_a_disturbed_pass_counts_at_once(scene: Looks) -> None:
    go_on = scene.hold("slow")
    await scene.turn()
    scene.rounds.disturbed()
    go_on.set()
    await asyncio.wait_for(scene.rounds.late(), timeout=5)
    assert scene.begun.count("slow") == 1


async def test_cures_without_end_cannot_keep_a_finding_away(scene: Looks) -> None:
    go_on = scene.hold("slow")
    scene.result["slow"] = Result.FAIL
    await scene.turn()
    scene.rounds.disturbed()
    scene.held["slow"] = asyncio.Event()
    go_on.set()
    await scene.settle()
    assert scene.begun.count("slow") == 2
    scene.rounds.disturbed()
    scene.held["slow"].set()
    await asyncio.wait_for(scene.rounds.late(), timeout=5)
    assert ([result.result for result in scene.rounds.taken()], scene.begun.count("slow")) == ([Result.FAIL], 2)
    scene.clock.advance(60)
    scene.held["slow"] = asyncio.Event()
    await scene.turn()
    scene.rounds.disturbed()
    scene.held["slow"].set()
    await scene.settle()
    assert scene.begun.count("slow") == 4, "the next look is as good as the first was"


async def test_checks_that_hang_cost_a_task_each_however_long_it_goes_on() -> None:
    looks = Looks(*(f"c{number:02d}" for number in range(20)))
    for name in looks.checks:
        looks.hold(name)
    before = len(asyncio.all_tasks())
    for _ in range(20):
        assert await looks.turn() == []
        looks.clock.advance(3_600)
    assert len(asyncio.all_tasks()) - before == len(looks.under_way) == 20
    await looks.rounds.close(1.0)
    assert len(asyncio.all_tasks()) == before and looks.under_way == []


async def test_a_mistake_in_a_look_costs_that_look_alone(scene: Looks, capfd: Any) -> None:
    scene.error = ValueError("patient jane")
    assert await scene.turn() == []
    scene.error = None
    scene.clock.advance(60)
    assert await scene.turn() == ["a_quick", "b_quick", "slow"]
    shown = capfd.readouterr()
    assert "jane" not in shown.out + shown.err


async def test_what_has_to_be_looked_at_again_is_due(scene: Looks) -> None:
    await scene.turn()
    scene.rounds.due_again({"slow", "a_quick"})
    assert await scene.turn() == ["a_quick", "slow"]


async def test_with_endless_patience_everybody_waits(scene: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted fault: waiting for all, as it was before there were rounds."""
    monkeypatch.setattr(rounds, "PATIENCE_S", 3_600)
    scene.hold("slow")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(scene.turn(), timeout=0.2)
