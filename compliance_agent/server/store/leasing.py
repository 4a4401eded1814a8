"""The board of a site's leases, and what a canary's own evidence says."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Executable, insert, select, update

from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.keeping import KeepingRows

ENDED = ("success", "failed", "reverted")  # what was begun; a cure that was held back says nothing of it


class LeaseRows(KeepingRows):
    """The part of `records.Transaction` that leases need."""

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def lease_board(self, site_id: str) -> tuple[int, str] | None:
        table = tables.lease_boards
        found = await self._all(select(table).where(table.c.site_id == site_id))
        return (found[0]["version"], found[0]["board"]) if found else None

    async def save_lease_board(self, site_id: str, old: int | None, board: str) -> bool:
        table = tables.lease_boards
        if old is None:
            return await self._changed(insert(table).values(site_id=site_id, version=1, board=board)) == 1
        held = update(table).where(table.c.site_id == site_id, table.c.version == old)
        return await self._changed(held.values(version=old + 1, board=board)) == 1

    async def cured(self, site_id: str, key_id: str, check: str, since: datetime) -> str | None:
        c = tables.bundles.c
        newest = (
            select(c.outcome)
            .where(
                tables.site_of(tables.bundles) == site_id, c.key_id == key_id, c.kind == "remediation", c.check == check
            )
            .where(c.received_at >= rows.text(since), c.outcome.in_(ENDED))
        )
        found = await self._all(newest.order_by(c.number.desc()).limit(1))
        return str(found[0]["outcome"]) if found else None
