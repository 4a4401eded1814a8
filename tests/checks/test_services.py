"""services beyond its cases: states of units as systemd words them, and several drifts at once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.checks import registry
from compliance_agent.checks.services import Parameters
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost, Unit
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import UnitState
from compliance_agent.remedies import actions
from tests.checks.contract import seen_by

CHECK = registry()["services"]
TOY = "toy.service"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


class Answers:
    """A host whose service manager gives one state for a required and a forbidden unit."""

    def __init__(self, required: UnitState, forbidden: UnitState) -> None:
        self.states = {"a.service": required, "b.service": forbidden}

    async def units(self, names: Any) -> dict[str, UnitState]:
        return {name: self.states[name] for name in names}


RIGHT, AWAY = UnitState("loaded", "active", "running", "enabled"), UnitState("not-found", "inactive", "dead", "")
TWO = Parameters(active=("a.service",), forbidden=("b.service",))


async def judged(required: UnitState, forbidden: UnitState) -> str:
    seen = await CHECK.observe(Answers(required, forbidden), TWO)  # type: ignore[arg-type]
    return CHECK.judge(TWO, seen).reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (("loaded", "active", "exited", "static"), "as_expected"),
        (("loaded", "active", "running", "generated"), "as_expected"),
        (("loaded", "reloading", "reload", "enabled"), "as_expected"),
        (("loaded", "active", "running", "disabled"), "service_not_enabled"),
        (("loaded", "activating", "auto-restart", "enabled"), "service_down"),
        (("loaded", "failed", "failed", "enabled"), "service_down"),
        (("masked", "active", "running", "masked"), "service_down"),
        (("not-found", "inactive", "dead", ""), "service_missing"),
    ],
)
async def test_what_must_run(state: tuple[str, str, str, str], reason: str) -> None:
    assert await judged(UnitState(*state), AWAY) == reason


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (("masked", "inactive", "dead", "masked"), "as_expected"),
        (("loaded", "inactive", "dead", "disabled"), "as_expected"),
        (("loaded", "failed", "failed", "disabled"), "as_expected"),
        (("loaded", "inactive", "dead", "enabled"), "forbidden_enabled"),
        (("loaded", "inactive", "dead", "static"), "forbidden_enabled"),
        (("loaded", "active", "listening", "disabled"), "forbidden_running"),
        (("masked", "active", "running", "masked"), "forbidden_running"),
        (("loaded", "deactivating", "stop", "disabled"), "forbidden_running"),
        (("loaded", "activating", "auto-restart", "disabled"), "forbidden_running"),
    ],
)
async def test_what_must_not_run(state: tuple[str, str, str, str], reason: str) -> None:
    assert await judged(RIGHT, UnitState(*state)) == reason


@pytest.mark.parametrize(
    "state",
    [("error", "active", "running", "enabled"), ("loaded", "?", "", ""), ("loaded", "active", "running", "bad")],
)
async def test_unknown_words_are_no_answer(state: tuple[str, str, str, str]) -> None:
    with pytest.raises(CannotTell):
        await judged(UnitState(*state), AWAY)


async def test_a_missing_one_does_not_keep_the_others_from_being_started() -> None:
    """The plan does its part, and what is left is for a person: the cure is then kept (CheckSpec.for_people)."""
    host = healthy_host()
    host.unit("cron.service").active = False
    seen = await look(host, active=("cron.service", "nowhere.service"))
    assert seen.plan is not None and [step.args["unit"] for step in seen.plan.steps] == ["cron.service"]
    for step in seen.plan.steps:
        await actions()[step.action].apply(host, step.args)
    left = await look(host, active=("cron.service", "nowhere.service"))
    assert (left.reason, left.plan) == ("service_missing", None)
    assert left.reason in CHECK.spec.for_people


async def test_only_stopping_what_runs_waits_for_the_window() -> None:
    host = healthy_host()
    host.service("vsftpd.service", active=False)
    plan = (await look(host)).plan
    assert plan is not None and not plan.disruptive
    host.service("vsftpd.service")
    plan = (await look(host)).plan
    assert plan is not None and (plan.disruptive, plan.disturbs) == (True, "stops_service")


STATES = st.fixed_dictionaries(
    {"active": st.booleans(), "enabled": st.sampled_from(["enabled", "disabled", "static"]), "masked": st.booleans()}
)


@given(before=STATES)
async def test_any_unit_is_stopped_and_masked_and_back(before: dict[str, Any]) -> None:
    """A unit that was masked while it ran can be stopped, but not started again: the undo leaves it, and says so."""
    host, action, args = FakeHost(FakeClock()), actions()["stop_and_mask_unit"], {"unit": TOY}
    host.units_table[TOY] = Unit(**before)
    captured = await action.capture(host, args)
    for _ in range(2):
        await action.apply(host, args)
    assert (host.unit(TOY).active, host.unit(TOY).masked) == (False, True)
    for _ in range(2):
        await action.undo(host, args, captured)
    unit = host.unit(TOY)
    if before["active"] and before["masked"]:
        assert not action.restored(captured, await action.capture(host, args))
    else:
        assert (unit.active, unit.enabled, unit.masked) == (before["active"], before["enabled"], before["masked"])


@given(before=STATES)
async def test_any_unit_is_enabled_and_back(before: dict[str, Any]) -> None:
    host, action, args = FakeHost(FakeClock()), actions()["enable_unit"], {"unit": TOY}
    host.units_table[TOY] = Unit(**{**before, "masked": False})
    captured = await action.capture(host, args)
    for _ in range(2):
        await action.apply(host, args)
    assert host.unit(TOY).enabled != "disabled" and host.unit(TOY).active == before["active"]
    for _ in range(2):
        await action.undo(host, args, captured)
    assert host.unit(TOY).enabled == before["enabled"]


async def test_a_manager_that_lies_is_noticed() -> None:
    host = healthy_host()
    host.service("telnet.socket")
    host.faults.change("unit:telnet.socket", "lie")
    with pytest.raises(StepFailed) as caught:
        await actions()["stop_and_mask_unit"].apply(host, {"unit": "telnet.socket"})
    assert caught.value.code == "unit_not_stopped"


async def test_the_healthy_host_passes_with_masked_units_too() -> None:
    host = healthy_host()
    host.units_table["telnet.socket"] = Unit(active=False, masked=True)
    assert (await look(host)).result is Result.PASS


@pytest.mark.parametrize(
    "wrong",
    [
        {"active": ()},
        {"forbidden": ()},
        {"active": ("cron",)},
        {"active": ("x.service",), "forbidden": ("x.service",)},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**{"active": ("a.service",), **wrong})
