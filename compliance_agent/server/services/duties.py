"""Work that one replica does at a time: the logs, in a few parts, and watching the watcher.

A duty is a row with its holder, an epoch, and a time until which it is held. Its holder says again, well before that, that it
lives; another takes it afterwards, under the next epoch. The lease only says who works. What keeps two from doing the same is the
epoch: each write carries it, and is refused in its own transaction once another epoch began (`check`). So a process that was
stopped for a minute and believes that it still holds its duties writes nothing.

    await duties.look()                        # keep, take, leave
    held = duties.tenure(log_duty(site_id))    # None: not ours, or not heard for too long
    await store.write(...)                     # check(tx, held) first: OffDuty when the epoch is over

Parts of the logs are shared evenly among the replicas that are heard. A process on SQLite holds its data directory by a lock, so it
takes everything at once and for good.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from compliance_agent.errors import AgentError, OffDuty
from compliance_agent.server.records import Duty, Figures, Replica, Store, Tenure, Transaction
from compliance_agent.server.services.background import beside

PARTS = 4
LOGS = tuple(f"log-{number}" for number in range(PARTS))
WATCH = "watch"
DUTIES = (*LOGS, WATCH)
LOOKS_IN_A_LEASE = 3

log = structlog.get_logger()


def log_duty(site_id: str) -> str:
    """The part of the logs that a site's log belongs to."""
    return LOGS[hashlib.sha256(site_id.encode()).digest()[0] % PARTS]


@dataclass(frozen=True)
class Wanted:
    """What a replica does at one look."""

    keep: tuple[Tenure, ...]
    take: tuple[str, ...]
    leave: tuple[Tenure, ...]


def wanted(rows: Mapping[str, Duty], mine: Mapping[str, int], replicas: int, free: Callable[[Duty], bool]) -> Wanted:
    """What to keep, to take and to leave.

    Args:
        rows: who does what, by duty.
        mine: epochs under which this replica holds duties, as far as it knows.
        replicas: how many are heard, this one included.
        free: whether nobody is heard to hold a duty.
    """
    held = [
        Tenure(name, mine[name]) for name in DUTIES if name in mine and name in rows and rows[name].epoch == mine[name]
    ]
    share = math.ceil(PARTS / replicas)
    keep = [one for one in held if one.name not in LOGS] + [one for one in held if one.name in LOGS][:share]
    kept = {one.name for one in keep}
    open_ = [name for name in DUTIES if name not in mine and (name not in rows or free(rows[name]))]
    room = share - sum(name in LOGS for name in kept)
    take = [name for name in open_ if name in LOGS][: max(0, room)] + [name for name in open_ if name not in LOGS]
    return Wanted(tuple(keep), tuple(take), tuple(one for one in held if one.name not in kept))


class Duties:
    """What this process is to do.

    Args:
        store: holds the rows.
        replica_id: of this process's data directory, which one process at a time holds: what its id held before is free.
        lease_s: how long a duty is held without being heard.
        alone: no other process can be on this database.
        figures: what this replica says of itself.
        clock: monotonic; a process goes by it while it cannot ask.
    """

    def __init__(
        self,
        store: Store,
        replica_id: str,
        lease_s: float,
        *,
        alone: bool = False,
        figures: Callable[[], Figures] = Figures,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.replica_id = replica_id
        self.alone = alone
        self.others: tuple[Replica, ...] = ()  # heard at the last look
        self.refused = 0  # writes of an epoch that was over
        self._store = store
        self._lease_s = lease_s
        self._figures = figures
        self._clock = clock
        self._mine: dict[str, int] = {}
        self._until = -math.inf
        self._first = True

    def tenure(self, name: str) -> Tenure | None:
        """A duty as it is held, None when it is not, or was not kept in time."""
        if name not in self._mine or not (self.alone or self._clock() < self._until):
            return None
        return Tenure(name, self._mine[name])

    async def check(self, tx: Transaction, tenures: Iterable[Tenure]) -> None:
        """Let a transaction go on only while these epochs last; they then last as long as it does.

        Raises:
            OffDuty: another replica does this now; nothing may be written.
        """
        held = set(tenures)
        over = held - await tx.lasting(held)
        if not over:
            return
        self.refused += 1
        for one in over:
            if self._mine.get(one.name) == one.epoch:
                del self._mine[one.name]
        names = ",".join(sorted(one.name for one in over))
        log.warning("duty.refused", duty=names, replica=self.replica_id)
        raise OffDuty(f"{names}: another replica does this now; nothing was written")

    async def look(self) -> None:
        """Say that we live; keep what is ours, take what nobody holds, leave what is more than our share.

        Raises:
            StorageError: the database could not be asked; what is held is held until its time is over.
        """
        asked = self._clock()
        before = set(self._mine)
        mine, others = await self._store.write(self._look)
        for name in sorted(before - mine.keys()):
            log.info("duty.left", duty=name, replica=self.replica_id)
        for name in sorted(mine.keys() - before):
            log.info("duty.taken", duty=name, epoch=mine[name], replica=self.replica_id)
        self._mine, self.others, self._first = mine, others, False
        self._until = asked + self._lease_s

    async def _look(self, tx: Transaction) -> tuple[dict[str, int], tuple[Replica, ...]]:
        now = await tx.now()
        until = now + timedelta(seconds=self._lease_s)
        others: list[Replica] = []
        if not self.alone:
            others = [one for one in await tx.replicas(now) if one.replica_id != self.replica_id]
            await tx.heard(Replica(self.replica_id, until, self._figures()))
        rows = {duty.name: duty for duty in await tx.duties()}
        plan = wanted(rows, self._mine, len(others) + 1, lambda duty: self._is_free(duty, now))
        mine = {one.name: one.epoch for one in plan.keep if await tx.keep_duty(one, until)}
        for one in plan.leave:
            await tx.keep_duty(one, now)
        for name in plan.take:
            if await tx.take_duty(name, self.replica_id, rows.get(name), until):
                mine[name] = rows[name].epoch + 1 if name in rows else 1
        return mine, tuple(others)

    def _is_free(self, duty: Duty, now: datetime) -> bool:
        return duty.until <= now or self.alone or (self._first and duty.holder == self.replica_id)

    async def leave(self) -> None:
        """Let go of everything, so that others need not wait."""

        async def work(tx: Transaction) -> None:
            now = await tx.now()
            for name, epoch in self._mine.items():
                await tx.keep_duty(Tenure(name, epoch), now)
            await tx.forget_replica(self.replica_id)

        await self._store.write(work)
        self._mine = {}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Look now, and again several times in a lease until the block ends; then leave everything."""
        await self.look()
        if self.alone:
            yield
            return
        try:
            async with beside(self._run()):
                yield
        finally:
            with contextlib.suppress(AgentError):
                await self.leave()

    async def _run(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self._lease_s / LOOKS_IN_A_LEASE)
            try:
                await self.look()
                said = ""
            except AgentError as error:
                if error.code != said:
                    log.error("duty.look_failed", code=error.code, replica=self.replica_id)
                said = error.code
