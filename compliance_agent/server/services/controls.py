"""What the hosts of a site showed, day by day: check by check, and from that section by section of the rule.

Nothing is kept for it: it is computed from the records themselves, of each host and day the last heartbeat, which states every
check, and each change of verdict and each cure in between. A day has the worst verdict that held at any time of it. A host that
said nothing on a day is counted, and counts as unknown; so does a host on which no check looks at what a section asks for.
"""

from __future__ import annotations

import functools
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Dates, Host, Said, Site, SiteReader
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services.fleet import document_of

NONE = "none"  # the host said nothing on that day
UNLOOKED = "unlooked"  # it spoke, and no check of it looks at this
WORST = ("fail", "unknown", NONE, UNLOOKED, "exception", "pass", "not_applicable")
_RANKS = {word: rank for rank, word in enumerate(WORST)}
DAYS, MOST_DAYS = 14, 31
_DAY = timedelta(days=1)
Verdicts = Mapping[str, str]  # of one host on one day, by check


@dataclass(frozen=True)
class Machine:
    """A host over all of its keys: the newest of them, and the days on which it was enrolled."""

    host: Host
    first: date
    last: date | None
    keys: frozenset[str]

    def lived(self, day: date) -> bool:
        """Whether it was enrolled on this day."""
        return self.first <= day and (self.last is None or day <= self.last)


@dataclass(frozen=True)
class Cell:
    """Several verdicts counted. `parts` has those that are there, the worst first.

    `excepted` are of those that fail: what fails was under an exception that people recorded, at some time of the day. They fail.
    """

    counts: Mapping[str, int]
    excepted: int = 0

    @functools.cached_property
    def parts(self) -> tuple[tuple[str, int], ...]:
        """(verdict, number), the worst first."""
        return tuple((word, self.counts[word]) for word in WORST if self.counts.get(word))

    @property
    def worst(self) -> str:
        """The verdict to lead with; empty where there was nothing to judge."""
        return self.parts[0][0] if self.parts else ""

    @property
    def judged(self) -> int:
        """The denominator: everything but what does not apply."""
        return sum(count for word, count in self.counts.items() if word != "not_applicable")

    @property
    def passed(self) -> int:
        """How many pass."""
        return self.counts.get("pass", 0)


@dataclass(frozen=True)
class Cube:
    """Machines, days, and what each showed on each: `shown[key id of the machine, day]`, in words of WORST, is None where it
    said nothing.
    """

    site: Site
    machines: tuple[Machine, ...]
    days: tuple[date, ...]
    shown: Mapping[tuple[str, date], Verdicts | None] = field(default_factory=dict)
    recorded: tuple[RecordedException, ...] = ()

    def one(self, machine: Machine, day: date, checks: Collection[str]) -> str:
        """What a machine showed on a day of these checks together."""
        return _together(self.shown.get((machine.host.key_id, day)), checks)

    @functools.cached_property
    def _alike(self) -> tuple[Mapping[tuple[str, date], int], Sequence[Verdicts | None]]:
        """Most machines show the same on most days: which of these each showed on each, so that each is looked at once."""
        numbers, kinds = dict[frozenset[tuple[str, str]], int](), list[Verdicts | None]([None])
        places = dict[tuple[str, date], int]()
        for place, verdicts in self.shown.items():
            if verdicts is not None:
                number = places[place] = numbers.setdefault(frozenset(verdicts.items()), len(kinds))
                if number == len(kinds):
                    kinds.append(verdicts)
        return places, kinds

    def by_day(self, checks: Collection[str], machines: Sequence[Machine]) -> list[Cell]:
        """A cell for each day, of the machines that were enrolled on it."""
        return [self._cell([(one, day) for one in machines if one.lived(day)], checks) for day in self.days]

    def by_host(self, checks: Collection[str], machines: Sequence[Machine]) -> list[Cell]:
        """A cell for each machine, of the days on which it was enrolled."""
        return [self._cell([(machine, day) for day in self.days if machine.lived(day)], checks) for machine in machines]

    def _cell(self, places: Sequence[tuple[Machine, date]], checks: Collection[str]) -> Cell:
        alike, kinds = self._alike
        counts: dict[str, int] = {}
        for kind, times in Counter(alike.get((machine.host.key_id, day), 0) for machine, day in places).items():
            word = _together(kinds[kind], checks)
            counts[word] = counts.get(word, 0) + times
        found = Cell(counts)
        if not self.recorded or not found.counts.get("fail"):
            return found
        return replace(found, excepted=sum(self.excepted(machine, day, checks) for machine, day in places))

    def excepted(self, machine: Machine, day: date, checks: Collection[str]) -> bool:
        """Whether something of these checks fails there, and all that does was under an exception at some time of the day."""
        verdicts = self.shown.get((machine.host.key_id, day)) or {}
        failing = [check for check in checks if verdicts.get(check) == "fail"]
        return bool(failing) and all(
            any(self._covers(one, machine, day, check) for one in self.recorded) for check in failing
        )

    @staticmethod
    def _covers(one: RecordedException, machine: Machine, day: date, check: str) -> bool:
        if one.check != check or not (one.key_id is None or one.key_id in machine.keys) or one.since is None:
            return False
        ended = min(one.expires_at, one.withdrawn_at or one.expires_at)
        return one.since < ended and one.since.date() <= day and ended > datetime.combine(day, time(), UTC)


