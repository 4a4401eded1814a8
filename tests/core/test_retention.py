"""How long records are kept: calendar and floor, baseline versions, holds; never a day less."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core.retention import LEAST_DAYS, Keep, SiteRules, day_of, in_effect, kept_until

DAYS = st.dates(date(1900, 1, 1), date(9990, 1, 1))


@pytest.mark.parametrize(
    ("day", "until"),
    [
        (date(2026, 11, 28), date(2032, 11, 28)),  # 2028 and 2032 have 29 February
        (date(2024, 2, 29), date(2030, 3, 1)),  # that day has no 29 February
        (date(2028, 2, 29), date(2034, 3, 1)),
        (date(2025, 3, 1), date(2031, 3, 2)),  # 2,191 days to the anniversary, so one more
        (date(2096, 6, 1), date(2102, 6, 3)),  # 2100 is no leap year: 2,190 days
        (date(9999, 12, 31), date.max),
    ],
)
def test_six_years_by_the_calendar(day: date, until: date) -> None:
    assert kept_until(day) == until


@given(DAYS)
def test_never_less_than_six_calendar_years_or_2192_days(day: date) -> None:
    until = kept_until(day)
    assert (until - day).days >= LEAST_DAYS
    assert (until.year, until.month, until.day) >= (day.year + 6, day.month, day.day)
    assert (until - day).days <= LEAST_DAYS + 1


@given(DAYS, st.integers(-10, 10))
def test_it_may_go_only_after_its_last_day(day: date, offset: int) -> None:
    keep = Keep(kept_until(day))
    assert keep.may_go(keep.until + timedelta(days=offset)) == (offset > 0)


def test_the_day_of_a_record_is_the_later_one() -> None:
    """A host's clock behind or ahead never shortens it, whatever the zone the time is written in."""
    received = datetime(2026, 11, 28, 23, 30, tzinfo=UTC)
    assert day_of("2026-11-01T00:00:00Z", received) == date(2026, 11, 28)
    assert day_of("2026-12-02T00:00:00Z", received) == date(2026, 12, 2)
    assert day_of("2026-11-28T23:30:00-05:00", received) == date(2026, 11, 29)
    assert day_of("no time", received) == date(2026, 11, 28)
    assert day_of("0001-01-01T00:00:00+14:00", received) == date(2026, 11, 28)


RULES = SiteRules({("ws-01", "1"): date(2027, 5, 1), ("ws-01", "2"): date(2028, 1, 1)}, {("ws-01", "2")})


def test_a_replaced_version_counts_from_its_last_day() -> None:
    assert RULES.keep("ws-01", "1", date(2026, 11, 28)) == Keep(date(2033, 5, 1))
    assert RULES.keep("ws-01", None, date(2026, 11, 28)) == Keep(date(2032, 11, 28))
    assert RULES.keep("ws-01", "1", date(2027, 9, 1)) == Keep(date(2033, 9, 1))


def test_a_version_in_effect_has_no_last_day_yet() -> None:
    keep = RULES.keep("ws-01", "2", date(2027, 6, 1))
    assert (keep.until, keep.why) == (date(2034, 1, 1), "in_effect")
    assert not keep.may_go(date(2100, 1, 1))


def test_a_version_that_nobody_noted_is_kept() -> None:
    for host, version in (("ws-01", "3"), ("ws-02", "1"), ("ws-01", "")):
        assert not RULES.keep(host, version, date(2020, 1, 1)).may_go(date(2100, 1, 1))


@pytest.mark.parametrize(("held", "expected"), [(None, True), ("ws-01", True), ("ws-02", False)])
def test_a_hold_beats_every_date(held: str | None, expected: bool) -> None:
    keep = SiteRules(RULES.last_used, (), {(held, "case-1")}).keep("ws-01", "1", date(2020, 1, 1))
    assert (keep.holds == ("case-1",)) == expected
    assert keep.may_go(date(2100, 1, 1)) != expected


def test_a_hold_covers_what_belongs_to_no_host() -> None:
    assert SiteRules({}, (), {("ws-02", "case-1")}).keep(None, None, date(2020, 1, 1)).why == "held"


def test_what_is_in_effect() -> None:
    """The newest version of each enrolled label, and what it checked in with; nothing of a host that is gone."""
    used = {("a", "1"): date(2026, 1, 1), ("a", "2"): date(2026, 2, 1), ("gone", "1"): date(2026, 2, 1)}
    assert in_effect(used, {("a", "3")}) == {("a", "2"), ("a", "3")}
    assert in_effect(used, set()) == frozenset()
