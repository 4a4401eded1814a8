"""Check-in: a host says it lives and where its chain stands; it hears what we hold and how often to call.

What it says of its checks here is not evidence (it carries no signature), so no verdict changes; a head below ours is the sign of a
host that was set back or cloned, and is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Durable, Head, Host, Store, Transaction

log = structlog.get_logger()


@dataclass(frozen=True)
class Said:
    """What a host says at check-in."""

    key_id: str
    head: Head
    pending: int
    agent_version: str
    baseline_version: str
    baseline_sha256: str


@dataclass(frozen=True)
class Answer:
    """What it hears: our clock, the newest bundle of its chain that we hold, and how much of its site's logs a backup holds."""

    server_time: datetime
    known: Head | None
    durable: Sequence[Durable] = ()


class Checkin:
    """The check-in desk."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self.total = 0

    async def check_in(self, caller: Host, said: Said) -> Answer:
        """Note that the host lives.

        Raises:
            Refusal: it speaks for another key, or is revoked.
        """
        if said.key_id != caller.key_id:
            raise Refusal("key_id: not the key of the host that calls", code="wrong_host", status=403)
        now = self._clock()

        async def work(tx: Transaction) -> tuple[Host, Sequence[Durable]]:
            host = (await tx.hosts({caller.site_id}, {caller.key_id})).get(caller.key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("this host is revoked", code="host_revoked", status=403)
            await tx.save_hosts([_alive(host, said, now)])
            return host, await tx.durable(caller.site_id)

        host, durable = await self._store.write(work)
        self.total += 1
        if host.head is not None and (said.head.epoch, said.head.seq) < (host.head.epoch, host.head.seq):
            log.error("host.set_back", key_id=host.key_id, epoch=said.head.epoch, seq=said.head.seq)
        return Answer(now, host.head, durable)


def _alive(host: Host, said: Said, now: datetime) -> Host:
    return replace(
        host,
        last_seen_at=now,
        pending=said.pending,
        agent_version=said.agent_version,
        baseline_version=said.baseline_version,
        baseline_sha256=said.baseline_sha256,
    )
