"""Have a systemd unit running: unmask, enable (so that it also comes back with the machine) and start, as far as needed.

A socket that comes up with the unit goes down with it when the start is taken back: it would start the unit again.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost, UnitState
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.staying_up import after_a_moment
from compliance_agent.remedies.unit_codes import unit_codes

_UP = frozenset({"active", "reloading", "activating"})


async def _state(host: ChangingHost, unit: str) -> UnitState:
    return (await host.units((unit,)))[unit]


async def _triggers(host: ChangingHost, state: UnitState) -> list[str]:
    """What would start the unit and is up."""
    found = await host.units(state.triggered_by) if state.triggered_by else {}
    return sorted(name for name, trigger in found.items() if trigger.active in _UP)


async def capture(host: ChangingHost, args: Args) -> Any:
    state = await _state(host, str(args["unit"]))
    return {
        "active": state.active in _UP,
        "triggers": await _triggers(host, state),
        "enabled": state.enabled,
        "load": state.load,
    }


async def apply(host: ChangingHost, args: Args) -> None:
    unit = str(args["unit"])
    state = await _state(host, unit)
    if state.load == "not-found":
        raise StepFailed(f"{unit}: there is no such unit", code="unit_missing")
    if _masked(state.load, state.enabled):
        # What it was under the mask cannot be captured, so it is not enabled: the undo could not tell whether to keep it.
        await host.unit_action("unmask", unit)
    elif state.enabled == "disabled" and state.active != "active":
        await host.unit_action("enable", unit)
    if state.active != "active":
        await host.unit_action("start", unit)
        state = await after_a_moment(host, unit)
    else:
        state = await _state(host, unit)
    if state.load != "loaded" or state.active != "active":
        raise StepFailed(f"{unit}: started, and found {state.load} and {state.active}", code="unit_not_active")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    unit = str(args["unit"])
    if not captured["active"]:
        for trigger in await _triggers(host, await _state(host, unit)):
            if trigger not in captured["triggers"]:
                await host.unit_action("stop", trigger)
    state = await _state(host, unit)
    if not captured["active"] and state.active not in {"inactive", "failed"}:
        await host.unit_action("stop", unit)
    if captured["enabled"] == "disabled" and state.enabled == "enabled":
        await host.unit_action("disable", unit)
    if _masked(captured["load"], captured["enabled"]) and not _masked(state.load, state.enabled):
        await host.unit_action("mask", unit)


def by_others(captured: Any, now: Any) -> bool:
    """It was masked, or disabled, meanwhile: this never does that."""
    masked = _masked(now["load"], now["enabled"]) and not _masked(captured["load"], captured["enabled"])
    return masked or (captured["enabled"] == "enabled" and now["enabled"] == "disabled")


def _masked(load: str, enabled: str) -> bool:
    return load == "masked" or enabled == "masked"


ACTION = Action(
    id="ensure_unit_active",
    title="have {unit} enabled and running",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    by_others=by_others,
    codes={
        **unit_codes("unmask", "enable", "start", "stop", "disable", "mask"),
        "unit_missing": "There is no such unit on this host.",
        "unit_not_active": "The unit was started and did not stay up.",
    },
    deadline_s=120.0,
)
