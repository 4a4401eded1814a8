"""What every check must keep, as functions over a check and a host that passes it. No test here: test_contract.py runs
them over the registry, and over toy checks that are broken on purpose.

`Asked` stands between a check and its host. It counts the questions and spoils the answer to one of them, so the faults of
"could not tell is never fine" are generated from what a check really asks, not from what its author thought of.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import json
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import PurePosixPath
from typing import Any

from compliance_agent import facts
from compliance_agent.baseline import Baseline, Entry, names_of
from compliance_agent.checks.spec import COMMON_REASONS, Check, Unreadable, judge_seen
from compliance_agent.config import AgentConfig
from compliance_agent.core.citations import objection
from compliance_agent.core.nftables import LIST
from compliance_agent.core.waking import sources
from compliance_agent.drift import DriftDetector
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.faults import GARBAGE
from compliance_agent.lab.host import FakeHost, digests_of, stats_of
from compliance_agent.models import ClockState, DriftResult, Mode, Plan, Result, Step
from compliance_agent.ports import ChangingHost, FileDigest, FileStat, Ran, UnitState
from compliance_agent.remedies.plan import resolve
from compliance_agent.remedies.spec import Action

REFUSALS = ("not_found", "not_permitted", "timed_out", "tool_missing", "output_too_large", "io_error")
STRANGE_UNITS = (
    UnitState("not-found", "inactive", "dead", ""),
    UnitState("error", "inactive", "dead", ""),
    UnitState("loaded", "failed", "failed", "enabled"),
    UnitState("loaded", "activating", "auto-restart", "enabled"),
    UnitState("masked", "inactive", "dead", "masked"),
    UnitState("", "", "", ""),
    UnitState("loaded", "\ufffd", "", ""),
)
HANDLES = re.compile(r"'handle': \d+|last_handle=\d+")  # nft counts them up whatever is loaded
Factory = Callable[[], FakeHost]


@dataclass(frozen=True)
class Question:
    """One question of a check to its host, as faults.py writes targets; `words` are what it said to a program or socket."""

    kind: str
    target: str
    words: tuple[str | bytes, ...] = ()


@dataclass(frozen=True)
class Spoiled:
    """A fault in the answer to one question, however often it is asked: a refusal, another answer in place of the true
    one (which is then not even looked for: a program does not run), or a change of the true one."""

    question: Question
    name: str
    refusal: str | None = None
    change: Callable[[Any], Any] | None = None
    instead: Any = None


class Asked:
    """A host between: notes every question and spoils the answer to at most one."""

    def __init__(self, host: FakeHost, spoiled: Spoiled | None = None) -> None:
        self.host = host
        self.spoiled = spoiled
        self.questions: list[Question] = []
        self.altered = False

    async def _answer(self, question: Question, truth: Callable[[], Any]) -> Any:
        self.questions.append(question)
        spoiled = self.spoiled
        if spoiled is None or question != spoiled.question:
            return await truth()
        if spoiled.refusal is not None:
            self.altered = True
            raise CannotTell(spoiled.refusal, errno_name="EIO" if spoiled.refusal == "io_error" else None)
        if spoiled.change is None:
            self.altered = True
            return spoiled.instead
        true = await truth()
        answer = spoiled.change(true)
        self.altered = self.altered or answer != true
        return answer

    async def read(self, path: str, *, limit_bytes: int = 1_048_576) -> bytes:
        answer: bytes = await self._answer(
            Question("read", f"path:{path}"), lambda: self.host.read(path, limit_bytes=limit_bytes)
        )
        return _within(limit_bytes, answer)

    async def stat(self, path: str) -> FileStat:
        return typing.cast(FileStat, await self._answer(Question("stat", f"stat:{path}"), lambda: self.host.stat(path)))

    async def stats(self, paths: Sequence[str]) -> Mapping[str, FileStat | CannotTell]:
        return await stats_of(self, paths)

    async def whole(self, path: str) -> tuple[FileStat, bytes]:
        return await self.stat(path), await self.read(path)

    async def list(self, path: str) -> tuple[str, ...]:
        return tuple(await self._answer(Question("list", f"list:{path}"), lambda: self.host.list(path)))

    async def digests(
        self, paths: Sequence[str], *, most_bytes: int, total_bytes: int
    ) -> Mapping[str, FileDigest | CannotTell]:
        return await digests_of(self, paths, most_bytes, total_bytes)

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float = 10.0,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
    ) -> Ran:
        async def truth() -> Ran:
            return await self.host.run(argv, timeout_s=timeout_s, stdin=stdin, limit_bytes=limit_bytes, env=env)

        answer: Ran = await self._answer(Question("run", f"program:{argv[0]}", tuple(argv)), truth)
        _within(limit_bytes, answer.out + answer.err)
        return answer

    async def ruleset(self) -> Ran:
        return await self.run(LIST)

    async def sound_tls(self, port: int, name: str, **how: typing.Any) -> bytes | None:
        return await self.host.sound_tls(port, name, **how)

    async def units(self, names: Sequence[str]) -> Mapping[str, UnitState]:
        answer = await self._answer(Question("units", f"unit:{' '.join(names)}"), lambda: self.host.units(names))
        return typing.cast(Mapping[str, UnitState], answer)

    async def ask(
        self, socket_path: str, request: bytes, *, timeout_s: float = 5.0, limit_bytes: int = 65_536
    ) -> bytes:
        async def truth() -> bytes:
            return await self.host.ask(socket_path, request, timeout_s=timeout_s, limit_bytes=limit_bytes)

        answer: bytes = await self._answer(Question("ask", f"socket:{socket_path}", (request,)), truth)
        return _within(limit_bytes, answer)

    async def clock_state(self) -> ClockState:
        return typing.cast(ClockState, await self._answer(Question("clock", "clock:"), self.host.clock_state))

    def now(self) -> datetime:
        return self.host.now()

    async def pause(self, seconds: float) -> None:
        await self.host.pause(seconds)


def _within(limit_bytes: int, answer: bytes) -> bytes:
    if len(answer) > limit_bytes:
        raise CannotTell("output_too_large")
    return answer


def faults_for(question: Question) -> list[Spoiled]:
    """Every way to spoil the answer to one question."""
    found = [Spoiled(question, reason, refusal=reason) for reason in REFUSALS]

    def instead(name: str, answer: object) -> None:
        found.append(Spoiled(question, name, instead=answer))

    def changed(name: str, change: Callable[[Any], Any]) -> None:
        found.append(Spoiled(question, name, change=change))

    if question.kind == "run":
        for n, raw in enumerate(GARBAGE):
            instead(f"garbage_{n}", Ran(0, raw, b""))
            instead(f"garbage_{n}_exit_1", Ran(1, raw, b""))
        instead("huge", Ran(0, b"A" * 3_000_000, b""))
        changed("good_but_exit_1", lambda ran: replace(ran, exit_status=1))
        changed("good_but_killed", lambda ran: replace(ran, exit_status=-9))
        changed("cut", lambda ran: replace(ran, out=ran.out[: len(ran.out) // 2]))
    elif question.kind in {"read", "ask"}:
        for n, raw in enumerate(GARBAGE):
            instead(f"garbage_{n}", raw)
        instead("huge", b"A" * 3_000_000)
        changed("cut", lambda raw: raw[: len(raw) // 2])
    elif question.kind == "list":
        instead("empty", ())
    elif question.kind == "units":
        for name in question.target.removeprefix("unit:").split(" "):
            for n, state in enumerate(STRANGE_UNITS):
                changed(f"strange_unit_{n}_{name}", functools.partial(_with_unit, name, state))
    return found


def _with_unit(name: str, state: UnitState, units: Mapping[str, UnitState]) -> Mapping[str, UnitState]:
    return {**units, name: state}


# -- one look, by the same way as the agent's


def parameters_of(check: Check, **changes: Any) -> Any:
    """The check's example parameters, with changes."""
    return check.spec.parameters(**{**check.spec.example, **changes})


