"""The history picture draws as known only what is on record."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.web.pages import BundleRow, CheckRow
from compliance_agent.web.timeline import WIDTH, Base, Timeline, draw

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
H = timedelta(hours=1)


def check(result: str = "pass", since: datetime | None = None) -> CheckRow:
    return CheckRow("firewall", "Firewall", result, result, "", "", since)


def event(ago: timedelta, result: str | None, outcome: str | None = None, seq: int = 1) -> BundleRow:
    kind = "remediation" if outcome else "drift"
    return BundleRow("b", kind, "firewall", "", result, outcome, "", "", NOW - ago, 0, seq)


def bars(picture: Timeline) -> list[tuple[str, float, float]]:
    return [(bar.verdict, bar.x, bar.width) for bar in picture.lanes[0].bars]


def test_before_the_first_record_there_is_none() -> None:
    picture = draw(
        [check("fail", NOW - 12 * H)], [event(12 * H, "fail")], base=None, last_seen=NOW, silent=False, now=NOW
    )
    assert bars(picture) == [("fail", 0, WIDTH)]
    picture = draw(
        [check("fail", NOW - 9 * H)], [event(9 * H, "fail")], base=None, last_seen=NOW, silent=False, now=NOW
    )
    assert bars(picture) == [("none", 0, 250), ("fail", 250, 750)]


def test_a_heartbeat_tells_what_stood_before() -> None:
    base = Base(NOW - 20 * H, {"firewall": "pass"})
    picture = draw(
        [check("fail", NOW - 9 * H)], [event(9 * H, "fail")], base=base, last_seen=NOW, silent=False, now=NOW
    )
    assert bars(picture) == [("pass", 0, 250), ("fail", 250, 750)]


def test_a_silent_host_is_known_only_until_it_was_seen() -> None:
    picture = draw(
        [check("pass", NOW - 30 * H)], [event(9 * H, "pass")], base=None, last_seen=NOW - 6 * H, silent=True, now=NOW
    )
    assert bars(picture)[-1] == ("silent", 500, 500)
    assert "silent" in picture.lanes[0].summary


def test_where_nothing_was_heard_in_the_middle_the_lane_says_so() -> None:
    """The host was off for three hours; what it said before holds again only from its next word on."""
    beats = [NOW - number * H / 2 for number in range(24) if not 12 <= number < 18] + [NOW - 12 * H]
    seen = [event(12 * H, "fail")]
    asked = {"base": None, "last_seen": NOW, "silent": False, "now": NOW}
    row = [check("fail", NOW - 12 * H)]
    picture = draw(row, seen, **asked, heard=beats, quiet=2 * H)  # type: ignore[arg-type]
    assert [(verdict, round(x), round(width)) for verdict, x, width in bars(picture)] == [
        ("fail", 0, 250), ("silent", 250, 292), ("fail", 542, 458)
    ]  # fmt: skip
    assert bars(draw(row, seen, **asked, heard=beats, quiet=4 * H)) == [("fail", 0, WIDTH)]  # type: ignore[arg-type]
    assert "nothing was heard of the host" in picture.lanes[0].bars[1].title


def test_a_cure_is_marked_and_one_that_held_is_a_change() -> None:
    seen = [event(9 * H, "fail"), event(6 * H, "fail", "reverted", 2), event(3 * H, "fail", "success", 3)]
    picture = draw([check("pass", NOW - 3 * H)], seen, base=None, last_seen=NOW, silent=False, now=NOW)
    assert bars(picture) == [("none", 0, 250), ("fail", 250, 500), ("pass", 750, 250)]
    assert [(mark.outcome, mark.x) for mark in picture.lanes[0].marks] == [("reverted", 500), ("success", 750)]


def test_no_event_at_all() -> None:
    picture = draw([check("pass", NOW - 300 * H)], [], base=None, last_seen=NOW, silent=False, now=NOW)
    assert bars(picture) == [("pass", 0, WIDTH)]
    assert bars(draw([check("pass")], [], base=None, last_seen=None, silent=True, now=NOW)) == [("none", 0, WIDTH)]


ages = st.timedeltas(timedelta(0), timedelta(days=60))


@given(
    st.lists(
        st.tuples(ages, st.sampled_from(["pass", "fail", "unknown"]), st.sampled_from([None, "success", "failed"]))
    ),
    ages,
    ages,
    ages,
    st.booleans(),
    st.lists(ages),
)
def test_bars_never_overlap_nor_leave_the_picture(
    events: list[tuple[timedelta, str, str | None]],
    since: timedelta,
    seen: timedelta,
    beat: timedelta,
    silent: bool,
    heard: list[timedelta],
) -> None:
    rows = [event(ago, result, outcome, seq) for seq, (ago, result, outcome) in enumerate(events)]
    picture = draw(
        [check("fail", NOW - since)],
        rows,
        base=Base(NOW - beat, {"firewall": "unknown"}),
        last_seen=NOW - seen,
        silent=silent,
        now=NOW,
        heard=[NOW - ago for ago in heard],
        quiet=3 * H,
    )
    right = 0.0
    for bar in picture.lanes[0].bars:
        assert bar.width > 0
        assert bar.x >= right - 0.11
        right = bar.x + bar.width
    assert right <= WIDTH + 0.11
    assert len(picture.ticks) == 5
