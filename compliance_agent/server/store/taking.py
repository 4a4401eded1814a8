"""What a transaction that takes evidence in reads and writes: a few statements, made once, for all the hosts that it is about.

Statements are constants here, with the sites they may touch as a parameter: making one anew costs more than running it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import date, datetime
from typing import Any

from sqlalchemy import Executable, and_, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import CheckVerdict, Fork, Gap, Host, NewBundle, NewLeaf, Place
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.database import Statements
from compliance_agent.server.store.tables import among
from compliance_agent.server.store.texts import among_pairs, pairs

_b, _e, _g, _h, _u, _v = (
    table.c
    for table in (
        tables.bundles,
        tables.log_entries,
        tables.gaps,
        tables.hosts,
        tables.baseline_uses,
        tables.verdicts,
    )
)
_HOSTS = (
    select(tables.hosts, tables.sites.c.client_id)
    .join(tables.sites, tables.sites.c.site_id == _h.site_id)
    .where(among(_h.site_id, "sites"), among(_h.key_id, "keys"))
)
_PLACE = select(_b.key_id, _b.bundle_id, _b.epoch, _b.seq, _b.sha256)
_PLACES = _PLACE.where(
    among(tables.site_of(tables.bundles), "sites"),
    among_pairs(_b.key_id, _b.bundle_id, bindparam("ids")),
)
_PLACE_AT = _PLACE.where(
    _b.site_id == bindparam("site"),
    _b.key_id == bindparam("key"),
    _b.epoch == bindparam("epoch"),
    _b.seq == bindparam("seq"),
)
_VERDICTS = select(tables.verdicts).where(among(_v.site_id, "sites"), among(_v.key_id, "keys"))
_head = tuple_(func.coalesce(_h.epoch, -1), func.coalesce(_h.seq, -1))
_AHEAD = (
    select(_e.key_id, _e.epoch, _e.seq, _e.leaf)
    .select_from(tables.hosts.join(tables.log_entries, and_(_e.key_id == _h.key_id, tuple_(_e.epoch, _e.seq) > _head)))
    .where(among(_h.site_id, "sites"), _e.site_id == _h.site_id, among(_h.key_id, "keys"))
)
_GAPPED = select(_g.key_id).where(among(_g.site_id, "sites"), among(_g.key_id, "keys"), _g.closed_at.is_(None))
_USES = select(tables.baseline_uses).where(among(_u.site_id, "sites"), among(_u.host_id, "hosts"))
_of_verdict = (_v.site_id == bindparam("_site"), _v.key_id == bindparam("_key"), _v.check == bindparam("_check"))
_SAVE_VERDICT = update(tables.verdicts).where(*_of_verdict)
_DROP_VERDICT = delete(tables.verdicts).where(*_of_verdict)


class TakingRows:
    """The part of `records.Transaction` that takes evidence in."""

    _connection: Statements

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def hosts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[str, Host]:
        result = await self._connection.execute(_HOSTS, {"sites": list(sites), "keys": list(key_ids)})
        names = tuple(result.keys())  # a dictionary of them costs a fifth of the mapping that a row is
        found = [dict(zip(names, row, strict=True)) for row in result]
        return {row["key_id"]: rows.host(row) for row in found}

    async def places(self, sites: Collection[str], ids: Collection[tuple[str, str]]) -> list[Place]:
        found = await self._all(_PLACES, sites=list(sites), ids=pairs(ids))
        return [rows.place(row) for row in found]

    async def place_at(self, site_id: str, key_id: str, epoch: int, seq: int) -> Place | None:
        found = await self._all(_PLACE_AT, site=site_id, key=key_id, epoch=epoch, seq=seq)
        return rows.place(found[0]) if found else None

    async def verdicts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[tuple[str, str], CheckVerdict]:
        found = await self._all(_VERDICTS, sites=list(sites), keys=list(key_ids))
        return {(row["key_id"], row["check"]): rows.verdict(row) for row in found}

    async def logged_ahead(self, sites: Collection[str], key_ids: Collection[str]) -> dict[tuple[str, int, int], bytes]:
        found = await self._all(_AHEAD, sites=list(sites), keys=list(key_ids))
        return {(row["key_id"], row["epoch"], row["seq"]): row["leaf"] for row in found}

    async def gapped(self, sites: Collection[str], key_ids: Collection[str]) -> set[str]:
        return {row["key_id"] for row in await self._all(_GAPPED, sites=list(sites), keys=list(key_ids))}

    async def add_bundles(self, bundles: Sequence[NewBundle]) -> None:
        await self._connection.insert(tables.bundles, NewBundle._fields, [rows.new_bundle(item) for item in bundles])

    async def add_leaves(self, leaves: Sequence[NewLeaf], now: datetime) -> None:
        decided = rows.text(now)
        entries = [(*item, decided) for item in leaves]
        await self._connection.insert(tables.log_entries, (*NewLeaf._fields, "decided_at"), entries)

    async def save_hosts(self, hosts: Iterable[Host]) -> None:
        changes = [(item.site_id, item.key_id, *rows.host_life(item).values()) for item in hosts]
        await self._connection.update(tables.hosts, ("site_id", "key_id", *rows.HOST_LIFE), changes, by=2)

    async def save_verdicts(
        self, changed: Iterable[CheckVerdict], known: Collection[tuple[str, str]], gone: Iterable[CheckVerdict]
    ) -> None:
        new: list[CheckVerdict] = []
        old: list[CheckVerdict] = []
        for item in changed:
            (old if (item.key_id, item.check) in known else new).append(item)
        if new:
            await self._connection.execute(insert(tables.verdicts), [rows.verdict_columns(item) for item in new])
        if old:
            await self._connection.execute(_SAVE_VERDICT, [_named(item) | _life(item) for item in old])
        dropped = [_named(item) for item in gone]
        if dropped:
            await self._connection.execute(_DROP_VERDICT, dropped)

    async def note_baselines(self, uses: Mapping[tuple[str, str, str], date]) -> None:
        table = tables.baseline_uses
        sites, hosts = ({use[at] for use in uses} for at in (0, 1))
        known = await self._all(_USES, sites=list(sites), hosts=list(hosts))
        held = {(row["site_id"], row["host_id"], row["version"]): row["last_on"] for row in known}
        for use, day in uses.items():
            if use not in held:
                names = dict(zip(("site_id", "host_id", "version"), use, strict=True))
                await self._connection.execute(insert(table).values(**names, last_on=day.isoformat()))
            elif held[use] < day.isoformat():
                same = (_u.site_id == use[0], _u.host_id == use[1], _u.version == use[2])
                await self._connection.execute(update(table).where(*same).values(last_on=day.isoformat()))

    async def add_fork(self, fork: Fork, *, at_most: int) -> bool:
        table = tables.forks
        of_host = (table.c.site_id == fork.site_id, table.c.key_id == fork.key_id)
        held = await self._all(select(table.c.sha256).where(*of_host))
        if len(held) >= at_most or any(row["sha256"] == fork.sha256 for row in held):
            return False
        await self._connection.execute(
            insert(table).values({**fork.__dict__, "received_at": rows.text(fork.received_at)})
        )
        return True

    async def open_gap(self, gap: Gap) -> None:
        same = select(_g.number).where(
            _g.site_id == gap.site_id,
            _g.key_id == gap.key_id,
            _g.expected_epoch == gap.expected_epoch,
            _g.expected_seq == gap.expected_seq,
            _g.closed_at.is_(None),
        )
        if not await self._all(same):
            await self._connection.execute(
                insert(tables.gaps).values({**gap.__dict__, "seen_at": rows.text(gap.seen_at), "closed_at": None})
            )

    async def close_gaps(self, site_id: str, key_id: str, now: datetime) -> None:
        await self._connection.execute(
            update(tables.gaps)
            .where(_g.site_id == site_id, _g.key_id == key_id, _g.closed_at.is_(None))
            .values(closed_at=rows.text(now))
        )


def _named(item: CheckVerdict) -> dict[str, Any]:
    return {"_site": item.site_id, "_key": item.key_id, "_check": item.check}


def _life(item: CheckVerdict) -> dict[str, Any]:
    columns = rows.verdict_columns(item)
    return {name: columns[name] for name in ("result", "reason", "since", "seen_at", "bundle_id")}
