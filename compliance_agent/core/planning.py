"""From a finding to what could be ordered about it: one table of rules, read from above. Pure: facts in, a proposal out.

    plan(Finding(check="time_sync", reason="daemon_down", result="fail", ...)) -> Proposal(rule="cure", kind="remediate", ...)

The first rule that fits decides, and its name is stable. A rule sees typed facts alone: the check and its reason, what the host's
newest record says of a cure, and how the host stands. It never sees a label, a message or any other text of a host. A proposal
does nothing: a person may make a draft of it, people approve and sign that, and the host decides by its own gates.

What a runbook leaves to people, and what ends by itself, is a proposal without an order (`kind` is None) that says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.core.leases import REASONS as LEASES
from compliance_agent.evidence.canonical import canonical
from compliance_agent.runbook import Cure, Runbook

GRACE = timedelta(minutes=10)  # an agent that heals by itself has done so by then
LOOKED_INTO = frozenset({"flapping", "rejected_target", "canary_failed", "lease_refused"})
WAITS = (
    frozenset({"cooldown", "budget", "outside_window", "blocked", "lease_required", "lease_server_down", *LEASES})
    - LOOKED_INTO
)
STANDS = ("", "revoked", "waiting", "contested", "silent", "no_baseline")


@dataclass(frozen=True)
class Finding:
    """What is known of one check of one host that is not met.

    Attributes:
        result, reason: the verdict, as it may be shown.
        since: when it began.
        held: the reason that the newest record of a cure gives for having changed nothing, or for how it went wrong.
        outcome: how that record ends; empty where there is none about this very finding.
        stands: why no order could reach the host (one of `STANDS`); empty where one can.
    """

    key_id: str
    site_id: str
    check: str
    result: str
    reason: str
    since: datetime
    held: str = ""
    outcome: str = ""
    stands: str = ""


@dataclass(frozen=True)
class Proposal:
    """What could be done about a finding, and why this.

    Attributes:
        rule: the rule that decided, a key of `RULES`.
        why: its sentence.
        runbook: what is known about the finding; None where no runbook names it.
        cures: what may run on the host; of several, its own look decides which.
        kind: of the order that can be drafted; None where none would help.
        parameters: of that order, as far as they are known here.
        needs: parameters that only a person at the host can bring.
        do: what people do, where a runbook says it.
        due: by when the finding must have ended.
    """

    finding: Finding
    rule: str
    why: str
    runbook: Runbook | None = None
    cures: tuple[Cure, ...] = ()
    kind: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    do: str | None = None

    @property
    def proposal_id(self) -> str:
        """Of what a person would agree to: another one as soon as finding, order or runbook is another."""
        finding, book = self.finding, self.runbook
        named = {
            "host": finding.key_id,
            "check": finding.check,
            "reason": finding.reason,
            "kind": self.kind,
            "runbook": book.sha256 if book is not None else None,
        }
        return hashlib.sha256(canonical(named)).hexdigest()[:16]

    @property
    def disruptive(self) -> bool:
        """Whether users may notice the cure; a look alone they do not."""
        return self.kind in {"remediate", "approve"} and any(cure.disruptive for cure in self.cures)

    @property
    def undo(self) -> str | None:
        """How much the least of these cures can take back; None where nothing is changed."""
        found = [cure.undo for cure in self.cures] if self.kind in {"remediate", "approve"} else []
        return min(found, key=("nothing", "something", "everything").index, default=None)

    @property
    def due(self) -> datetime | None:
        """By when the runbook wants it ended."""
        return self.finding.since + timedelta(seconds=self.runbook.sla_s) if self.runbook is not None else None


@dataclass(frozen=True)
class Rule:
    """One line of the table.

    Attributes:
        why: what a person reads.
        fits: whether it is about this finding.
        kind: of the order that it proposes.
        needs: parameters that a person has to bring.
    """

    why: str
    fits: Callable[[Finding, Known], bool]
    kind: str | None = None
    needs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Known:
    """What the rules look at besides the finding: its runbook and cures, whether people are told something, and the time."""

    now: datetime
    runbook: Runbook | None
    cures: tuple[Cure, ...]
    do: str | None


RULES: Mapping[str, Rule] = {
    "not_reached": Rule(
        "no order reaches this host: it is silent, waits for an operator, was revoked, or its key is in two places",
        lambda finding, known: finding.stands not in {"", "no_baseline"},
    ),
    "look_again": Rule(
        "the agent could not tell; a look now says whether that has changed",
        lambda finding, known: finding.result == "unknown",
        kind="check",
    ),
    "no_runbook": Rule(
        "no runbook names this finding, so nothing is known that would end it",
        lambda finding, known: known.runbook is None,
    ),
    "for_people": Rule("the runbook leaves this to people", lambda finding, known: not known.cures),
    "no_baseline": Rule(
        "the host has not said which baseline it is held to, and an order that changes something is bound to one",
        lambda finding, known: finding.stands == "no_baseline",
    ),
    "audited": Rule(
        "the host's baseline lets this check only be looked at; a baseline that enforces it would have to be adopted",
        lambda finding, known: finding.held == "mode_audit",
    ),
    "paused": Rule(
        "a person paused healing on this host; who paused it resumes it",
        lambda finding, known: finding.held == "paused",
    ),
    "excepted": Rule("an approved exception covers it", lambda finding, known: finding.held == "exception"),
    "waits": Rule(
        "the agent cures it by itself once its gate opens (window, lease, cooldown, budget, or what blocks it)",
        lambda finding, known: finding.held in WAITS,
    ),
    "approve": Rule(
        "users would notice the cure, and this host waits for people to approve the plan; the target is read at the host",
        lambda finding, known: finding.held == "approval_required",
        kind="approve",
        needs=("target",),
    ),
    "looked_into": Rule(
        "the cure was undone, refused, or is undone by something else; somebody has to find out why before it is tried again",
        lambda finding, known: finding.held in LOOKED_INTO or finding.outcome in {"reverted", "rejected"},
    ),
    "not_cured_there": Rule(
        "the host saw it and had no cure for what it saw; a person has to look",
        lambda finding, known: finding.outcome == "alert",
    ),
    "soon": Rule(
        "it began a moment ago, and the agent is at it by itself",
        lambda finding, known: known.now - finding.since < GRACE and not finding.outcome,
    ),
    "cure": Rule(
        "the runbook has a cure and nothing holds it back; an order asks for it now, and every gate still decides",
        lambda finding, known: True,
        kind="remediate",
    ),
}


def plan(finding: Finding, runbooks: Mapping[str, Runbook], now: datetime) -> Proposal:
    """What the first rule that fits makes of a finding."""
    book = runbook_of(finding, runbooks)
    cures = book.cures_of(finding.check, finding.reason) if book is not None else ()
    people = book.for_people(finding.check, finding.reason) if book is not None else None
    known = Known(now, book, cures, people.do if people is not None else None)
    name = next(name for name, rule in RULES.items() if rule.fits(finding, known))
    return proposed(finding, known, name)


def proposed(finding: Finding, known: Known, name: str) -> Proposal:
    """The proposal of one rule."""
    rule = RULES[name]
    return Proposal(
        finding, name, rule.why, known.runbook, known.cures, rule.kind, parameters_of(finding, rule.kind), rule.needs, known.do
    )  # fmt: skip


def options(proposal: Proposal) -> tuple[str, ...]:
    """The kinds of order that a person may choose for a finding: its rule's own, a look, and its cure where nothing forbids it."""
    if proposal.rule == "not_reached":
        return ()
    cure = proposal.cures and not proposal.finding.stands and proposal.rule in {"cure", "soon", "waits"}
    own = (proposal.kind,) if proposal.kind is not None else ()
    return tuple(dict.fromkeys((*own, "check", *(("remediate",) if cure else ()))))


