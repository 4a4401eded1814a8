"""Check-in: a host says it lives and where its chain stands; it hears what we hold and how often to call.

What it says of its checks here is not evidence (it carries no signature), so no verdict changes. A head below ours is the sign of a
host that was set back or cloned: it is logged. When it happens again soon, or another bundle stands where ours does, more than one
machine seems to hold the key: both are kept, and the key is contested until an operator looked into it (`Enrolment.approve`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Durable, Head, Host, Store, Transaction
from compliance_agent.server.services import orders

SET_BACK_AGAIN = timedelta(days=7)

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
    order_nonce: str | None = None


@dataclass(frozen=True)
class Answer:
    """What it hears: our clock, the newest bundle of its chain that we hold, and how much of its site's logs a backup holds."""

    server_time: datetime
    known: Head | None
    durable: Sequence[Durable] = ()
    orders: Sequence[bytes] = ()


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

        async def work(tx: Transaction) -> tuple[Host, Sequence[Durable], Sequence[bytes]]:
            host = (await tx.hosts({caller.site_id}, {caller.key_id})).get(caller.key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("this host is revoked", code="host_revoked", status=403)
            alive = _contested(_alive(host, said, now), said.head, now)
            await tx.save_hosts([alive])
            if alive.contested_at != host.contested_at:
                await tx.audit(now, f"host:{host.key_id}", "host.contested", site_id=host.site_id, subject=host.host_id)
            waiting = await orders.exchange(tx, alive, said.order_nonce, now)
            return alive, await tx.durable(caller.site_id), waiting

        host, durable, waiting = await self._store.write(work, {caller.site_id})
        self.total += 1
        if host.set_back_at == now:
            log.error("host.set_back", key_id=host.key_id, epoch=said.head.epoch, seq=said.head.seq)
        if host.contested_at == now:
            log.error("host.contested", key_id=host.key_id, site_id=host.site_id)
        return Answer(now, host.head, durable, waiting)


def _contested(host: Host, said: Head, now: datetime) -> Host:
    """What a head says about the key: set back once may be a restored disk; again within a week, two machines.

    A host whose answer was lost says the same again, and then what is held here has not changed.
    """
    held = host.head
    if held is None or (said.epoch, said.seq) > (held.epoch, held.seq) or said == held:
        return host
    if (said.epoch, said.seq) == (held.epoch, held.seq):
        return replace(host, contested_at=host.contested_at or now)
    if held.digest == host.set_back_digest:
        return host
    again = host.set_back_at is not None and now - host.set_back_at < SET_BACK_AGAIN
    contested_at = host.contested_at or (now if again else None)
    return replace(host, set_back_at=now, set_back_digest=held.digest, contested_at=contested_at)


def _alive(host: Host, said: Said, now: datetime) -> Host:
    return replace(
        host,
        last_seen_at=now,
        pending=said.pending,
        agent_version=said.agent_version,
        baseline_version=said.baseline_version,
        baseline_sha256=said.baseline_sha256,
    )
