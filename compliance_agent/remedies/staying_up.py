"""A unit whose program ends at once is active for a moment: it is looked at when that moment is over.

Seen on a booted host: a look 25 ms after the start found it running, and a cure that had not worked was called one. Not so where
the unit says itself when it is ready (`Type=notify`, `dbus`): the manager calls it active only then. One of these that the manager
has restarted by itself is in a loop, or was, and is given its moment; so is one of which none of this can be told.
"""

from __future__ import annotations

from compliance_agent.errors import CannotTell
from compliance_agent.ports import ChangingHost, UnitState

MOMENT_S = 1.0
SAYS_SO = frozenset({"notify", "notify-reload", "dbus"})  # systemd.service(5), Type=
ASKED = ("systemctl", "show", "--property=Type,NRestarts", "--")


async def after_a_moment(host: ChangingHost, unit: str) -> UnitState:
    """The state of a unit that was started just now: at once when it is down already or said that it is ready, else after
    `MOMENT_S`.
    """
    state = (await host.units((unit,)))[unit]
    if state.active == "active":
        if not await _said_so(host, unit):
            await host.pause(MOMENT_S)
        state = (await host.units((unit,)))[unit]
    return state


async def _said_so(host: ChangingHost, unit: str) -> bool:
    """Whether the unit is one that says when it is ready, and came up at the first attempt."""
    if not unit.endswith(".service"):
        return False
    try:
        ran = await host.run((*ASKED, unit))
    except CannotTell:
        return False
    told = dict(line.split("=", 1) for line in ran.text.splitlines() if "=" in line)
    return ran.exit_status == 0 and told.get("Type") in SAYS_SO and told.get("NRestarts") == "0"
