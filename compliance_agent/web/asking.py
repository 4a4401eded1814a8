"""What a person may ask of a host by an order, as the viewer words it and reads it back from an address. Pure.

Everything that can be typed is an id or a word of a closed list: an order is in the log for years, and has no room for a remark.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

from compliance_agent.core import order_keys
from compliance_agent.core.orders import FORMS, MOST_CHECKS
from compliance_agent.errors import Refusal
from compliance_agent.server.records import Host
from compliance_agent.server.records.orders import OrderMark, OrderRow
from compliance_agent.server.services.orders import Wanted, standing
from compliance_agent.web import words
from compliance_agent.web.pages import CheckRow

LIVES = {900: "15 minutes", 3_600: "1 hour", 14_400: "4 hours", 86_400: "24 hours"}
# What `plan --json` shows as `target`; tests hold every check's plans against it.
TARGET = r"steps-[0-9a-f]{32}|updates_[0-9a-f]{0,16}_[0-9]{1,5}|(generation|half_installed|snapshot)_([0-9]{1,9}|none)"
DIGEST = r"[0-9a-f]{64}"
ONCE = re.compile(r"[A-Za-z0-9_-]{22}")
_ADDRESS = re.compile(r"https?://[A-Za-z0-9.:\[\]-]+/?")
STEPS = ("draft", "approved", "signed", "delivered", "answered")


@dataclass(frozen=True)
class Kind:
    """A kind of order in words.

    Attributes:
        kind: as the order says it.
        title: what it does, short.
        sentence: the same with what it does not do.
        needs: how many people must approve it, and sign it.
        takes: what else must be said: `checks`, `check`, `target`, `sha256`.
    """

    kind: str
    title: str
    sentence: str
    takes: tuple[str, ...] = ()

    @property
    def needs(self) -> int:
        """How many people must approve it, and sign it."""
        return order_keys.least(self.kind)


KINDS: Mapping[str, Kind] = {
    one.kind: one
    for one in (
        Kind(
            "check",
            "Look now",
            "The host looks at these checks now, and heals and records as after any look.",
            ("checks",),
        ),
        Kind(
            "remediate",
            "Put back",
            "The host looks, and asks for the cure if the check fails. Every gate of healing still decides.",
            ("check",),
        ),
        Kind("approve", "Approve a plan", "This one plan may run, once, within seven days.", ("check", "target")),
        Kind(
            "pause",
            "Pause healing",
            "The host goes on looking and recording, and changes nothing until it is told to resume.",
        ),
        Kind("resume", "Resume healing", "The host heals again, behind every gate."),
        Kind(
            "adopt_baseline",
            "Adopt a baseline",
            "The host takes a signed baseline that was brought to this server, in place of its own.",
            ("sha256",),
        ),
        Kind(
            "rotate_key",
            "Rotate the key",
            "The host makes a new key for its evidence, which takes the old one's place.",
        ),
        Kind(
            "stop_all",
            "Stop everything",
            "The host pauses healing and refuses every other order. To end it, two people sign a resume.",
        ),
    )
}


@dataclass(frozen=True)
class Asked:
    """An order that somebody is about to draft: what is wanted, and the same for people."""

    kind: Kind
    wanted: Wanted
    details: tuple[tuple[str, str], ...]
    life: str


def asked(host: Host, checks: Collection[str], fields: Sequence[tuple[str, str]], version: str | None) -> Asked:
    """What an address or a form asks of a host.

    Args:
        host: the host.
        checks: the checks that it has.
        fields: names and values; only `check` may stand more than once.
        version: of the baseline that `sha256` names, where there is one.

    Raises:
        Refusal: 422, not something that can be asked.
    """
    given = dict(fields)
    kind, life = KINDS.get(given.get("kind", "")), given.get("life", "900")
    if kind is None or life not in {str(number) for number in LIVES}:
        raise _bad("kind, life: expected words of the form")
    named = sorted({value for name, value in fields if name == "check"})
    parameters: dict[str, Any] = {}
    details: list[tuple[str, str]] = []
    if {"checks", "check"} & set(kind.takes):
        single = "check" in kind.takes
        if not named or not set(named) <= set(checks) or len(named) > (1 if single else MOST_CHECKS):
            raise _bad("check: expected one that the host has")
        parameters |= {"check": named[0]} if single else {"checks": named}
        details += [("Check", words.check_title(name)) for name in named]
    if "target" in kind.takes:
        parameters["target"] = _matching("target", TARGET, given.get("target", "").strip())
        details.append(("Plan", parameters["target"]))
    if "sha256" in kind.takes:
        digest = _matching("sha256", DIGEST, given.get("sha256", "").strip())
        if version is None:
            raise Refusal("sha256: no such baseline for that site", code="no_such_baseline", status=404)
        parameters |= {"version": version, "sha256": digest}
        details += [("Baseline", version), ("SHA-256", digest)]
    if parameters.keys() != FORMS[kind.kind].parameters.keys():
        raise RuntimeError(f"{kind.kind}: the form and the order differ")
    wanted = Wanted(host.key_id, kind.kind, parameters, int(life))
    return Asked(kind, wanted, tuple(details), LIVES[int(life)])


def _matching(name: str, pattern: str, value: str) -> str:
    if re.fullmatch(pattern, value) is None:
        raise _bad(f"{name}: not of the form that commands print")
    return value


def _bad(what: str) -> Refusal:
    return Refusal(what, code="bad_order", status=422)


def choices(checks: Sequence[CheckRow]) -> dict[str, list[CheckRow]]:
    """Which checks each kind may name: those that fail first."""
    failing = [row for row in checks if row.reported == "fail"]
    return {"checks": list(checks), "remediate": failing, "approve": failing}


@dataclass(frozen=True)
class Step:
    """A stage on an order's way: `done`, `now` or `ahead`."""

    title: str
    state: str
    sentence: str


