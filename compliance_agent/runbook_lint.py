"""What is wrong with runbooks, held against the checks and the fixed table of actions. Pure.

Whatever a check may fail with is in exactly one runbook; each step is a row of the table with exactly its arguments, each of the
type that the row declares; `disruptive` and `undo` are what the table and the check make them; every plan that a check makes of
its own cases is one of the cures, and every cure is one of these plans.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from compliance_agent.checks.spec import Check, Unreadable, judge_seen
from compliance_agent.evidence.allowlist import registry
from compliance_agent.models import Plan, Result
from compliance_agent.remedies.spec import Action
from compliance_agent.runbook import Argument, Cure, Runbook, RunbookStep, When

REMARKS = {
    "unknown_check": "there is no such check",
    "unknown_reason": "the check has no such reason, or it is never given with a fail",
    "unknown_code": "the agent's records have no such code",
    "unknown_action": "there is no such row in the table of actions",
    "wrong_arguments": "the row of the table takes other arguments",
    "wrong_type": "the row of the table takes another type there",
    "unknown_parameter": "the check has no such parameter",
    "wrong_undo": "the rows of the table can take back something else",
    "not_cited": "no check of the runbook cites it",
    "never_planned": "the check never makes this plan of its own cases",
    "not_in_a_runbook": "the check makes a plan that no cure describes",
    "nothing_for_people": "the check leaves this to people, and no runbook tells them anything",
    "no_runbook": "no runbook says what to do",
    "two_runbooks": "another runbook is about it too",
}

Remark = tuple[str, str]  # a code of REMARKS, and where


def remarks_on(
    runbooks: Mapping[str, Runbook], checks: Mapping[str, Check], table: Mapping[str, Action]
) -> Iterator[Remark]:
    """Everything that is wrong with these runbooks taken together."""
    for runbook in runbooks.values():
        yield from _words(runbook, checks)
        for number, cure in enumerate(runbook.cures):
            where = f"{runbook.id}.cures[{number}]"
            yield from _steps(cure, where, checks, table)
    for name, check in checks.items():
        yield from _covered(name, check, runbooks)
        yield from _plans(name, check, runbooks)


def _words(runbook: Runbook, checks: Mapping[str, Check]) -> Iterator[Remark]:
    for when in runbook.findings:
        yield from _finding(runbook.id, when, checks)
    cited = {link.section for name in runbook.checks if name in checks for link in checks[name].spec.citations}
    for section in runbook.citations:
        if runbook.checks and section not in cited:
            yield "not_cited", f"{runbook.id}.citations.{section}"


def _finding(where: str, when: When, checks: Mapping[str, Check]) -> Iterator[Remark]:
    if when.code:
        if when.code not in registry().codes:
            yield "unknown_code", f"{where}.{when.code}"
    elif when.check not in checks:
        yield "unknown_check", f"{where}.{when.check}"
    else:
        for reason in when.reasons:
            if reason not in checks[when.check].spec.reasons:
                yield "unknown_reason", f"{where}.{when.check}.{reason}"


def _steps(cure: Cure, where: str, checks: Mapping[str, Check], table: Mapping[str, Action]) -> Iterator[Remark]:
    rows = list[Action]()
    check = checks.get(cure.when.check)
    for number, step in enumerate(cure.steps):
        at = f"{where}.steps[{number}]"
        row = table.get(step.action)
        if row is None:
            yield "unknown_action", f"{at}.{step.action}"
            continue
        rows.append(row)
        if step.arguments.keys() != row.arguments.keys():
            yield "wrong_arguments", at
            continue
        for name, argument in step.arguments.items():
            yield from _argument(argument, row.arguments[name], f"{at}.{name}", check)
    back = [not row.undo_is_empty for row in rows]
    if rows and cure.undo != ("everything" if all(back) else "something" if any(back) else "nothing"):
        yield "wrong_undo", f"{where}.undo"


def _argument(argument: Argument, kind: type, where: str, check: Check | None) -> Iterator[Remark]:
    if argument.source == "value" and type(argument.value) is not kind:
        yield "wrong_type", where
    if argument.source == "baseline" and check is not None:
        fields = getattr(check.spec.parameters, "__dataclass_fields__", {})
        if argument.value not in fields:
            yield "unknown_parameter", where


def _covered(name: str, check: Check, runbooks: Mapping[str, Runbook]) -> Iterator[Remark]:
    for reason in check.spec.reasons:
        about = [b.id for b in runbooks.values() if b.cures_of(name, reason) or b.for_people(name, reason)]
        if len(about) != 1:
            yield ("two_runbooks" if about else "no_runbook"), f"{name}.{reason}"


def _plans(name: str, check: Check, runbooks: Mapping[str, Runbook]) -> Iterator[Remark]:
    described = [
        (f"{book.id}.cures[{number}]", cure)
        for book in runbooks.values()
        for number, cure in enumerate(book.cures)
        if cure.when.check == name
    ]
    never = {(where, reason) for where, cure in described for reason in cure.when.reasons}
    for case in check.cases:
        parameters = check.spec.parameters(**{**check.spec.example, **case.parameters})
        verdict = judge_seen(check, parameters, case.seen)
        plan = None
        if verdict.result is Result.FAIL and not isinstance(case.seen, Unreadable):
            plan = check.plan(parameters, case.seen)
        if plan is None:
            told = any(book.for_people(name, verdict.reason) for book in runbooks.values())
            if verdict.result is Result.FAIL and not told:
                yield "nothing_for_people", f"{name}.{verdict.reason} ({case.name})"
            continue
        fitting = {
            (where, verdict.reason)
            for where, cure in described
            if verdict.reason in cure.when.reasons and describes(cure, plan, parameters)
        }
        if not fitting:
            yield "not_in_a_runbook", f"{name}.{verdict.reason} ({case.name})"
        never -= fitting
    for where, reason in sorted(never):
        yield "never_planned", f"{where}.{reason}"


def describes(cure: Cure, plan: Plan, parameters: object) -> bool:
    """Whether a check's plan, made under these parameters, is what the cure says: rows, order, arguments and disruption."""
    return cure.disruptive == plan.disruptive and _matches(cure.steps, list(plan.steps), parameters)


def _matches(steps: Sequence[RunbookStep], planned: list[Any], parameters: object) -> bool:
    for step in steps:
        if not planned or not _step_matches(step, planned.pop(0), parameters):
            return False
        while step.repeated and planned and _step_matches(step, planned[0], parameters):
            planned.pop(0)
    return not planned


def _step_matches(step: RunbookStep, planned: Any, parameters: object) -> bool:
    if step.action != planned.action or step.arguments.keys() != planned.args.keys():
        return False
    return all(_comes_from(step.arguments[name], value, parameters) for name, value in planned.args.items())


def _comes_from(argument: Argument, value: object, parameters: object) -> bool:
    if argument.source == "seen":
        return True
    if argument.source == "value":
        return value == argument.value and type(value) is type(argument.value)
    given = getattr(parameters, str(argument.value), None)  # an unknown parameter has its own remark
    if isinstance(given, tuple):
        return value in given or value == ",".join(map(str, given))
    return value == given and type(value) is type(given)
