"""Watching the watcher: what of the server itself has stopped, looked at every few seconds, with a memory against flapping.

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

from compliance_agent.errors import AgentError
from compliance_agent.server.records import Clock, Store
from compliance_agent.server.records.alarms import Cause
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.background import beside
from compliance_agent.server.services.board import Board

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


class Watch:
    """Looks, and tells `alarms` what began and what ended."""

    def __init__(self, watched: Watched, alarms: Alarms) -> None:
        self._watched = watched
        self._alarms = alarms
        self._conditions: dict[str, tuple[Cause, Condition]] = {}

    async def look(self) -> None:
        """Look at everything once."""
        figures = await self._figures()
        for cause, (value, limit) in figures.items():
            _, condition = self._conditions.setdefault(cause.id, (cause, Condition(limit)))
            change = condition.step(value)
            if change is True:
                await self._alarms.opened(cause, int(value))
            elif change is False:
                await self._alarms.closed(cause)

    async def _figures(self) -> dict[Cause, tuple[float, float]]:
        watched, now = self._watched, self._watched.clock()
        sites = await watched.store.all_sites()
        reader = watched.store.for_sites(sites)
        backlog = await reader.backlog()
        lag = (now - backlog.oldest).total_seconds() if backlog.oldest is not None else 0.0
        figures: dict[Cause, tuple[float, float]] = {
            Cause("unsequenced"): (lag, UNSEQUENCED_S),
            Cause("unverified"): (watched.waiting_s(), UNVERIFIED_S),
            Cause("log_still"): (float(len(list(watched.board.reasons()))), 1),
            Cause("unanchored"): (float(self._unanchored()), 1),
        }
        silent = dict.fromkeys(sites, 0)
        for group in await watched.store.host_groups(watched.silent_since()):
            if group.silent and not group.revoked and group.site_id in silent:
                silent[group.site_id] += group.count
        figures.update({Cause("silent_hosts", site): (float(count), 1) for site, count in silent.items()})
        return figures

    def _unanchored(self) -> int:
        board, watched = self._watched.board, self._watched
        late = False
        if watched.stamps_every is not None and board.stamped_at is not None:
            late = watched.clock() - board.stamped_at > 3 * watched.stamps_every
        return sum(not one.met for one in board.witnessing.values()) + late

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
            except AgentError as error:
                log.error("watch.failed", code=error.code)
