"""Planning: the first rule that fits decides, each finding of each runbook has an answer, and what goes wrong proposes nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core import gates, orders, planning
from compliance_agent.core.planning import RULES, Finding, Proposal, plan
from compliance_agent.evidence.allowlist import registry
from compliance_agent.models import Outcome
from compliance_agent.runbook import shipped

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DOCS = Path(__file__).resolve().parents[2] / "docs" / "planner.md"
DOWN = Finding("ab" * 32, "clinic-1", "time_sync", "fail", "daemon_down", NOW - timedelta(hours=1))


def planned(finding: Finding = DOWN, **changes: Any) -> Proposal:
    return plan(replace(finding, **changes), shipped(), NOW)


@pytest.mark.parametrize(
    ("changes", "rule", "kind"),
    [
        ({}, "cure", "remediate"),
        ({"since": NOW - timedelta(minutes=1)}, "soon", None),
        ({"since": NOW - timedelta(minutes=1), "held": "step_failed", "outcome": "failed"}, "cure", "remediate"),
        ({"stands": "silent"}, "not_reached", None),
        ({"stands": "contested"}, "not_reached", None),
        ({"stands": "no_baseline"}, "no_baseline", None),
        ({"stands": "no_baseline", "result": "unknown", "reason": "timed_out"}, "look_again", "check"),
        ({"result": "unknown", "reason": "timed_out"}, "look_again", "check"),
        ({"reason": "no_such_reason"}, "no_runbook", None),
        ({"check": "no_such_check"}, "no_runbook", None),
        ({"reason": "daemon_missing"}, "for_people", None),
        ({"held": "mode_audit", "outcome": "alert"}, "audited", None),
        ({"held": "paused", "outcome": "deferred"}, "paused", None),
        ({"held": "exception", "outcome": "deferred"}, "excepted", None),
        ({"held": "outside_window", "outcome": "deferred"}, "waits", None),
        ({"held": "canary_unproven", "outcome": "deferred"}, "waits", None),
        ({"held": "approval_required", "outcome": "deferred"}, "approve", "approve"),
        ({"held": "flapping", "outcome": "alert"}, "looked_into", None),
        ({"held": "check_fail", "outcome": "reverted"}, "looked_into", None),
        ({"held": "canary_failed", "outcome": "deferred"}, "looked_into", None),
        ({"held": "no_cure", "outcome": "alert"}, "not_cured_there", None),
        ({"held": "step_failed", "outcome": "failed"}, "cure", "remediate"),
    ],
)
def test_the_first_rule_that_fits_decides(changes: dict[str, Any], rule: str, kind: str | None) -> None:
    found = planned(**changes)
    assert (found.rule, found.kind) == (rule, kind)
    assert found.why == RULES[rule].why


def test_each_rule_can_decide() -> None:
    """The cases above, counted: a rule that nothing reaches says nothing."""
    marks: Any = next(mark for mark in test_the_first_rule_that_fits_decides.pytestmark)
    assert {case[1] for case in marks.args[1]} == set(RULES)


@pytest.mark.parametrize("held", sorted(set(gates.REASONS) - {"allowed", "no_cure"}))
def test_each_gate_that_holds_a_cure_back_is_known(held: str) -> None:
    """A new gate that no rule names would be proposed as if nothing held the cure back."""
    assert planned(held=held, outcome="deferred").rule != "cure"


def test_every_finding_of_every_runbook_has_a_proposal() -> None:
    for book in shipped().values():
        for when in book.findings:
            for reason in when.reasons:
                found = planned(check=when.check, reason=reason)
                assert found.runbook == book, (when, reason)
                assert found.rule == ("cure" if book.cures_of(when.check, reason) else "for_people")
                assert found.due == DOWN.since + timedelta(seconds=book.sla_s)
                assert (found.kind is None) <= (found.do is not None), "nothing to order, and nobody is told anything"


def test_what_is_proposed_is_an_order_of_the_agreed_form() -> None:
    for kind in ("check", "remediate", "approve"):
        parameters = planning.parameters_of(DOWN, kind)
        rules = [rule for rule in RULES.values() if rule.kind == kind]
        assert rules and all(
            parameters.keys() | set(rule.needs) == orders.FORMS[kind].parameters.keys() for rule in rules
        )
        assert all(orders.FORMS[kind].parameters[name](value) for name, value in parameters.items())


def test_risk_is_that_of_the_cures_and_of_nothing_for_a_look() -> None:
    skewed = planned(reason="offset_too_large")
    assert (skewed.disruptive, skewed.undo) == (True, "nothing")
    quiet = planned()
    assert (quiet.disruptive, quiet.undo) == (False, "something")
    look = planned(result="unknown")
    assert (look.kind, look.disruptive, look.undo) == ("check", False, None)


def test_an_id_is_of_what_is_agreed_to() -> None:
    assert planned().proposal_id == planned(since=NOW - timedelta(days=2)).proposal_id
    others = [
        planned(key_id="cd" * 32),
        planned(reason="offset_too_large"),
        planned(held="approval_required"),
        planned(result="unknown"),
    ]
    ids = {planned().proposal_id, *(item.proposal_id for item in others)}
    assert len(ids) == 5
    book = replace(shipped()["time-sync"], sha256="0" * 64)
    assert plan(DOWN, {"time-sync": book}, NOW).proposal_id not in ids, "another text of the runbook"


def test_what_is_due_first_comes_first() -> None:
    late = planned(since=NOW - timedelta(days=9))
    soon = planned(reason="daemon_missing")
    unknown = planned(check="no_such_check", since=NOW - timedelta(days=1))
    assert planning.in_order([soon, unknown, late]) == [late, unknown, soon]


_words = st.text(max_size=60)
_known = st.sampled_from(sorted(registry().checks))


@given(
    st.builds(
        Finding,
        key_id=st.just("ab" * 32),
        site_id=st.just("clinic-1"),
        check=st.one_of(_known, _words),
        result=st.sampled_from(["fail", "unknown", "exception", "pass", ""]),
        reason=st.one_of(st.sampled_from(["daemon_down", "security_pending"]), _words),
        since=st.datetimes(datetime(2020, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001
        held=st.one_of(st.sampled_from(sorted(gates.REASONS)), _words),
        outcome=st.sampled_from(["", *map(str, Outcome)]),
        stands=st.sampled_from(planning.STANDS),
    )
)
def test_whatever_the_facts_there_is_one_answer_and_it_asks_for_no_more_than_the_finding(finding: Finding) -> None:
    found = plan(finding, shipped(), NOW)
    assert found.kind in {None, "check", "remediate", "approve"}
    assert found.parameters in ({}, {"check": finding.check}, {"checks": [finding.check]})
    if found.kind in {"remediate", "approve"}:
        assert found.cures and not finding.stands, (
            "a change needs a cure that a runbook has, and a host that can be reached"
        )
    document = planning.as_document(found)
    assert document["proposal_id"] == found.proposal_id and re.fullmatch("[0-9a-f]{16}", found.proposal_id)


def test_the_page_has_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*?) \|", DOCS.read_text("utf-8"), re.MULTILINE)
    listed = {name: (order.strip("`"), why) for name, order, why in rows if name in RULES}
    assert listed == {name: (rule.kind or "none", rule.why) for name, rule in RULES.items()}
    assert list(listed) == list(RULES), "in their order, which decides"
