"""A toy clinic for the tests of healing: two files and a unit, and a cure for them. Engines come and go; host and disk stay."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.baseline import Baseline, Entry
from compliance_agent.checks.spec import Check, CheckSpec
from compliance_agent.config import AgentConfig
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.healing import HealingEngine
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.models import DriftResult, Mode, Outcome, Plan, RemediationResult, Result, Severity, Step, Verdict
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args


class Crash(BaseException):
    """The power went."""


@dataclass(eq=False)
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
    reasons = {"off": "it is off", "unsigned": "nobody has signed that it may be on"}
    spec = CheckSpec(name, "Toy is on", Severity.LOW, "", (), object, object, reasons, for_people=("unsigned",))
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
        self.left: Verdict | None = None  # what the check says when the cure has worked, other than a pass
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
        if is_healed(self.host) and self.left is not None:
            return DriftResult(check, self.left.result is Result.FAIL, {"on": True}, verdict=self.left)
        if is_healed(self.host):
            return DriftResult(check, False, {"on": True}, verdict=Verdict(Result.PASS, "as_expected"))
        plan = replace(PLAN, check=check)
        return DriftResult(check, True, {"on": False}, verdict=Verdict(Result.FAIL, "off"), plan=plan)

    async def heal(self, check: str = "toy") -> RemediationResult:
        return await self.engine.remediate(await self.observe(check))

    def attempts(self) -> list[str]:
        return [attempt.outcome for attempt in self.engine.store.recall("toy", "", "").history]


def holds(bench: Bench, outcome: str | None, former: str) -> None:
    """The promise: healed and recorded so, or as it was and recorded so, or a failure that is owned up to."""
    assert bench.engine.store.open_points() == ()
    if outcome == Outcome.SUCCESS:
        assert is_healed(bench.host)
    elif outcome != Outcome.FAILED:
        assert outcome in {None, Outcome.REVERTED, Outcome.DEFERRED, Outcome.ALERT, Outcome.REJECTED}
        assert fingerprint(bench.host) == former
