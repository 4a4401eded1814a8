"""What of the logs is published, posted by the sequencer and read by whoever mints receipts, reports or waits.

One event loop posts and reads, so nothing here is locked. Places are kept for the newest entries; older ones are in the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice

from compliance_agent.server.records import Leaf

MOST_RECENT = 16_384
Place = tuple[str, int, int]  # key id, epoch, seq


@dataclass(frozen=True)
class Head:
    """A published checkpoint: the signed note, how many entries it covers, and when it was signed."""

    size: int
    note: bytes
    at: datetime


@dataclass(frozen=True)
class Witnessing:
    """What the witnesses of a log answered last.

    Attributes:
        size: of the checkpoint they were asked about.
        cosigned: names of the policy, with the time each said (POSIX seconds).
        failed: the other names, with a code of `witnessing.CODES`.
        met: whether the quorum was met.
        at: when.
    """

    size: int
    cosigned: Mapping[str, int]
    failed: Mapping[str, str]
    met: bool
    at: datetime


class Board:
    """The newest checkpoint of every log, and why a log stands still.

    Attributes:
        sequencing: whether a sequencer runs in this process.
        stopped: code by site id; the empty id stands for all sites.
        paused: code by site id of what ends by itself.
        witnessing: by site and year, once witnesses were asked; a log that is not met is unwitnessed.
        stamped_at, stamp_failed: the last time stamp, and why the last try failed (empty when it did not).
    """

    def __init__(self) -> None:
        self.sequencing = False
        self.stopped: dict[str, str] = {}
        self.paused: dict[str, str] = {}
        self.heads: dict[tuple[str, int], Head] = {}
        self.witnessing: dict[tuple[str, int], Witnessing] = {}
        self.stamped_at: datetime | None = None
        self.stamp_failed = ""
        self.logged: Callable[[Place], None] | None = None  # is told each place that is published
        self._recent: dict[Place, Leaf] = {}
        self._turn = asyncio.Event()

    def reasons(self) -> list[str]:
        """Codes of everything that keeps entries from being logged, each once."""
        return sorted({*self.stopped.values(), *self.paused.values()})

    def expects(self, site_id: str) -> bool:
        """Whether waiting for this site's log makes sense."""
        still = {*self.stopped, *self.paused}
        return self.sequencing and site_id not in still and "" not in still

    def post(self, site_id: str, year: int, head: Head, leaves: Iterable[Leaf] = ()) -> None:
        """A checkpoint is published, and these entries are new in it."""
        self.heads[site_id, year] = head
        for leaf in leaves:
            if leaf.key_id is not None and leaf.epoch is not None and leaf.seq is not None:
                self._recent[leaf.key_id, leaf.epoch, leaf.seq] = leaf
                if self.logged is not None:
                    self.logged((leaf.key_id, leaf.epoch, leaf.seq))
        for place in list(islice(self._recent, max(0, len(self._recent) - MOST_RECENT))):
            del self._recent[place]
        self.turn()

    def turn(self) -> None:
        """Let everybody who waits look again."""
        self._turn.set()
        self._turn = asyncio.Event()

    async def turned(self) -> None:
        """Wait until something is published, or a log's state changes."""
        await self._turn.wait()

    def recent(self, place: Place) -> Leaf | None:
        """The published entry of a bundle, if it is among the newest."""
        return self._recent.get(place)

    async def until_published(self, place: Place, site_id: str, timeout_s: float) -> None:
        """Wait until this place is among the newest, the log stands still, or the time is over."""
        try:
            async with asyncio.timeout(timeout_s):
                while place not in self._recent and self.expects(site_id):
                    await self._turn.wait()
        except TimeoutError:
            return
