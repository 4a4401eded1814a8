"""A host's lease of its site: leave to disturb its users while it cures, so that a clinic never loses all its hosts at once.

The healing engine asks before a cure that users would notice, and lets go when the cure has ended and was looked at again. While
the cure runs the lease is renewed. How long it lasts is counted from before it was asked for, by a clock that nobody sets. What is
held stands in a file, so that after a crash it is given back once the cure is ended. The server counts (core/leases.py); when it
cannot be asked, the host waits and says so. A cure whose lease ends is stopped and undone; the undo does not wait: half a cure is
worse than two hosts at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

import structlog

from compliance_agent.adapters.durable import read_file, remove_file, write_file
from compliance_agent.core.leases import LONGEST_S, SHORTEST_S
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import AgentError, BadReply, ServerRefused
from compliance_agent.models import DriftResult
from compliance_agent.ports import Clock
from compliance_agent.remedies.plan import target_of

MARGIN_S = 300  # of a lease beyond the deadlines of its steps: looking again, and undoing
MOST_WAIT_S = 86_400
FILE = "site-lease.json"

log = structlog.get_logger()


class Parts(Protocol):
    """What a lease needs of the agent."""

    clock: Clock
    mcp_client: Any


@dataclass(frozen=True)
class NoLease:
    """Why there is none, as a gate says it, and when it makes sense to ask again."""

    reason: str
    not_before: datetime | None = None


@dataclass(frozen=True)
class Held:
    """A lease. `until` is by the monotonic clock."""

    check: str
    target: str
    fence: int
    until: float
    life_s: int


class SiteLease:
    """The lease of one host.

    Args:
        parts: the agent.
        state_dir: where what is held is written.
    """

    def __init__(self, parts: Parts, state_dir: Path) -> None:
        self._parts = parts
        self._path = state_dir / FILE
        self._held: Held | None = None
        self._renewal: asyncio.Task[None] | None = None

    async def take(self, drift: DriftResult, work_s: float) -> NoLease | None:
        """Ask for leave to run this drift's plan, whose steps take so long at most; None when it is given.

        Raises:
            StorageError: it could not be kept; nothing may be begun.
        """
        if drift.plan is None:
            raise RuntimeError(f"{drift.check}: nothing to disturb anybody with")
        target = hashlib.sha256(target_of(drift.plan).encode()).hexdigest()
        life_s = max(SHORTEST_S, min(int(work_s) + MARGIN_S, LONGEST_S))
        answer = await self._asked(drift.check, target, life_s, None)
        if isinstance(answer, NoLease):
            return answer
        self._held = answer
        document = {"check": answer.check, "target": answer.target, "fence": answer.fence}
        write_file(self._path, json.dumps(document).encode(), 0o600)
        log.info("lease.held", check_id=drift.check, fence=answer.fence)
        self._renewal = asyncio.create_task(self._renew(life_s / 3))
        return None

    def left_s(self) -> float:
        """Seconds until what is held ends, unless it is renewed before; a cure goes on no longer (remedies/transaction.py)."""
        return 0.0 if self._held is None else self._held.until - self._parts.clock.monotonic()

    async def release(self) -> None:
        """Give back what is held, or what a crash left; when the server cannot be told, it ends by itself."""
        self.close()
        held = self._held or self._left()
        if held is None:
            return
        self._held = None
        try:
            said = await self._parts.mcp_client.lease("release", held.check, held.target, SHORTEST_S, held.fence)
            log.info("lease.released", check_id=held.check, fence=held.fence, reason=said.reason)
        except AgentError as error:
            log.warning("lease.not_released", check_id=held.check, fence=held.fence, code=error.code)
        with contextlib.suppress(AgentError):
            remove_file(self._path)

    def close(self) -> None:
        """Renew no more; what is held stays so until it ends or is given back."""
        if self._renewal is not None:
            self._renewal.cancel()
            self._renewal = None

    async def _asked(self, check: str, target: str, life_s: int, fence: int | None) -> Held | NoLease:
        began = self._parts.clock.monotonic()
        try:
            said = await self._parts.mcp_client.lease("take", check, target, life_s, fence)
        except (ServerRefused, BadReply) as error:
            log.warning("healing.no_lease", check_id=check, code=error.code)
            return NoLease("lease_refused")
        except AgentError as error:
            log.warning("healing.no_lease", check_id=check, code=error.code)
            return NoLease("lease_server_down")
        if said.fence is not None:
            return Held(check, target, said.fence, began + said.for_s, life_s)
        return NoLease(
            said.reason,
            self._parts.clock.now() + timedelta(seconds=min(said.for_s, MOST_WAIT_S)) if said.for_s else None,
        )

    async def _renew(self, every_s: float) -> None:
        while (held := self._held) is not None:
            await self._parts.clock.sleep(every_s)
            answer = await self._asked(held.check, held.target, held.life_s, held.fence)
            if isinstance(answer, Held) and answer.fence == held.fence:
                self._held = answer
            elif self._parts.clock.monotonic() >= held.until:
                log.error("lease.lost", check_id=held.check, fence=held.fence)
                return

    def _left(self) -> Held | None:
        """What the file says, if it can be believed: a fencing token that is not ours is refused anyhow."""
        if not os.path.lexists(self._path):
            return None
        try:
            document = json.loads(read_file(self._path, limit_bytes=1_024))
            return Held(str(document["check"]), str(document["target"]), int(document["fence"]), 0.0, SHORTEST_S)
        except (AgentError, ValueError, KeyError, TypeError):
            with contextlib.suppress(AgentError):
                remove_file(self._path)
            return None
