"""The healing transaction: whatever fails, lies or dies, the host ends healed or as it was, and the record says which.

The matrices are exhaustive over one toy cure: every change of the host fails before or after its effect or lies, in every
pair; the agent dies at every commit and at every change, and once more while it recovers.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, time
from pathlib import Path
from typing import Any, TypeVar

import pytest

from compliance_agent import healing
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.baseline import Baseline, Entry, Exemption
from compliance_agent.checks.spec import Check, CheckSpec
from compliance_agent.config import AgentConfig
from compliance_agent.errors import CannotTell, StepFailed, StorageError
from compliance_agent.healing import HealingEngine
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.models import DriftResult, Mode, Outcome, Plan, RemediationResult, Result, Severity, Step, Verdict
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.rollback import RollbackPoint
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.transaction import ENDINGS, Transaction

pytestmark = pytest.mark.anyio
T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# --- a toy clinic: two files and a unit, and a cure for them


class Crash(BaseException):
    """The power went."""


@dataclass
class ToyHost(FakeHost):
    """A host whose n-th change goes as the script says: before, after, lie, die_before, die_after."""

    script: dict[int, str] = field(default_factory=dict)

    def _change(self, target: str, effect: Callable[[], None]) -> None:
        fault = self.script.get(len(self.changed))
        self.changed.append(target)
        if fault == "die_before":
            raise Crash
        if fault == "before":
            raise StepFailed("scripted", code="injected_before", exit_status_of_step=7)
        if fault != "lie":
            effect()
        if fault == "after":
            raise StepFailed("scripted", code="injected_after")
        if fault == "die_after":
            raise Crash


def drifted_host(clock: FakeClock | None = None) -> ToyHost:
    host = ToyHost(clock or FakeClock())
    host.put("/etc/a", "off\n", mode=0o600)
    host.place("/etc/dir/keep", replace(host.files["/etc/a"]))  # so that the directory of the absent file is there
    host.units_table["toy.service"] = Unit(active=False, enabled="disabled")
    host.script, host.changed = {}, []
    return host


def fingerprint(host: FakeHost) -> str:
    """The host's state, without the times at which it was written."""
    files = {path: (node.kind, node.content.hex(), node.mode) for path, node in host.files.items()}
    units = {name: (unit.active, unit.enabled, unit.failed) for name, unit in host.units_table.items()}
    return json.dumps([files, units], sort_keys=True)


def is_healed(host: FakeHost) -> bool:
    contents = [host.files[path].content if path in host.files else b"" for path in ("/etc/a", "/etc/dir/b")]
    return contents == [b"on\n", b"on\n"] and host.units_table["toy.service"].active


async def capture_file(host: ChangingHost, args: Args) -> Any:
    path = str(args["path"])
    try:
        return {"content": (await host.read(path)).hex(), "mode": (await host.stat(path)).mode}
    except CannotTell as error:
        if error.reason != "not_found":
            raise
        return None


async def apply_file(host: ChangingHost, args: Args) -> None:
    await host.write(str(args["path"]), f"{args['word']}\n".encode(), mode=0o600)


async def undo_file(host: ChangingHost, args: Args, captured: Any) -> None:
    if captured is None:
        await host.remove(str(args["path"]))
    else:
        await host.write(str(args["path"]), bytes.fromhex(captured["content"]), mode=captured["mode"])


async def capture_unit(host: ChangingHost, args: Args) -> Any:
    return {"active": (await host.units([str(args["unit"])]))[str(args["unit"])].active == "active"}


async def apply_unit(host: ChangingHost, args: Args) -> None:
    await host.unit_action("start", str(args["unit"]))


async def undo_unit(host: ChangingHost, args: Args, captured: Any) -> None:
    await host.unit_action("start" if captured["active"] else "stop", str(args["unit"]))


FILE = Action("put_word", "Write {word} to {path}", {"path": str, "word": str}, capture_file, apply_file, undo_file)
UNIT = Action("start_toy", "Start {unit}", {"unit": str}, capture_unit, apply_unit, undo_unit)
TABLE = {action.id: action for action in (FILE, UNIT)}
PLAN = Plan(
    "toy",
    (
        Step("put_word", {"path": "/etc/a", "word": "on"}),
        Step("put_word", {"path": "/etc/dir/b", "word": "on"}),
        Step("start_toy", {"unit": "toy.service"}),
    ),
    target="toy-on",
)
STEPS = len(PLAN.steps)


