"""What the pages look at: the agent that lives now, and what goes on beside it. One object for all lives of the process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import field
from datetime import UTC, datetime

from compliance_agent import __version__
from compliance_agent.agent import ComplianceAgent
from compliance_agent.core.breaker import CircuitBreaker
from compliance_agent.core.pausing import Pause
from compliance_agent.dataclass import dataclass
from compliance_agent.delivery import code_of
from compliance_agent.healing import HealingEngine
from compliance_agent.installed import agent_digest
from compliance_agent.log_level import LogLevel
from compliance_agent.watchdog import Watchdog

ANSWER_S = 5.0


@dataclass
class Standing:
    """The present life.

    Attributes:
        agent: it.
        watchdog: beside it.
        level: how much is logged.
        reload: has the files read again; raises `AgentError` when they cannot be used.
        started_at: when the process did.
        profiling: held while a profile is taken.
    """

    agent: ComplianceAgent
    watchdog: Watchdog
    level: LogLevel
    reload: Callable[[], Awaitable[None]]
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    profiling: asyncio.Lock = field(default_factory=asyncio.Lock)
    version: str = __version__
    code_sha256: str = field(default_factory=agent_digest)  # as it was when this process began

    @property
    def breaker(self) -> tuple[str, float] | None:
        """State of the breaker before the server, and seconds until the next try; None without a server."""
        breaker = getattr(self.agent.mcp_client, "breaker", None)
        if not isinstance(breaker, CircuitBreaker):
            return None
        now = self.agent.clock.monotonic()
        return breaker.state(now), breaker.wait_s(now)

    async def queue(self) -> tuple[dict[str, object], str | None]:
        """What waits for delivery, and the code of why that cannot be told."""
        try:
            async with asyncio.timeout(ANSWER_S):
                return dict(await self.agent.offline_queue.get_stats()), None
        except Exception as error:
            return {}, code_of(error)

    async def pause(self) -> tuple[Pause | None, bool]:
        """What a person at this host asked for while it lasts, and whether an order paused healing."""
        engine = self.agent.healing_engine
        if not isinstance(engine, HealingEngine):
            return None, bool(getattr(engine, "paused", False))
        async with asyncio.timeout(ANSWER_S):
            by_order = bool(await engine.store.call(engine.store.paused))
            return await engine.standing_pause(), by_order

    async def not_ready(self) -> list[str]:
        """Codes of what keeps this agent from doing its work; none when it does."""
        agent, codes = self.agent, []
        if not agent.progress.looked.is_set():
            codes.append("starting")
        if agent.progress.overdue_s() > 0:
            codes.append("loop_stalled")
        if agent.shutdown_event.is_set():
            codes.append("stopping")
        queue, trouble = await self.queue()
        if trouble is not None:
            codes.append("storage_failed")
        elif queue.get("storage_full"):
            codes.append("storage_full")
        return codes