async def seen_by(check: Check, host: FakeHost | Asked, **changes: Any) -> DriftResult:
    """One look, by the agent's own `DriftDetector`."""
    parameters = parameters_of(check, **changes)
    entry = Entry(check, Mode.AUDIT, check.spec.interval_s, check.spec.deadline_s, parameters, names_of(parameters))
    baseline = Baseline("1", "0" * 64, Mode.AUDIT, {check.id: entry})
    clock = host.host.clock if isinstance(host, Asked) else host.clock
    unused = typing.cast(AgentConfig, None)  # only says where the baseline stands
    return await DriftDetector(unused, host=host, baseline=baseline, clock=clock).check_one(check.id)


# -- what is declared


def declares_itself(check: Check) -> None:
    """Id, citations, reasons, parameters and facts are complete and allowed."""
    spec = check.spec
    assert facts.TOKEN.fullmatch(spec.id), "the id is no token"
    assert [citation.primary for citation in spec.citations].count(True) == 1, "exactly one citation must be primary"
    for citation in spec.citations:
        refusal = objection(spec.id, citation.section, primary=citation.primary)
        assert refusal is None, refusal
        assert len(citation.rationale) > 20 and len(citation.does_not_prove) > 20, f"{citation.section}: say more"
    assert all(facts.TOKEN.fullmatch(reason) and sentence for reason, sentence in spec.reasons.items())
    assert not set(spec.reasons) & set(COMMON_REASONS), "a common reason is declared again"
    assert set(spec.for_people) <= set(spec.reasons), "what is for people is no reason of this check"
    assert 1 <= spec.deadline_s <= spec.interval_s, "a look must end before the next one is due"
    for parameter in dataclasses.fields(spec.parameters):
        assert parameter.metadata.get("doc"), f"parameter {parameter.name} has no sentence"
    for name, kind in facts.declared(spec.observation).items():
        _closed(name, kind)


