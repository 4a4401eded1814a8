"""How much is logged: what the configuration says, or for a while something else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from compliance_agent.ports import Clock

LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
DEFAULT_S, LONGEST_S = 900, 86_400
log = structlog.get_logger()


class LogLevel:
    """The level of this process.

    Args:
        configure: sets it.
        clock: for the way back.
    """

    def __init__(self, configure: Callable[[str], None], clock: Clock) -> None:
        self._configure = configure
        self._clock = clock
        self._back: asyncio.Task[None] | None = None
        self._until = 0.0
        self.base = self.now = "INFO"

    def use(self, level: str) -> None:
        """What the configuration says; a level that was asked for a while is over."""
        self._forget()
        self.base = self.now = level
        self._configure(level)

    def use_for(self, level: str, seconds: int) -> None:
        """Another one for so long, then back."""
        self._forget()
        self._until = self._clock.monotonic() + seconds
        self._back = asyncio.ensure_future(self._go_back(seconds))
        self.now = level
        self._configure(level)

    def left_s(self) -> float | None:
        """Seconds until it is the configuration's again; None when it is."""
        return None if self._back is None else max(0.0, self._until - self._clock.monotonic())

    async def _go_back(self, seconds: float) -> None:
        await self._clock.sleep(seconds)
        self._back, self.now = None, self.base
        self._configure(self.base)
        log.info("log.level_back", level_now=self.base)

    def _forget(self) -> None:
        if self._back is not None:
            self._back.cancel()
            self._back = None
