"""The server's part of a trace: what became of a traced bundle between its arrival and its receipt, and how long each part took.

A context comes with the request and is believed in nothing: it names where spans belong, and what is no context is none. What is
known of a bundle's trace between two of its spans is in memory alone, for so many bundles: a restart costs spans, never a record.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compliance_agent.server.records import Clock
from compliance_agent.server.services.board import Place
from compliance_agent.traces import Chance, Context, Open, Sink, Tracer, read

MOST_UNDER_WAY = 4_096  # traced bundles between their arrival and their receipt

Coming = tuple[str, int, int, str]  # key id, epoch, seq and check of a bundle that verified


@dataclass
class _Under:
    """A traced bundle on its way to a receipt."""

    context: Context
    check: str
    since: datetime
    logged: bool = False


class Tracing:
    """The spans of this server.

    Args:
        clock: the time.
        chance: random bytes, for ids.
        sink: is given each span; without one nothing is kept, and `arrives` gives None.
    """

    def __init__(self, clock: Clock, chance: Chance, sink: Sink | None = None) -> None:
        self.now = clock
        self._tracer = Tracer(clock, chance, sink) if sink is not None else None
        self._under_way: dict[Place, _Under] = {}
        self._lock = threading.Lock()  # receipts are made in threads

    @contextlib.contextmanager
    def arrives(self, traceparents: Any, count: int) -> Iterator[Arrival | None]:
        """A request with so many bundles, and whatever it says of their traces; None when there is nothing to trace."""
        contexts = list(map(read, traceparents)) if self._tracer is not None and isinstance(traceparents, list) else []
        if self._tracer is None or len(contexts) != count or not any(contexts):
            yield None
            return
        arrival = Arrival(self, self._tracer, contexts)
        try:
            yield arrival
        finally:
            arrival.ended()

    def entered(self, place: Place, under: _Under) -> None:
        """From now on this bundle's log entry and receipt are awaited."""
        with self._lock:
            self._under_way[place] = under
            while len(self._under_way) > MOST_UNDER_WAY:
                del self._under_way[next(iter(self._under_way))]

    def left(self, place: Place) -> None:
        """It did not come in after all."""
        with self._lock:
            self._under_way.pop(place, None)

    def committed(self, place: Place, at: datetime) -> None:
        """It is durable since then; its log entry may have been published already."""
        with self._lock:
            if (under := self._under_way.get(place)) is not None and not under.logged:
                under.since = at

    def logged(self, place: Place) -> None:
        """Its entry was published just now."""
        with self._lock:
            under = self._under_way.get(place)
            if under is None or under.logged:
                return
            self._span("sequence", under)
            under.since, under.logged = self.now(), True

    def receipted(self, place: Place) -> None:
        """A receipt was made for it just now, which ends what this server does for it."""
        with self._lock:
            if (under := self._under_way.pop(place, None)) is not None:
                self._span("receipt", under)

    def _span(self, name: str, under: _Under) -> None:
        if self._tracer is not None:
            self._tracer.begin(name, under.context, under.since).end(check=under.check)


class Arrival:
    """One request with traced bundles, as far as it came."""

    def __init__(self, tracing: Tracing, tracer: Tracer, contexts: Sequence[Context | None]) -> None:
        self._tracing = tracing
        self._tracer = tracer
        self._ingests: list[Open | None] = [
            tracer.begin("ingest", context) if context is not None else None for context in contexts
        ]
        self._coming: Sequence[Coming] = ()
        self._statuses: Sequence[str] = ()
        self._verified_at: datetime | None = None

    def verified(self, coming: Sequence[Coming]) -> None:
        """These, from the first on, are what they should be; they are about to be written."""
        self._coming = coming
        self._verified_at = self._part("verify", len(coming), None)
        for ingest, item in zip(self._ingests, coming, strict=False):
            if ingest is not None:
                self._tracing.entered(item[:3], _Under(ingest.context, item[3], self._verified_at))

    def committed(self, statuses: Sequence[str]) -> None:
        """These, from the first on, are held: `stored` now, or `known` before."""
        self._statuses = statuses
        at = self._part("commit", len(statuses), self._verified_at)
        for ingest, coming in zip(self._ingests, self._coming[: len(statuses)], strict=False):
            if ingest is not None:
                self._tracing.committed(coming[:3], at)

    def ended(self) -> None:
        """Nothing more becomes of it."""
        for index, ingest in enumerate(self._ingests):
            check = self._coming[index][3] if index < len(self._coming) else ""
            held = index < len(self._statuses)
            if ingest is not None:
                ingest.end(check=check, how=self._statuses[index] if held else "refused")
                if not held and index < len(self._coming):
                    self._tracing.left(self._coming[index][:3])

    def _part(self, name: str, count: int, since: datetime | None) -> datetime:
        """So much of each is over now, and began when the part before it ended."""
        now = self._tracing.now()
        for ingest in self._ingests[:count]:
            if ingest is not None:
                self._tracer.begin(name, ingest.context, since or ingest.start).end(now)
        return now
