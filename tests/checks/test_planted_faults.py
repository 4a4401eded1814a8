"""Checks that are broken on purpose, one in each way that the contract must catch, and a sound one that it must accept."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import pytest

from compliance_agent import facts
from compliance_agent.checks.spec import UNREADABLE, Case, Check, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.errors import CannotTell
from compliance_agent.facts import Bool, Choice, FactType, Version, fact
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host, Ran
from compliance_agent.remedies import actions
from compliance_agent.remedies.spec import Action
from tests.checks import contract
from tests.checks.contract import CANARIES, contaminate


@dataclass(frozen=True)
class Toy:
    unit: str = field(default="toy.service", metadata={"doc": "The unit."})
    files: tuple[str, ...] = field(default=("/etc/toy",), metadata={"doc": "Files that must say yes."})

    def __post_init__(self) -> None:
        if not self.unit or not self.files:
            raise ValueError("files: is empty")


@dataclass(frozen=True)
class Seen:
    running: bool | None = fact(Bool(), "It runs.")
    content: str | None = fact(Choice(("yes", "no")), "What its files say.")


async def toy_observe(host: Host, baseline: Any) -> Any:
    running = (await host.units((baseline.unit,)))[baseline.unit].active == "active"
    said = [(await host.read(path)).decode("utf-8", "replace") for path in baseline.files]
    if any(text not in {"yes\n", "no\n"} for text in said):
        raise CannotTell("unparsable")
    return Seen(running, "yes" if all(text == "yes\n" for text in said) else "no")


def toy_judge(baseline: Any, seen: Any) -> Verdict:
    if seen.running is None or seen.content is None:
        return unknown("unparsable", "could not be told")
    if not seen.running:
        return failed("down", "expected it running")
    return passed("it runs") if seen.content == "yes" else failed("no", "expected yes, found no")


def toy_plan(baseline: Any, seen: Any) -> Plan | None:
    return None if seen.running else Plan("toy", (Step("ensure_unit_active", {"unit": baseline.unit}),))


SOUND = Check(
    CheckSpec(
        id="toy",
        title="A toy",
        severity=Severity.LOW,
        rationale="To show what the contract catches.",
        citations=(
            Citation("164.312(b)", "It is a toy, but a sound one.", "Anything at all, being a toy.", primary=True),
        ),
        parameters=Toy,
        observation=Seen,
        reasons={"down": "It does not run.", "no": "Its file says no."},
    ),
    toy_observe,
    toy_judge,
    toy_plan,
    (
        Case("runs", Seen(True, "yes"), Result.PASS),
        Case("stopped", Seen(False, "yes"), Result.FAIL, "down", heals=True),
        Case("says no", Seen(True, "no"), Result.FAIL, "no"),
        Case("not seen", UNREADABLE, Result.UNKNOWN),
    ),
)


TOY_FILE = contract.Question("read", "path:/etc/toy")


def toy_host() -> FakeHost:
    host = FakeHost(FakeClock())
    host.units_table["toy.service"] = Unit()
    host.put("/etc/toy", "yes\n")
    return host


def drifted_toy_host() -> FakeHost:
    host = toy_host()
    host.units_table["toy.service"].active = False
    return host


def broken(**changes: Any) -> Check:
    """The sound toy with another function or other cases."""
    return dataclasses.replace(SOUND, **changes)


def respecified(**changes: Any) -> Check:
    """The sound toy with another specification."""
    return dataclasses.replace(SOUND, spec=dataclasses.replace(SOUND.spec, **changes))


async def test_the_sound_toy_keeps_the_whole_contract() -> None:
    contract.declares_itself(SOUND)
    contract.judges_its_cases(SOUND)
    contract.plans_its_cures(SOUND, actions())
    contract.nothing_known_passes(SOUND)
    await contract.no_fault_passes(SOUND, toy_host)
    await contract.nothing_to_check_is_refused(SOUND, toy_host)
    await contract.heals(SOUND, drifted_toy_host(), "down", actions())


async def test_catches_a_scene_that_shows_something_else() -> None:
    case = Case("stopped", Seen(False, "yes"), Result.FAIL, "down", scene=lambda host: host.service("toy.service"))
    with pytest.raises(AssertionError, match="stopped: the scene shows"):
        await contract.scenes_show_their_cases(broken(cases=(case,)), toy_host)


async def test_catches_an_error_counted_as_pass() -> None:
    async def optimist(host: Host, baseline: Any) -> Any:
        try:
            return await toy_observe(host, baseline)
        except CannotTell:
            return Seen(True, "yes")

    with pytest.raises(AssertionError, match="passed"):
        await contract.no_fault_passes(broken(observe=optimist), toy_host)


async def test_catches_garbage_taken_for_an_answer() -> None:
    async def gullible(host: Host, baseline: Any) -> Any:
        text = await host.read(baseline.files[0])
        return Seen(True, "no" if b"no" in text else "yes")

    with pytest.raises(AssertionError, match="garbage"):
        await contract.no_fault_passes(broken(observe=gullible), toy_host)


async def test_catches_an_ignored_exit_status() -> None:
    async def hasty(host: Host, baseline: Any) -> Any:
        ran = await host.run(("toy",))
        if ran.out != b"yes\n":
            raise CannotTell("unparsable")
        return Seen(True, "yes")

    def host() -> FakeHost:
        made = toy_host()
        made.installed["toy"] = lambda call: Ran(0, b"yes\n", b"")
        return made

    with pytest.raises(AssertionError, match="exit_1"):
        await contract.no_fault_passes(broken(observe=hasty), host)


async def test_catches_a_crash() -> None:
    async def fragile(host: Host, baseline: Any) -> Any:
        text = await host.read(baseline.files[0])
        return Seen(True, {"yes": "yes", "no": "no"}[text.decode().strip()])

    with pytest.raises(AssertionError, match="crashed"):
        await contract.no_fault_passes(broken(observe=fragile), toy_host)


async def test_catches_a_check_that_asks_nothing() -> None:
    async def dreamer(host: Host, baseline: Any) -> Any:
        return Seen(True, "yes")

    with pytest.raises(AssertionError, match="asked the host nothing"):
        await contract.no_fault_passes(broken(observe=dreamer), toy_host)


async def test_catches_a_look_that_changes_the_host() -> None:
    async def meddler(host: Any, baseline: Any) -> Any:
        await host.host.unit_action("restart", "toy.service")
        return await toy_observe(host, baseline)

    with pytest.raises(AssertionError, match="changed the host"):
        await contract.no_fault_passes(broken(observe=meddler), toy_host)


async def test_catches_an_empty_list_that_passes() -> None:
    @dataclass(frozen=True)
    class Careless:
        unit: str = "toy.service"
        files: tuple[str, ...] = ("/etc/toy",)

    with pytest.raises(AssertionError, match="files empty"):
        await contract.nothing_to_check_is_refused(respecified(parameters=Careless), toy_host)


def test_catches_nothing_seen_that_passes() -> None:
    def blind(baseline: Any, seen: Any) -> Verdict:
        return failed("down", "stopped") if seen.running is False else passed()

    with pytest.raises(AssertionError, match="nothing was seen"):
        contract.nothing_known_passes(broken(judge=blind))


async def test_catches_a_leak_through_a_loose_fact() -> None:
    @dataclass(frozen=True)
    class Anything(FactType):
        def accepts(self, value: object, names: Any) -> bool:
            return True

    @dataclass(frozen=True)
    class Loose:
        content: str | None = fact(Anything(), "What the file says.")

    async def talkative(host: Host, baseline: Any) -> Any:
        return Loose((await host.read(baseline.files[0])).decode("utf-8", "replace"))

    leaky = dataclasses.replace(respecified(observation=Loose), observe=talkative, judge=lambda b, s: passed())
    with pytest.raises(AssertionError, match="type of its own"):
        contract.declares_itself(leaky)
    canary = CANARIES[0]
    with pytest.raises(AssertionError, match="recorded what the host said"):
        await contract.leaks_nothing(leaky, toy_host, TOY_FILE, contaminate(canary, 0.5, whole_word=False), canary)


async def test_catches_a_leak_through_a_version() -> None:
    @dataclass(frozen=True)
    class Versioned:
        version: str | None = fact(Version(), "Version.")

    async def talkative(host: Host, baseline: Any) -> Any:
        return Versioned((await host.read(baseline.files[0])).decode("utf-8", "replace").split(" ")[0])

    leaky = dataclasses.replace(respecified(observation=Versioned), observe=talkative, judge=lambda b, s: passed())
    with pytest.raises(AssertionError, match="recorded what the host said"):
        await contract.leaks_nothing(leaky, toy_host, TOY_FILE, lambda raw: b"078-05-1120 x", "078-05-1120")


def _cure(**changes: Any) -> dict[str, Action]:
    """The table with `ensure_unit_active` changed."""
    real = actions()["ensure_unit_active"]
    return {**actions(), real.id: dataclasses.replace(real, **changes)}


async def _nothing(host: Any, args: Any, *captured: Any) -> None:
    return None


async def test_catches_a_cure_that_does_nothing() -> None:
    with pytest.raises(AssertionError, match="cured, and found"):
        await contract.heals(SOUND, drifted_toy_host(), "down", _cure(apply=_nothing))


async def test_catches_a_cure_that_changes_something_each_time() -> None:
    async def grows(host: Any, args: Any) -> None:
        await host.unit_action("start", args["unit"])
        await host.write("/etc/toy.log", b"x" * len(host.changed))

    with pytest.raises(AssertionError, match="applied again"):
        await contract.heals(SOUND, drifted_toy_host(), "down", _cure(apply=grows))


async def test_catches_an_undo_that_does_nothing() -> None:
    with pytest.raises(AssertionError, match="former state"):
        await contract.heals(SOUND, drifted_toy_host(), "down", _cure(undo=_nothing))


async def test_catches_a_capture_that_changes_the_host() -> None:
    async def meddles(host: Any, args: Any) -> Any:
        await host.unit_action("enable", args["unit"])
        return {}

    with pytest.raises(AssertionError, match="capture changed"):
        await contract.heals(SOUND, drifted_toy_host(), "down", _cure(capture=meddles))


def test_catches_plans_that_no_table_has() -> None:
    def odd(step: Step) -> Check:
        return broken(plan=lambda baseline, seen: None if seen.running else Plan("toy", (step,)))

    for step in (Step("reformat", {}), Step("ensure_unit_active", {}), Step("ensure_unit_active", {"unit": True})):
        with pytest.raises(RuntimeError, match="plan of toy"):
            contract.plans_its_cures(odd(step), actions())
    with pytest.raises(AssertionError, match="no plan"):
        contract.plans_its_cures(broken(plan=lambda baseline, seen: None), actions())


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        ((Case("stopped", Seen(False, "yes"), Result.PASS),), "stopped"),
        ((Case("stopped", Seen(False, "yes"), Result.FAIL, "no"),), "stopped"),
        (SOUND.cases[:2], "must show"),
        ((*SOUND.cases[:2], SOUND.cases[3]), "no case shows"),
    ],
)
def test_catches_cases_that_do_not_hold(cases: tuple[Case, ...], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        contract.judges_its_cases(broken(cases=cases))


GOOD_CITATION = SOUND.spec.citations[0]


@pytest.mark.parametrize(
    "citations",
    [
        (),
        (GOOD_CITATION, GOOD_CITATION),
        (dataclasses.replace(GOOD_CITATION, primary=False),),
        (dataclasses.replace(GOOD_CITATION, section="164.312(z)"),),
        (dataclasses.replace(GOOD_CITATION, section="164.310(b)"),),
        (dataclasses.replace(GOOD_CITATION, does_not_prove=""),),
    ],
)
def test_catches_citations_that_claim_too_much(citations: tuple[Citation, ...]) -> None:
    with pytest.raises(AssertionError):
        contract.declares_itself(respecified(citations=citations))


def test_catches_an_undeclared_fact() -> None:
    @dataclass(frozen=True)
    class Open:
        text: str = ""

    with pytest.raises(RuntimeError, match="not declared"):
        contract.declares_itself(respecified(observation=Open))


def test_the_vocabulary_has_no_open_type() -> None:
    """Whatever a check may declare refuses a sentence with a name in it."""
    kinds = [kind for kind in vars(facts).values() if isinstance(kind, type) and issubclass(kind, FactType)]
    for kind in kinds:
        if kind is FactType:
            continue
        example = {"Int": (0, 9), "Choice": (("a",),), "Name": ("files",), "Many": (Bool(),)}.get(kind.__name__, ())
        assert not kind(*example).accepts("Jane Roe, born 4 July", {"files": ("/etc/toy",)})


async def test_catches_a_check_that_does_not_say_what_it_reads() -> None:
    """A second file that nothing declares, and one that is declared as untold without a reason."""

    async def curious(host: Host, baseline: Any) -> Any:
        await host.stat("/etc/hostname")
        return await toy_observe(host, baseline)

    def host() -> FakeHost:
        made = toy_host()
        made.put("/etc/hostname", "clinic\n")
        return made

    said = ("unit:{unit}", "path:{files}")
    await contract.declares_what_it_reads(respecified(reads=said), toy_host)
    check = dataclasses.replace(respecified(reads=said), observe=curious)
    with pytest.raises(AssertionError, match="stat:/etc/hostname"):
        await contract.declares_what_it_reads(check, host)
    with pytest.raises(AssertionError, match="unit:toy"):
        await contract.declares_what_it_reads(respecified(reads=said[1:]), toy_host)
    with pytest.raises(AssertionError, match="say why"):
        await contract.declares_what_it_reads(respecified(reads=said, untold={"stat:/etc/hostname": ""}), toy_host)
