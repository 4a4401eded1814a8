"""Each runbook's steps are rows of the table, and each cure is a plan that the check itself makes: nothing else can run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from compliance_agent.checks import registry
from compliance_agent.models import Plan, Step
from compliance_agent.remedies import actions
from compliance_agent.runbook import Argument, ForPeople, Runbook, RunbookStep, When, shipped
from compliance_agent.runbook_lint import REMARKS, describes, remarks_on


def remarks(books: dict[str, Runbook]) -> set[tuple[str, str]]:
    return set(remarks_on(books, registry(), actions()))


def test_the_shipped_ones_are_what_the_checks_do() -> None:
    assert remarks(dict(shipped())) == set()


def test_every_step_of_every_runbook_is_a_row_with_its_typed_arguments() -> None:
    """Said once more without the linter: the executor takes nothing else (`remedies/plan.py: resolve`)."""
    table = actions()
    steps = [step for book in shipped().values() for cure in book.cures for step in cure.steps]
    assert len(steps) > 30
    for step in steps:
        assert step.arguments.keys() == table[step.action].arguments.keys()


def with_step(book: Runbook, **changes: Any) -> Runbook:
    cure = book.cures[0]
    return replace(
        book, cures=(replace(cure, steps=(replace(cure.steps[0], **changes), *cure.steps[1:])), *book.cures[1:])
    )


def with_cure(book: Runbook, **changes: Any) -> Runbook:
    return replace(book, cures=(replace(book.cures[0], **changes), *book.cures[1:]))


def telling(book: Runbook, **changes: Any) -> Runbook:
    return replace(book, people=(replace(book.people[0], **changes), *book.people[1:]))


# Each mutation of the shipped time-sync, with the remark that must be made of it.
PLANTED: dict[str, Callable[[Runbook], Runbook]] = {
    "unknown_check": lambda book: telling(book, when=When("tyme_sync", ("daemon_missing",))),
    "unknown_reason": lambda book: telling(book, when=When("time_sync", ("daemon_lost",))),
    "unknown_code": lambda book: telling(book, when=When(code="no_such_code_at_all")),
    "unknown_action": lambda book: with_step(book, action="run_command"),
    "wrong_arguments": lambda book: with_step(book, arguments={}),
    "wrong_type": lambda book: with_step(book, arguments={"unit": Argument("value", 7)}),
    "unknown_parameter": lambda book: with_step(book, arguments={"unit": Argument("baseline", "units")}),
    "wrong_undo": lambda book: with_cure(book, undo="everything"),
    "not_cited": lambda book: replace(book, citations=("164.312(d)",)),
    "never_planned": lambda book: with_step(book, arguments={"unit": Argument("baseline", "daemon")}),
    "not_in_a_runbook": lambda book: with_cure(book, disruptive=True),
    "nothing_for_people": lambda book: replace(book, people=book.people[1:]),
    "no_runbook": lambda book: replace(book, people=book.people[1:]),
}  # fmt: skip


@pytest.mark.parametrize("code", [code for code in REMARKS if code != "two_runbooks"])
def test_what_is_wrong_is_remarked_on(code: str) -> None:
    books = dict(shipped())
    books["time-sync"] = PLANTED[code](books["time-sync"])
    assert code in {found for found, _ in remarks(books)}


def test_two_runbooks_about_one_finding_contradict_each_other_sooner_or_later() -> None:
    books = dict(shipped())
    also = ForPeople(When("time_sync", ("daemon_missing",)), "Do something else about it.")
    books["disk-full"] = replace(books["disk-full"], people=(*books["disk-full"].people, also))
    assert ("two_runbooks", "time_sync.daemon_missing") in remarks(books)


def test_a_plan_fits_only_with_all_its_steps_in_order() -> None:
    book = shipped()["time-sync"]
    (cure,) = book.cures_of("time_sync", "daemon_down")
    parameters = registry()["time_sync"].spec.parameters()
    unit, wait = Step("ensure_unit_active", {"unit": "chrony.service"}), Step("await_clock", {"daemon": "chrony"})
    assert describes(cure, Plan("time_sync", (unit, wait)), parameters)
    for steps in ((unit,), (wait, unit), (unit, wait, wait), (), (Step("ensure_unit_active", {"unit": "x"}), wait)):
        assert not describes(cure, Plan("time_sync", steps), parameters)
    assert not describes(cure, Plan("time_sync", (unit, wait), disruptive=True), parameters)


def test_a_repeated_step_is_once_or_more_and_each_from_the_baseline() -> None:
    (cure,) = shipped()["service-crash"].cures_of("services", "service_down")
    parameters = registry()["services"].spec.parameters(active=("a.service", "b.service"))
    up = [Step("ensure_unit_active", {"unit": f"{name}.service"}) for name in "abc"]
    assert describes(cure, Plan("services", tuple(up[:2])), parameters)
    assert not describes(cure, Plan("services", tuple(up)), parameters)
    assert not describes(cure, Plan("services", ()), parameters)
    once = replace(cure, steps=(RunbookStep("ensure_unit_active", cure.steps[0].arguments),))
    assert not describes(once, Plan("services", tuple(up[:2])), parameters)
