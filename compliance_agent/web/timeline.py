"""Where the bars and marks of a host's history picture stand: one lane a check, left is the past.

Only what was reported is drawn as known: before the first record of a check its lane says "no record"; after the host was last
seen, and wherever nothing was heard of it for too long, it says "silent". Pure: geometry in, geometry out; the template writes
the SVG.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from compliance_agent.web.pages import BundleRow, CheckRow

WIDTH = 1000  # user units of a lane; the browser stretches them to the room there is
SPANS = (
    *(timedelta(minutes=number) for number in (10, 30)),
    *(timedelta(hours=number) for number in (1, 3, 6, 12, 24)),
    *(timedelta(days=number) for number in (3, 7, 30)),
)


@dataclass(frozen=True)
class Base:
    """What one heartbeat said of every check."""

    at: datetime
    results: Mapping[str, str]


@dataclass(frozen=True)
class Bar:
    """A stretch of one verdict; `none` is no record, `silent` is after the host was last seen."""

    x: float
    width: float
    verdict: str
    title: str


@dataclass(frozen=True)
class Mark:
    """A remediation on its lane."""

    x: float
    outcome: str
    bundle_id: str
    title: str


@dataclass(frozen=True)
class Lane:
    """One check's row of the picture, and the same in words for who cannot see it."""

    check: str
    title: str
    summary: str
    bars: tuple[Bar, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Timeline:
    """The whole picture with its span, and the times of its axis, evenly spaced."""

    start: datetime
    end: datetime
    lanes: tuple[Lane, ...]
    ticks: tuple[tuple[str, datetime], ...]


def start_of(events: Iterable[BundleRow], now: datetime) -> datetime:
    """The left edge: the shortest span that holds every event of a check, at most the longest there is."""
    wanted = now - min((event.at for event in events if event.check), default=now)
    return now - next((span for span in SPANS if span >= wanted), SPANS[-1])


def _axis(start: datetime, end: datetime) -> tuple[tuple[str, datetime], ...]:
    style = "%d %b" if end - start > timedelta(days=2) else "%H:%M"
    times = [start + (end - start) / 4 * number for number in range(5)]
    return tuple((time.strftime(style), time) for time in times)


def draw(
    checks: Sequence[CheckRow],
    events: Iterable[BundleRow],
    *,
    base: Base | None,
    last_seen: datetime | None,
    silent: bool,
    now: datetime,
    heard: Iterable[datetime] = (),
    quiet: timedelta | None = None,
) -> Timeline:
    """The picture of one host from `start_of(events, now)` to now.

    Args:
        checks: the host's checks as they stand; each gives a lane.
        events: bundles, in any order; those without a check are not drawn.
        base: what a heartbeat said of every check, to start from.
        last_seen: where knowledge ends for a silent host.
        silent: whether the host is silent now.
        now: the right edge.
        heard: when the host said anything, heartbeats included, as far back as that is known.
        quiet: two of these that are further apart have a gap between them.
    """
    known = sorted((event for event in events if event.check), key=lambda event: (event.at, event.epoch, event.seq))
    start = start_of(known, now)
    edge = min(last_seen, now) if silent and last_seen else now
    rows = sorted(checks, key=lambda row: row.check)
    gaps = _gaps(heard, quiet) if quiet is not None else []
    lanes = tuple(
        _lane(row, [event for event in known if event.check == row.check], base, start, edge, now, gaps) for row in rows
    )
    return Timeline(start, now, lanes, _axis(start, now))


def _gaps(heard: Iterable[datetime], quiet: timedelta) -> list[tuple[datetime, datetime]]:
    """Where nothing was heard: from the last word before to the first after."""
    times = sorted(heard)
    return [(last, first) for last, first in pairwise(times) if first - last > quiet]


def _with_gaps(
    turns: Sequence[tuple[datetime, str]], gaps: Iterable[tuple[datetime, datetime]]
) -> list[tuple[datetime, str]]:
    """The turns, with `silent` in each gap and after it what is known then; before the first record there is no gap to show."""
    found = list(turns)
    for last, first in gaps:
        known = [verdict for at, verdict in found if at <= first]
        if known and known[-1] != "none":
            inside = [turn for turn in found if not last < turn[0] < first]
            found = sorted([*inside, (last, "silent"), (first, known[-1])], key=lambda turn: turn[0])
    return found


def _turns(row: CheckRow, events: Sequence[BundleRow], base: Base | None, edge: datetime) -> list[tuple[datetime, str]]:
    """When the verdict became what, as far as it is on record."""
    # A cure counts as healed only after the check itself passed again, so a success is a change of verdict too.
    turns = [
        (event.at, "pass" if event.outcome == "success" else event.result or "unknown")
        for event in events
        if event.kind in {"drift", "remediation"}
    ]
    if row.since and row.since <= edge and not any(at >= row.since for at, _ in turns):
        turns.append((row.since, row.reported))
    if base is not None and row.check in base.results:
        turns.append((base.at, base.results[row.check]))
    return turns


def _lane(
    row: CheckRow,
    events: Sequence[BundleRow],
    base: Base | None,
    start: datetime,
    edge: datetime,
    now: datetime,
    gaps: Sequence[tuple[datetime, datetime]],
) -> Lane:
    def place(moment: datetime) -> float:
        share = (moment - start) / (now - start)
        return round(WIDTH * min(1.0, max(0.0, share)), 1)

    turns = sorted([(start, "none"), *_turns(row, events, base, edge)], key=lambda turn: turn[0])
    # The stable sort leaves "no record" first; what was known before the left edge replaces it.
    turns = _with_gaps(turns, gaps)
    turns = [*(turn for turn in turns if turn[0] <= edge), (edge, "silent" if edge < now else "")]
    earlier = [turn for turn in turns if turn[0] <= start and turn[1] != "none"]
    if earlier:
        turns = [(start, earlier[-1][1]), *(turn for turn in turns if turn[0] > start)]
    turns = [
        turn for before, turn in zip([None, *turns], turns, strict=False) if before is None or before[1] != turn[1]
    ]
    bars = []
    for (at, verdict), (until, _) in zip(turns, [*turns[1:], (now, "")], strict=True):
        x, end = place(at), place(until)
        if verdict and end > x:
            bars.append(Bar(x, round(end - x, 1), verdict, f"{row.title}: {_SAID.get(verdict, verdict)}"))
    recent = [event for event in events if event.at >= start]
    marks = tuple(
        Mark(
            place(event.at), event.outcome or "alert", event.bundle_id, f"{row.title}: {event.outcome or 'remediation'}"
        )
        for event in recent
        if event.kind == "remediation"
    )
    now_is = "silent" if edge < now else _SAID.get(row.reported, row.reported)
    summary = f"{row.check}: now {now_is}; {len(recent)} changes and remediations in this span"
    return Lane(row.check, row.title, summary, tuple(bars), marks)


_SAID = {"none": "no record", "silent": "nothing was heard of the host", "not_applicable": "not applicable"}
