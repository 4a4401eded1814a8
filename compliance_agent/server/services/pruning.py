"""Destroying records whose time is over: from the first entry of a log on, up to the first whose record must still be kept.

1. one transaction for each stretch: rules and holds are read in it, then the bytes of the records are emptied and the minimum index
   moves; the wall in the database (store/wall.py) checks age and holds once more;
2. `retention.json` says the minimum, durable, before anything of it is missing;
3. entry bundles wholly below it are removed.

A crash after any of them is mended by running it again: 2 and 3 are done from the database each time. Digests, places, signatures,
the entries in the database and all hash tiles stay. What cannot be told is kept, and keeps all that follows it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from compliance_agent.core.retention import Keep, SiteRules, day_of
from compliance_agent.entries.act import digest_of
from compliance_agent.entries.minimum import Pruned
from compliance_agent.errors import AgentError, LogStopped, NoInput
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Clock, Keeping, LoggedRecord, Shard, Store, Transaction
from compliance_agent.server.services.acts import Act, note
from compliance_agent.server.services.background import beside
from compliance_agent.server.services.retention import keep_of, rules_of

AT_MOST = 4_096  # entries in one transaction
_CHUNK = 512
CLOCK_AHEAD = timedelta(days=30)
LOOK_S = 60.0  # between two looks at what was destroyed beside other replicas

log = structlog.get_logger()


@dataclass(frozen=True)
class LogState:
    """One log: what is destroyed, what may be, and what stands in the way.

    Attributes:
        size: entries under its checkpoint.
        minimum: the first entry that is kept now.
        could: what the minimum would be after a prune today.
        records: records that this prune destroyed, or would destroy.
        first_kept: what is due to the first entry that must be kept; None when there is none.
    """

    site_id: str
    year: int
    size: int
    minimum: int
    could: int
    records: int
    first_kept: Keep | None


@dataclass(frozen=True)
class _Stretch:
    """Entries from `start` to `stop`, exclusive, may go; `kept` is why the next one may not, None when nobody looked further."""

    start: int
    stop: int
    records: tuple[LoggedRecord, ...]
    kept: Keep | None


class Pruning:
    """Prunes logs, or only says what it would do. May run beside the server."""

    def __init__(self, store: Store, files: LogFiles, clock: Clock) -> None:
        self._store = store
        self._files = files
        self._clock = clock

    async def show(self, site_id: str | None = None) -> list[LogState]:
        """Every log, or those of one site, as a prune would find them; nothing is changed."""
        now, found = self._clock(), []
        for shard in await self._shards(site_id):
            reader = self._store.for_sites({shard.site_id})
            rules, before = await rules_of(reader, shard.site_id), await _minimum(reader, shard)
            stretch, records = _Stretch(before, before, (), None), 0
            while stretch.kept is None and stretch.stop < shard.checkpoint_size:
                stretch = await _stretch(reader, rules, shard, stretch.stop, now)
                records += _bodies(stretch)
            found.append(_state(shard, before, stretch, records))
        return found

    async def prune(self, site_id: str | None = None, *, clock_checked: bool = False) -> list[LogState]:
        """Destroy what may go, log by log.

        Args:
            site_id: only this site.
            clock_checked: somebody has looked at the server's clock; see `LogStopped`.

        Raises:
            LogStopped: the clock is far ahead of everything that was ever signed here (`clock_not_trusted`), or entries are missing
                (`log_damaged`).
        """
        now, shards = self._clock(), await self._shards(site_id)
        if not clock_checked:
            await self._believe(now)
        found = []
        for shard in shards:
            before = await _minimum(self._store.for_sites({shard.site_id}), shard)
            stretch, records = _Stretch(before, before, (), None), 0
            while stretch.kept is None and stretch.stop < shard.checkpoint_size:
                stretch = await self._store.write(lambda tx, shard=shard: self._empty(tx, shard, now), {shard.site_id})  # type: ignore[misc]
                records += _bodies(stretch)
            await self.publish(shard)
            found.append(_state(shard, before, stretch, records))
        return found

    async def publish(self, shard: Shard) -> None:
        """Say the minimum index of a log, then remove the entry bundles below it; again after a crash."""
        held = await self._store.for_sites({shard.site_id}).minimum(shard.site_id, shard.year)
        if held is not None:
            said = Pruned(shard.origin, held.index, held.pruned_at)
            await asyncio.to_thread(self._files.prune, shard.site_id, shard.year, said)

    async def keep_up(self) -> int:
        """Remove here what was destroyed by a prune beside another replica; of how many logs that was."""
        behind = 0
        for shard in await self._shards(None):
            held = await self._store.for_sites({shard.site_id}).minimum(shard.site_id, shard.year)
            said = await asyncio.to_thread(self._files.pruned, shard.site_id, shard.year) if held is not None else None
            if held is not None and (said is None or said.minimum < held.index):
                await self.publish(shard)
                behind += 1
        return behind

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep up until the block ends."""
        async with beside(self._run()):
            yield

    async def _run(self) -> None:
        while True:
            try:
                await self.keep_up()
            except AgentError as error:
                log.error("prune.behind", code=error.code)
            await asyncio.sleep(LOOK_S)

    async def _empty(self, tx: Transaction, shard: Shard, now: datetime) -> _Stretch:
        rules = await rules_of(tx, shard.site_id)
        stretch = await _stretch(tx, rules, shard, await _minimum(tx, shard), now)
        if stretch.stop > stretch.start:
            place = (shard.site_id, shard.year, stretch.start, stretch.stop)
            if await tx.empty_records(*place, stretch.records, now) != _bodies(stretch):
                raise LogStopped(
                    f"log {shard.origin}: not every record was found; nothing was changed", code="log_damaged"
                )
            said = f"{shard.year}:{stretch.start}-{stretch.stop}"
            subject = digest_of({"year": shard.year, "first": stretch.start, "stop": stretch.stop})
            await note(tx, now, Act.PRUNED, by=None, sites={shard.site_id}, subject=subject, said=said)
        return stretch

    async def _shards(self, site_id: str | None) -> list[Shard]:
        sites = await self._store.all_sites()
        if site_id is not None and site_id not in sites:
            raise NoInput(f"site {site_id}: not known to this server", hint="compliance-agent server hosts")
        return await self._store.for_sites(sites if site_id is None else {site_id}).shards()

    async def _believe(self, now: datetime) -> None:
        shards = await self._store.for_sites(await self._store.all_sites()).shards()
        newest = max((shard.published_at or shard.sequenced_at for shard in shards), default=now)
        if now - newest > CLOCK_AHEAD:
            raise LogStopped(
                f"clock: it says {now:%Y-%m-%d}, and nothing was signed here after {newest:%Y-%m-%d}",
                code="clock_not_trusted",
                hint="look at the clock of this machine; if it is right: --clock-checked",
            )


