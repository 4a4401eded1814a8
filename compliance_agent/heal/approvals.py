"""What people have approved on this host, where root waits for that: root's own file, and which cure used which approval.

    {"schema": "compliance-agent/approvals/v1", "given": [{"check": "patching", "target": "updates_0f_1", "number": 7,
     "since": "2026-11-29T10:00:00Z", "until": "2026-12-06T11:00:00Z", "baseline": "<sha256>"}]}

It is made by a command that root runs, and `adopt` alone adds to it, from an order that people signed. Where there is no such file,
root asks for no approval. Each is for one cure: it is bound to it, durably, before the first change that users would notice, and
is good to this cure for four hours. What ends or takes back what such a cure began waits for nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.errors import BadFrame
from compliance_agent.frames import Fields, Form, Several, Text, Whole, Word, strict_object
from compliance_agent.heal.found import private
from compliance_agent.heal.machine import Machine
from compliance_agent.heal.permits import roots
from compliance_agent.heal.protocol import CODE, CURE, SHA256
from compliance_agent.heal.trouble import Refused

SCHEMA = "compliance-agent/approvals/v1"
CURE_LASTS = timedelta(hours=4)
MOST_GIVEN, MOST_BOUND = 64, 256  # numbers only grow, so what is no longer given is not given again
TIME, TARGET = Text(20, r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"), Text(96, r"[A-Za-z0-9@._:/+-]+")  # times compare as text
GIVEN: dict[str, Form] = {
    "check": CODE, "target": TARGET, "number": Whole(1, 2**53 - 1), "since": TIME, "until": TIME, "baseline": SHA256,
}  # fmt: skip
FILE = Fields({"schema": Word((SCHEMA,)), "given": Several(Fields(GIVEN), MOST_GIVEN)})
BOUND = Fields({"bound": Several(Fields({**GIVEN, "cure": CURE}), MOST_BOUND)})
Approval = dict[str, Any]


def given(machine: Machine, path: str) -> list[Approval]:
    """What root's file holds.

    Raises:
        Refused: `no_approvals`, `approvals_not_roots` or `bad_approvals`.
    """
    return read(roots(machine, path, "approvals"))


def read(raw: bytes) -> list[Approval]:
    """What such a file holds.

    Raises:
        Refused: `bad_approvals`.
    """
    try:
        document = strict_object(raw)
    except BadFrame as error:
        raise Refused("bad_approvals") from error
    if not FILE.fits(document):
        raise Refused("bad_approvals")
    return list(document["given"])


def text(at: datetime) -> str:
    """A time as these files have it."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


@dataclass(frozen=True)
class Approvals:
    """Whether a change that users would notice was approved.

    Attributes:
        machine: this machine.
        path: root's file.
        bound_path: which cure used which; a file of root's alone.
        now: the clock.
    """

    machine: Machine
    path: str
    bound_path: str
    now: Callable[[], datetime]

    def use(self, wanted: Approval, cure: str, *, ends: bool) -> None:
        """Have this cure hold an approval that is as wanted in these fields, durable when this returns.

        Args:
            wanted: check and baseline, and the target where the change shows it.
            cure: who uses it.
            ends: the change ends or takes back what this cure began, if it did begin with one.

        Raises:
            Refused: `approval_missing`, `approval_expired` or `approval_used`; or the files are not what they must be.
        """
        bound = self._bound()
        if ends and any(item["cure"] == cure and item["check"] == wanted["check"] for item in bound):
            return
        try:
            fits = [item for item in given(self.machine, self.path) if item.items() >= wanted.items()]
        except Refused as error:
            if error.code != "no_approvals":
                raise
            return
        now, used = text(self.now()), {item["number"] for item in bound}
        mine = [item for item in bound if item["cure"] == cure and item.items() >= wanted.items()]
        if any(now < item["until"] for item in mine):
            return
        live = [item for item in fits if item["since"] <= now < item["until"]]
        free = [item for item in live if item["number"] not in used]
        if not free:
            late = "approval_expired" if fits or mine else "approval_missing"
            raise Refused("approval_used" if live and not mine else late)
        bound.append({**free[0], "cure": cure, "until": text(self.now() + CURE_LASTS)})
        self.machine.write(self.bound_path, json.dumps({"bound": bound[-MOST_BOUND:]}).encode("ascii"), 0o600)

    def _bound(self) -> list[Approval]:
        document = private(self.machine, self.bound_path) or {"bound": []}
        if not BOUND.fits(document):
            raise Refused("state_damaged")
        return list(document["bound"])