async def declares_what_it_reads(check: Check, healthy: Callable[[], FakeHost], **changes: Any) -> None:
    """Whatever it looks at on the host either wakes it, by `reads`, or stands in `untold` with the reason."""
    host = healthy()
    for case in check.cases[:1]:
        if case.scene is not None:
            case.scene(host)
    await seen_by(check, host, **changes)
    watched = sources(check.spec.reads, parameters_of(check, **changes))
    paths = {source.name for source in watched if source.kind == "path"}
    units = {source.name for source in watched if source.kind == "unit"}
    for target in host.looked:
        kind, _, name = target.partition(":")
        if kind in {"path", "stat", "list"}:
            told = name in paths or str(PurePosixPath(name).parent) in paths
        else:
            told = kind != "unit" or name in units
        why = [reason for pattern, reason in check.spec.untold.items() if fnmatch.fnmatchcase(target, pattern)]
        assert told or why, f"{check.id} looks at {target}, which neither `reads` nor `untold` names"
    assert all(len(reason) > 6 for reason in check.spec.untold.values()), "untold: say why"
    assert not any(name.startswith(("/proc/", "/sys/")) for name in paths), "nothing tells of /proc and /sys"


def _closed(name: str, kind: facts.FactType) -> None:
    """The fact's type is one of the closed vocabulary; a type of the check's own could let anything out."""
    if isinstance(kind, facts.Many):
        return _closed(name, kind.of)
    assert type(kind).__module__ == facts.__name__, f"fact {name} has a type of its own"
    return None


def judges_its_cases(check: Check) -> None:
    """Every case is judged as stated, and the cases show a pass, a failure and an unknown."""
    for case in check.cases:
        verdict = judge_seen(check, parameters_of(check, **case.parameters), case.seen)
        assert verdict.result is case.expect, f"{case.name}: {verdict}"
        assert case.reason in {None, verdict.reason}, f"{case.name}: {verdict}"
        assert verdict.sentence, f"{case.name}: no sentence"
        if not isinstance(case.seen, Unreadable):
            facts.export(case.seen, names_of(parameters_of(check, **case.parameters)))
    expected = {case.expect for case in check.cases}
    assert {Result.PASS, Result.FAIL, Result.UNKNOWN} <= expected, "cases must show a pass, a failure and an unknown"
    shown = {judge_seen(check, parameters_of(check, **case.parameters), case.seen).reason for case in check.cases}
    assert set(check.spec.reasons) <= shown, f"no case shows {sorted(set(check.spec.reasons) - shown)}"
    assert len({case.name for case in check.cases}) == len(check.cases), "two cases have one name"


def plans_its_cures(check: Check, table: Mapping[str, Action]) -> None:
    """A case that heals has a plan of known actions with exact arguments; disruption is declared with its kind."""
    for case in check.cases:
        if case.expect is not Result.FAIL:
            assert not case.heals, f"{case.name}: only a failure is healed"
            continue
        plan = check.plan(parameters_of(check, **case.parameters), case.seen)
        assert plan is not None or not case.heals, f"{case.name}: no plan"
        if plan is not None:
            assert case.reason not in check.spec.for_people, f"{case.name}: has a cure, so it is not for people"
            assert case.heals, f"{case.name}: has a plan, so say heals=True"
            assert plan.check == check.id and plan.steps
            assert plan.disruptive == bool(plan.disturbs), f"{case.name}: what does it disturb?"
            resolve(plan, table)


