"""Wait until the time daemon follows a source: just after its start it has not heard from one yet.

Without this wait a cure that works would be taken for one that did not help, and be undone.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core.timekeeping import TIMESYNC_STATUS, TRACKING, parse_timesync_status, parse_tracking
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args

ATTEMPTS = 40
PAUSE_S = 1.0


async def capture(host: ChangingHost, args: Args) -> Any:
    return None


async def apply(host: ChangingHost, args: Args) -> None:
    for _ in range(ATTEMPTS):
        if await _synchronised(host, str(args["daemon"])):
            return
        await host.pause(PAUSE_S)
    raise StepFailed("the time daemon found no source to follow", code="not_synchronised")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    return None


async def _synchronised(host: ChangingHost, daemon: str) -> bool:
    try:
        if daemon == "chrony":
            return parse_tracking((await host.run(TRACKING)).text, host.now()).synchronised
        return parse_timesync_status((await host.run(TIMESYNC_STATUS)).text).synchronised
    except CannotTell as error:
        if error.reason == "unparsable":  # no answer yet: the daemon is still coming up
            return False
        raise


ACTION = Action(
    id="await_clock",
    title="wait until {daemon} follows a time source",
    arguments={"daemon": str},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "not_synchronised": "The time daemon found no source to follow.",
    },
    undo_is_empty="It waits and changes nothing.",
)