def chosen(proposal: Proposal, kind: str) -> Proposal:
    """The same finding with another of its options."""
    needs = next(rule.needs for rule in RULES.values() if rule.kind == kind)
    return replace(proposal, kind=kind, parameters=parameters_of(proposal.finding, kind), needs=needs)


def parameters_of(finding: Finding, kind: str | None) -> dict[str, Any]:
    """What an order of this kind says about a finding, without what a person has to bring."""
    if kind == "check":
        return {"checks": [finding.check]}
    return {"check": finding.check} if kind in {"remediate", "approve"} else {}


def runbook_of(finding: Finding, runbooks: Mapping[str, Runbook]) -> Runbook | None:
    """The one runbook that names the finding; else, of what could not be told, the one about the check."""
    named = [book for book in runbooks.values() if _names(book, finding)]
    about = [book for book in runbooks.values() if finding.check in book.checks and finding.result == "unknown"]
    return next(iter(named or about), None)


def _names(book: Runbook, finding: Finding) -> bool:
    return any(when.check == finding.check and finding.reason in when.reasons for when in book.findings)


def in_order(proposals: Iterable[Proposal]) -> list[Proposal]:
    """What is due first comes first; of what has no term, the oldest."""
    return sorted(proposals, key=lambda item: (item.due or item.finding.since, item.finding.key_id, item.finding.check))


def as_document(proposal: Proposal) -> dict[str, Any]:
    """A proposal as JSON values: ids, tokens and the runbook's own words, nothing that a host wrote."""
    finding, book = proposal.finding, proposal.runbook
    return {
        "proposal_id": proposal.proposal_id,
        "site_id": finding.site_id,
        "key_id": finding.key_id,
        "check": finding.check,
        "result": finding.result,
        "reason": finding.reason,
        "since": _time(finding.since),
        "due": _time(proposal.due) if proposal.due is not None else None,
        "held": finding.held or None,
        "rule": proposal.rule,
        "why": proposal.why,
        "kind": proposal.kind,
        "parameters": dict(proposal.parameters),
        "needs": list(proposal.needs),
        "options": list(options(proposal)),
        "runbook": None if book is None else {"id": book.id, "version": book.version, "sha256": book.sha256},
        "cures": [cure_document(cure) for cure in proposal.cures],
        "expected": _expected(proposal),
        "disruptive": proposal.disruptive,
        "undo": proposal.undo,
        "do": proposal.do,
    }


def _expected(proposal: Proposal) -> str | None:
    """What is believed as the effect: `pass`, of the same check, looked at again; of a look, that it can tell."""
    return {"remediate": "pass", "approve": "pass", "check": "told"}.get(proposal.kind or "")


def cure_document(cure: Cure) -> dict[str, Any]:
    """A cure as JSON values."""
    return {
        "steps": [
            {
                "action": step.action,
                "arguments": [
                    {"name": name, "source": item.source, "value": item.value} for name, item in step.arguments.items()
                ],
                "repeated": step.repeated,
            }
            for step in cure.steps
        ],
        "disruptive": cure.disruptive,
        "undo": cure.undo,
        "verify": cure.verify,
    }


def _time(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