def toy_check(name: str) -> Check:
    spec = CheckSpec(name, "Toy is on", Severity.LOW, "", (), object, object, {"off": "it is off"})
    return Check(spec, None, None, None, ())  # type: ignore[arg-type]  # the engine never calls them


def toy_baseline(*names: str, mode: Mode = Mode.ENFORCE, sha256: str = "a" * 64, **more: Any) -> Baseline:
    entries = {name: Entry(toy_check(name), mode, 60, 10.0, None, {}) for name in names or ("toy",)}
    return Baseline("2026.11.1", sha256, Mode.ENFORCE, entries, **more)


def config(directory: Path, **more: Any) -> AgentConfig:
    given = {"client_id": "c", "site_id": "s", "host_id": "h", "state_dir": directory, "healing_cooldown_sec": 0}
    return AgentConfig(**{**given, "flap_window_sec": 86_400, **more})


class Bench:
    """One host and one database; engines come and go, as the process does."""

    def __init__(self, directory: Path, *, database: type[Database] = Database, **settings: Any) -> None:
        self.config = config(directory, **settings)
        self.clock = FakeClock()
        self.host = drifted_host(self.clock)
        self.baseline = toy_baseline()
        self.looks = 0
        self.blind = False
        self.database_kind = database
        self.database: Database
        self.engine: HealingEngine
        self.start()

    def start(self, **more: Any) -> None:
        """A new process on the same host and disk."""
        self.database = self.database_kind(self.config.database_path, threaded=False, reserve_kb=0)
        self.engine = HealingEngine(
            self.config,
            **{
                "host": self.host,
                "baseline": self.baseline,
                "observe": self.observe,
                "store": HealingStore(self.database),
                "clock": self.clock,
                "table": TABLE,
                "settle_s": (0.0,),
                **more,
            },
        )

    def restart(self, **more: Any) -> None:
        self.database.close()
        self.start(**more)

    async def observe(self, check: str) -> DriftResult:
        self.looks += 1
        if self.blind:
            raise CannotTell("timed_out")
        if is_healed(self.host):
            return DriftResult(check, False, {"on": True}, verdict=Verdict(Result.PASS, "as_expected"))
        plan = replace(PLAN, check=check)
        return DriftResult(check, True, {"on": False}, verdict=Verdict(Result.FAIL, "off"), plan=plan)

    async def heal(self, check: str = "toy") -> RemediationResult:
        return await self.engine.remediate(await self.observe(check))

    def attempts(self) -> list[str]:
        return [attempt.outcome for attempt in self.engine.store.recall("toy", "", "").history]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = Bench(tmp_path)
    yield made
    made.database.close()


def holds(bench: Bench, outcome: str | None, former: str) -> None:
    """The promise: healed and recorded so, or as it was and recorded so, or a failure that is owned up to."""
    assert bench.engine.store.open_points() == ()
    if outcome == Outcome.SUCCESS:
        assert is_healed(bench.host)
    elif outcome != Outcome.FAILED:
        assert outcome in {None, Outcome.REVERTED, Outcome.DEFERRED, Outcome.ALERT, Outcome.REJECTED}
        assert fingerprint(bench.host) == former


# --- the plain cases


async def test_a_cure_is_kept_when_the_check_itself_passes(bench: Bench) -> None:
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("success", "healed", None)
    assert [(taken.step, taken.action, taken.result) for taken in result.actions] == [
        (1, "put_word", "ok"),
        (2, "put_word", "ok"),
        (3, "start_toy", "ok"),
    ]
    assert (result.pre_state, result.post_state) == ({"on": False}, {"on": True})
    assert (result.post_result, result.rollback_available) == ("pass", True)
    assert bench.looks == 2
    assert is_healed(bench.host)
    assert bench.attempts() == ["success"]


async def test_a_failed_step_is_undone_with_all_before_it(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.host.script = {1: "after"}
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "step_failed", "injected_after")
    assert [(taken.step, taken.result, taken.code) for taken in result.actions] == [
        (1, "ok", None),
        (2, "failed", "injected_after"),
        (3, "skipped", None),
        (2, "undone", None),
        (1, "undone", None),
    ]
    assert (result.post_result, fingerprint(bench.host)) == ("fail", former)


async def test_the_exit_status_of_a_step_is_kept(bench: Bench) -> None:
    bench.host.script = {0: "before"}
    result = await bench.heal()
    assert (result.actions[0].exit_code, result.actions[0].code) == (7, "injected_before")


