"""What could be done about one check, and what was done last, in words. Pure.

The plan is the runbook's: which rows of the fixed table the agent's own plan has. The agent makes that plan from its look at the
host and holds every gate itself, so a page says what would run and what holds it, and never that it will.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compliance_agent.core import planning
from compliance_agent.core.planning import Proposal
from compliance_agent.runbook import Argument, Cure
from compliance_agent.web import words
from compliance_agent.web.pages import FactRow, StepRow, fact_rows
from compliance_agent.web.present import step_rows

UNDO = {
    "everything": "If it does not pass, every step is taken back, and the check looks again.",
    "something": "If it does not pass, what can be taken back is, and the check looks again. What cannot, each step says.",
    "nothing": "None of this can be taken back. If it does not pass, the record says so and a person is told.",
}


@dataclass(frozen=True)
class PlannedStep:
    """One step of a plan: what it does, its arguments as (name, where the value comes from), and how it is taken back."""

    action: str
    title: str
    arguments: tuple[tuple[str, str], ...]
    undo: str
    repeated: bool


@dataclass(frozen=True)
class PlannedCure:
    """One cure of a finding; of several, the host's own look decides which."""

    steps: tuple[PlannedStep, ...]
    disruptive: bool
    undo: str


@dataclass(frozen=True)
class PlanPage:
    """What could be done about a finding.

    Attributes:
        why: the sentence of the planner's rule that fits.
        kind: of the order that would help; None where none would.
        runbook: (id, version) of where it stands; None where no runbook names the finding.
        due: by when that wants it ended.
        gate: what held the cure back last; empty where nothing is known to.
        people: what a person does, where a runbook says it.
    """

    why: str
    kind: str | None
    options: tuple[str, ...]
    runbook: tuple[str, str] | None
    due: datetime | None
    gate: str
    gate_sentence: str
    cures: tuple[PlannedCure, ...]
    people: str


def plan_page(proposal: Proposal | None) -> PlanPage | None:
    """A proposal for reading; None where there is nothing to do."""
    if proposal is None:
        return None
    book, held = proposal.runbook, proposal.finding.held
    return PlanPage(
        why=f"{proposal.why[:1].upper()}{proposal.why[1:]}.",
        kind=proposal.kind,
        options=planning.options(proposal),
        runbook=(book.id, book.version) if book is not None else None,
        due=proposal.due,
        gate=held,
        gate_sentence=words.gate_sentence(held) if held else "",
        cures=tuple(_cure(cure) for cure in proposal.cures),
        people=proposal.do or "",
    )


def _cure(cure: Cure) -> PlannedCure:
    steps = tuple(
        PlannedStep(
            action=step.action,
            title=words.step_title(step.action),
            arguments=tuple((name, _source(item)) for name, item in step.arguments.items()),
            undo=words.step_undo(step.action),
            repeated=step.repeated,
        )
        for step in cure.steps
    )
    return PlannedCure(steps, cure.disruptive, UNDO[cure.undo])


def _source(argument: Argument) -> str:
    if argument.source == "baseline":
        return f"{argument.value} of the host's baseline"
    return f"as seen: {argument.value}" if argument.source == "seen" else str(argument.value)


@dataclass(frozen=True)
class CurePage:
    """What the newest record of a cure says: the looks before and after it, and its steps."""

    facts: tuple[FactRow, ...]
    two_looks: bool
    before: str
    after: str | None
    after_sentence: str
    steps: tuple[StepRow, ...]


def cure_page(check: str, document: Mapping[str, Any]) -> CurePage | None:
    """The same from the record's document; None where that is not held any more. Nothing in it is trusted to have its shape."""
    if not document:
        return None
    before, after = (
        value if isinstance(value, dict) else {} for value in (document.get("pre_state"), document.get("post_state"))
    )
    result = str(document["post_result"]) if document.get("post_result") else None
    return CurePage(
        facts=fact_rows(before, after, {name: words.fact_doc(check, name) for name in {*before, *after}}),
        two_looks=bool(after),
        before=str(document.get("result") or "unknown"),
        after=result,
        after_sentence=words.reason_sentence(check, str(document.get("post_reason") or "")) if result else "",
        steps=step_rows(document.get("actions")),
    )
