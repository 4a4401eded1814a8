"""When an event wakes a check: at once, in a burst once, and never so often that waking is a load (pure).

    wakes.told("firewall", now)       something that the check reads has changed
    wakes.due(now)                    the checks to look at now; each look begins after the last event it answers to
    wakes.next_at()                   when to ask again

A check is looked at a moment after its first event, and what comes meanwhile is part of the same burst; at once where the change
is said to be over (`Source.over`). Then it rests: for the gap, which doubles with each wake that follows soon on another, and for
nine times as long as its last look took, so that events take no more than a tenth of the time. What comes in a rest waits for its
end and is not lost. A cure changes what its check reads, and is told of as well: the one look that this is worth is made, and
lengthens no rest. All checks together have a number of looks for any hour; once it is spent, events count for nothing until half
of them are an hour old, and the poll does the work alone.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

from compliance_agent.dataclass import dataclass
from compliance_agent.ports import EVENT_KINDS, Source

SETTLE_S = 0.002  # a file is rarely written with one call, nor a unit stopped with one signal
ECHO_S = 1.0  # the change that a cure makes is told until so long after its end
CALM = 8  # rests without a wake, after which the gap is the shortest again
MOST_GAP_S = 300.0
SHARE = 10.0  # a look that took a second is not woken again within ten
HOUR_S = 3_600.0
_PARAMETER = re.compile(r"\{([a-z0-9_]+)\}")


def sources(reads: Iterable[str], parameters: object) -> frozenset[Source]:
    """What these declarations of a check (`CheckSpec.reads`) name, with its parameters of the baseline.

    Raises:
        ValueError: not a declaration: `path:`, `unit:`, `ruleset:` or `mounts:`, and at most one `{parameter}`.
    """
    found: set[Source] = set()
    for declared in reads:
        kind, colon, name = declared.partition(":")
        if kind not in EVENT_KINDS or not colon or bool(name) != (kind in {"path", "unit"}):
            raise ValueError(f"reads: not a declaration: {declared!r}")
        found.update(Source(kind, each) for each in _filled(name, parameters))
    return frozenset(found)


def _filled(name: str, parameters: object) -> Sequence[str]:
    parameter = _PARAMETER.search(name)
    if parameter is None:
        return (name,)
    value = getattr(parameters, parameter[1])
    values = () if value is None else (value,) if isinstance(value, str) else tuple(value)
    return [name.replace(parameter[0], each) for each in values]


@dataclass
class _Standing:
    """One check: when it is due, since when the last rest lasts, and how long the next one is."""

    due: float | None = None
    woken: float = -MOST_GAP_S * CALM
    gap: float = 0.0
    rest: float = 0.0  # asked for by how long the last look took
    rested: float = 0.0  # when the last rest is over
    cured: float = float("-inf")  # when a cure of it ended; until ECHO_S later what is told may be that cure
    echo: bool = False  # what it is due for may be that


class Wakes:
    """The wakes of one host.

    Args:
        gap_s: shortest rest of a check between two wakes.
        budget: looks that events may cause in any hour, over all checks.
    """

    def __init__(self, gap_s: float, budget: int) -> None:
        self._gap_s = gap_s
        self._budget = budget
        self._checks: dict[str, _Standing] = {}
        self._times: deque[float] = deque()
        self._spent_until: float | None = None

    def told(self, check: str, now: float, look_s: float = 0.0, *, over: bool = False) -> bool:
        """Something that it reads has changed; whether that counts.

        Args:
            look_s: how long the last look at it took.
            over: the change is done, so that nothing is waited for but a rest.
        """
        if self.spent(now):
            return False
        standing = self._checks.setdefault(check, _Standing())
        standing.rest = SHARE * look_s
        if standing.due is None:
            standing.echo = now <= standing.cured + ECHO_S
            standing.rested = standing.woken + max(standing.gap, standing.rest)
            standing.due = max(now + SETTLE_S, standing.rested)
        if over:
            standing.due = min(standing.due, max(now, standing.rested))
        return True

    def cured(self, check: str, now: float) -> None:
        """A cure of it has ended just now."""
        standing = self._checks.setdefault(check, _Standing())
        standing.cured, standing.echo = now, standing.due is not None

    def due(self, now: float) -> list[str]:
        """The checks to look at now, each of which rests from now on."""
        ready = sorted(name for name, one in self._checks.items() if one.due is not None and one.due <= now)
        woken = []
        for name in ready:
            if self.spent(now):
                break
            self._woken(self._checks[name], now)
            woken.append(name)
        return woken

    def next_at(self) -> float | None:
        """The moment at which the next check is due."""
        return min((one.due for one in self._checks.values() if one.due is not None), default=None)

    def spent(self, now: float) -> bool:
        """Whether the looks of this hour are spent, so that events count for nothing."""
        if self._spent_until is not None and now >= self._spent_until:
            self._spent_until = None
        if self._spent_until is None and len(self._recent(now)) >= self._budget:
            self._spent_until = now + HOUR_S
            if self._times:
                self._spent_until = self._times[len(self._times) // 2] + HOUR_S
            for one in self._checks.values():
                one.due = None
        return self._spent_until is not None

    def looks(self, now: float) -> int:
        """How many looks events have caused in the hour before."""
        return len(self._recent(now))

    def forget(self) -> None:
        """Another baseline: nothing is due, while what was spent stays spent."""
        for one in self._checks.values():
            one.due = None

    def _woken(self, one: _Standing, now: float) -> None:
        self._times.append(now)
        if one.echo:
            one.echo, one.cured, one.woken, one.due = False, float("-inf"), now, None  # once for each cure
            return
        calm = now - one.woken >= CALM * max(one.gap, self._gap_s)
        one.gap = self._gap_s if calm else min(MOST_GAP_S, max(2 * one.gap, self._gap_s))
        one.woken, one.due = now, None

    def _recent(self, now: float) -> deque[float]:
        while self._times and self._times[0] <= now - HOUR_S:
            self._times.popleft()
        return self._times


class Breath:
    """How long a reader of events rests before it reads on, so that a flood of them is read in few large pieces.

    Args:
        most_s: longest rest.
    """

    def __init__(self, most_s: float = 0.5) -> None:
        self._most_s = most_s
        self._last = float("-inf")
        self._rest_s = 0.0

    def after(self, now: float) -> float:
        """A piece was read now: seconds to rest, none when the one before is long past."""
        busy = now - self._last <= 2 * self._rest_s + 0.02
        self._rest_s = min(self._most_s, 2 * self._rest_s or 0.002) if busy else 0.0
        self._last = now
        return self._rest_s
