"""The healing transaction: whatever fails, lies or dies, the host ends healed or as it was, and the record says which.

The matrices are exhaustive over one toy cure: every change of the host fails before or after its effect or lies, in every
pair; the agent dies at every commit and at every change, and once more while it recovers; the disk fills at every commit.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import pytest

from compliance_agent import healing
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.errors import StorageError
from compliance_agent.models import DriftResult, Result, Verdict
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.rollback import RollbackPoint
from compliance_agent.remedies.spec import Args
from compliance_agent.remedies.transaction import ENDINGS, Transaction
from tests.healing_bench import (
    FILE,
    STEPS,
    TABLE,
    UNIT,
    Bench,
    Crash,
    apply_unit,
    fingerprint,
    holds,
    is_healed,
)

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()


# --- faults as a matrix


FAULTS = ("before", "after", "lie")
SCRIPTS: list[dict[int, str]] = [{}, *({n: fault} for n in range(STEPS) for fault in FAULTS)]
SCRIPTS += [
    {first: fault, second: other}
    for first in range(STEPS)
    for second in range(first + 1, 2 * STEPS)
    for fault, other in itertools.product(FAULTS, FAULTS)
]


def name_of(script: dict[int, str]) -> str:
    return "-".join(f"{n}_{fault}" for n, fault in script.items()) or "no_fault"


@pytest.mark.parametrize("script", SCRIPTS, ids=name_of)
async def test_every_change_may_fail_or_lie(bench: Bench, script: dict[int, str]) -> None:
    former = fingerprint(bench.host)
    bench.host.script = script
    result = await bench.heal()
    holds(bench, result.outcome, former)
    assert result.reason in ENDINGS
    assert result.error is None or result.error.startswith("injected") or result.error in healing.CODES
    undo_failed = any(taken.result == "undo_failed" for taken in result.actions)
    if not script:
        assert result.outcome == "success"
    elif undo_failed or (fingerprint(bench.host) != former and not is_healed(bench.host)):
        assert result.outcome == "failed"
        assert result.error in {"injected_before", "injected_after", "not_restored"}
    else:
        assert result.outcome == "reverted"
    assert bench.attempts() == [result.outcome]


class BlindFaith(Transaction):
    """Planted: says healed without looking again."""

    async def _look(self, waits_s: Any) -> DriftResult:
        return DriftResult(self.point.check, False, verdict=Verdict(Result.PASS, "as_expected"))


class TrustingUndo(Transaction):
    """Planted: believes what an undo says of itself."""

    async def _not_restored(self) -> Any:
        return None


class ForgetsTheFailedStep(Transaction):
    """Planted: does not undo the step that failed, as if it had no effect."""

    async def _undo_steps(self) -> Any:
        self.stages = ["pending" if stage == "failed" else stage for stage in self.stages]
        return await super()._undo_steps()


@pytest.mark.parametrize("planted", [BlindFaith, TrustingUndo, ForgetsTheFailedStep])
async def test_the_matrix_catches_a_poor_transaction(
    tmp_path: Path, planted: type[Transaction], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "Transaction", planted)
    caught = 0
    for number, script in enumerate(SCRIPTS[:40]):
        bench = Bench(tmp_path / str(number))
        try:
            await test_every_change_may_fail_or_lie(bench, script)
        except AssertionError:
            caught += 1
        finally:
            bench.database.close()
    assert caught


# --- death at every commit and every change


class DyingDatabase(Database):
    """A database whose n-th commit from now on is the last thing that does, or does not, happen."""

    dies_at: int | None = None
    after: bool = False

    def write(self, fn: Callable[[Any], T], *, drains: bool = False) -> T:
        if self.dies_at is None:
            return super().write(fn, drains=drains)
        self.dies_at -= 1
        if self.dies_at == -1 and not self.after:
            raise Crash
        value = super().write(fn, drains=drains)
        if self.dies_at == -1:
            raise Crash
        return value


@dataclass(frozen=True)
class Death:
    """Where the agent dies: at the n-th commit or change from now, before or after it."""

    where: str
    number: int
    after: bool

    def plant(self, bench: Bench) -> None:
        database = bench.database
        if self.where == "commit":
            assert isinstance(database, DyingDatabase)
            database.dies_at, database.after = self.number, self.after
        else:
            at = len(bench.host.changed) + self.number
            bench.host.script[at] = "die_after" if self.after else "die_before"


def deaths(most: int = 40) -> Iterator[Death]:
    for number in range(most):
        for where, after in itertools.product(("commit", "change"), (False, True)):
            yield Death(where, number, after)


SITUATIONS: dict[str, dict[int, str]] = {
    "a good cure": {},
    "a step that fails": {2: "after"},
    "a step that lies": {0: "lie"},
}


async def live_until(bench: Bench, death: Death, work: Callable[[], Any]) -> bool:
    """Whether the agent died there. Afterwards the process is another one, and the host works."""
    death.plant(bench)
    try:
        await work()
    except Crash:
        died = True
    else:
        died = False
    bench.host.script = {}
    if isinstance(bench.database, DyingDatabase):
        bench.database.dies_at = None
    bench.restart()
    return died


async def end_well(bench: Bench, former: str) -> None:
    """Recovery brings any half-done cure to an end that the record tells truly."""
    before = bench.attempts()
    results = await bench.engine.recover()
    after = bench.attempts()
    assert len(after) <= 1
    assert "open" not in after
    assert len(results) == before.count("open")
    holds(bench, after[0] if after else None, former)
    for result in results:
        assert (result.recovered, result.found) == (True, "off")
        assert [result.outcome] == after
        assert result.reason in ENDINGS
    assert await bench.engine.recover() == []
    assert [result.outcome for result in await bench.engine.unsaid()] == after, "no record tells of it yet"
    assert all(outcome != "failed" for outcome in after)


@pytest.mark.parametrize("situation", SITUATIONS)
async def test_death_anywhere_is_recovered(tmp_path: Path, situation: str) -> None:
    last: dict[str, bool] = {}
    count = 0
    for number, death in enumerate(deaths()):
        bench = Bench(tmp_path / str(number), database=DyingDatabase)
        try:
            former = fingerprint(bench.host)
            bench.host.script = dict(SITUATIONS[situation])
            last[death.where] = await live_until(bench, death, bench.heal)
            await end_well(bench, former)
        finally:
            bench.database.close()
        count += last[death.where]
        if last and not any(last.values()) and death.number > 0:
            break
    else:
        pytest.fail("the cure never ran to its end")
    # begin with the first "started", the other marks but the last "done", close; each change; before and after
    assert count >= 2 * (2 * STEPS + STEPS)


@pytest.mark.slow
async def test_death_during_recovery_is_recovered(tmp_path: Path) -> None:
    """The second death comes anywhere in the recovery from the first, which came anywhere in a cure that fails."""
    firsts = [Death("commit", n, after=True) for n in range(12)] + [Death("change", n, after=True) for n in range(6)]
    for first in firsts:
        for second in deaths():
            bench = Bench(tmp_path / f"{first}-{second}", database=DyingDatabase)
            try:
                former = fingerprint(bench.host)
                bench.host.script = {2: "after"}
                await live_until(bench, first, bench.heal)
                died = await live_until(bench, second, bench.engine.recover)
                await end_well(bench, former)
            finally:
                bench.database.close()
            if not died and second.number > 6:
                break


class ForgetfulStore(HealingStore):
    """Planted: the rollback point is not durable before the first change."""

    def begin(self, point: RollbackPoint) -> None:
        return

    def mark(self, *_: Any) -> None:
        return


class EagerStore(HealingStore):
    """Planted: "started" is not durable before a step runs."""

    def begin(self, point: RollbackPoint) -> None:
        super().begin(replace(point, stages=()))

    def mark(self, point_id: str, step: int, stage: Any) -> None:
        if stage != "started":
            super().mark(point_id, step, stage)


@pytest.mark.parametrize("planted", [ForgetfulStore, EagerStore])
async def test_the_deaths_catch_an_engine_that_does_not_persist(
    tmp_path: Path, planted: type[HealingStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Bench.start.__globals__, "HealingStore", planted)
    with pytest.raises(AssertionError):
        await test_death_anywhere_is_recovered(tmp_path, "a good cure")


async def test_the_deaths_catch_an_engine_that_does_not_look_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(healing, "Transaction", BlindFaith)
    with pytest.raises(AssertionError):
        await test_death_anywhere_is_recovered(tmp_path, "a step that lies")


async def test_nothing_is_healed_before_recovery(tmp_path: Path) -> None:
    bench = Bench(tmp_path, database=DyingDatabase)
    assert await live_until(bench, Death("change", 1, after=True), bench.heal)
    held = await bench.heal()
    assert (held.outcome, held.reason, held.error) == ("deferred", "blocked", "recovery_pending")
    assert [result.outcome for result in await bench.engine.recover()] == ["reverted"]
    assert (await bench.heal()).outcome == "success"  # a power cut is no reason to reject the cure
    bench.database.close()


async def down_in_the_middle(bench: Bench, *, reboot: bool) -> list[str]:
    """The cure is cut off after its second change; what recovery then says."""
    assert await live_until(bench, Death("change", 1, after=True), bench.heal)
    if reboot:
        bench.host.boot_id = f"boot-{len(bench.attempts())}"
        bench.restart()
    return [result.outcome for result in await bench.engine.recover()]


async def test_a_cure_that_takes_its_host_down_is_not_tried_a_third_time(tmp_path: Path) -> None:
    """Once may be a power cut. Without this a generation that does not come up would be switched to at every start."""
    bench = Bench(tmp_path, database=DyingDatabase)
    former = fingerprint(bench.host)
    assert await down_in_the_middle(bench, reboot=True) == ["reverted"]
    assert await down_in_the_middle(bench, reboot=True) == ["reverted"]
    held = await bench.heal()
    assert (held.outcome, held.reason, fingerprint(bench.host)) == ("rejected", "rejected_target", former)
    bench.engine.forgive("toy")
    assert (await bench.heal()).outcome == "success"
    bench.database.close()


async def test_an_agent_that_is_restarted_in_the_middle_is_another_thing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, database=DyingDatabase)
    for _ in range(4):
        assert await down_in_the_middle(bench, reboot=False) == ["reverted"]
    assert (await bench.heal()).outcome == "success"
    bench.database.close()


async def test_long_ago_does_not_count(tmp_path: Path) -> None:
    bench = Bench(tmp_path, database=DyingDatabase)
    for _ in range(3):
        assert await down_in_the_middle(bench, reboot=True) == ["reverted"]
        bench.clock.advance(healing.DOWN_AGAIN_WITHIN_S + 1)
    assert (await bench.heal()).outcome == "success"
    bench.database.close()


async def test_a_point_of_another_version_is_owned_up_to(tmp_path: Path) -> None:
    """What this version does not know it cannot undo; it says so and goes on."""
    bench = Bench(tmp_path, database=DyingDatabase)
    assert await live_until(bench, Death("change", 1, after=True), bench.heal)
    bench.restart(table={"put_word": FILE})
    (result,) = await bench.engine.recover()
    assert (result.outcome, result.error, result.recovered) == ("failed", "unknown_action", True)
    assert bench.engine.store.open_points() == ()
    bench.database.close()


async def test_a_damaged_point_is_owned_up_to(tmp_path: Path) -> None:
    bench = Bench(tmp_path, database=DyingDatabase)
    assert await live_until(bench, Death("change", 1, after=True), bench.heal)
    bench.database.write(lambda connection: connection.execute("UPDATE heal_point SET captured = '[1'").close())
    (result,) = await bench.engine.recover()
    assert (result.check, result.outcome, result.error) == ("toy", "failed", "unreadable_point")
    assert bench.engine.store.open_points() == ()
    bench.database.close()


async def test_lost_stages_are_all_undone(tmp_path: Path) -> None:
    bench = Bench(tmp_path, database=DyingDatabase)
    former = fingerprint(bench.host)
    assert await live_until(bench, Death("change", 1, after=True), bench.heal)
    bench.database.write(lambda connection: connection.execute("DELETE FROM heal_step WHERE step = 0").close())
    (result,) = await bench.engine.recover()
    assert (result.outcome, fingerprint(bench.host)) == ("reverted", former)
    bench.database.close()


async def test_a_decision_to_undo_stands_after_a_crash(tmp_path: Path) -> None:
    """A check that passes by half an undo, or by now, does not turn what was rejected into a success."""
    bench = Bench(tmp_path, database=DyingDatabase)
    former, drift = fingerprint(bench.host), await bench.observe("toy")
    bench.blind = True
    assert await live_until(bench, Death("change", STEPS, after=False), lambda: bench.engine.remediate(drift))
    bench.blind = False
    assert is_healed(bench.host)
    (result,) = await bench.engine.recover()
    assert (result.outcome, result.reason) == ("reverted", "check_not_passed")
    assert fingerprint(bench.host) == former
    bench.database.close()


async def test_a_cancelled_cure_leaves_its_rollback_point_open(bench: Bench) -> None:
    former = fingerprint(bench.host)
    reached = asyncio.Event()

    async def hang(host: ChangingHost, args: Args) -> None:
        await apply_unit(host, args)
        reached.set()
        await asyncio.Event().wait()

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, apply=hang)})
    task = asyncio.create_task(bench.heal())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    (point,) = bench.engine.store.open_points()
    assert point.stages == ("done", "done", "started")
    bench.restart()
    await bench.observe("toy")
    (result,) = await bench.engine.recover()  # the unit did start: the check passes now
    assert (result.outcome, result.reason, result.recovered) == ("success", "recovered", True)
    assert former != fingerprint(bench.host)


# --- a disk that fails


class FullDatabase(Database):
    """A database that takes no more writes from the n-th on."""

    fails_from: int | None = None

    def write(self, fn: Callable[[Any], T], *, drains: bool = False) -> T:
        if self.fails_from is not None:
            self.fails_from -= 1
            if self.fails_from < 0:
                raise StorageError("scripted", code="storage_full")
        return super().write(fn, drains=drains)


@pytest.mark.parametrize("number", range(10))
async def test_a_full_disk_never_leaves_the_host_half_changed(tmp_path: Path, number: int) -> None:
    bench = Bench(tmp_path, database=FullDatabase)
    assert isinstance(bench.database, FullDatabase)
    former = fingerprint(bench.host)
    bench.database.fails_from = number
    result = await bench.heal()
    if result.outcome == "success":
        assert is_healed(bench.host)
    else:
        assert fingerprint(bench.host) == former
        assert result.outcome == ("alert" if number == 0 else "failed")
        assert "storage" in f"{result.reason}{result.error}"
    bench.restart()
    for recovered in await bench.engine.recover():
        assert recovered.outcome == ("success" if is_healed(bench.host) else "reverted")
    assert bench.engine.store.open_points() == ()
    bench.database.close()