async def scenes_show_their_cases(check: Check, factory: Factory) -> None:
    """What a case says is seen is what the check sees of the host that the case sets up."""
    for case in check.cases:
        if case.scene is None:
            continue
        host = factory()
        case.scene(host)
        result = await seen_by(check, host, **case.parameters)
        stated = facts.export(case.seen, names_of(parameters_of(check, **case.parameters)))
        assert dict(result.pre_state) == stated, f"{case.name}: the scene shows {dict(result.pre_state)}"


def nothing_known_passes(check: Check) -> None:
    """An observation of which no fact could be read is not a pass."""
    empty = check.spec.observation()
    assert judge_seen(check, parameters_of(check), empty).result is not Result.PASS, "nothing was seen, and it passed"


# -- what is seen through faults


async def healthy_host_passes(check: Check, factory: Factory) -> list[Question]:
    """The host as it should be passes; gives what the check asked."""
    asked = Asked(factory())
    result = await seen_by(check, asked)
    assert result.result is Result.PASS, (
        f"{check.id} on the healthy host: {result.verdict}; give a passing case a scene, or lab/clinic.py what it looks at"
    )
    assert asked.questions, "the check asked the host nothing and passed"
    assert not asked.host.changed, "observe changed the host"
    return asked.questions


async def no_fault_passes(check: Check, factory: Factory) -> None:
    """Spoil one answer after the other in every way: never a pass, never a crash of the check."""
    for question in dict.fromkeys(await healthy_host_passes(check, factory)):
        for spoiled in faults_for(question):
            asked = Asked(factory(), spoiled)
            result = await seen_by(check, asked)
            where = f"{check.id}: {question.target} {spoiled.name}"
            assert result.reason != "crashed", f"{where}: the check crashed"
            if asked.altered and not _optional(check, f"{question.target} {spoiled.name}"):
                assert result.result is not Result.PASS, f"{where}: passed ({result.verdict})"


def _optional(check: Check, fault: str) -> bool:
    return any(fnmatch.fnmatchcase(fault, pattern) for pattern in check.spec.optional)


async def nothing_to_check_is_refused(check: Check, factory: Factory) -> None:
    """An empty list or name in the parameters is refused, or at least never passes."""
    hints = typing.get_type_hints(check.spec.parameters)
    for parameter in dataclasses.fields(check.spec.parameters):
        if hints[parameter.name] not in {str, tuple[str, ...]}:
            continue
        nothing: object = "" if hints[parameter.name] is str else ()
        try:
            parameters_of(check, **{parameter.name: nothing})
        except ValueError:
            continue
        result = await seen_by(check, factory(), **{parameter.name: nothing})
        assert result.result is not Result.PASS, f"{parameter.name} empty: {result.verdict}"


# -- what may leave the host


async def leaks_nothing(
    check: Check, factory: Factory, question: Question, change: Callable[[Any], Any], canary: str
) -> None:
    """A host whose answers hold a person's data: whatever the verdict, no record of the look holds it."""
    asked = Asked(factory(), Spoiled(question, "canary", change=change))
    result = await seen_by(check, asked)
    recorded = [dict(result.pre_state), result.reason, result.recommended_action, result.no_plan_reason]
    recorded.append(result.plan.target if result.plan else "")
    assert canary not in json.dumps(recorded, ensure_ascii=False), f"{check.id} recorded what the host said"


CANARIES = (
    "Jane-Roe-MRN-0048213",
    "078-05-1120",
    "jane.roe@example.org",
    "/home/jane.roe/scan-2026.dcm",
    "Müller, Jörg *1962-07-04",
    "v1-jane-roe",
)