def _together(verdicts: Verdicts | None, checks: Collection[str]) -> str:
    """The worst that stands of these checks."""
    if verdicts is None:
        return NONE
    ranks = [_RANKS[verdicts[check]] for check in checks if check in verdicts]
    return WORST[min(ranks)] if ranks else UNLOOKED


def worst(words: Iterable[str]) -> str:
    """The worst of these verdicts; empty when there is none. A word that is no verdict is unknown."""
    ranks = [_RANKS.get(word, _RANKS["unknown"]) for word in words]
    return WORST[min(ranks)] if ranks else ""


def cell(words: Iterable[str]) -> Cell:
    """These verdicts, counted."""
    counts: dict[str, int] = {}
    for word in words:
        counts[word] = counts.get(word, 0) + 1
    return Cell(counts)


class Controls:
    """Reads the cube of one site; Refusal 404 for a site that the reader does not see."""

    def __init__(self, reader: SiteReader, clock: Clock) -> None:
        self._reader = reader
        self._clock = clock

    def span(self, first: date | None, last: date | None) -> Dates:
        """The days to show: those that were asked for, at most 31 and none that is to come; else the last two weeks."""
        today, dates = self._clock().date(), self._reader.dates
        end = min(last or today, today, *([dates.last] if dates else []))
        start = max(first or end - (DAYS - 1) * _DAY, end - (MOST_DAYS - 1) * _DAY, *([dates.first] if dates else []))
        return Dates(min(start, end), end)

    async def cube(self, site_id: str, span: Dates) -> Cube:
        """What its hosts showed on these days."""
        reader = self._reader.only(site_id)
        places, recorded = await reader.sites_and_exceptions()
        site = next(iter(places), None)
        if site is None:
            raise Refusal("no such site", code="not_found", status=404)
        days = tuple(span.first + at * _DAY for at in range((span.last - span.first).days + 1))
        machines = [one for one in machines_of(await reader.hosts()) if any(map(one.lived, days))]
        begun = min((one.first for one in machines), default=span.first)
        days = tuple(day for day in days if day >= begun)
        said = await reader.said(Dates(days[0] - _DAY, span.last))  # the day before says what stood at first
        heartbeats = {(one.key_id, one.day): one.last for one in said if one.kind == "heartbeat"}
        bodies = await reader.bodies(heartbeats.values()) if heartbeats else {}
        states = {number: states_of(body) for number, body in bodies.items()}
        by_key: dict[str, list[Said]] = defaultdict(list)
        for one in said:
            by_key[one.key_id].append(one)
        shown = {
            (machine.host.key_id, day): verdicts
            for machine in machines
            for day, verdicts in _shown(days, [one for key in machine.keys for one in by_key[key]], states)
        }
        return Cube(site, tuple(machines), days, shown, tuple(recorded))


def machines_of(hosts: Iterable[Host]) -> list[Machine]:
    """Hosts, each once with all of its keys: a key that gave way is part of the one that took its place."""
    known = {host.key_id: host for host in hosts}
    chains: dict[str, list[Host]] = defaultdict(list)
    for host in known.values():
        newest, seen = host, {host.key_id}
        while newest.rotated_to in known and newest.rotated_to not in seen:
            newest = known[newest.rotated_to]
            seen.add(newest.key_id)
        chains[newest.key_id].append(host)
    return [
        Machine(
            known[key_id],
            min(one.enrolled_at for one in chain).date(),
            revoked.date() if (revoked := known[key_id].revoked_at) else None,
            frozenset(one.key_id for one in chain),
        )
        for key_id, chain in chains.items()
    ]


def states_of(body: bytes) -> dict[str, str]:
    """The verdict of each check by a heartbeat; nothing where its bytes were destroyed or say nothing of the kind."""
    states: Any = document_of(body).get("states") if body else None
    if not isinstance(states, dict):
        return {}
    return {
        check: _word(state.get("result")) if isinstance(state, dict) else "unknown" for check, state in states.items()
    }


def _word(said: object) -> str:
    """A verdict; what is none is unknown."""
    return said if isinstance(said, str) and said in _RANKS else "unknown"


def _shown(
    days: Sequence[date], said: Iterable[Said], states: Mapping[int, Mapping[str, str]]
) -> Iterable[tuple[date, Verdicts | None]]:
    """What one machine showed on each day: the worst of what stood when a check changed, of each change, and of the last word."""
    by_day: dict[str, list[Said]] = defaultdict(list)
    for one in said:
        by_day[one.day].append(one)
    stands: Mapping[str, str] = {}  # another one after each word, never changed: days on which nothing changes share it
    for day in (days[0] - _DAY, *days):
        records = sorted(by_day.get(day.isoformat(), ()), key=lambda one: one.last)
        held: dict[str, str] = {}
        for one in records:
            if one.kind == "heartbeat":
                stands = states.get(one.last, {})
                continue
            if one.check is None or one.result is None:
                continue
            seen, after = _word(one.result), "pass" if one.outcome == "success" else _word(one.result)
            held[one.check] = worst((seen, after, held.get(one.check, seen), stands.get(one.check, seen)))
            stands = {**stands, one.check: after}
        held = {check: worst((word, stands.get(check, word))) for check, word in held.items()}
        yield day, ({**stands, **held} if held else stands) if records else None
