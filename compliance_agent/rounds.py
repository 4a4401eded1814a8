"""When each check is looked at: by its own interval, none waiting for another, none looked at twice at the same time.

    turn()   starts what is due, waits a moment for it, and gives what came back, in the order of the ids
    late()   returns as soon as a look that took longer has come back; `taken` gives it
    wake()   starts one that something was told of, now; it comes back as a late one does

Each look is one task that ends by its own deadline, so there are never more of them than checks. A check that does not pass is
due again sooner, yet never so often that it takes more than a tenth of the time. A look during which the host was changed by a
cure may have seen half of each: unless it passes, it is done once more, and that answer counts.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Collection, Coroutine
from typing import Any

import structlog

from compliance_agent.logs import where
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Clock

log = structlog.get_logger()
PATIENCE_S = 1.0  # what comes back within it is judged together, in one order
EARLY = 0.1  # part of an interval; the agent's ticks come up to a tenth early, and a check of the same interval is due at each
SHARE = 10.0  # a look that took one second and did not pass is not begun again within ten
WELL = {Result.PASS, Result.NOT_APPLICABLE, Result.EXCEPTION}


class Rounds:
    """The looks of one host.

    Args:
        look: looks at one check by its id; ends by itself.
        clock: time.
    """

    def __init__(self, look: Callable[[str], Coroutine[Any, Any, DriftResult]], clock: Clock) -> None:
        self._look = look
        self._clock = clock
        self._due: dict[str, float] = {}  # monotonic; absent is now
        self._under_way: dict[str, asyncio.Task[DriftResult]] = {}
        self._back: dict[str, DriftResult] = {}
        self._disturbed: set[str] = set()
        self._once_more: set[str] = set()
        self._woken: set[str] = set()  # while a look is under way, which may have come too early
        self._took_s: dict[str, float] = {}
        self._any_back = asyncio.Event()

    def begun(self, check_id: str, interval_s: float) -> None:
        """A look at this check begins, whoever asked for it."""
        self._due[check_id] = self._clock.monotonic() + interval_s * (1 - EARLY)

    def ended(self, check_id: str, result: DriftResult) -> None:
        """It ended so."""
        self._took_s[check_id] = result.duration_ms / 1000
        if result.result not in WELL:
            soon = self._clock.monotonic() + (SHARE - 1) * result.duration_ms / 1000
            self._due[check_id] = min(self._due.get(check_id, soon), soon)

    def due_again(self, checks: Collection[str]) -> None:
        """These have to be looked at anew with the next turn."""
        for check_id in checks:
            self._due.pop(check_id, None)

    def look_now(self, check_id: str) -> None:
        """Look at this one now, unless a look is under way; it comes back as a late one."""
        if check_id not in self._under_way:
            _ = self._start(check_id)

    def took_s(self, check_id: str) -> float:
        """How long the last look at it took."""
        return self._took_s.get(check_id, 0.0)

    def wake(self, check_id: str) -> None:
        """Look at this one now, or once more when the look under way is over."""
        if check_id in self._under_way:
            self._woken.add(check_id)
        else:
            _ = self._start(check_id)

    async def turn(self, checks: Collection[str]) -> list[DriftResult]:
        """Start what is due of these, wait a moment for it, and give everything that came back."""
        now = self._clock.monotonic()
        due = [name for name in checks if name not in self._under_way and now >= self._due.get(name, now)]
        begun = [self._start(name) for name in due]
        if begun:
            await asyncio.wait(begun, timeout=PATIENCE_S)
        return self.taken()

    def taken(self) -> list[DriftResult]:
        """What came back and was not given yet, in the order of the ids."""
        self._any_back.clear()
        back, self._back = self._back, {}
        return [back[name] for name in sorted(back)]

    async def late(self) -> None:
        """Return when there is something to take."""
        await self._any_back.wait()

    def disturbed(self) -> None:
        """A cure has changed the host: what is under way, or has come back meanwhile, counts if it passes."""
        self._disturbed.update(self._under_way.keys() - self._once_more)
        for name, result in list(self._back.items()):
            if result.result not in WELL and name not in self._once_more:
                del self._back[name]
                self._look_once_more(name)

    async def close(self, seconds: float) -> None:
        """Give up what is under way."""
        tasks = set(self._under_way.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _start(self, name: str) -> asyncio.Task[DriftResult]:
        task = self._under_way[name] = asyncio.ensure_future(self._look(name))
        task.add_done_callback(functools.partial(self._came_back, name))
        return task

    def _look_once_more(self, name: str) -> None:
        self._once_more.add(name)
        _ = self._start(name)

    def _came_back(self, name: str, task: asyncio.Task[DriftResult]) -> None:
        del self._under_way[name]
        disturbed, woken = name in self._disturbed, name in self._woken
        self._disturbed.discard(name)
        self._woken.discard(name)
        if task.cancelled():
            return
        if woken:
            _ = self._start(name)
        error = task.exception()
        if error is not None:  # a mistake in here costs this look, not the others
            log.error("check.crashed", check_id=name, error_type=type(error).__name__, at=where(error))
            return
        result = task.result()
        if woken and result.result not in WELL:  # the look that has just begun says what counts
            return
        if disturbed and result.result not in WELL:
            self._look_once_more(name)
            return
        self._once_more.discard(name)
        self._back[name] = result
        self._any_back.set()
