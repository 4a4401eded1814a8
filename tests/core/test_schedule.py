"""Windows, backoff and Retry-After: what the wall shows is what counts, and no wait is ever out of bounds."""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compliance_agent.core.schedule import MaintenanceWindow, backoff_s, bounded_retry_after
from compliance_agent.errors import ConfigError

BERLIN = "Europe/Berlin"  # gap on 2026-03-29 02:00-03:00, overlap on 2026-10-25 02:00-03:00
ZONES = ("UTC", BERLIN, "America/New_York", "Australia/Lord_Howe", "Asia/Kathmandu", "Pacific/Apia")

times = st.builds(time, st.integers(0, 23), st.integers(0, 59))
instants = st.integers(0, 26 * 365 * 86_400).map(lambda s: datetime(2011, 1, 1, tzinfo=UTC) + timedelta(seconds=s))
windows = st.builds(MaintenanceWindow, times, times, st.sampled_from(ZONES))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


# --- the window


@pytest.mark.parametrize(
    ("start", "end", "zone", "now", "is_open"),
    [
        ("02:00", "04:00", "UTC", "2026-11-22T02:00:00", True),
        ("02:00", "04:00", "UTC", "2026-11-22T03:59:59.999999", True),
        ("02:00", "04:00", "UTC", "2026-11-22T04:00:00", False),
        ("02:00", "04:00", BERLIN, "2026-11-22T01:00:00", True),
        ("02:00", "04:00", BERLIN, "2026-07-22T01:00:00", True),
        ("02:00", "04:00", BERLIN, "2026-07-22T02:00:00", False),
        ("22:00", "02:00", "UTC", "2026-11-22T23:30:00", True),
        ("22:00", "02:00", "UTC", "2026-11-22T01:59:00", True),
        ("22:00", "02:00", "UTC", "2026-11-22T12:00:00", False),
        ("00:00", "00:00", "UTC", "2026-11-22T12:00:00", True),  # start == end: the whole day
        ("02:15", "02:45", BERLIN, "2026-03-29T01:20:00", False),  # 03:20 local: the gap swallowed the window
        ("02:15", "02:45", BERLIN, "2026-10-25T00:20:00", True),  # the first 02:20
        ("02:15", "02:45", BERLIN, "2026-10-25T00:50:00", False),  # the first 02:50
        ("02:15", "02:45", BERLIN, "2026-10-25T01:20:00", True),  # the second 02:20
    ],
)
def test_the_window_is_open_while_the_wall_shows_its_hours(
    start: str, end: str, zone: str, now: str, is_open: bool
) -> None:
    window = MaintenanceWindow(time.fromisoformat(start), time.fromisoformat(end), zone)
    assert window.contains(at(now)) is is_open


@pytest.mark.parametrize(
    ("start", "end", "now", "opens"),
    [
        ("02:00", "04:00", "2026-11-22T12:00:00", "2026-11-23T01:00:00"),
        ("02:00", "04:00", "2026-11-22T02:30:00", "2026-11-22T02:30:00"),  # open already
        ("02:15", "02:45", "2026-03-28T12:00:00", "2026-03-30T00:15:00"),  # not on the day whose clock skips it
        ("02:15", "04:00", "2026-03-28T12:00:00", "2026-03-29T01:00:00"),  # the clock jumps into it
        ("02:15", "02:45", "2026-10-25T00:50:00", "2026-10-25T01:15:00"),  # the same hour again
        ("23:00", "02:30", "2026-10-25T00:40:00", "2026-10-25T01:00:00"),  # the clock falls back into it
    ],
)
def test_the_next_opening_in_berlin(start: str, end: str, now: str, opens: str) -> None:
    window = MaintenanceWindow(time.fromisoformat(start), time.fromisoformat(end), BERLIN)
    assert window.next_start(at(now)) == at(opens)


