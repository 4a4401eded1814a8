"""Wait until the virus scanner answers on its socket, with signatures that are recent enough.

After a start it loads its signatures for half a minute and answers nothing; after an update it keeps the old ones as long. One that
ended over what it loaded is not waited for.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.core import clamd
from compliance_agent.errors import CannotTell, StepFailed
from compliance_agent.ports import ChangingHost
from compliance_agent.remedies.spec import Action, Args

ATTEMPTS = 120
PAUSE_S = 2.0


async def capture(host: ChangingHost, args: Args) -> Any:
    return None


async def apply(host: ChangingHost, args: Args) -> None:
    for _ in range(ATTEMPTS):
        if await _ready(host, str(args["socket"]), int(args["max_age_h"])):
            return
        unit = str(args["unit"])
        if (await host.units((unit,)))[unit].active == "failed":
            raise StepFailed(f"{unit}: came up and failed", code="scanner_ended")
        await host.pause(PAUSE_S)
    raise StepFailed("the scanner did not come up with recent signatures", code="scanner_not_ready")


async def undo(host: ChangingHost, args: Args, captured: Any) -> None:
    return None


async def _ready(host: ChangingHost, socket: str, max_age_h: int) -> bool:
    """Whether it answers and, unless `max_age_h` is 0, its signatures are at most that old."""
    try:
        if not clamd.answers_ping(await host.ask(socket, clamd.PING)):
            return False
        if max_age_h == 0:
            return True
        zone = clamd.parse_zone((await host.run(clamd.ZONE)).out)
        version = clamd.parse_version(await host.ask(socket, clamd.VERSION), zone)
    except CannotTell as error:
        if error.reason == "not_permitted":
            raise
        return False
    age_h = version.age_h(host.now())
    return age_h is not None and age_h <= max_age_h


ACTION = Action(
    id="await_scanner",
    title="wait until {unit} answers at {socket} (with signatures of at most {max_age_h} h, unless 0)",
    arguments={"unit": str, "socket": str, "max_age_h": int},
    capture=capture,
    apply=apply,
    undo=undo,
    codes={
        "scanner_ended": "The scanner came up and failed, as over a database that is damaged.",
        "scanner_not_ready": "The scanner did not answer in time with recent signatures.",
    },
    deadline_s=300.0,
    undo_is_empty="It waits and changes nothing.",
)
