"""What is seen of each record once its log was read: its entry, the head it names, its times; and which entries have a record here.

Chains come host by host, as they are complete. What is told of them is told key by key, so each chain's part is kept apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.stamped import Said, Stamps, read_times
from compliance_agent.evidence.times import Times
from compliance_agent.packet.kept import Line, Marked
from compliance_agent.packet.logbook import Logbook, entry_problem, head_problems
from compliance_agent.packet.reading import INCIDENT, INSIDE
from compliance_agent.packet.retold import Retold

_TOGETHER = 64  # records in one step


@dataclass
class Found:
    """What was found in one chain.

    Attributes:
        refused: how many records are not the log's after all.
        problems: each with where the directory's lines about the record begin.
    """

    times: Times
    refused: int = 0
    problems: list[tuple[int, Problem]] = field(default_factory=list)


@dataclass
class Seen:
    """What was found in all of them.

    Attributes:
        lines: by key, epoch and label.
        here: the entries of the log that have a record here.
        ends: by index, where the directory's lines about the first and the last record of each key begin.
        count: of records that verified.
        example: the record that README.txt has as an example: the first of the period, else the first of all.
    """

    said: Said = field(default_factory=Said)
    lines: dict[tuple[str, int, str], Found] = field(default_factory=dict)
    here: Marked = field(default_factory=lambda: Marked(0))
    ends: dict[int, int] = field(default_factory=dict)
    count: int = 0
    example: int | None = None


class Look:
    """Looks at one chain after the other, host by host.

    Args:
        log: that was read, or None where there is none.
        stamps: verifies time stamps.
        each_time: keep the interval of every record.
        seen: takes what is found.
        retold: is shown each record of the period.
    """

    def __init__(
        self, log: Logbook | None, stamps: Stamps | None, each_time: bool, seen: Seen, retold: Retold | None
    ) -> None:
        self._log, self._each, self._seen, self._retold = log, each_time, seen, retold
        self._whole = log is not None and log.book.whole
        self._timelines, self._name = {}, b""
        self._inside = False
        if log is not None:
            seen.said = read_times(log.book, log.policy, stamps) if log.book.whole else Said()
            seen.said.cosigned(log.verified)
            seen.here = Marked(log.size)
            self._name = log.tags.short(log.origin)
            self._timelines = {self._name: seen.said.timeline}

    def at(self, line: Line) -> Iterator[None]:
        """The records of a chain, in its order and in small steps."""
        seen, retold, log = self._seen, self._retold, self._log
        found = seen.lines[line.place] = Found(Times(self._timelines, self._each))
        entries = None if log is None else log.entries(line.key, line.epoch)
        visit, problems, name = found.times.visit, found.problems, self._name
        first = last = (-1, 0)
        for number, (row, kept) in enumerate(line.records()):
            if number % _TOGETHER == 0:
                yield
            inside = kept.flags & INSIDE != 0
            self._count(kept.line, inside)
            if log is not None:
                at, holds = row.at, False
                seen.here.mark(at)
                if first[0] < 0 or at < first[0]:
                    first = (at, kept.line)
                if at > last[0]:
                    last = (at, kept.line)
                if self._whole:
                    if (wrong := entry_problem(row, entries)) is not None:
                        problems.append((kept.line, wrong))
                        found.refused += 1
                    if (incident := kept.flags & INCIDENT != 0) or row.head_size >= 0:
                        problems += [(kept.line, problem) for problem in head_problems(row, incident, log)]
                        holds = row.head_size >= 0 and log.holds(row)
                for problem in visit(line.key, line.epoch, row, (name, at), holds):
                    problems.append((kept.line, problem))
            if retold is not None and inside:
                retold.take(line.host, row, kept)
        seen.ends |= dict((first, last))

    def _count(self, line: int, inside: bool) -> None:
        seen = self._seen
        seen.count += 1
        if inside and not self._inside:
            seen.example, self._inside = line, True
        elif not self._inside:
            seen.example = line if seen.example is None else min(seen.example, line)