def check_opening(window: MaintenanceWindow, now: datetime) -> None:
    """The next opening is open, is not in the past, and nothing before it is open."""
    opens = window.next_start(now)
    assert opens >= now
    assert window.contains(opens)
    before = opens - timedelta(microseconds=1)
    assert opens == now or not window.contains(before)
    for minutes in range(0, int((opens - now).total_seconds() // 60) + 1, 7):
        moment = now + timedelta(minutes=minutes)
        assert moment >= opens or not window.contains(moment)


@settings(max_examples=150, deadline=None)
@given(windows, instants)
@example(MaintenanceWindow(time(2, 15), time(2, 45), BERLIN), at("2026-03-28T12:00:00"))
@example(MaintenanceWindow(time(2, 0), time(2, 10), "Australia/Lord_Howe"), at("2026-10-03T12:00:00"))
@example(MaintenanceWindow(time(12, 0), time(13, 0), "Pacific/Apia"), at("2011-12-29T23:30:00"))  # a day that never was
def test_the_next_opening_is_the_first(window: MaintenanceWindow, now: datetime) -> None:
    check_opening(window, now)


class NextDayWindow(MaintenanceWindow):
    """Planted: forgets that the clock may be moved."""

    def next_start(self, now: datetime) -> datetime:
        if self.contains(now):
            return now
        local = now.astimezone(self._tz)
        opens = datetime.combine(local.date(), self.start, self._tz)
        return (opens if opens > local else opens + timedelta(days=1)).astimezone(UTC)


def test_a_window_that_ignores_daylight_saving_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_opening(NextDayWindow(time(2, 15), time(2, 45), BERLIN), at("2026-03-28T12:00:00"))
    with pytest.raises(AssertionError):
        check_opening(NextDayWindow(time(2, 15), time(4, 0), BERLIN), at("2026-03-28T12:00:00"))


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "../etc/passwd", "\0", "x" * 5000, "Europe"])
def test_a_zone_that_does_not_exist_is_a_configuration_error(zone: str) -> None:
    with pytest.raises(ConfigError, match="maintenance_window_zone"):
        MaintenanceWindow(time(2), time(4), zone)


def test_a_time_without_a_zone_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(RuntimeError):
        MaintenanceWindow(time(2), time(4)).contains(datetime(2026, 11, 22))  # noqa: DTZ001
    with pytest.raises(RuntimeError):
        MaintenanceWindow(time(2, tzinfo=UTC), time(4))


# --- backoff


def check_backoff(wait: Callable[[int, float, float, random.Random], float], seed: int) -> None:
    """Every wait is within its bound, and the waits of many hosts fill the whole range (full jitter)."""
    rng = random.Random(seed)
    for attempt in (0, 1, 5, 30, 2_000):
        bound = min(300.0, 2.0 * 2.0 ** min(attempt, 60))
        waits = [wait(attempt, 2.0, 300.0, rng) for _ in range(400)]
        assert all(0.0 <= seconds <= bound for seconds in waits)
        assert min(waits) < bound * 0.1 and max(waits) > bound * 0.9


@given(st.integers(0, 2**32))
@settings(max_examples=20, deadline=None)
def test_waits_are_bounded_and_spread(seed: int) -> None:
    check_backoff(backoff_s, seed)


@pytest.mark.parametrize(
    "planted",
    [
        lambda attempt, base, cap, rng: min(cap, base * 2.0 ** min(attempt, 60)),  # no jitter
        lambda attempt, base, cap, rng: rng.uniform(0, base * 2.0 ** min(attempt, 60)),  # no cap
        lambda attempt, base, cap, rng: rng.uniform(cap / 2, cap),  # no growth
    ],
)
def test_a_poor_backoff_is_caught(planted: Callable[[int, float, float, random.Random], float]) -> None:
    with pytest.raises(AssertionError):
        check_backoff(planted, 1)


@pytest.mark.parametrize(("attempt", "base", "cap"), [(-1, 1.0, 1.0), (0, -1.0, 1.0), (0, 1.0, -1.0)])
def test_negative_waits_are_refused(attempt: int, base: float, cap: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        backoff_s(attempt, base, cap, random.Random(1))


# --- Retry-After

NOW = at("2026-11-22T12:00:00")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 1.0),
        ("7", 7.0),
        (" 7 ", 7.0),
        ("3600", 600.0),
        ("9" * 400, 600.0),
        ("Sun, 22 Nov 2026 12:00:30 GMT", 30.0),
        ("Sunday, 22-Nov-26 12:00:30 GMT", 30.0),
        ("Sun Nov 22 12:00:30 2026", 30.0),
        ("Sun, 22 Nov 2026 11:00:00 GMT", 1.0),
        ("Fri, 31 Dec 2399 23:59:59 GMT", 600.0),
        (None, None),
        ("", None),
        ("-5", None),
        ("1.5", None),
        ("1e3", None),
        ("NaN", None),
        ("\uff11\uff12", None),
        ("1_0", None),
        ("soon", None),
        ("Sun, 99 Nov 2026 12:00:30 GMT", None),
        ("Sun, 22 Nov 2026 99:99:99 GMT", None),
        ("9" * 100_000, None),
        ("Sun, 22 Nov 2026 12:00:30 GMT\r\nX: y", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert bounded_retry_after(value, NOW, 600.0) == seconds


@given(
    st.text(max_size=60) | st.from_regex(r"[A-Z][a-z]{2}, [0-9]{1,3} [A-Z][a-z]{2} [0-9]{1,5} [0-9:]{1,9} (GMT|\+9999)")
)
def test_any_header_is_bounded_or_ignored(value: str) -> None:
    seconds = bounded_retry_after(value, NOW, 600.0)
    assert seconds is None or 1.0 <= seconds <= 600.0
