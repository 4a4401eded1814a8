"""Exceptions that people recorded: each statement with its sites."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, insert, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.store import rows, tables

_TIMES = ("created_at", "expires_at", "withdrawn_at", "seconded_at")
_e = tables.exceptions.c


def exception_of(row: RowMapping | Mapping[str, Any]) -> RecordedException:
    """One from its row."""
    times = {name: rows.when(row[name]) for name in _TIMES if row[name] is not None}
    return RecordedException(**{**dict(row), **times, "people": row["people"] or 1})


class ExceptionRows:
    """The part of `records.Transaction` that is about exceptions."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def exceptions_of(self, site_id: str) -> list[RecordedException]:
        found = await self._all(select(tables.exceptions).where(_e.site_id == site_id).order_by(_e.created_at))
        return [exception_of(row) for row in found]

    async def add_exception(self, made: RecordedException) -> None:
        values = {
            name: rows.text(value) if isinstance(value, datetime) else value for name, value in asdict(made).items()
        }
        await self._changed(insert(tables.exceptions).values(values))

    async def second_exception(self, site_id: str, exception_id: str, by: str, by_id: str, now: datetime) -> bool:
        one = (_e.site_id == site_id, _e.exception_id == exception_id, _e.withdrawn_at.is_(None))
        waits = (_e.people == 2, _e.seconded_at.is_(None), _e.approver_id != by_id)
        said = {"seconded_at": rows.text(now), "seconded_by": by, "seconded_by_id": by_id}
        return await self._changed(update(tables.exceptions).where(*one, *waits).values(said)) == 1

    async def exception_people(self, site_id: str) -> int:
        s = tables.sites.c
        found = await self._all(select(s.exception_people).where(s.site_id == site_id))
        return int(found[0]["exception_people"] or 1) if found else 1

    async def set_exception_people(self, site_id: str, people: int) -> None:
        mine = update(tables.sites).where(tables.sites.c.site_id == site_id)
        await self._changed(mine.values(exception_people=people))

    async def withdraw_exception(self, site_id: str, exception_id: str, by: str, now: datetime) -> bool:
        one = (_e.site_id == site_id, _e.exception_id == exception_id, _e.withdrawn_at.is_(None))
        ended = update(tables.exceptions).where(*one).values(withdrawn_at=rows.text(now), withdrawn_by=by)
        return await self._changed(ended) == 1