@dataclass(frozen=True)
class OrderPage:
    """One order, whole.

    Attributes:
        state: where it stands, `expired` too.
        approvers: who said yes.
        missing: how many more must.
        signed_by, unsigned: key ids of the signers that the prepared bytes name.
        command: what a signer types; empty while it is not approved, or signed already.
        ended: how the host's record says it ended.
    """

    row: OrderRow
    host: Host
    kind: Kind
    details: tuple[tuple[str, str], ...]
    state: str
    steps: tuple[Step, ...]
    approvers: tuple[OrderMark, ...]
    missing: int
    signed_by: tuple[OrderMark, ...]
    unsigned: tuple[str, ...]
    command: str
    ended: str

    @property
    def open(self) -> bool:
        """Whether it can still be withdrawn."""
        return self.state in {"draft", "approved", "signed", "delivered"}


def order_page(row: OrderRow, host: Host, marks: Sequence[OrderMark], now: datetime, address: str) -> OrderPage:
    """An order as it stands."""
    kind = KINDS.get(row.kind) or Kind(row.kind, words.humanise(row.kind), "")
    state = standing(row, now)
    approvers = tuple(mark for mark in marks if mark.what == "approved")
    prepared = row.payload is not None and row.expires is not None and row.expires > now
    current = f"signed:{sha256(row.payload or b'').hexdigest()}"
    signed = tuple(mark for mark in marks if mark.what == current)
    return OrderPage(
        row=row,
        host=host,
        kind=kind,
        details=details_of(row),
        state=state,
        steps=_steps(state, kind.needs),
        approvers=approvers,
        missing=max(0, kind.needs - len({mark.who for mark in approvers})) if state == "draft" else 0,
        signed_by=signed,
        unsigned=tuple(name for name in row.signers.split() if name not in {mark.who for mark in signed})
        if prepared
        else (),
        command=sign_command(row, address) if state == "approved" else "",
        ended=words.gate_sentence(row.error) if row.error else "",
    )


def details_of(row: OrderRow) -> tuple[tuple[str, str], ...]:
    """(label, value) of what an order names."""
    given = json.loads(row.parameters)
    found = [("Check", words.check_title(name)) for name in given.get("checks", [])]
    for name, label in (("check", "Check"), ("target", "Plan"), ("version", "Baseline"), ("sha256", "SHA-256")):
        if name in given:
            found.append((label, words.check_title(given[name]) if name == "check" else str(given[name])))
    return tuple(found)


def _steps(state: str, needs: int) -> tuple[Step, ...]:
    people = "one person" if needs == 1 else "two people"
    said = {
        "draft": ("Drafted", ""),
        "approved": ("Approved", f"by {people}"),
        "signed": ("Signed", f"by {people}, with keys of their own"),
        "delivered": ("Given to the host", "at its next check-in"),
        "answered": ("Answered", "by a signed record"),
    }
    # What is over without an answer ends the way; how far it had come, the marks below say.
    at = STEPS.index(state) if state in STEPS else -1
    found = []
    for number, name in enumerate(STEPS):
        done = number <= at
        found.append(Step(*said[name][:1], "done" if done else "now" if number == at + 1 else "ahead", said[name][1]))
    return tuple(found) if at >= 0 else ()


def sign_command(row: OrderRow, address: str) -> str:
    """What the first signer types, on the machine that holds the key; a second one is named by the first."""
    other = " \\\n  --cosigner KEY_ID_OF_THE_OTHER" if order_keys.least(row.kind) > 1 else ""
    where = address if _ADDRESS.fullmatch(address) else "SERVER"
    return (
        f"compliance-agent server order sign {row.order_id} \\\n  --key YOUR_KEY.pem{other} \\\n"
        f"  --url {where.rstrip('/')} --token-file YOUR.token --ca-file ca.pem"
    )