async def test_a_cure_that_does_not_help_is_undone(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.host.script = {2: "lie"}
    result = await bench.heal()
    assert (result.outcome, result.reason, result.error) == ("reverted", "check_not_passed", "check_fail")
    assert fingerprint(bench.host) == former


@pytest.mark.parametrize("how", ["cannot_tell", "crash"])
async def test_a_cure_that_cannot_be_confirmed_is_undone(bench: Bench, how: str) -> None:
    """Could not tell is never healed."""
    former, drift = fingerprint(bench.host), await bench.observe("toy")
    bench.blind = how == "cannot_tell"

    async def crash(check: str) -> DriftResult:
        raise KeyError(check)

    if how == "crash":
        bench.restart(observe=crash)
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.error, result.post_result) == ("reverted", "check_unknown", "unknown")
    assert fingerprint(bench.host) == former


async def test_it_waits_for_a_service_that_takes_a_moment(bench: Bench) -> None:
    bench.restart(settle_s=(0.0, 1.0, 3.0))
    drift = await bench.observe("toy")
    before = bench.clock.monotonic()
    answers = iter([True, False])

    async def slow(check: str) -> DriftResult:
        return drift if next(answers) else await bench.observe(check)

    bench.restart(settle_s=(0.0, 1.0, 3.0), observe=slow)
    assert (await bench.engine.remediate(drift)).outcome == "success"
    assert bench.clock.monotonic() - before == 1.0


async def test_a_step_that_hangs_is_given_up_and_undone(bench: Bench) -> None:
    former = fingerprint(bench.host)

    async def hang(host: ChangingHost, args: Args) -> None:
        await apply_unit(host, args)
        await asyncio.Event().wait()

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, apply=hang, deadline_s=0.02)})
    result = await bench.heal()
    assert (result.outcome, result.error) == ("reverted", "timed_out")
    assert fingerprint(bench.host) == former


async def test_a_bug_in_an_action_is_undone_like_any_failure(bench: Bench) -> None:
    former = fingerprint(bench.host)

    async def buggy(host: ChangingHost, args: Args) -> None:
        await apply_unit(host, args)
        raise ZeroDivisionError

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, apply=buggy)})
    result = await bench.heal()
    assert (result.outcome, result.error) == ("reverted", "crashed")
    assert fingerprint(bench.host) == former


async def test_without_the_former_state_nothing_is_changed(bench: Bench) -> None:
    drift = await bench.observe("toy")
    bench.host.faults.blind("unit:toy.service", "tool_missing")
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.reason, result.error) == ("alert", "capture_failed", "tool_missing")
    assert bench.host.changed == []
    assert bench.attempts() == []


@pytest.mark.parametrize("reason", ["no_cure", "needs_hands"])
async def test_drift_without_a_cure_is_an_alert(bench: Bench, reason: str) -> None:
    drift = replace(await bench.observe("toy"), plan=None, no_plan_reason=None if reason == "no_cure" else reason)
    result = await bench.engine.remediate(drift)
    assert (result.outcome, result.reason, bench.host.changed) == ("alert", reason, [])


@pytest.mark.parametrize(
    "step",
    [
        Step("no_such_action"),
        Step("start_toy"),
        Step("start_toy", {"unit": 1}),
        Step("start_toy", {"unit": "toy.service", "more": "x"}),
    ],
)
async def test_a_plan_outside_the_table_is_a_mistake_of_the_program(bench: Bench, step: Step) -> None:
    drift = replace(await bench.observe("toy"), plan=Plan("toy", (PLAN.steps[0], step)))
    with pytest.raises(RuntimeError, match="plan of toy, step 2"):
        await bench.engine.remediate(drift)
    assert bench.host.changed == []


async def test_a_capture_that_is_not_json_is_a_mistake_of_the_program(bench: Bench) -> None:
    async def bad(host: ChangingHost, args: Args) -> Any:
        return {"content": b"bytes"}

    bench.restart(table={**TABLE, "put_word": replace(FILE, capture=bad)})
    with pytest.raises(RuntimeError, match="plain JSON"):
        await bench.heal()
    assert bench.host.changed == []


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
        assert result.recovered
        assert [result.outcome] == after
        assert result.reason in ENDINGS
    assert await bench.engine.recover() == []
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
    assert count >= 2 * (2 * STEPS + 2 + STEPS)  # begin, two marks a step, close; each change; before and after


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


# --- may we?


async def test_audit_mode_changes_nothing(bench: Bench) -> None:
    former = fingerprint(bench.host)
    bench.engine.baseline = toy_baseline(mode=Mode.AUDIT)
    result = await bench.heal()
    assert (result.outcome, result.reason) == ("alert", "mode_audit")
    assert (fingerprint(bench.host), bench.host.changed, bench.attempts()) == (former, [], [])


