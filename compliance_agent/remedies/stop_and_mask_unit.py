"""Stop a systemd unit and mask it, so that nothing can start it.

A unit whose own file stands in /etc/systemd/system cannot be masked; the step then fails and is taken back.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost, UnitState
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.unit_codes import unit_codes

RUNS = {"active", "reloading", "refreshing", "activating"}


async def capture(host: ChangingHost, args: Args) -> Any:
    state = await _state(host, str(args["unit"]))
    return {"runs": state.active in RUNS, "masked": _masked(state), "there": state.load != "not-found"}


async def apply(host: ChangingHost, args: Args) -> None:
    unit = str(args["unit"])
    state = await _state(host, unit)
    if state.load == "not-found":
        return
    if state.active in RUNS:
        await host.unit_action("stop", unit)
    if not _masked(state):
        await host.unit_action("mask", unit)
    state = await _state(host, unit)
    if state.active in RUNS or not _masked(state):
        raise StepFailed(
            f"{unit}: stopped and masked, and found {state.load} and {state.active}", code="unit_not_stopped"
        )


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    unit = str(args["unit"])
    state = await _state(host, unit)
    if captured["there"] and not captured["masked"] and _masked(state):
        await host.unit_action("unmask", unit)
    if captured["runs"] and not captured["masked"] and state.active not in RUNS:
        await host.unit_action("start", unit)


async def _state(host: ChangingHost, unit: str) -> UnitState:
    return (await host.units((unit,)))[unit]


def _masked(state: UnitState) -> bool:
    return state.load == "masked" or state.enabled == "masked"


ACTION = Action(
    id="stop_and_mask_unit",
    title="stop {unit} and mask it",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **unit_codes("stop", "mask", "unmask", "start"),
        "unit_not_stopped": "The unit was stopped and masked, and still runs or can be started.",
    },
    deadline_s=120.0,
)
