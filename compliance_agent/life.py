"""The life of a daemon: iterations at an interval, one at a time, until a signal or an event ends it.

Each pause has a jitter of its own, so that hosts that started together do not stay together. A tick that comes while an iteration
still runs is skipped and counted, never piled up; an error waits a minute and never ends the loop. Between ticks it attends to
what came back late. What runs when shutdown is asked for has a moment left; then it is cancelled, and not waited for for ever.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import random
import signal
from collections.abc import Coroutine
from datetime import datetime
from types import FrameType
from typing import Any

import structlog

from compliance_agent.counts import Counts
from compliance_agent.dataclass import dataclass
from compliance_agent.delivery import code_of
from compliance_agent.errors import StateInUse
from compliance_agent.logs import where
from compliance_agent.ports import Clock
from compliance_agent.progress import Progress
from compliance_agent.utils import apply_jitter

log = structlog.get_logger()

JITTER_PCT = 10.0
ERROR_BACKOFF_S = 60.0
DRAIN_ITERATION_S, DRAIN_CANCEL_S = 3.0, 1.0  # from a signal: for what is under way, and for its cancellation


@dataclass(frozen=True)
class Cycle:
    """An iteration that was completed: when, and how long it took."""

    ended_at: datetime
    seconds: float


class Life(abc.ABC):
    """The loop; what an iteration is, says the class that has this one as its base.

    Args:
        clock: time.
        rng: for the jitter.
    """

    def __init__(self, clock: Clock, rng: random.Random | None = None) -> None:
        self.running = False
        self.shutdown_event = asyncio.Event()
        self.reload_event = asyncio.Event()
        self.clock = clock
        self.ticks_skipped = 0
        self.counts = Counts({})
        self.progress = Progress(clock)
        self.cycle: Cycle | None = None  # the last one
        self.interval_s = 0.0  # from the last tick to the next, with its jitter
        self._rng = rng
        self._signal = 0
        self._loop: asyncio.AbstractEventLoop | None = None

    @abc.abstractmethod
    async def _run_iteration(self) -> None:
        """One iteration."""

    @abc.abstractmethod
    async def _late(self) -> None:
        """Return when something came back that `_late_turn` should attend to before the next tick; perhaps never."""

    @abc.abstractmethod
    async def _late_turn(self) -> None:
        """Attend to it."""

    @abc.abstractmethod
    async def _after(self, work: Coroutine[Any, Any, None], *, iteration: bool) -> None:
        """Await the work by `_until_shutdown`, then do what is to be done after it."""

    @abc.abstractmethod
    def _interval_s(self) -> float:
        """Seconds from tick to tick, before jitter."""

    @property
    def signalled(self) -> bool:
        """Whether SIGTERM or SIGINT has asked for the end."""
        return self._signal != 0

    def end(self) -> None:
        """End the loop after what is under way."""
        self.running = False
        self.shutdown_event.set()

    def take_signals(self, former: Life | None = None) -> None:
        """As `_setup_signal_handlers`, and SIGHUP sets `reload_event`; what was asked of the one before while this one was made is
        asked of this one.
        """
        self._setup_signal_handlers()
        loop = asyncio.get_running_loop()

        def hang_up(_signum: int, _frame: FrameType | None) -> None:
            self.reload_event.set()
            loop.call_soon_threadsafe(lambda: None)

        with contextlib.suppress(ValueError):  # said already
            signal.signal(signal.SIGHUP, hang_up)
        if former is None:
            return
        if former.reload_event.is_set():
            self.reload_event.set()
        if former.signalled:
            self._signal = former._signal
            self.end()

    def _setup_signal_handlers(self) -> None:
        """SIGTERM and SIGINT end the loop after what is under way; outside the main thread there are no signals to take."""

        def signal_handler(signum: int, _frame: FrameType | None) -> None:
            self._signal = int(signum)
            self.end()
            if self._loop is not None and self._loop.is_running():
                self._loop.call_soon_threadsafe(lambda: None)  # wakes a loop that waits for nothing but time

        try:
            signal.signal(signal.SIGTERM, signal_handler)
            signal.signal(signal.SIGINT, signal_handler)
        except ValueError:
            log.info("agent.no_signals")

    async def _run_loop(self) -> None:
        """Iterations at the poll interval, +-10 %; one at a time; an error waits a minute and never ends the loop."""
        self._loop = asyncio.get_running_loop()
        while self.running and not self.shutdown_event.is_set():
            self.progress.step()
            started = self.clock.monotonic()
            went_well = await self._went_well(self._run_iteration(), iteration=True)
            pause = apply_jitter(self._interval_s(), jitter_pct=JITTER_PCT, rng=self._rng)
            if not went_well:
                pause = max(pause, ERROR_BACKOFF_S)
            self.interval_s = pause
            await self._until_tick(self.clock.monotonic() + self._until_next_tick(started, pause), pause)

    async def _went_well(self, work: Coroutine[Any, Any, None], *, iteration: bool) -> bool:
        try:
            await self._after(work, iteration=iteration)
        except StateInUse:
            raise
        except Exception as error:
            self.counts.add("cycles_failed", code_of(error))
            log.error("cycle.failed", code=code_of(error), at=where(error))
            return False
        return True

    def _until_next_tick(self, started: float, pause: float) -> float:
        """Seconds to the next tick that is still to come; those that passed during the iteration are skipped and said."""
        late = self.clock.monotonic() - started - pause
        if late <= 0:
            return -late
        self._skipped(1 + int(late // pause))
        return pause - late % pause

    def _skipped(self, ticks: int) -> None:
        self.ticks_skipped += ticks
        self.counts.add("ticks_skipped", by=ticks)
        log.warning("cycle.ticks_skipped", count=ticks, total=self.ticks_skipped)

    async def _until_tick(self, tick: float, pause: float) -> None:
        """Pass the time to this tick, attending to what comes back late meanwhile."""
        while (left := tick - self.clock.monotonic()) > 0 and await self._wait(left):
            self.progress.step()
            await self._went_well(self._late_turn(), iteration=False)
        missed = int((self.clock.monotonic() - tick) // pause)
        if missed > 0:
            self._skipped(missed)

    async def _wait(self, seconds: float) -> bool:
        """Pass this time, or less when shutdown is asked for. Whether something came back late before it was over."""
        self.progress.step(seconds)
        sleeping = asyncio.ensure_future(self.clock.sleep(seconds))
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        late = asyncio.ensure_future(self._late())
        tasks: set[asyncio.Task[Any]] = {sleeping, stopping, late}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return done == {late}
        finally:
            for task in tasks:
                task.cancel()

    async def _until_shutdown(self, work: Coroutine[Any, Any, None]) -> bool:
        """Do the work; once shutdown is asked for it has a moment left, then it is cancelled. Whether it was finished."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.shutdown_event.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                await asyncio.wait({task}, timeout=DRAIN_ITERATION_S)
            if task.done():
                task.result()
                return True
            log.warning("cycle.cancelled")
            task.cancel()
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # whenever that will be
            await asyncio.wait({task}, timeout=DRAIN_CANCEL_S)
            return False
        finally:
            stopping.cancel()
            task.cancel()
