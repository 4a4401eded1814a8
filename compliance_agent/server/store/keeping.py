"""What decides how long records are kept, read by people's requests and by the prune job's own transaction alike."""

from __future__ import annotations

from collections.abc import Collection
from datetime import date
from typing import Any

from sqlalchemy import Executable, and_, null, or_, select, union_all
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import Hold, LoggedRecord, Minimum
from compliance_agent.server.store import rows, tables


class KeepingRows:
    """`records.Keeping` over whatever runs a query; `_mine` is the sites that it may see."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    def _mine(self, site_id: str) -> Collection[str]:
        raise NotImplementedError

    async def baselines(self, site_id: str) -> tuple[dict[tuple[str, str], date], set[tuple[str, str]]]:
        u, h, mine = tables.baseline_uses.c, tables.hosts.c, self._mine(site_id)
        used = select(u.host_id, u.version, u.last_on).where(u.site_id.in_(mine))
        live = select(h.host_id, h.baseline_version, null()).where(h.site_id.in_(mine), h.revoked_at.is_(None))
        found = await self._all(union_all(used, live))
        uses = {(row["host_id"], row["version"]): date.fromisoformat(row["last_on"]) for row in found if row["last_on"]}
        return uses, {(row["host_id"], row["version"]) for row in found if not row["last_on"]}

    async def holds(self, site_id: str) -> list[Hold]:
        table = tables.holds
        found = await self._all(select(table).where(table.c.site_id.in_(self._mine(site_id))).order_by(table.c.number))
        return [rows.hold(row) for row in found]

    async def minimum(self, site_id: str, year: int) -> Minimum | None:
        table = tables.pruned_logs
        found = await self._all(select(table).where(table.c.site_id.in_(self._mine(site_id)), table.c.year == year))
        return Minimum(found[0]["minimum"], rows.when(found[0]["pruned_at"])) if found else None

    async def logged_records(self, site_id: str, year: int, start: int, stop: int) -> list[LoggedRecord]:
        e, b, h, f = (table.c for table in (tables.log_entries, tables.bundles, tables.hosts, tables.forks))
        place = and_(b.key_id == e.key_id, b.epoch == e.epoch, b.seq == e.seq)
        query = (
            select(
                e.leaf_index, e.leaf, e.decided_at, e.key_id, h.host_id, b.number, b.body, b.created_at, b.received_at
            )
            .select_from(
                tables.log_entries.outerjoin(tables.bundles, place).outerjoin(tables.hosts, h.key_id == e.key_id)
            )
            .where(e.site_id.in_(self._mine(site_id)), e.year == year, e.leaf_index >= start, e.leaf_index < stop)
            .order_by(e.leaf_index)
        )
        found = await self._all(query)
        forks: dict[tuple[str, str], Any] = {}
        contradicted = {row["key_id"] for row in found if b'"kind":"fork"' in row["leaf"]}
        if contradicted:
            query = select(f.number, f.key_id, f.sha256, f.body, f.received_at)
            mine = await self._all(
                query.where(f.site_id.in_(self._mine(site_id)), or_(*(f.key_id == key for key in contradicted)))
            )
            forks = {(row["key_id"], row["sha256"]): row for row in mine}
        return [rows.logged_record(row, forks) for row in found]
