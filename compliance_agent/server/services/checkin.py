"""Check-in: a host says it lives and where its chain stands; it hears what we hold and how often to call.

What it says of its checks here is not evidence (it carries no signature), so no verdict changes. A head below ours is the sign of a
host that was set back or cloned: it is logged. When it happens again soon, or another bundle stands where ours does, more than one
machine seems to hold the key: both are kept, and the key is contested until an operator looked into it (`Enrolment.approve`).

A host is answered after the commit: what it hears was decided with what is held, and orders that it is given are noted as given.
Check-ins that come at the same time share a transaction (grouping.py), and the first of them waits a moment for others: nobody is
in a hurry, and a fleet costs one commit for many of its hosts.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Durable, Head, Host, Store, Transaction
from compliance_agent.server.records.orders import TrustSaid
from compliance_agent.server.services import order_trust, orders
from compliance_agent.server.services.grouping import Grouped

SET_BACK_AGAIN = timedelta(days=7)
GROUP = 128  # check-ins that share one transaction at most
LINGER_S = 0.02

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
    order_trust: TrustSaid | None = None


@dataclass(frozen=True)
class Answer:
    """What it hears: our clock, the newest bundle of its chain that we hold, and how much of its site's logs a backup holds."""

    server_time: datetime
    known: Head | None
    durable: Sequence[Durable] = ()
    orders: Sequence[bytes] = ()
    order_trust: Sequence[bytes] = ()


_Call = tuple[Host, Said]


class Checkin:
    """The check-in desk."""

    def __init__(self, store: Store, clock: Clock, *, linger_s: float = LINGER_S) -> None:
        self._store = store
        self._clock = clock
        self._writes: Grouped[_Call, Answer | None] = Grouped(
            self._write, most=GROUP, most_cost=GROUP, linger_s=linger_s
        )
        self.total = 0

    async def check_in(self, caller: Host, said: Said) -> Answer:
        """Note that the host lives.

        Raises:
            Refusal: it speaks for another key, or is revoked.
        """
        if said.key_id != caller.key_id:
            raise Refusal("key_id: not the key of the host that calls", code="wrong_host", status=403)
        answer = await self._writes.written(caller, 1, (caller, said))
        if answer is None:
            raise Refusal("this host is revoked", code="host_revoked", status=403)
        self.total += 1
        return answer

    async def drain(self) -> None:
        """Wait until everybody who has called is answered."""
        await self._writes.drain()

    async def _write(self, calls: Sequence[_Call]) -> Sequence[Answer | None]:
        now, sites = self._clock(), {caller.site_id for caller, _ in calls}
        found = await self._store.write(lambda tx: _checked_in(tx, calls, sites, now), sites)
        for (_, said), told in zip(calls, found, strict=True):
            if told is not None and told[0].set_back_at == now:
                log.error("host.set_back", key_id=said.key_id, epoch=said.head.epoch, seq=said.head.seq)
            if told is not None and told[0].contested_at == now:
                log.error("host.contested", key_id=said.key_id, site_id=told[0].site_id)
        return [told and told[1] for told in found]


async def _checked_in(
    tx: Transaction, calls: Sequence[_Call], sites: Collection[str], now: datetime
) -> list[tuple[Host, Answer] | None]:
    """In one transaction: what becomes of each call, None for a host that is revoked."""
    hosts = await tx.hosts(sites, {said.key_id for _, said in calls})
    found: list[tuple[Host, Said] | None] = []
    for _, said in calls:
        host = hosts.get(said.key_id)
        if host is None or host.revoked_at is not None:
            found.append(None)
            continue
        hosts[said.key_id] = alive = _contested(_alive(host, said, now), said.head, now)
        if alive.contested_at != host.contested_at:
            await tx.audit(now, f"host:{host.key_id}", "host.contested", site_id=host.site_id, subject=host.host_id)
        found.append((alive, said))
    live = [one for one in found if one is not None]
    await tx.save_hosts({host.key_id: host for host, _ in live}.values())
    durable: dict[str, list[Durable]] = {}
    for item in await tx.durable(sites):
        durable.setdefault(item.site_id, []).append(item)
    given = iter(await orders.exchange(tx, [(host, said.order_nonce) for host, said in live], now))
    trust = await order_trust.carried(tx, [(host, said.order_trust) for host, said in live])
    answers: list[tuple[Host, Answer] | None] = []
    for one in found:
        if one is None:
            answers.append(None)
            continue
        host = one[0]
        more = (durable.get(host.site_id, ()), next(given), trust.get(host.key_id, ()))
        answers.append((host, Answer(now, host.head, *more)))
    return answers


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
