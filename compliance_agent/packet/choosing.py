"""Which records of a server a packet has: of each host the stretch of its chain over the period, or what concerns one section.

Of a record that may be wanted some 60 bytes are kept, until the packet is written.
"""

from __future__ import annotations

import functools
import uuid
from array import array
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, NamedTuple

import orjson

from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.packet.content import concerns, day_of, moment
from compliance_agent.packet.sampled import Drawing
from compliance_agent.server.records import Host, Kept


@dataclass(frozen=True)
class Wanted:
    """What was asked for; `drawing` where it is a sample, and `only` the records of that, each by key id and bundle id."""

    site_id: str
    since: date
    until: date
    control: str | None = None
    host: str | None = None
    log_year: int | None = None
    drawing: Drawing | None = None
    only: frozenset[tuple[str, str]] | None = None

    @property
    def year(self) -> int:
        """Of the log: a packet has one."""
        return self.log_year or self.until.year

    def takes(self, key_id: str, document: Mapping[str, Any], day: date) -> bool:
        """Whether a record is what was asked for."""
        if not (self.since <= day <= self.until and concerns(document, self.control)):
            return False
        return self.only is None or (key_id, document["bundle_id"]) in self.only


class Chosen(NamedTuple):
    """A record of the packet: its number of arrival, and what its path is made of."""

    host: str
    day: date
    bundle: bytes
    number: int

    @property
    def directory(self) -> str:
        """Where it stands in the packet."""
        text = self.bundle.hex()
        above = _above(self.host, self.day)
        return f"{above}{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


@functools.lru_cache(4_096)
def _above(host: str, day: date) -> str:
    return f"evidence/{host}/{day:%Y/%m/%d}/"


@dataclass
class Chain:
    """The records of one key in this log, in the order in which they were read; `order` are positions in the order of the chain."""

    hosts: list[str] = field(default_factory=list)
    host: array[int] = field(default_factory=lambda: array("H"))
    epochs: array[int] = field(default_factory=lambda: array("q"))
    seqs: array[int] = field(default_factory=lambda: array("q"))
    numbers: array[int] = field(default_factory=lambda: array("q"))
    days: array[int] = field(default_factory=lambda: array("i"))
    bundles: bytearray = field(default_factory=bytearray)
    wanted: bytearray = field(default_factory=bytearray)

    def add(self, kept: Kept, host: str, day: date, bundle: bytes, wanted: bool) -> None:
        """The next one."""
        if host not in self.hosts:
            self.hosts.append(host)
        self.host.append(self.hosts.index(host))
        self.epochs.append(kept.epoch)
        self.seqs.append(kept.seq)
        self.numbers.append(kept.number)
        self.days.append(day.toordinal())
        self.bundles += bundle
        self.wanted.append(wanted)

    def order(self) -> list[int]:
        """All of them."""
        return sorted(range(len(self.seqs)), key=lambda at: (self.epochs[at], self.seqs[at]))

    def chosen(self, at: int) -> Chosen:
        """The record at a position."""
        day, bundle = date.fromordinal(self.days[at]), bytes(self.bundles[16 * at : 16 * at + 16])
        return Chosen(self.hosts[self.host[at]], day, bundle, self.numbers[at])


@dataclass
class Choice:
    """What is taken, and what of the period is not in this log.

    Attributes:
        chains: of the keys that are taken, and which positions of each, in the order of the chain.
        keys: of the period, those that say nothing too.
    """

    wanted: Wanted
    keys: set[str]
    chains: dict[str, tuple[Chain, Sequence[int]]] = field(default_factory=dict)
    pending: int = 0
    destroyed: int = 0
    elsewhere: Counter[int] = field(default_factory=Counter)

    def told(self) -> Iterator[Chosen]:
        """Those of the period, by label, key and place."""
        first, last = self.wanted.since.toordinal(), self.wanted.until.toordinal()
        for host, chains in sorted(self._by_label().items()):
            for chain, taken in chains:
                mine = chain.hosts.index(host)
                for at in taken:
                    if chain.host[at] == mine and first <= chain.days[at] <= last:
                        yield chain.chosen(at)

    def stored(self) -> Iterator[Chosen]:
        """All of them in the order of their paths; BadEvidence, code `duplicate`, where two have one path."""
        for host, chains in sorted(self._by_label().items(), key=lambda item: f"{item[0]}/"):
            before: Chosen | None = None
            for one in sorted(one for chain, taken in chains for one in _of_host(chain, taken, host)):
                if before is not None and before[:3] == one[:3]:
                    raise BadEvidence(f"{one.directory}: two records with this name", code="duplicate")
                yield (before := one)

    def _by_label(self) -> dict[str, list[tuple[Chain, Sequence[int]]]]:
        """The chains that say something of each host, by key."""
        found: dict[str, list[tuple[Chain, Sequence[int]]]] = {}
        for _, chain in sorted(self.chains.items()):
            for host in chain[0].hosts:
                found.setdefault(host, []).append(chain)
        return found

    @property
    def count(self) -> int:
        """How many."""
        return sum(len(taken) for _, taken in self.chains.values())


