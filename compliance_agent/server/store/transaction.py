"""One write transaction of the store. What belongs to a site is touched only with that site named."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from itertools import starmap
from typing import Any

from sqlalchemy import Executable, Update, and_, delete, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import (
    Durable,
    Hold,
    Host,
    LoggedRecord,
    NewLeaf,
    PendingLeaf,
    Shard,
    Site,
    Token,
)
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.alarms import AlarmRows
from compliance_agent.server.store.certificates import CertificateRows
from compliance_agent.server.store.database import Statements
from compliance_agent.server.store.duties import DutyRows
from compliance_agent.server.store.exceptions import ExceptionRows
from compliance_agent.server.store.leasing import LeaseRows
from compliance_agent.server.store.orders import OrderRows
from compliance_agent.server.store.packets import PacketRows
from compliance_agent.server.store.people import PeopleRows
from compliance_agent.server.store.planning import PlanRows
from compliance_agent.server.store.taking import TakingRows


class BoundTransaction(
    ExceptionRows,
    OrderRows,
    PacketRows,
    PlanRows,
    TakingRows,
    CertificateRows,
    LeaseRows,
    PeopleRows,
    AlarmRows,
    DutyRows,
):
    """`records.Transaction` over a connection that has begun to write; without a clock it goes by the database's."""

    def __init__(self, connection: Statements, clock: Callable[[], datetime] | None = None) -> None:
        self._connection = connection
        self._clock = clock

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        return list((await self._connection.execute(query, values)).mappings())

    def _mine(self, site_id: str) -> Collection[str]:
        return {site_id}

    async def _changed(self, statement: Executable) -> int:
        return (await self._connection.execute(statement)).rowcount

    # --- enrolment ------------------------------------------------------------------------------

    async def add_site(self, site: Site) -> Site:
        table = tables.sites
        found = await self._all(select(table).where(table.c.site_id == site.site_id))
        if found:
            return rows.site(found[0])
        await self._connection.execute(
            insert(table).values(site_id=site.site_id, client_id=site.client_id, created_at=rows.text(site.created_at))
        )
        return site

    async def add_token(self, token_hash: str, site_id: str, now: datetime, expires_at: datetime) -> None:
        await self._connection.execute(
            insert(tables.enrol_tokens).values(
                hash=token_hash, site_id=site_id, created_at=rows.text(now), expires_at=rows.text(expires_at)
            )
        )

    async def token(self, token_hash: str) -> Token | None:
        table = tables.enrol_tokens
        query = (
            select(table, tables.sites.c.client_id)
            .join(tables.sites, tables.sites.c.site_id == table.c.site_id)
            .where(table.c.hash == token_hash)
        )
        found = await self._all(query)
        return rows.token(found[0]) if found else None

    async def revoke_token(self, site_id: str, token_hash: str, now: datetime) -> bool:
        c = tables.enrol_tokens.c
        unused = update(tables.enrol_tokens).where(
            c.site_id == site_id, c.hash == token_hash, c.used_at.is_(None), c.revoked_at.is_(None)
        )
        return await self._changed(unused.values(revoked_at=rows.text(now))) == 1

    async def redeem_token(self, token_hash: str, key_id: str, now: datetime) -> bool:
        table = tables.enrol_tokens
        unused = update(table).where(table.c.hash == token_hash, table.c.used_at.is_(None))
        return await self._changed(unused.values(used_at=rows.text(now), used_by=key_id)) == 1

    async def add_nonce(
        self, nonce_hash: str, key_id: str, now: datetime, expires_at: datetime, *, at_most: int
    ) -> bool:
        table = tables.nonces
        await self._connection.execute(delete(table).where(table.c.expires_at <= rows.text(now)))
        live = (await self._connection.execute(select(func.count()).select_from(table))).scalar_one()
        if live >= at_most:
            return False
        await self._connection.execute(
            insert(table).values(hash=nonce_hash, key_id=key_id, expires_at=rows.text(expires_at))
        )
        return True

    async def take_nonce(self, nonce_hash: str, key_id: str, now: datetime) -> bool:
        c = tables.nonces.c
        taken = delete(tables.nonces).where(c.hash == nonce_hash, c.key_id == key_id, c.expires_at > rows.text(now))
        return await self._changed(taken) == 1

    async def live_label(self, site_id: str, host_id: str) -> str | None:
        c = tables.hosts.c
        query = select(c.key_id).where(c.site_id == site_id, c.host_id == host_id, c.revoked_at.is_(None))
        found = await self._all(query)
        return str(found[0]["key_id"]) if found else None

    async def key_is_known(self, key_id: str) -> bool:
        # Over all sites on purpose: a key has one home, whoever asks. Only yes or no leaves this function.
        return bool(await self._all(select(tables.hosts.c.epoch).where(tables.hosts.c.key_id == key_id)))

    async def add_host(self, host: Host) -> None:
        await self._connection.execute(insert(tables.hosts).values(rows.host_columns(host)))

    async def approve_host(self, site_id: str, key_id: str) -> None:
        c = tables.hosts.c
        ours = update(tables.hosts).where(c.site_id == site_id, c.key_id == key_id)
        await self._connection.execute(ours.values(waiting_since=None, contested_at=None, set_back_at=None))

    async def revoke_host(self, site_id: str, key_id: str, now: datetime) -> None:
        for table in (tables.hosts, tables.api_keys):
            await self._connection.execute(
                update(table)
                .where(table.c.site_id == site_id, table.c.key_id == key_id, table.c.revoked_at.is_(None))
                .values(revoked_at=rows.text(now))
            )

    async def rotate_host(self, old: Host, new: Host, now: datetime) -> None:
        hosts = tables.hosts
        ours = (hosts.c.site_id == old.site_id, hosts.c.key_id == old.key_id)
        await self._connection.execute(
            update(hosts).where(*ours).values(revoked_at=rows.text(now), rotated_to=new.key_id)
        )
        await self.add_host(new)
        for table in (tables.api_keys, tables.host_certificates, tables.verdicts):
            moved = update(table).where(table.c.site_id == old.site_id, table.c.key_id == old.key_id)
            await self._connection.execute(moved.values(key_id=new.key_id))

    async def replace_api_key(self, site_id: str, key_id: str, key_hash: str, now: datetime) -> None:
        table = tables.api_keys
        await self._connection.execute(
            update(table)
            .where(table.c.site_id == site_id, table.c.key_id == key_id, table.c.revoked_at.is_(None))
            .values(revoked_at=rows.text(now))
        )
        await self._connection.execute(
            insert(table).values(hash=key_hash, site_id=site_id, key_id=key_id, created_at=rows.text(now))
        )

    async def add_api_key(self, site_id: str, key_id: str, present: str, coming: str, now: datetime) -> bool | None:
        c = tables.api_keys.c
        found = await self._all(select(c.key_id, c.revoked_at).where(c.site_id == site_id, c.hash == coming))
        if found:
            return False if (found[0]["key_id"], found[0]["revoked_at"]) == (key_id, None) else None
        await self._connection.execute(
            update(tables.api_keys)  # one that was announced before, and whose answer the host has never used
            .where(c.site_id == site_id, c.key_id == key_id, c.replaces.is_not(None), c.hash != present)
            .where(c.revoked_at.is_(None))
            .values(revoked_at=rows.text(now))
        )
        values = {
            "hash": coming,
            "site_id": site_id,
            "key_id": key_id,
            "created_at": rows.text(now),
            "replaces": present,
        }
        await self._connection.execute(insert(tables.api_keys).values(values))
        return True

    async def use_api_key(self, site_id: str, key_id: str, key_hash: str, now: datetime) -> bool:
        c = tables.api_keys.c
        ours = (c.site_id == site_id, c.key_id == key_id, c.revoked_at.is_(None))
        first = update(tables.api_keys).where(*ours, c.hash == key_hash, c.replaces.is_not(None)).values(replaces=None)
        if not await self._changed(first):
            return False
        others = update(tables.api_keys).where(*ours, c.hash != key_hash).values(revoked_at=rows.text(now))
        return await self._changed(others) > 0

    # --- the log --------------------------------------------------------------------------------

    async def pending_leaves(self, sites: Collection[str], at_most: int) -> list[PendingLeaf]:
        c = tables.log_entries.c
        query = select(*(c[name] for name in PendingLeaf._fields)).where(c.site_id.in_(sites), c.leaf_index.is_(None))
        found = await self._connection.execute(query.order_by(c.number).limit(at_most))
        return list(starmap(PendingLeaf, found))

    async def open_shard(self, shard: Shard, first: bytes) -> bool:
        table = tables.log_shards
        same = select(table.c.year).where(table.c.site_id == shard.site_id, table.c.year == shard.year)
        if await self._all(same):
            return False
        await self._connection.execute(insert(table).values(rows.shard_columns(shard)))
        values = {"site_id": shard.site_id, "year": shard.year, "leaf_index": 0, "leaf": first}
        decided = rows.text(shard.sequenced_at)
        await self._connection.execute(insert(tables.log_entries).values(**values, decided_at=decided))
        return True

    async def place_leaves(self, site_id: str, year: int, first: int, numbers: Sequence[int]) -> bool:
        c, placed = tables.log_entries.c, 0
        for start, stop in _runs(numbers):  # one statement for each run: what arrives together has numbers in a row
            pending = (c.site_id == site_id, c.number.between(start, stop), c.leaf_index.is_(None))
            statement = update(tables.log_entries).where(*pending)
            placed += await self._changed(statement.values(year=year, leaf_index=c.number - start + first + placed))
        return placed == len(numbers)

    async def adopt_leaves(self, site_id: str, year: int, first: int, leaves: Sequence[NewLeaf], now: datetime) -> bool:
        table = tables.log_entries
        found = await self._all(select(table).where(table.c.site_id == site_id, table.c.leaf_index.is_(None)))
        waiting = {row["leaf"]: row["number"] for row in found}
        places = {(row["key_id"], row["epoch"], row["seq"]) for row in found if row["seq"] is not None}
        new: list[dict[str, Any]] = []
        for index, item in enumerate(leaves, first):
            number = waiting.pop(item.leaf, None)
            if number is not None:
                placed = update(table).where(table.c.number == number).values(year=year, leaf_index=index)
                await self._connection.execute(placed)
            elif (item.key_id, item.epoch, item.seq) in places:
                return False
            else:
                new.append({**item._asdict(), "decided_at": rows.text(now), "year": year, "leaf_index": index})
        if new:
            await self._connection.execute(insert(table), new)
        return True

    async def grow_shard(self, shard: Shard, *, old_size: int) -> bool:
        columns = rows.shard_columns(shard)
        changed = {name: columns[name] for name in ("size", "root", "edge", "sequenced_at")}
        return await self._changed(_shard(shard).where(tables.log_shards.c.size == old_size).values(changed)) == 1

    async def save_checkpoint(self, shard: Shard, *, old: bytes | None) -> bool:
        c, columns = tables.log_shards.c, rows.shard_columns(shard)
        changed = {name: columns[name] for name in ("checkpoint", "checkpoint_size", "published_at")}
        held = c.checkpoint.is_(None) if old is None else c.checkpoint == old
        same_tree = (c.size == shard.size, c.root == shard.root)
        return await self._changed(_shard(shard).where(held, *same_tree).values(changed)) == 1

    async def save_cosigned(self, site_id: str, year: int, size: int, note: bytes) -> None:
        table = tables.log_cosigned
        log = {"site_id": site_id, "year": year}
        same = (table.c.site_id == site_id, table.c.year == year)
        if not await self._all(select(table.c.size).where(*same)):
            await self._connection.execute(insert(table).values(**log, size=size, note=note))
            return
        fewer = or_(table.c.size < size, and_(table.c.size == size, func.length(table.c.note) < len(note)))
        await self._changed(update(table).where(*same, fewer).values(size=size, note=note))

    async def save_durable(self, found: Sequence[Durable], now: datetime) -> None:
        table = tables.log_durable
        for item in found:
            same = (table.c.site_id == item.site_id, table.c.year == item.year)
            values = {"size": item.size, "at": rows.text(now)}
            if not await self._changed(update(table).where(*same).values(values)):
                place = {"site_id": item.site_id, "year": item.year}
                await self._connection.execute(insert(table).values(**place, **values))

    async def durable(self, sites: Collection[str]) -> list[Durable]:
        return [Durable(**row) for row in await self._all(_DURABLE, sites=list(sites))]

    # --- how long records are kept --------------------------------------------------------------

    async def add_hold(self, hold: Hold) -> bool:
        if any(_same_hold(item, hold) for item in await self.holds(hold.site_id)):
            return False
        columns = {**hold.__dict__, "added_at": rows.text(hold.added_at)}
        await self._connection.execute(insert(tables.holds).values(columns))
        return True

    async def release_hold(self, site_id: str, host_id: str | None, reason_id: str, now: datetime) -> bool:
        c = tables.holds.c
        host = c.host_id.is_(None) if host_id is None else c.host_id == host_id
        standing = update(tables.holds).where(
            c.site_id == site_id, host, c.reason_id == reason_id, c.released_at.is_(None)
        )
        return await self._changed(standing.values(released_at=rows.text(now))) == 1

    async def empty_records(
        self, site_id: str, year: int, first: int, stop: int, records: Sequence[LoggedRecord], now: datetime
    ) -> int:
        at, run = rows.text(now), self._connection.execute
        guard, pruned = tables.prune_guards, tables.pruned_logs
        log = {"site_id": site_id, "year": year}
        await run(insert(guard).values(**log, first=first, stop=stop, at=at, never=0))
        emptied = 0
        for kind, table in (("bundle", tables.bundles), ("fork", tables.forks)):
            numbers = [item.number for item in records if item.kind == kind and item.body]
            if numbers:
                mine = update(table).where(table.c.site_id == site_id, table.c.number.in_(numbers))
                emptied += await self._changed(mine.values(body=b""))
        await run(delete(guard))
        same = (pruned.c.site_id == site_id, pruned.c.year == year)
        moved = update(pruned).where(*same, pruned.c.minimum <= stop).values(minimum=stop, pruned_at=at)
        if not await self._changed(moved):
            await run(insert(pruned).values(**log, minimum=stop, pruned_at=at))
        return emptied

    async def audited(self, actor: str, action: str, since: datetime) -> int:
        c = tables.audit.c
        query = select(func.count().label("times")).select_from(tables.audit)
        found = await self._all(query.where(c.actor == actor, c.action == action, c.at >= rows.text(since)))
        return int(found[0]["times"])

    async def audit(
        self,
        now: datetime,
        actor: str,
        action: str,
        *,
        site_id: str | None = None,
        subject: str = "",
        outcome: str = "ok",
    ) -> None:
        await self._connection.execute(
            insert(tables.audit).values(
                at=rows.text(now), actor=actor, action=action, site_id=site_id, subject=subject, outcome=outcome
            )
        )


_d, _l = tables.log_durable.c, tables.log_shards.c
_DURABLE = (
    select(_d.site_id, _d.year, _l.origin, _d.size)
    .select_from(tables.log_durable.join(tables.log_shards, and_(_l.site_id == _d.site_id, _l.year == _d.year)))
    .where(tables.among(_d.site_id, "sites"))
    .order_by(_d.site_id, _d.year)
)


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """The first and the last of each run of consecutive numbers."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


def _shard(shard: Shard) -> Update:
    table = tables.log_shards
    return update(table).where(table.c.site_id == shard.site_id, table.c.year == shard.year)


def _same_hold(standing: Hold, new: Hold) -> bool:
    same = (standing.host_id, standing.reason_id) == (new.host_id, new.reason_id)
    return same and standing.released_at is None
