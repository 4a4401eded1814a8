"""Counting, order and words: what a page is given before it is rendered."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import healing
from compliance_agent.core import gates
from compliance_agent.errors import CANNOT_TELL_REASONS
from compliance_agent.models import BundleKind, Outcome, Result
from compliance_agent.server.services.fleet import Moved
from compliance_agent.web import present, words
from compliance_agent.web.pages import (
    Counts,
    SiteRow,
    Verification,
    age,
    by_urgency,
    fact_rows,
    printed,
)
from compliance_agent.web.rendering import environment

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


@given(st.integers(0, 10**6), st.integers(0, 50), st.integers(0, 50), st.integers(0, 50))
def test_a_hundred_per_cent_means_all_of_them(passed: int, failed: int, unknown: int, exception: int) -> None:
    counts = Counts(passed, failed, unknown, exception)
    if counts.percent == 100:
        assert failed == unknown == exception == 0
    assert counts.judged == passed + failed + unknown + exception
    assert sum(number for _, number in counts.parts) == counts.judged


def test_nothing_judged_is_no_hundred_per_cent() -> None:
    assert Counts(not_applicable=3).percent is None
    assert Counts().worst == "unknown"


def test_a_word_that_is_no_verdict_counts_as_unknown() -> None:
    assert Counts.of(["pass", "splendid"]) == Counts(passed=1, unknown=1)


def test_nothing_verified_is_not_valid() -> None:
    assert not Verification(()).valid
    assert not Verification((present.proof("signature", True), present.proof("chain", False))).valid


def site(name: str, silent: int = 0, hours: int | None = None) -> SiteRow:
    oldest = None if hours is None else NOW - timedelta(hours=hours)
    return SiteRow(name, name, "client", 1, silent, Counts(1), oldest, Moved())


def test_silent_sites_lead_then_the_oldest_unmet() -> None:
    rows = [site("b"), site("a"), site("young", hours=1), site("old", hours=9), site("silent", silent=1, hours=2)]
    assert [row.name for row in by_urgency(rows)] == ["silent", "old", "young", "a", "b"]


@pytest.mark.parametrize(
    ("ago", "said"),
    [
        (timedelta(seconds=5), "just now"),
        (timedelta(minutes=4), "4 min"),
        (timedelta(hours=3), "3 h"),
        (timedelta(hours=3, minutes=12), "3 h 12 min"),
        (timedelta(days=2, hours=5), "2 d 5 h"),
        (timedelta(days=40, hours=5), "40 d"),
        (-timedelta(hours=1), "in the future"),
    ],
)
def test_age_in_words(ago: timedelta, said: str) -> None:
    assert age(NOW - ago, NOW) == said


def test_facts_side_by_side_with_the_changed_ones_first() -> None:
    rows = fact_rows({"a": 1, "b": None, "gone": True}, {"a": 1, "b": [], "new": "x"}, {"a": "doc"})
    assert [(row.name, row.before, row.after, row.changed) for row in rows] == [
        ("b", "could not tell", "none", True),
        ("gone", "yes", "not recorded", True),
        ("new", "not recorded", "x", True),
        ("a", "1", "1", False),
    ]
    assert [row.changed for row in fact_rows({"a": 1}, {}, {})] == [False]


def test_could_not_tell_is_never_printed_as_an_answer() -> None:
    assert printed(None) not in {printed(False), printed(0), printed([]), printed("")}


@pytest.mark.parametrize(
    ("table", "tokens"),
    [
        (words.VERDICTS, list(Result)),
        (words.OUTCOMES, list(Outcome)),
        (words.KINDS, list(BundleKind)),
        (words.COMMON_REASONS, ["as_expected", *CANNOT_TELL_REASONS, "silent", "stale", "revoked"]),
        (words.GATES, [*gates.REASONS, *healing.CODES]),
    ],
    ids=["verdicts", "outcomes", "kinds", "common reasons", "gates and endings"],
)
def test_every_token_has_its_sentence(table: dict[str, object], tokens: list[str]) -> None:
    assert set(tokens) <= set(table)


def test_checks_speak_for_themselves() -> None:
    assert words.registry(), "the registry is empty"
    for check, entry in words.registry().items():
        assert words.check_title(check) == entry["title"]
        for reason, sentence in entry["reasons"].items():
            assert words.reason_sentence(check, reason) == sentence
        for name in entry["facts"]:
            assert words.fact_doc(check, name)


def test_a_token_without_a_sentence_is_shown_as_it_is() -> None:
    assert words.reason_sentence("firewall", "brand_new") == "Brand new"
    assert words.gate_sentence("brand_new") == "Brand new"


@given(st.text())
def test_key_file_names_are_safe_in_a_shell(label: str) -> None:
    name = present.pem_name(label)
    assert name.endswith(".pub.pem")
    assert not set(name) - set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-")
    assert not name.startswith("-")


@given(st.text() | st.none() | st.integers())
def test_a_claimed_time_is_a_time_or_nothing(text: object) -> None:
    found = present.instant(text)
    assert found is None or found.tzinfo is not None


def test_every_template_compiles_and_escapes() -> None:
    engine = environment()
    for name in engine.list_templates():
        engine.get_template(name)
        assert engine.loader is not None
        source = engine.loader.get_source(engine, name)[0]
        assert "|safe" not in source.replace(" ", ""), name
        assert "autoescape" not in source, name
    assert engine.from_string("{{ x }}").render(x="<b>") == "&lt;b&gt;"