def contaminate(canary: str, place: float, *, whole_word: bool) -> Callable[[Any], Any]:
    """A change of any answer of the Host port that puts `canary` in at `place` (0 to 1 of its length)."""

    def raw(data: bytes) -> bytes:
        words = data.split(b" ")
        if whole_word and len(words) > 1:
            words[min(int(place * len(words)), len(words) - 1)] = canary.encode()
            return b" ".join(words)
        at = int(place * len(data))
        return data[:at] + canary.encode() + data[at:]

    def change(answer: Any) -> Any:
        match answer:
            case bytes():
                return raw(answer)
            case Ran():
                return dataclasses.replace(answer, out=raw(answer.out), err=raw(answer.err))
            case tuple():
                return (*answer, canary)
            case ClockState():
                return dataclasses.replace(answer, source=canary, boot_id=canary)
            case dict():
                return {name: _strange(state, canary, place) for name, state in answer.items()}
        return answer

    return change


def _strange(state: UnitState, canary: str, place: float) -> UnitState:
    fields = [state.load, state.active, state.sub, state.enabled]
    fields[min(int(place * 4), 3)] = canary
    load, active, sub, enabled = fields
    return UnitState(load, active, sub, enabled, (f"{canary}.socket",))


# -- what is healed


def fingerprint(host: FakeHost, *, settled: bool) -> dict[str, Any]:
    """The host's state without what only ever grows: logs, and snapshots in a backup. With `settled` also without what
    no undo can or should bring back: downloaded signatures, the clock's offset, security updates."""
    updates = ("/var/lib/apt/", "/run/reboot-required")
    moving = ("/var/log/", "/var/lib/clamav/", *updates) if settled else ("/var/log/",)
    grows = {"Logs", "Repositories"}
    files = {
        path: (node.kind, node.content, node.mode, node.uid, node.target)
        for path, node in host.files.items()
        if not path.startswith(moving)
    }
    units = {name: (unit.active, unit.enabled, unit.masked) for name, unit in host.units_table.items()}
    parts = {
        kind.__name__: HANDLES.sub("", repr(part))
        for kind, part in host._parts.items()
        if kind.__name__ not in (grows | {"Signatures", "TimeSource", "Packages"} if settled else grows)
    }
    return {"files": files, "units": units, "parts": parts, "skew": 0.0 if settled else host.skew_s}


async def heals(
    check: Check,
    host: FakeHost,
    reason: str,
    table: Mapping[str, Action],
    parameters: Mapping[str, Any] | None = None,
    hands: ChangingHost | None = None,
) -> Plan:
    """Seen as failed for `reason`, planned, applied: passes. Applied again: nothing changes. Undone, twice: as it was.

    `hands` is what changes the host, where that is not the host itself.
    """
    acting = host if hands is None else hands
    drifted = fingerprint(host, settled=True)
    result = await seen_by(check, host, **(parameters or {}))
    assert (result.result, result.reason) == (Result.FAIL, reason), f"{check.id}: {result.verdict}"
    assert result.plan is not None, f"{check.id}: no plan for {reason}"
    steps = list(zip(resolve(result.plan, table), result.plan.steps, strict=True))
    captured = [json.loads(json.dumps(await action.capture(acting, step.args))) for action, step in steps]
    assert not host.changed, "capture changed the host"
    for action, step in steps:
        await action.apply(acting, step.args)
    after = await seen_by(check, host, **(parameters or {}))
    assert after.result is Result.PASS, f"{check.id}: cured, and found {after.verdict}"
    await _applied_again_changes_nothing(host, acting, steps)
    for _ in range(2):
        for (action, step), former in zip(reversed(steps), reversed(captured), strict=True):
            await _undone(acting, action, step, former)
        assert fingerprint(host, settled=True) == drifted, f"{check.id}: undo did not bring the former state back"
    for (action, step), former in zip(steps, captured, strict=True):
        again = json.loads(json.dumps(await action.capture(acting, step.args)))
        assert action.undo_is_empty or action.restored(former, again), f"{action.id}: not restored"
    return result.plan


async def _undone(host: ChangingHost, action: Action, step: Step, former: Any) -> None:
    try:
        await action.undo(host, step.args, former)
    except StepFailed as error:  # what cannot be taken back says so, and has said why
        assert (error.code, bool(action.undo_is_empty)) == ("not_reversible", True), f"{action.id}: {error}"


async def _applied_again_changes_nothing(
    host: FakeHost, acting: ChangingHost, steps: Sequence[tuple[Action, Step]]
) -> None:
    cured = fingerprint(host, settled=False)
    for action, step in steps:
        await action.apply(acting, step.args)
    assert fingerprint(host, settled=False) == cured, "applied again, and the host changed"
