"""A clock that only moves when somebody waits or says so."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

START = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


class FakeClock:
    """Wall and monotonic time that advance together; `step` moves the wall alone, as a person with `date -s` does."""

    def __init__(self, start: datetime = START, *, monotonic: float = 1000.0) -> None:
        self._wall = start
        self._monotonic = monotonic

    def now(self) -> datetime:
        return self._wall

    def monotonic(self) -> float:
        return self._monotonic

    def advance(self, seconds: float) -> None:
        """Let this much time pass at once.

        Raises:
            ValueError: time does not run back; use `step` for the wall.
        """
        if seconds < 0:
            raise ValueError("time does not run back")
        self._wall += timedelta(seconds=seconds)
        self._monotonic += seconds

    def step(self, seconds: float) -> None:
        """Set the wall clock forward or back without any time passing."""
        self._wall += timedelta(seconds=seconds)

    async def sleep(self, seconds: float) -> None:
        """Pass the time at once. Sleepers that overlap share the time, as they would on a real clock."""
        until = self._monotonic + max(0.0, seconds)
        await asyncio.sleep(0)
        if until > self._monotonic:
            self.advance(until - self._monotonic)