async def test_a_check_that_the_baseline_does_not_list_is_only_looked_at(bench: Bench) -> None:
    result = await bench.heal("other")
    assert (result.outcome, result.reason, bench.host.changed) == ("alert", "mode_audit", [])


async def test_a_pause_survives_a_restart(bench: Bench) -> None:
    bench.engine.pause()
    bench.restart()
    assert bench.engine.paused
    assert (await bench.heal()).reason == "paused"
    bench.engine.resume()
    assert (await bench.heal()).outcome == "success"


async def test_an_exception_holds_it_back_until_it_ends(bench: Bench) -> None:
    until = datetime(2026, 11, 23, tzinfo=UTC)
    bench.engine.baseline = toy_baseline(exceptions=(Exemption("exc-1", "toy", ("off",), "j.doe", until),))
    result = await bench.heal()
    assert (result.outcome, result.reason, result.not_before) == ("deferred", "exception", until)
    bench.clock.advance(86_400)
    assert (await bench.heal()).outcome == "success"


async def test_what_was_rolled_back_is_not_tried_again(bench: Bench) -> None:
    bench.host.script = {2: "before"}
    assert (await bench.heal()).outcome == "reverted"
    bench.restart()
    assert (await bench.heal()).reason == "rejected_target"
    bench.engine.baseline = toy_baseline(sha256="b" * 64)  # the baseline changed: it may be another matter now
    assert (await bench.engine.preview(await bench.observe("toy"))).decision.allowed
    bench.engine.baseline = toy_baseline()
    drift = await bench.observe("toy")
    other_target = replace(drift, plan=replace(PLAN, target="toy-on-2"))
    assert (await bench.engine.preview(other_target)).decision.allowed
    bench.engine.forgive("toy")
    assert (await bench.heal()).outcome == "success"


async def test_a_disruptive_cure_waits_for_window_and_approval(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, approval_for_disruptive=True, maintenance_window_start=time(13), maintenance_window_end=time(14)
    )
    drift = await bench.observe("toy")
    drift = replace(drift, plan=replace(PLAN, disruptive=True, disturbs="restarts_service"))
    held = await bench.engine.remediate(drift)
    assert (held.reason, held.not_before) == ("outside_window", datetime(2026, 11, 22, 13, tzinfo=UTC))
    bench.clock.advance(3_600)
    assert (await bench.engine.remediate(drift)).reason == "approval_required"
    bench.engine.approve("toy", (await bench.engine.preview(drift)).target)
    bench.restart()
    assert (await bench.engine.remediate(drift)).outcome == "success"
    bench.host.put("/etc/a", "off\n", mode=0o600)
    assert (await bench.engine.remediate(drift)).reason == "approval_required"  # it stood for one cure
    bench.database.close()


async def test_an_approval_ends_after_seven_days(tmp_path: Path) -> None:
    bench = Bench(
        tmp_path, approval_for_disruptive=True, maintenance_window_start=time(0), maintenance_window_end=time(0)
    )
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    bench.engine.approve("toy", "toy-on")
    bench.clock.advance(7 * 86_400 - 1)
    assert (await bench.engine.preview(drift)).decision.allowed
    bench.clock.advance(1)
    assert (await bench.engine.preview(drift)).decision.reason == "approval_required"
    bench.database.close()


async def test_a_disruptive_cure_needs_the_lease_where_one_is_asked_for(tmp_path: Path) -> None:
    bench = Bench(tmp_path, maintenance_window_start=time(0), maintenance_window_end=time(0))
    asked: list[bool] = [False, True]

    async def lease(drift: DriftResult) -> bool:
        return asked.pop(0)

    bench.restart(lease=lease)
    drift = replace(await bench.observe("toy"), plan=replace(PLAN, disruptive=True))
    assert (await bench.engine.preview(drift)).decision.allowed
    assert asked == [False, True]  # a preview takes no lease
    assert (await bench.engine.remediate(drift)).reason == "lease_required"
    assert (await bench.engine.remediate(drift)).outcome == "success"
    bench.database.close()


@pytest.mark.parametrize(("said", "detail"), [("lock_held", "lock_held"), (None, None), ("blind", "tool_missing")])
async def test_an_action_may_say_what_is_in_the_way(bench: Bench, said: str | None, detail: str | None) -> None:
    async def blocked(host: Any, args: Args) -> str | None:
        if said == "blind":
            raise CannotTell("tool_missing")
        return said

    bench.restart(table={**TABLE, "start_toy": replace(UNIT, blocked=blocked)})
    result = await bench.heal()
    assert (result.outcome, result.error) == (("deferred", detail) if detail else ("success", None))


