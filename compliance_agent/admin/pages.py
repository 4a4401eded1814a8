"""What is read: does it live, does it do its work, how does it stand, and its figures."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from compliance_agent.adapters.agent_view import looking
from compliance_agent.admin.door import Call, answer
from compliance_agent.admin.figures import families
from compliance_agent.admin.standing import ANSWER_S, Standing
from compliance_agent.core.exposition import media_type, rendered
from compliance_agent.models import DriftResult
from compliance_agent.ports import HttpReply


class Pages:
    """The pages of one process.

    Args:
        standing: what they look at.
    """

    def __init__(self, standing: Standing) -> None:
        self._standing = standing

    async def healthz(self, _call: Call) -> HttpReply:
        """The process lives and its loop gets on, and whether it may ask its server; nothing is read for it."""
        config, overdue_s = self._standing.agent.config, self._standing.agent.progress.overdue_s()
        document = {"status": "ok" if overdue_s == 0 else "stalled", "overdue_s": round(overdue_s, 1)}
        names = {"site_id": config.site_id, "host_id": config.host_id}
        names |= {"version": self._standing.version, "code_sha256": self._standing.code_sha256}
        breaker = self._standing.breaker
        return answer({**document, "breaker": breaker and breaker[0], **names}, 200 if overdue_s == 0 else 503)

    async def readyz(self, _call: Call) -> HttpReply:
        """It does its work, or the codes of what keeps it from that."""
        codes = await self._standing.not_ready()
        return answer({"status": "not_ready" if codes else "ready", "reasons": codes}, 503 if codes else 200)

    async def metrics(self, call: Call) -> HttpReply:
        """The figures, in the format that is asked for."""
        kind = media_type(call.headers.get("accept", ""))
        body = rendered(await families(self._standing), kind)
        return HttpReply(200, {"content-type": kind, "cache-control": "no-store", "vary": "accept"}, body)

    async def status(self, _call: Call) -> HttpReply:
        """The document of `compliance-agent status --json`, with what only the running agent knows."""
        from compliance_agent.cli.status import as_document

        agent, now = self._standing.agent, datetime.now(UTC)

        def recorded() -> dict[str, Any]:
            with looking(agent.config.database_path) as view:
                return as_document(agent.config, view, now)

        async with asyncio.timeout(ANSWER_S):
            document = await asyncio.to_thread(recorded)
        return answer({**document, "source": "agent", "running": True, "live": await self._live()})

    async def _live(self) -> dict[str, Any]:
        standing, agent = self._standing, self._standing.agent
        breaker, cycle, left_s = standing.breaker, agent.cycle, standing.level.left_s()
        codes = await standing.not_ready()
        return {
            "version": standing.version,
            "started_at": _utc(standing.started_at),
            "ready": not codes,
            "not_ready": codes,
            "loop": {
                "overdue_s": round(agent.progress.overdue_s(), 1),
                "interval_s": round(agent.interval_s, 1),
                "interval_why": agent.pace.why,
                "last_cycle": _utc(cycle.ended_at) if cycle is not None else None,
                "last_cycle_ms": int(cycle.seconds * 1_000) if cycle is not None else None,
                "ticks_skipped": agent.ticks_skipped,
            },
            "root_key": _root_key(agent),
            "breaker": breaker[0] if breaker is not None else None,
            "breaker_wait_s": round(breaker[1], 1) if breaker is not None else None,
            "delivery_trouble": agent.delivery.trouble or None,
            "log_level": standing.level.now,
            "log_level_left_s": round(left_s) if left_s is not None else None,
            "checks": [seen(drift) for drift in agent.latest],
        }


def _root_key(agent: Any) -> dict[str, Any] | None:
    """The key by which root's side of orders knows this host, where there is one."""
    if agent.adopt_root is None:
        return None
    root = agent.root_key
    return {"key_id": root.key_id or None, "state": root.state, "code": root.code or None}


def seen(drift: DriftResult) -> dict[str, Any]:
    """The newest look at one check, recorded or not."""
    at = drift.observed_at
    return {
        "check": drift.check,
        "result": str(drift.result),
        "reason": drift.reason,
        "looked_at": _utc(at) if at is not None else None,
    }


def _utc(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
