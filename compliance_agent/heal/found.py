"""What stood on this host before a cure changed it, as the root side saw it itself: durable first, and the only way back.

There is one cure at a time, and what was found is that of the last one: the first change of another cure forgets it. Within a
cure the first look counts; what a later step of it meets is its own work.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from compliance_agent.errors import BadFrame
from compliance_agent.frames import strict_object
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.trouble import Failed, Refused

MOST_FOUND_BYTES = 8_388_608
KINDS = ("accounts", "audit", "files", "made", "modes", "ruleset", "system", "units")


def private(machine: Machine, path: str) -> dict[str, Any] | None:
    """The object in a file that is root's alone; None where there is no file.

    Raises:
        Refused: `state_damaged`: it is there and is not what this wrote; a person has to look at it.
    """
    try:
        kept = machine.read(path, MOST_FOUND_BYTES)
        document = strict_object(kept[0]) if kept is not None else None
    except (BadFrame, Failed) as error:
        raise Refused("state_damaged") from error
    if kept is not None and (not machine.owns(kept[1]) or kept[1].st_mode & 0o077 or not document):
        raise Refused("state_damaged")
    return document


class Found:
    """What was found, in one file that is root's alone.

    Args:
        machine: reads and writes the file.
        path: of the file; its directory is there.
        cure: the cure that is asked about.

    Raises:
        Refused: `state_damaged`: the file is there and is not what this wrote; a person has to look at it.
    """

    def __init__(self, machine: Machine, path: str, cure: str) -> None:
        self._machine, self._path = machine, path
        self._state: dict[str, Any] = {"cure": cure, **{kind: {} for kind in KINDS}}
        document = private(machine, path) or self._state
        if document.keys() != self._state.keys():
            raise Refused("state_damaged")
        if document["cure"] == cure:
            self._state = document

    def get(self, kind: str, name: str) -> Any:
        """What was found under this name in this cure; None for nothing."""
        return self._state[kind].get(name)

    def all(self, kind: str) -> dict[str, Any]:
        """Everything of a kind that was found in this cure."""
        return dict(self._state[kind])

    def keep(self, kind: str, name: str, look: Callable[[], Any]) -> None:
        """Look, and have what was seen durable, unless this cure looked before."""
        if name in self._state[kind]:
            return
        self._state[kind][name] = look()
        self._machine.write(self._path, json.dumps(self._state).encode("ascii"), 0o600)
