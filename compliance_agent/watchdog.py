"""What the service manager is told of one life: ready, how it is, that it gets on, that it ends.

It is fed while the loop gets on (progress.py) and not a moment longer. Feeding runs on the loop's own thread: where something keeps
that busy, nothing is fed either. Until the first look has come back the start may take as long as the loop gets on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import structlog

from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Clock
from compliance_agent.progress import Progress

OFTEN = 3  # times within the watchdog's time; one that is late, and one that is lost, do no harm
UNWATCHED_S = 60.0
log = structlog.get_logger()


class Manager(Protocol):
    """`adapters.notify.Notify`."""

    watchdog_s: float | None

    def tell(self, **values: str) -> None:
        """Send these."""
        ...


class Agent(Protocol):
    """What is looked at."""

    progress: Progress
    shutdown_event: asyncio.Event

    @property
    def clock(self) -> Clock:
        """Time."""
        ...

    @property
    def signalled(self) -> bool:
        """Whether SIGTERM or SIGINT has asked for the end."""
        ...

    @property
    def latest(self) -> Sequence[DriftResult]:
        """The newest result of each check."""
        ...


class Watchdog:
    """Beside one life.

    Args:
        agent: the life.
        manager: who is told.
    """

    def __init__(self, agent: Agent, manager: Manager) -> None:
        self._agent = agent
        self._manager = manager
        self._every_s = manager.watchdog_s / OFTEN if manager.watchdog_s else UNWATCHED_S
        self._ready = self._stalled = False
        self.lag_s = 0.0  # how late this very task was woken, at worst, since `take_lag`

    async def run(self) -> None:
        """Until the life ends, or this is cancelled."""
        agent, clock = self._agent, self._agent.clock
        while not agent.shutdown_event.is_set():
            self._tell()
            wake = clock.monotonic() + self._every_s
            if await self._passes(self._every_s):
                self.lag_s = max(self.lag_s, clock.monotonic() - wake)
        if agent.signalled:
            self._manager.tell(STOPPING="1", STATUS="finishing what is under way", WATCHDOG="1")
        else:
            self._manager.tell(WATCHDOG="1")  # the drain is bounded, and another life begins

    def take_lag(self) -> float:
        """The worst lag since this was asked last."""
        worst, self.lag_s = self.lag_s, 0.0
        return worst

    async def _passes(self, seconds: float) -> bool:
        """Pass this time, or less when there is something to say at once; whether it passed."""
        agent = self._agent
        sleeping = asyncio.ensure_future(agent.clock.sleep(seconds))
        tasks = {sleeping, asyncio.ensure_future(agent.shutdown_event.wait())}
        if not self._ready:
            tasks.add(asyncio.ensure_future(agent.progress.looked.wait()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return sleeping in done
        finally:
            for task in tasks:
                task.cancel()

    def _tell(self) -> None:
        overdue_s = self._agent.progress.overdue_s()
        if overdue_s > 0:
            if not self._stalled:
                log.error("loop.stalled", overdue_s=round(overdue_s, 1))
                self._manager.tell(STATUS="the loop hangs; the watchdog is not fed")
            self._stalled = True
            return
        if self._stalled:
            log.warning("loop.goes_on")
        self._stalled = False
        feed = {"WATCHDOG": "1", "STATUS": status_line(self._agent.latest)}
        if self._ready:
            self._manager.tell(**feed)
        elif self._agent.progress.looked.is_set():
            self._ready = True
            self._manager.tell(READY="1", **feed)
        else:
            longer_us = int(2 * OFTEN * self._every_s * 1_000_000)
            self._manager.tell(EXTEND_TIMEOUT_USEC=str(longer_us), WATCHDOG="1", STATUS="first look")


def status_line(latest: Sequence[DriftResult]) -> str:
    """How this host stands, in one line of counts."""
    counts = Counter(str(result.result) for result in latest)
    said = ", ".join(f"{counts[word]} {word}" for word in map(str, Result) if counts[word])
    return f"{len(latest)} checks: {said}" if said else "no verdict yet"
