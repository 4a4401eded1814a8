"""A unit whose program ends at once is active for a moment: it is looked at when that moment is over.

Seen on a booted host: a look 25 ms after the start found it running, and a cure that had not worked was called one.
"""

from __future__ import annotations

from compliance_agent.ports import ChangingHost, UnitState

MOMENT_S = 1.0


async def after_a_moment(host: ChangingHost, unit: str) -> UnitState:
    """The state of a unit that was started just now: at once when it is down already, else after `MOMENT_S`."""
    state = (await host.units((unit,)))[unit]
    if state.active == "active":
        await host.pause(MOMENT_S)
        state = (await host.units((unit,)))[unit]
    return state