async def test_a_preview_shows_the_plan_that_would_run_and_changes_nothing(bench: Bench) -> None:
    former = fingerprint(bench.host)
    preview = await bench.engine.preview(await bench.observe("toy"))
    assert preview.text().splitlines() == [
        "toy: would run now",
        "  1. Write on to /etc/a",
        "  2. Write on to /etc/dir/b",
        "  3. Start toy.service",
    ]
    bench.engine.pause()
    assert (await bench.engine.preview(await bench.observe("toy"))).text().startswith("toy: held back: paused\n")
    assert (fingerprint(bench.host), bench.host.changed, bench.attempts()) == (former, [], [])


# --- it never fights


def revert(bench: Bench) -> None:
    """The opponent: back to off, every second, so before every look."""
    bench.host.put("/etc/a", "off\n", mode=0o600)


@pytest.mark.parametrize("flap_window_s", [3_600, 86_400])
async def test_an_opponent_who_reverts_for_a_day_is_not_fought(tmp_path: Path, flap_window_s: int) -> None:
    bench = Bench(tmp_path, flap_window_sec=flap_window_s, healing_cooldown_sec=300)
    healed_at: list[float] = []
    alerts: list[float] = []
    cycles = itertools.count()
    start = bench.clock.monotonic()
    while bench.clock.monotonic() - start < 86_400:
        if next(cycles) % 97 == 50:  # the agent restarts and somebody plays with the wall clock
            bench.restart()
            bench.clock.step(-3_000 if next(cycles) % 2 else 3_000)
        revert(bench)
        result = await bench.heal()
        now = bench.clock.monotonic()
        healed_at += [now] * (result.outcome == "success")
        alerts += [now] * (result.outcome == "alert")
        assert result.outcome in {"success", "deferred", "alert"}
        bench.clock.advance(60)
    for moment in healed_at:
        assert sum(moment <= other < moment + flap_window_s for other in healed_at) <= 5
    for moment in alerts:
        assert sum(moment <= other < moment + flap_window_s for other in alerts) == 1
    assert len(healed_at) >= 5
    assert len(alerts) >= 1
    if flap_window_s == 86_400:
        assert (len(healed_at), len(alerts)) == (5, 1)
    bench.database.close()


async def test_the_budget_of_the_host_holds_over_restarts_and_clock_jumps(tmp_path: Path) -> None:
    names = [f"toy_{number}" for number in range(30)]
    bench = Bench(tmp_path, healing_budget_per_hour=20)
    bench.baseline = toy_baseline(*names)
    bench.restart()
    outcomes = []
    for number, name in enumerate(names):
        if number % 3 == 0:
            bench.restart()
            bench.clock.step((-1) ** number * 7_200.0)
        revert(bench)
        result = await bench.heal(name)
        outcomes.append(result.outcome if result.outcome == "success" else result.reason)
        bench.clock.advance(10)
    assert outcomes == ["success"] * 20 + ["budget"] * 10
    bench.clock.advance(3_600)
    revert(bench)
    assert (await bench.heal(names[-1])).outcome == "success"
    bench.database.close()


async def test_by_default_it_remembers_in_the_agents_database(tmp_path: Path) -> None:
    """`HealingEngine(config)` needs nothing else; here with a host and a clock of its own, and the writer thread."""
    host = drifted_host()
    bench = Bench(tmp_path / "other")
    engine = HealingEngine(
        config(tmp_path), host=host, baseline=toy_baseline(), clock=FakeClock(), table=TABLE, observe=bench.observe
    )
    bench.host = host
    assert (await engine.remediate(await bench.observe("toy"))).outcome == "success"
    bench.database.close()
    engine.close()
    database = Database(tmp_path / "agent.db", threaded=False)
    assert [attempt.outcome for attempt in HealingStore(database).recall("toy", "", "").history] == ["success"]
    database.close()


async def test_two_drifts_at_once_are_healed_one_after_the_other(bench: Bench) -> None:
    bench.engine.baseline = toy_baseline("toy", "toy_2")
    drifts = [await bench.observe("toy"), await bench.observe("toy_2")]
    results = await asyncio.gather(*(bench.engine.remediate(drift) for drift in drifts))
    assert [result.outcome for result in results] == ["success", "success"]
    assert bench.host.changed == ["path:/etc/a", "path:/etc/dir/b", "unit:toy.service"] * 2