def _of_host(chain: Chain, taken: Sequence[int], host: str) -> Iterator[Chosen]:
    mine = chain.hosts.index(host)
    return (chain.chosen(at) for at in taken if chain.host[at] == mine)


async def choose(
    rows: AsyncIterator[Kept], wanted: Wanted, there: range, keys: Mapping[str, Host], of: set[str]
) -> Choice:
    """Choose among all records of a site.

    Args:
        rows: of the site, in any order.
        wanted: what was asked for.
        there: the entries of the log that are published and whose records were not destroyed.
        keys: of the hosts that were asked for.
        of: those of them that were enrolled at some time of the period.

    Raises:
        NoInput: nothing of the period is in the log.
    """
    chains: dict[str, Chain] = defaultdict(Chain)
    choice = Choice(wanted, set(of))
    async for kept in rows:
        if kept.key_id not in keys:
            continue
        if not kept.body:
            if kept.year == wanted.year and kept.index in there:
                raise going(f"{wanted.site_id} of {wanted.year}")
            choice.destroyed += wanted.since <= moment(kept.created_at).date() <= wanted.until
            continue
        document = orjson.loads(kept.body)
        day = date.fromisoformat(day_of(document))
        matches = wanted.takes(kept.key_id, document, day)
        if kept.year == wanted.year and kept.index is not None and kept.index in there:
            bundle = uuid.UUID(document["bundle_id"]).bytes
            chains[kept.key_id].add(kept, document["host"]["id"], day, bundle, matches)
        elif matches and kept.year not in {None, wanted.year}:
            choice.elsewhere[kept.year or 0] += 1
        else:
            choice.pending += matches
    if not any(any(chain.wanted) for chain in chains.values()):
        raise _nothing(choice, [day for chain in chains.values() for day in (min(chain.days), max(chain.days))])
    alone = wanted.control is not None or wanted.only is not None
    for key, chain in chains.items():
        order = chain.order()
        inside = [at for at in order if chain.wanted[at]]
        choice.keys |= {key} if inside else set()
        if key in choice.keys and (inside or wanted.only is None):
            choice.chains[key] = chain, array("q", inside if alone else _stretch(chain, order, wanted))
    return choice


def _stretch(chain: Chain, order: Sequence[int], wanted: Wanted) -> Sequence[int]:
    """The part of a chain that covers the period: it begins before it and ends after it, or where the chain does."""
    first, last = wanted.since.toordinal(), wanted.until.toordinal()
    days = [chain.days[at] for at in order]
    inside = [place for place, at in enumerate(order) if chain.wanted[at]]
    if not inside:
        inside = [next((place for place, day in enumerate(days) if day > last), len(order) - 1)]
    low, high = inside[0], inside[-1]
    while low > 0 and days[low] >= first:
        low -= 1
    while high < len(order) - 1 and days[high] <= last:
        high += 1
    return order[low : high + 1]


def going(log: str) -> NoInput:
    """A record was destroyed since the log was read."""
    return NoInput(f"log {log}: records are being destroyed at this moment", code="pruned", hint="try again afterwards")


def _nothing(choice: Choice, days: Sequence[int]) -> NoInput:
    wanted = choice.wanted
    what = f"site {wanted.site_id}, {wanted.since} to {wanted.until}"
    if choice.elsewhere:
        years = ", ".join(map(str, sorted(choice.elsewhere)))
        return NoInput(f"{what}: nothing in the log of {wanted.year}", hint=f"it is in the log of {years}: --log-year")
    if choice.pending:
        return NoInput(f"{what}: {choice.pending} record(s), none of them in the log yet", hint="try again in a second")
    there = "this log holds no evidence"
    if days:
        there = f"there is evidence from {date.fromordinal(min(days))} to {date.fromordinal(max(days))}"
    if choice.destroyed:
        gone = f"{choice.destroyed} record(s), destroyed when their time was over"
        return NoInput(f"{what}: {gone}", code="pruned", hint=f"{there}; or use a packet that was built before")
    return NoInput(f"{what}: no evidence" + (f" for {wanted.control}" if wanted.control else ""), hint=there)
