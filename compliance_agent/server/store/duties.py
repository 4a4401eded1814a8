"""Duties, replicas and stopped logs in the database.

A write that must carry its epoch reads the duty's row with a lock that others may share and nobody may write past (`lasting`). So a
taking waits for the end of such a transaction, or comes first and is seen by it: nothing of an older epoch is written after it.
A row that a frozen process has locked is passed over in taking; PostgreSQL ends such a transaction after 15 s.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from datetime import datetime
from typing import Any

from sqlalchemy import DateTime, Executable, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records.duties import Duty, Figures, Replica, Tenure
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.database import Statements

_d, _r, _s = tables.duties.c, tables.replicas.c, tables.log_stops.c


class DutyRows:
    """The part of `records.Transaction` that says who does what."""

    _connection: Statements
    _clock: Callable[[], datetime] | None

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def now(self) -> datetime:
        if self._clock is not None:
            return self._clock()
        asked = select(func.clock_timestamp(type_=DateTime(timezone=True)).label("now"))
        found: datetime = (await self._all(asked))[0]["now"]
        return found

    async def duties(self) -> list[Duty]:
        found = await self._all(select(tables.duties).order_by(_d.name))
        return [Duty(row["name"], row["holder"], row["epoch"], rows.when(row["until"])) for row in found]

    async def take_duty(self, name: str, holder: str, before: Duty | None, until: datetime) -> bool:
        values = {"holder": holder, "until": rows.text(until)}
        if before is None:
            await self._connection.execute(insert(tables.duties).values(name=name, epoch=1, **values))
            return True
        same = (_d.name == name, _d.epoch == before.epoch)
        if not await self._all(select(_d.name).where(*same).with_for_update(skip_locked=True)):
            return False
        return await self._changed(update(tables.duties).where(*same).values(epoch=before.epoch + 1, **values)) == 1

    async def keep_duty(self, tenure: Tenure, until: datetime) -> bool:
        held = update(tables.duties).where(_d.name == tenure.name, _d.epoch == tenure.epoch)
        return await self._changed(held.values(until=rows.text(until))) == 1

    async def lasting(self, tenures: Collection[Tenure]) -> set[Tenure]:
        named = _d.name.in_([one.name for one in tenures])
        found = await self._all(select(_d.name, _d.epoch).where(named).with_for_update(read=True))
        return {Tenure(row["name"], row["epoch"]) for row in found} & set(tenures)

    async def log_stops(self, sites: Collection[str]) -> dict[str, str]:
        found = await self._all(select(_s.site_id, _s.code).where(_s.site_id.in_(sites)))
        return {row["site_id"]: row["code"] for row in found}

    async def stop_log(self, site_id: str, code: str, now: datetime) -> bool:
        if await self._all(select(_s.code).where(_s.site_id == site_id)):
            return False
        values = {"site_id": site_id, "code": code, "at": rows.text(now)}
        await self._connection.execute(insert(tables.log_stops).values(**values))
        return True

    async def lift_log(self, site_id: str) -> str | None:
        found = await self._all(select(_s.code).where(_s.site_id == site_id))
        await self._changed(delete(tables.log_stops).where(_s.site_id == site_id))
        return found[0]["code"] if found else None

    async def heard(self, replica: Replica) -> None:
        values = {"until": rows.text(replica.until), **replica.figures._asdict()}
        same = update(tables.replicas).where(_r.replica_id == replica.replica_id)
        if not await self._changed(same.values(**values)):
            await self._connection.execute(insert(tables.replicas).values(replica_id=replica.replica_id, **values))

    async def replicas(self, now: datetime) -> list[Replica]:
        await self._changed(delete(tables.replicas).where(_r.until <= rows.text(now)))
        found = await self._all(select(tables.replicas).order_by(_r.replica_id))
        return [
            Replica(row["replica_id"], rows.when(row["until"]), Figures(*(row[name] for name in Figures._fields)))
            for row in found
        ]

    async def forget_replica(self, replica_id: str) -> None:
        await self._changed(delete(tables.replicas).where(_r.replica_id == replica_id))
