"""The rule as data: what may be cited, and the mappings that are often got wrong."""

from __future__ import annotations

import pytest

from compliance_agent.checks import registry
from compliance_agent.core.citations import NEVER, NEVER_PRIMARY, SECTIONS, Force, Reach, objection
from compliance_agent.core.proposed_rule import PROPOSED
from compliance_agent.lab.golden import proposed_rule_page


def test_every_citable_section_has_a_form_and_a_title() -> None:
    for section, entry in SECTIONS.items():
        assert section.startswith(("164.308(", "164.310(", "164.312(", "164.314(", "164.316("))
        assert entry.title
    assert len(SECTIONS) == 53


@pytest.mark.parametrize(
    ("check", "section"),
    [*NEVER, ("encryption", "164.310(d)(1)"), ("patching", "164.310(a)(2)(iv)"), ("accounts", "164.308(a)(5)(ii)(A)")],
)
def test_refuses_mappings_that_are_often_got_wrong(check: str, section: str) -> None:
    assert objection(check, section, primary=False)


@pytest.mark.parametrize(("check", "section"), NEVER_PRIMARY)
def test_refuses_them_as_the_main_section_only(check: str, section: str) -> None:
    assert objection(check, section, primary=True)
    assert objection(check, section, primary=False) is None


@pytest.mark.parametrize(
    ("section", "title", "force"),
    [
        ("164.308(a)(4)(ii)(B)", "Access authorization", Force.ADDRESSABLE),
        ("164.308(a)(4)(ii)(C)", "Access establishment and modification", Force.ADDRESSABLE),
        ("164.308(a)(5)(ii)(D)", "Password management", Force.ADDRESSABLE),
        ("164.312(b)", "Audit controls", Force.REQUIRED),
        ("164.312(d)", "Person or entity authentication", Force.REQUIRED),
        ("164.312(e)(2)(i)", "Integrity controls", Force.ADDRESSABLE),
        ("164.312(e)(2)(ii)", "Encryption", Force.ADDRESSABLE),
    ],
)
def test_titles_that_are_often_swapped(section: str, title: str, force: Force) -> None:
    assert (SECTIONS[section].title, SECTIONS[section].force) == (title, force)


def test_refuses_what_no_host_can_show() -> None:
    for section, entry in SECTIONS.items():
        assert (objection("any_check", section, primary=True) is None) == (entry.reach is not Reach.NONE)


def test_the_proposed_rule_is_a_view_of_its_own_that_nothing_cites() -> None:
    known = registry()
    for item in PROPOSED:
        assert set(item.checks) <= set(known), item.requirement
        assert bool(item.checks) == bool(item.shows) and item.missing, item.requirement
    cited = {citation.section for check in known.values() for citation in check.spec.citations}
    assert cited <= set(SECTIONS), "evidence cites the rule in force"
    page = proposed_rule_page()
    assert page.splitlines()[0].endswith("not the law")
    assert all(item.requirement in page for item in PROPOSED)
