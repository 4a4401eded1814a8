"""Have a systemd unit come back with the machine. Whether it runs now is left as it is."""

from __future__ import annotations

from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.unit_codes import unit_codes


async def capture(host: ChangingHost, args: Args) -> Any:
    return {"enabled": await _enabled(host, str(args["unit"]))}


async def apply(host: ChangingHost, args: Args) -> None:
    unit = str(args["unit"])
    if await _enabled(host, unit) != "disabled":
        return
    await host.unit_action("enable", unit)
    if await _enabled(host, unit) == "disabled":
        raise StepFailed(f"{unit}: enabled, and found disabled", code="unit_not_enabled")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    unit = str(args["unit"])
    if captured["enabled"] == "disabled" and await _enabled(host, unit) == "enabled":
        await host.unit_action("disable", unit)


async def _enabled(host: ChangingHost, unit: str) -> str:
    return (await host.units((unit,)))[unit].enabled


ACTION = Action(
    id="enable_unit",
    title="have {unit} start with the machine",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={**unit_codes("enable", "disable"), "unit_not_enabled": "The unit was enabled and is still not."},
)
