"""What root remembers of orders, in one file that is root's alone: durable first, then brought to the files that it names.

Whatever stops this between two writes, `settle` finishes before anything else is looked at. Where the file is lost, no order that
was signed before counts any more, since no nonce is known.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from typing import Any

from compliance_agent.adopt.forms import BASE64, NONCE, TIME, raw_of, strict, unless
from compliance_agent.frames import Fields, Maybe, Several, Text, Whole
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.protocol import PATH, SHA256
from compliance_agent.heal.trouble import Failed, Refused

MOST_BYTES = 8_388_608
NONCE_LIFE_S = 24 * 3_600
NUMBER = Whole(0, 2**53 - 1)
PLACED = Fields({"path": PATH, "content": BASE64})
FORM = Fields({
    "nonces": Several(Fields({"nonce": NONCE, "at": NUMBER}), 2), "counter": NUMBER, "since": Maybe(TIME),
    "pin": Text(64), "root": NUMBER, "keys": NUMBER, "taken": Maybe(SHA256), "baseline": Maybe(SHA256),
    "placing": Several(PLACED, 3),
})  # fmt: skip
FRESH = {
    "nonces": [], "counter": 0, "since": None, "pin": "", "root": 0, "keys": 0, "taken": None, "baseline": None, "placing": [],
}  # fmt: skip


class State:
    """The file.

    Args:
        machine: reads and writes it.
        path: of it; its directory is there.

    Raises:
        Refused: `state_damaged`: it is there and is not what this wrote; a person has to look at it.
    """

    def __init__(self, machine: Machine, path: str) -> None:
        self._machine, self._path = machine, path
        try:
            kept = machine.read(path, MOST_BYTES)
        except Failed as error:
            raise Refused("state_damaged") from error
        unless(kept is None or (machine.owns(kept[1]) and not kept[1].st_mode & 0o077), "state_damaged")
        self.says: dict[str, Any] = dict(FRESH) if kept is None else strict(kept[0], FORM, "state_damaged")

    def give_nonce(self) -> str:
        """A new nonce, durable when this returns; the one before stays good."""
        nonce = secrets.token_hex(16)
        self.keep(nonces=[{"nonce": nonce, "at": _uptime_s()}, *self.says["nonces"][:1]])
        return nonce

    def nonces(self) -> frozenset[str]:
        """Those that an order may name: given in this uptime, and not long ago, whatever the clock says."""
        now = _uptime_s()
        return frozenset(item["nonce"] for item in self.says["nonces"] if 0 <= now - item["at"] < NONCE_LIFE_S)

    def keep(self, **changes: Any) -> None:
        """Change it; durable as a whole when this returns."""
        after = self.says | changes
        self._machine.write(self._path, json.dumps(after).encode("ascii"), 0o600, _ours())
        self.says = after

    def settle(self) -> None:
        """Bring to their files what was taken and may not be there yet."""
        for item in self.says["placing"]:
            self._machine.write(item["path"], raw_of(item["content"]), 0o644, _ours())
        if self.says["placing"]:
            self.keep(placing=[])


def _ours() -> tuple[int, int]:
    return os.geteuid(), os.getegid()


def _uptime_s() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))
