"""A service's state in one word, for every check that watches one."""

from __future__ import annotations

from compliance_agent.errors import CannotTell
from compliance_agent.facts import Choice
from compliance_agent.ports import UnitState

UNIT = Choice(("active", "starting", "stopped", "failed", "masked", "missing"))

_BY_ACTIVE = {
    "active": "active",
    "reloading": "active",
    "refreshing": "active",
    "activating": "starting",
    "inactive": "stopped",
    "deactivating": "stopped",
    "maintenance": "stopped",
    "failed": "failed",
}


def unit_word(state: UnitState) -> str:
    """One word of UNIT. A masked unit is `masked` even while it still runs: it would not come back.

    Raises:
        CannotTell: `unparsable`, for words that systemd does not use.
    """
    if state.load == "not-found":
        return "missing"
    if state.load == "masked" or state.enabled in {"masked", "masked-runtime"}:
        return "masked"
    word = _BY_ACTIVE.get(state.active)
    if state.load != "loaded" or word is None:
        raise CannotTell("unparsable", "the service manager described the unit in unknown words")
    return word
