"""Start a systemd unit afresh, whether it runs or not. Undone by stopping it, when it did not run before."""

from __future__ import annotations

from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.staying_up import after_a_moment
from compliance_agent.remedies.unit_codes import unit_codes


async def capture(host: ChangingHost, args: Args) -> Any:
    return {"active": await _active(host, str(args["unit"]))}


async def apply(host: ChangingHost, args: Args) -> None:
    unit = str(args["unit"])
    state = (await host.units((unit,)))[unit]
    if state.load != "loaded":
        raise StepFailed(f"{unit}: cannot be restarted, it is {state.load}", code="unit_not_loaded")
    await host.unit_action("restart", unit)
    if (await after_a_moment(host, unit)).active == "failed":
        raise StepFailed(f"{unit}: restarted, and failed", code="unit_not_active")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    if not captured["active"] and await _active(host, str(args["unit"])):
        await host.unit_action("stop", str(args["unit"]))


async def _active(host: ChangingHost, unit: str) -> bool:
    return (await host.units((unit,)))[unit].active in {"active", "reloading", "activating"}


ACTION = Action(
    id="restart_unit",
    title="restart {unit}",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **unit_codes("restart", "stop"),
        "unit_not_loaded": "The unit cannot be restarted as the service manager has it.",
        "unit_not_active": "The unit was restarted and failed.",
    },
    deadline_s=120.0,
)
