"""The codes by which the service manager refuses, for every action that works on units."""

from __future__ import annotations


def unit_codes(*verbs: str) -> dict[str, str]:
    """One code for each of `systemctl`'s verbs that an action uses, with its sentence."""
    return {f"unit_{verb}_failed": f"The service manager reported failure: {verb} a unit." for verb in verbs}
