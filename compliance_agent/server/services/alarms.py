"""Alerts are sent when something begins and when it ends, once for each cause, through every channel that is configured.

What begins within a transaction (a fork) opens its alert in that transaction. What is looked for (`watching.py`) opens and closes
in a transaction of its own. Sending follows from the outbox alone: tried again with full jitter until it was taken, or given up
after `MOST_TRIES`, which is logged and counted. A receiver that answers and is then not heard gets the same delivery id again.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import timedelta
from typing import Protocol

import structlog

from compliance_agent.errors import AgentError, NoInput
from compliance_agent.server.records import Clock, Store, Transaction
from compliance_agent.server.records.alarms import BY_HAND, Alert, Cause, Delivery
from compliance_agent.server.services.background import beside

MOST_TRIES = 12
FIRST_WAIT_S, LONGEST_WAIT_S = 2.0, 900.0
SEND_DEADLINE_S = 20.0
LATE_S = 5.0
CLAIM = timedelta(seconds=60)  # longer than a send may take
OURS_S = 50.0
AT_ONCE = 20
LOOK_S = 2.0

log = structlog.get_logger()


class Channel(Protocol):
    """A way to tell people."""

    async def send(self, delivery: Delivery) -> None:
        """Send it; raises AgentError unless the other side has taken it."""
        ...


Fence = Callable[[Transaction], Awaitable[None]]


async def _open_to_all(tx: Transaction) -> None:
    """No fence."""


class Alarms:
    """Opens and closes alerts, and works through the outbox."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        channels: Mapping[str, Channel],
        rng: random.Random | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._monotonic = monotonic
        self._store = store
        self._clock = clock
        self.channels = channels
        self._rng = rng or random.SystemRandom()
        self._claim = secrets.token_hex(8)
        self._names = tuple(channels)
        self.sent = 0
        self.failed: dict[str, int] = {}
        self.dead = 0

    async def begin(self, tx: Transaction, cause: Cause, count: int = 1) -> bool:
        """Open the alert of a cause within the transaction that brings it about."""
        return await tx.open_alert(cause, count, self._names, self._clock())

    async def opened(self, cause: Cause, count: int, fence: Fence = _open_to_all) -> bool:
        """Open the alert of a cause, in a transaction of its own that `fence` lets go on."""

        async def work(tx: Transaction) -> bool:
            await fence(tx)
            return await self.begin(tx, cause, count)

        return await self._store.write(work)

    async def closed(self, cause: Cause, fence: Fence = _open_to_all) -> bool:
        """Its cause has ended."""

        async def work(tx: Transaction) -> bool:
            await fence(tx)
            return await tx.close_alert(cause, self._names, self._clock())

        return await self._store.write(work)

    async def acknowledge(self, alert_id: str, actor: str) -> None:
        """Note that somebody looks after it; what does not end by itself has ended by that.

        Raises:
            NoInput: there is none of this id that nobody has acknowledged.
        """

        async def work(tx: Transaction) -> bool:
            found = await tx.ack_alert(alert_id, actor, self._clock())
            if found is None:
                return False
            await tx.audit(self._clock(), actor, "alert.acked", subject=alert_id)
            if found.cause.kind in BY_HAND:
                await tx.close_alert(found.cause, self._names, self._clock())
            return True

        if not await self._store.write(work):
            raise NoInput(f"alert {alert_id[:40]}: there is none of this id that nobody has acknowledged")

    async def all(self, at_most: int = 100) -> list[Alert]:
        """Open alerts first, then the newest."""
        return await self._store.write(lambda tx: tx.alerts(at_most))

    async def counts(self) -> dict[tuple[str, str], int]:
        """How many deliveries stand at what, by channel and state."""
        return await self._store.write(lambda tx: tx.outbox_counts())

    async def deliver(self) -> int:
        """Send what is due; how much was."""
        if not self._names:
            return 0
        since = self._monotonic()
        due = await self._store.write(self._claimed)
        await asyncio.gather(*(self._deliver(one, since) for one in due))  # a channel that hangs holds up no other
        return len(due)

    async def _claimed(self, tx: Transaction) -> list[Delivery]:
        now = await tx.now()  # of the database: replicas whose clocks differ agree on whose it is
        return await tx.claim_deliveries(self._claim, now, now + CLAIM, self._names, AT_ONCE)

    async def _deliver(self, one: Delivery, since: float) -> None:
        try:
            await self._sent(one, since)
        except (AgentError, TimeoutError) as error:
            code = error.code if isinstance(error, AgentError) else "timed_out"
            await self._failed(one, code)
        else:
            self.sent += 1
            await self._store.write(lambda tx: tx.settle_delivery(one.number, self._claim, state="sent"))

    async def _sent(self, one: Delivery, since: float) -> None:
        """Send it within the deadline. Who was stopped meanwhile first looks at what has come, while the claim is its own.

        Raises:
            AgentError, TimeoutError: it was not taken, or that was not heard.
        """
        sending = asyncio.ensure_future(self.channels[one.channel].send(one))
        try:
            await asyncio.wait([sending], timeout=SEND_DEADLINE_S)
            if not sending.done() and self._monotonic() - since < OURS_S:
                await asyncio.wait([sending], timeout=LATE_S)
            if not sending.done():
                raise TimeoutError
            await sending
        finally:
            sending.cancel()

    async def _failed(self, one: Delivery, code: str) -> None:
        self.failed[code] = self.failed.get(code, 0) + 1
        tries = one.tries + 1
        if tries >= MOST_TRIES:
            self.dead += 1
            log.error("alert.given_up", channel=one.channel, alert_id=one.alert.alert_id, code=code, tries=tries)
            became = {"state": "dead", "tries": tries, "code": code}
        else:
            if tries == 1:
                log.warning("alert.not_sent", channel=one.channel, alert_id=one.alert.alert_id, code=code)
            wait = self._rng.uniform(0, min(LONGEST_WAIT_S, FIRST_WAIT_S * 2**tries))
            due = self._clock() + timedelta(seconds=wait)
            became = {"due_at": due.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "tries": tries, "code": code}
        await self._store.write(lambda tx: tx.settle_delivery(one.number, self._claim, **became))

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work through the outbox until the end of the block."""
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            try:
                busy = await self.deliver()
            except AgentError as error:
                log.error("alert.outbox_failed", code=error.code)
                busy = 0
            if not busy:
                await asyncio.sleep(LOOK_S)
