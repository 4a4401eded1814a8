"""Run the backup now, through the host's own unit, so that credentials, limits and hooks are those of every night."""

from __future__ import annotations

from typing import Any

from compliance_agent.ports import ChangingHost, Host
from compliance_agent.remedies.spec import Action, Args
from compliance_agent.remedies.unit_codes import unit_codes


async def capture(host: ChangingHost, args: Args) -> Any:
    """Nothing: a snapshot more takes nothing from anyone."""
    return {}


async def apply(host: ChangingHost, args: Args) -> None:
    """Start the unit and wait for its end, which for a backup is success or failure."""
    await host.unit_action("start", str(args["unit"]))


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    """Nothing to take back."""


async def blocked(host: Host, args: Args) -> str | None:
    """`backup_running` while the unit is at work already."""
    unit = str(args["unit"])
    return "backup_running" if (await host.units((unit,)))[unit].active == "activating" else None


ACTION = Action(
    id="run_backup_unit",
    title="start {unit} and wait for its end",
    arguments={"unit": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        **unit_codes("start"),
        "backup_running": "A backup is running already.",
    },
    deadline_s=1_800.0,
    undo_is_empty="a backup that was taken stays good",
    blocked=blocked,
)
