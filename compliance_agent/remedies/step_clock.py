"""Put the clock right at once, instead of slewing for hours (chrony only)."""

from __future__ import annotations

from typing import Any

from compliance_agent.errors import StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args


async def capture(host: ChangingHost, args: Args) -> Any:
    return None


async def apply(host: ChangingHost, args: Args) -> None:
    ran = await host.change(("chronyc", "-n", "makestep"), timeout_s=20.0)
    if ran.exit_status != 0:
        raise StepFailed("chronyc refused to step the clock", code="step_refused", exit_status_of_step=ran.exit_status)


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    return None


ACTION = Action(
    id="step_clock",
    title="step the clock to the time of its source",
    arguments={},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "step_refused": "The time daemon refused to step the clock.",
    },
    deadline_s=30.0,
    undo_is_empty="A clock that was put right is not made wrong again.",
)
