"""What chrony and systemd-timesyncd print, as numbers; anything else is refused."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.core.timekeeping import Measured, parse_samples, parse_timesync_status, parse_tracking
from compliance_agent.errors import CannotTell

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "time_sync"
NOW = datetime(2026, 11, 22, 13, 34, 24, tzinfo=UTC)  # ten seconds after the recording


def recorded(name: str) -> str:
    return (FIXTURES / name).read_text("ascii")


def test_chrony_synchronised() -> None:
    """The fifth field is a correction: negative means that this host is ahead, so the offset is positive."""
    measured = parse_tracking(recorded("chrony-4.3-synchronised.csv"), NOW)
    assert measured == Measured(True, offset_us=1, bound_us=4, stratum=9, age_s=10)


def test_chrony_not_synchronised() -> None:
    assert parse_tracking(recorded("chrony-4.3-not-synchronised.csv"), NOW) == Measured(synchronised=False)


def test_chrony_that_follows_itself_is_not_synchronised() -> None:
    assert parse_tracking(recorded("chrony-4.3-local.csv"), NOW).synchronised is False


def test_what_the_followed_source_said_last() -> None:
    """Negative: this host is behind. The daemon had tried to step it and was not allowed to."""
    assert parse_samples(recorded("chrony-4.3-sources-step-refused.csv")) == (-30_000_020, 434)
    assert parse_samples(recorded("chrony-4.3-sources.csv")) == (2, 6)


def test_a_source_that_is_not_followed_says_nothing() -> None:
    assert parse_samples(recorded("chrony-4.3-sources-unreachable.csv")) is None


@pytest.mark.parametrize(
    "change",
    [
        ("^,*", "*"),
        ("^,*", "^,!"),
        ("0.000002292", "fast"),
        (",0.000006976", ""),
        ("\n", ",\n"),
        ("\n", ""),
        ("\n", "\n\n"),
    ],
)
def test_other_words_about_sources_are_unparsable(change: tuple[str, str]) -> None:
    with pytest.raises(CannotTell):
        parse_samples(recorded("chrony-4.3-sources.csv").replace(*change))
    with pytest.raises(CannotTell):
        parse_samples("")


def tracking(**fields: str) -> str:
    """A good line with single fields changed, `f4=...` being the fifth."""
    words = recorded("chrony-4.3-synchronised.csv").rstrip("\n").split(",")
    for name, value in fields.items():
        words[int(name[1:])] = value
    return ",".join(words) + "\n"


@pytest.mark.parametrize(
    ("correction", "offset_us"),
    [("120.000000000", -120_000_000), ("-0.500001000", 500_001), ("0.000000000", 0), ("-0.000000999", 0)],
)
def test_chrony_offset_sign_and_size(correction: str, offset_us: int) -> None:
    assert parse_tracking(tracking(f4=correction), NOW).offset_us == offset_us


def test_chrony_bound_is_half_the_delay_and_the_dispersion() -> None:
    assert parse_tracking(tracking(f10="0.200000000", f11="0.050000000"), NOW).bound_us == 150_000


def test_an_update_in_the_future_has_a_negative_age() -> None:
    assert parse_tracking(tracking(f3="1795358054.000000000"), NOW).age_s == -3590


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        recorded("chrony-4.3-synchronised.csv").rstrip("\n"),
        recorded("chrony-4.3-synchronised.csv") * 2,
        tracking(f4="nan"),
        tracking(f4="inf"),
        tracking(f4="1e-3"),
        tracking(f4=""),
        tracking(f4="-0,5"),
        tracking(f4="99999999999.0"),
        tracking(f2="-1"),
        tracking(f2="three"),
        tracking(f3="soon"),
        tracking(f0="PATIENT"),
        tracking(f13="Fine"),
        tracking(f13="normal"),
        "506 Cannot talk to daemon\n",
    ],
)
def test_chrony_anything_else_is_unparsable(text: str) -> None:
    with pytest.raises(CannotTell, match=r"."):
        parse_tracking(text, NOW)


def test_timesyncd_synchronised() -> None:
    measured = parse_timesync_status(recorded("timesyncd-252-synchronised.txt"))
    assert measured == Measured(True, offset_us=-62_345_678, bound_us=1037, stratum=2)


def test_timesyncd_without_an_answer() -> None:
    assert parse_timesync_status(recorded("timesyncd-252-no-answer.txt")) == Measured(synchronised=False)


@pytest.mark.parametrize(
    ("span", "offset_us"),
    [("+345us", 345), ("-1.234ms", -1234), ("0", 0), ("+1h 2min 3s", 3_723_000_000), ("+2d", 172_800_000_000)],
)
def test_timesyncd_spans(span: str, offset_us: int) -> None:
    text = recorded("timesyncd-252-synchronised.txt").replace("-1min 2.345678s", span)
    assert parse_timesync_status(text).offset_us == offset_us


@pytest.mark.parametrize(
    "change",
    [
        ("Offset: -1min 2.345678s", "Offset: n/a"),
        ("Offset: -1min 2.345678s", "Offset: 1.2.3s"),
        ("Offset: -1min 2.345678s", "Offset: 999999d"),
        ("       Offset: -1min 2.345678s\n", ""),
        ("Stratum: 2", "Stratum: two"),
        ("Leap: normal", "Leap: fine"),
        (" Packet count: 12\n", ""),
        ("Root distance: 1.037ms (max: 5s)", "Root distance: infinity (max: 5s)"),
    ],
)
def test_timesyncd_anything_else_is_unparsable(change: tuple[str, str]) -> None:
    with pytest.raises(CannotTell):
        parse_timesync_status(recorded("timesyncd-252-synchronised.txt").replace(*change))


@given(st.text())
def test_no_text_crashes_the_parsers(text: str) -> None:
    with pytest.raises(CannotTell):
        parse_tracking(text, NOW)
    with pytest.raises(CannotTell):
        parse_timesync_status(text)


@given(st.integers(-(10**15) + 1, 10**15 - 1))
def test_chrony_offsets_come_back_exactly(offset_us: int) -> None:
    sign, micros = ("-" if offset_us > 0 else ""), abs(offset_us)
    text = f"{sign}{micros // 1_000_000}.{micros % 1_000_000:06d}000"
    assert parse_tracking(tracking(f4=text), NOW).offset_us == offset_us
