"""How an agent is: its status, statistics, server and queue, as values for a page, a command or a monitor."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC
from typing import Any, Protocol

from compliance_agent.config import AgentConfig
from compliance_agent.delivery import code_of, settled
from compliance_agent.mcp_client import MCPClient
from compliance_agent.ports import Clock
from compliance_agent.receipts import Receipts

ANSWER_S = 10.0


class Parts(Protocol):
    """What is asked of the agent."""

    config: AgentConfig
    clock: Clock
    running: bool
    stats: dict[str, int]
    mcp_client: Any
    offline_queue: Any
    receipts: Receipts


async def health_of(agent: Parts) -> dict[str, Any]:
    """The document of `health_check`; a part that cannot answer is named with its error's code."""
    health: dict[str, Any] = {
        "status": "healthy" if agent.running else "stopped",
        "timestamp": agent.clock.now().astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "site_id": agent.config.site_id,
        "host_id": agent.config.host_id,
        "stats": dict(agent.stats),
        "mcp_server": "not_configured",
    }
    if agent.mcp_client is not None:
        healthy = await _answer(agent.mcp_client.health_check)
        health["mcp_server"] = healthy if isinstance(healthy, str) else "healthy" if healthy else "unhealthy"
    queue = await _answer(agent.offline_queue.get_stats)
    if isinstance(agent.mcp_client, MCPClient) and isinstance(queue, dict):
        client, now = agent.mcp_client, agent.clock.monotonic()
        breaker = {"state": client.breaker.state(now), "wait_s": round(client.breaker.wait_s(now), 1)}
        queue = {**queue, "breaker": breaker, "log": await _answer(lambda: agent.receipts.health(client))}
    health["offline_queue"] = queue
    return health


async def _answer(ask: Callable[[], Any]) -> Any:
    try:
        async with asyncio.timeout(ANSWER_S):
            return await settled(ask())
    except Exception as error:
        return f"error: {code_of(error)}"
