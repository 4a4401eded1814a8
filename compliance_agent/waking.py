"""Between two rounds: what the machine tells wakes the check that reads it, at once and through the same gates.

What a check reads is in its own declaration (`CheckSpec.reads`); when a wake counts, and how often, is for core/waking.py. The
rounds go on at their intervals whatever is told: every look reads everything anew, so an event that never comes costs time and
nothing else. A kind of event that cannot be had is said once in the log, and in the agent's status for as long as it lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping
from typing import Any, Protocol

import structlog

from compliance_agent.baseline import Baseline
from compliance_agent.config import AgentConfig
from compliance_agent.core.waking import Wakes, sources
from compliance_agent.drift import DriftDetector
from compliance_agent.logs import where
from compliance_agent.ports import Clock, Events, Source

log = structlog.get_logger()
BEGIN_S = 5.0  # the first round does not wait longer for events
RETRY_S = 300.0  # what could not be watched is tried again


class Detector(Protocol):
    """What is woken."""

    baseline: Baseline

    def wake(self, check_id: str) -> None:
        """Look at it now."""
        ...

    def took_s(self, check_id: str) -> float:
        """How long the last look took."""
        ...


class Waking:
    """Takes events and wakes checks.

    Args:
        events: the machine's.
        detector: whose checks they are.
        clock: time.
        gap_s, budget: as of `Wakes`.
    """

    def __init__(self, events: Events, detector: Detector, clock: Clock, gap_s: float, budget: int) -> None:
        self._events = events
        self._detector = detector
        self._clock = clock
        self._wakes = Wakes(gap_s, budget)
        self._readers: dict[Source, set[str]] = {}
        self._baseline: Baseline | None = None
        self._trouble: dict[str, str] = {}
        self._was_spent = False
        self._retry_at = 0.0
        self._nudged = asyncio.Event()
        self.told = 0
        self.woken = 0
        self.uncounted = 0

    async def begin(self) -> None:
        """Watch what the baseline's checks read."""
        baseline = self._detector.baseline
        self._readers = {}
        for name, entry in baseline.entries.items():
            for source in sources(entry.check.spec.reads, entry.parameters):
                self._readers.setdefault(source, set()).add(name)
        self._wakes.forget()
        self._retry_at = self._clock.monotonic() + RETRY_S
        self._baseline = baseline
        await self._events.watch(self._readers)
        self._say_trouble()
        log.info("events.watched", sources=len(self._readers), troubled=len(self._trouble))

    @property
    def sources(self) -> int:
        """How many things are watched."""
        return len(self._readers)

    def nudge(self) -> None:
        """With every round: attend to another baseline, and try again what could not be watched."""
        now = self._clock.monotonic()
        self._say_trouble()
        if self._is_another() or self._may_retry(now) or self._was_spent != self._wakes.spent(now):
            self._nudged.set()

    async def run(self) -> None:
        """Take events until cancelled; a mistake in here costs events, never the agent."""
        while True:
            try:
                await self._turn()
            except Exception as error:
                log.error("events.crashed", error_type=type(error).__name__, at=where(error))
                await self._clock.sleep(RETRY_S)

    def trouble(self) -> dict[str, str]:
        """What is not told, with the code of the reason; `all` while this hour's looks are spent."""
        spent = {"all": "budget_spent"} if self._was_spent else {}
        return self._trouble | spent

    def state(self) -> dict[str, Any]:
        """For status and metrics: what is watched, what is not and why, and what events have done."""
        now = self._clock.monotonic()
        return {
            "sources": self.sources,
            "trouble": self.trouble(),
            "looks_last_hour": self._wakes.looks(now),
            "told": self.told,
            "woken": self.woken,
            "uncounted": self.uncounted,
        }

    def cured(self, check: str) -> None:
        """A cure of this check has ended."""
        self._wakes.cured(check, self._clock.monotonic())

    async def close(self) -> None:
        """Give back what watching holds."""
        await self._events.close()

    async def _turn(self) -> None:
        """Wait for an event or for a check that is due, and wake what is."""
        told = await self._told()
        now = self._clock.monotonic()
        self._take(told, now)
        for check in self._wakes.due(now):
            self.woken += 1
            log.debug("check.woken", check_id=check)
            self._detector.wake(check)
        self._say_spent(now)
        self._say_trouble()
        if self._is_another() or self._may_retry(now):
            await self.begin()

    def _take(self, told: Collection[Source], now: float) -> None:
        over: dict[str, bool] = {}  # whether all that is told of a check's is
        for source in told:
            for name in self._readers.get(source, ()):
                over[name] = over.get(name, True) and source.over
        for check in sorted(over):
            counts = self._wakes.told(check, now, self._detector.took_s(check), over=over[check])
            self.told += 1
            self.uncounted += not counts

    def _is_another(self) -> bool:
        return self._detector.baseline is not self._baseline

    def _may_retry(self, now: float) -> bool:
        return bool(self._trouble) and now >= self._retry_at

    async def _told(self) -> frozenset[Source]:
        """What was told, or nothing when a check is due first."""
        tasks: list[asyncio.Task[Any]] = [
            asyncio.ensure_future(self._events.told()),
            asyncio.ensure_future(self._nudged.wait()),
        ]
        due = self._wakes.next_at()
        if due is not None:
            tasks.append(asyncio.ensure_future(self._clock.sleep(max(0.0, due - self._clock.monotonic()))))
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            return tasks[0].result() if tasks[0].done() else frozenset()
        finally:
            self._nudged.clear()
            for task in tasks:
                task.cancel()

    def _say_spent(self, now: float) -> None:
        spent = self._wakes.spent(now)
        if spent and not self._was_spent:
            log.warning("events.budget_spent", count=self._wakes.looks(now))
        elif self._was_spent and not spent:
            log.info("events.budget_back")
        self._was_spent = spent

    def _say_trouble(self) -> None:
        """What came into trouble, and what is out of it: of that nobody was told meanwhile, so all of it may have changed."""
        trouble: Mapping[str, str] = self._events.trouble()
        for kind, code in trouble.items():
            if self._trouble.get(kind) != code:
                log.warning("events.troubled", kind=kind, code=code)
        for kind in self._trouble.keys() - trouble.keys():
            log.info("events.recovered", kind=kind)
            self._take([source for source in self._readers if source.kind == kind], self._clock.monotonic())
        self._trouble = dict(trouble)


def waking_for(detector: object, config: AgentConfig, clock: Clock) -> Waking | None:
    """What wakes the checks of this detector, where it takes turns, its host tells of changes, and it is wanted."""
    make = getattr(detector.host, "events", None) if isinstance(detector, DriftDetector) else None
    if not config.events or make is None or not isinstance(detector, DriftDetector):
        return None
    return Waking(make(), detector, clock, config.event_gap_sec, config.event_looks_per_hour)


def standing_of(waking: Waking | None) -> dict[str, str]:
    """What `status` says of it: how many sources are watched, and each kind that is not told, with the reason."""
    if waking is None:
        return {"sources": "0", "all": "off"}
    return {"sources": str(waking.sources), **waking.trouble()}


@contextlib.asynccontextmanager
async def woken_by(waking: Waking | None) -> AsyncIterator[None]:
    """Take events beside the loop; without them, nothing."""
    if waking is None:
        yield
        return
    try:
        async with asyncio.timeout(BEGIN_S):
            await waking.begin()
    except TimeoutError:
        log.warning("events.late")
    task = asyncio.create_task(waking.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
        await waking.close()
