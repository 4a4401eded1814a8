"""Watching the watcher: what of the server itself has stopped, looked at every few seconds, with a memory against flapping.

One replica does this at a time, over what each of them says of itself (services.duties).

A condition opens when its figure has been at its limit or above for `LOOKS` looks, and closes when it has been at half of that
or below for as many. What is between keeps what stands.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from compliance_agent.errors import AgentError, OffDuty
from compliance_agent.server.records import Clock, Figures, Store, Transaction
from compliance_agent.server.records.alarms import Cause
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.background import beside
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.duties import WATCH, Duties

LOOKS = 3
LOOK_S = 10.0
UNSEQUENCED_S = 60
UNVERIFIED_S = 20
log = structlog.get_logger()


@dataclass
class Condition:
    """One figure against its limit. `step` says when it opens (True), closes (False), or stays (None)."""

    limit: float
    open: bool | None = None  # not known before it has been seen long enough: an older process may have left it open
    seen: list[bool] = field(default_factory=list)

    def step(self, value: float) -> bool | None:
        """Look once."""
        high, low = value >= self.limit, value <= self.limit / 2
        self.seen = [*self.seen, high][-LOOKS:] if high or low else []
        if len(self.seen) < LOOKS or len(set(self.seen)) > 1 or self.seen[-1] == self.open:
            return None
        self.open = self.seen[-1]
        return self.open


@dataclass(frozen=True)
class Watched:
    """Where the figures come from."""

    store: Store
    board: Board
    clock: Clock
    waiting_s: Callable[[], float]  # how long the oldest submission has waited to be verified and written
    silent_since: Callable[[], datetime]  # a host that nothing was heard of since then is silent
    stamps_every: timedelta | None


def figures_of(waiting_s: float, board: Board, now: datetime, stamps_every: timedelta | None) -> Figures:
    """What a replica says of itself."""
    stamped = board.stamped_at
    late = stamps_every is not None and stamped is not None and now - stamped > 3 * stamps_every
    unmet = sum(not one.met for one in board.witnessing.values())
    return Figures(int(waiting_s), len(board.reasons()), unmet + late)


class Watch:
    """Looks, and tells `alarms` what began and what ended; as its duty, or always when it is given none."""

    def __init__(self, watched: Watched, alarms: Alarms, duties: Duties | None = None) -> None:
        self._watched = watched
        self._alarms = alarms
        self._duties = duties
        self._conditions: dict[str, tuple[Cause, Condition]] = {}

    async def look(self) -> None:
        """Look at everything once, where that is our duty."""
        held = self._duties.tenure(WATCH) if self._duties is not None else None
        if self._duties is not None and held is None:
            self._conditions = {}  # whoever takes over again looks anew
            return

        async def fence(tx: Transaction) -> None:
            if self._duties is not None and held is not None:
                await self._duties.check(tx, {held})

        figures = await self._figures()
        for cause, (value, limit) in figures.items():
            _, condition = self._conditions.setdefault(cause.id, (cause, Condition(limit)))
            change = condition.step(value)
            if change is True:
                await self._alarms.opened(cause, int(value), fence)
            elif change is False:
                await self._alarms.closed(cause, fence)

    async def _figures(self) -> dict[Cause, tuple[float, float]]:
        watched, now = self._watched, self._watched.clock()
        sites = await watched.store.all_sites()
        reader = watched.store.for_sites(sites)
        backlog = await reader.backlog()
        lag = (now - backlog.oldest).total_seconds() if backlog.oldest is not None else 0.0
        ours = figures_of(watched.waiting_s(), watched.board, now, watched.stamps_every)
        others = [one.figures for one in self._duties.others] if self._duties is not None else []
        figures: dict[Cause, tuple[float, float]] = {
            Cause("unsequenced"): (lag, UNSEQUENCED_S),
            Cause("unverified"): (float(max(one.waiting_s for one in [ours, *others])), UNVERIFIED_S),
            Cause("log_still"): (float(sum(one.still for one in [ours, *others])), 1),
            Cause("unanchored"): (float(sum(one.unanchored for one in [ours, *others])), 1),
        }
        silent = dict.fromkeys(sites, 0)
        for group in await watched.store.host_groups(watched.silent_since()):
            if group.silent and not group.revoked and group.site_id in silent:
                silent[group.site_id] += group.count
        figures.update({Cause("silent_hosts", site): (float(count), 1) for site, count in silent.items()})
        return figures

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look every few seconds until the end of the block."""
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                await self.look()
            except OffDuty:
                continue
            except AgentError as error:
                log.error("watch.failed", code=error.code)