async def _minimum(rows: Keeping, shard: Shard) -> int:
    held = await rows.minimum(shard.site_id, shard.year)
    return held.index if held is not None else 0


async def _stretch(rows: Keeping, rules: SiteRules, shard: Shard, start: int, now: datetime) -> _Stretch:
    """What may go from `start` on, at most AT_MOST entries, without a gap."""
    index, found, last = start, list[LoggedRecord](), min(start + AT_MOST, shard.checkpoint_size)
    while index < last:
        chunk = await rows.logged_records(shard.site_id, shard.year, index, min(index + _CHUNK, last))
        if not chunk:
            raise LogStopped(f"log {shard.origin}: entry {index} is not held", code="log_damaged")
        for item in chunk:
            if item.index != index:
                raise LogStopped(f"log {shard.origin}: entry {index} is not held", code="log_damaged")
            keep = _keep(rules, item)
            if not keep.may_go(now.date()):
                return _Stretch(start, index, tuple(found), keep)
            found.append(item)
            index += 1
    return _Stretch(start, index, tuple(found), None)


def _keep(rules: SiteRules, item: LoggedRecord) -> Keep:
    if item.body is None:
        return rules.keep(item.host_id, None, day_of(item.created_at, item.received_at))
    return keep_of(rules, item.host_id, item.body, item.created_at, item.received_at)


def _bodies(stretch: _Stretch) -> int:
    return sum(bool(item.body) for item in stretch.records)


def _state(shard: Shard, before: int, stretch: _Stretch, records: int) -> LogState:
    return LogState(shard.site_id, shard.year, shard.checkpoint_size, before, stretch.stop, records, stretch.kept)
