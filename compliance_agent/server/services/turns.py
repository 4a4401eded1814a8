"""Whose turn it is: sites after each other, and within a site its hosts after each other, however much each of them sends.

`Fair` is a queue that holds that order. What a site has waiting is laid end to end, by cost, from the moment it came on; who would
end first is next (self-clocked fair queueing). A site with batches of 100 gets no more than one with single bundles, and one that
comes with a single bundle is next at once. `Turns` lets so many work at once. Neither looks at a clock: the order follows from
the calls alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
from collections import OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Site(Generic[T]):
    """What waits of one site: for each host in turn, what it asked for first."""

    began: int  # where the next item begins, in cost
    hosts: OrderedDict[str, deque[tuple[int, T]]] = field(default_factory=OrderedDict)

    def ends(self) -> int:
        """Where the next item ends."""
        return self.began + next(iter(self.hosts.values()))[0][0]

    def next(self) -> T:
        """Take the next item; its host's next one waits behind those of the other hosts."""
        host, items = next(iter(self.hosts.items()))
        cost, item = items.popleft()
        self.began += cost
        if items:
            self.hosts.move_to_end(host)
        else:
            del self.hosts[host]
        return item


class Fair(Generic[T]):
    """A queue of items with a site, a host and a cost."""

    def __init__(self) -> None:
        self._sites: dict[str, _Site[T]] = {}
        self._order: list[tuple[int, int, str]] = []  # a heap: where a site's next item ends, who came first, the site
        self._arrivals = count()
        self._at = 0  # where the item that was served last ended
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, site: str, host: str, cost: int, item: T) -> None:
        """Wait behind what this host has waiting."""
        known = self._sites.get(site)
        waiting = self._sites[site] = known or _Site(self._at)
        waiting.hosts.setdefault(host, deque()).append((max(1, cost), item))
        self._count += 1
        if known is None:
            self._line_up(site, waiting)

    def get(self) -> T:
        """Whoever's turn it is; raises IndexError when nobody waits."""
        self._at, _, name = heapq.heappop(self._order)
        self._count -= 1
        site = self._sites[name]
        item = site.next()
        if site.hosts:
            self._line_up(name, site)
        else:
            del self._sites[name]
        return item

    def drain(self) -> list[T]:
        """All that wait, who are no longer waiting."""
        return [self.get() for _ in range(self._count)]

    def _line_up(self, name: str, site: _Site[T]) -> None:
        heapq.heappush(self._order, (site.ends(), next(self._arrivals), name))


class Turns:
    """Lets so many work at once; the others wait, in a fair order."""

    def __init__(self, at_once: int) -> None:
        self._free = at_once
        self._waiting: Fair[asyncio.Future[None]] = Fair()

    @contextlib.asynccontextmanager
    async def turn(self, site: str, host: str, cost: int) -> AsyncIterator[None]:
        """Wait for a turn and hold it."""
        if self._free > 0:
            self._free -= 1
        else:
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.put(site, host, cost, turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._pass_on()  # it was our turn already
                raise
        try:
            yield
        finally:
            self._pass_on()

    def _pass_on(self) -> None:
        while len(self._waiting):
            turn = self._waiting.get()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1
