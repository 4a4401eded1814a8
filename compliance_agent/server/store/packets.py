"""Packets that people asked for, in the database: whole rows in and out, each statement with its sites."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import date, datetime
from typing import Any

from sqlalchemy import Executable, delete, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records.packets import OPEN, PacketJob
from compliance_agent.server.records.people import Dates
from compliance_agent.server.store import rows, tables

_j, _p = tables.packet_jobs.c, tables.packet_parts.c
_TIMES = ("asked_at", "until", "ended_at")


def columns(job: PacketJob) -> dict[str, Any]:
    """A row's values as they are stored."""
    found = asdict(job)
    days, dates = found.pop("days"), found.pop("dates")
    found |= {"first": days["first"].isoformat(), "last": days["last"].isoformat()}
    found["dates"] = f"{dates['first']}/{dates['last']}" if dates else None
    return {name: rows.text(value) if isinstance(value, datetime) else value for name, value in found.items()}


def job_of(row: RowMapping) -> PacketJob:
    """A packet from its row."""
    said = dict(row)
    days, dates = _dates(said.pop("first"), said.pop("last")), said.pop("dates")
    said |= {name: rows.when(said[name]) for name in _TIMES if said[name] is not None}
    return PacketJob(days=days, dates=_dates(*dates.split("/")) if dates else None, **said)


def _dates(first: str, last: str) -> Dates:
    return Dates(date.fromisoformat(first), date.fromisoformat(last))


class PacketRows:
    """The part of `records.Transaction` that is about packets."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def add_packet_job(self, job: PacketJob) -> None:
        await self._changed(insert(tables.packet_jobs).values(columns(job)))

    async def packet_jobs(self, sites: Collection[str]) -> list[PacketJob]:
        query = select(tables.packet_jobs).where(_j.site_id.in_(sites)).order_by(_j.asked_at, _j.job_id)
        return [job_of(row) for row in await self._all(query)]

    async def save_packet_job(self, job: PacketJob, *, tries: int) -> bool:
        now = update(tables.packet_jobs).where(_j.site_id == job.site_id, _j.job_id == job.job_id)
        going = now.where(_j.state.in_(OPEN), _j.tries == tries)
        return await self._changed(going.values(columns(job))) == 1

    async def end_packet_job(self, job: PacketJob) -> None:
        await self._changed(delete(tables.packet_parts).where(_p.site_id == job.site_id, _p.job_id == job.job_id))
        mine = update(tables.packet_jobs).where(_j.site_id == job.site_id, _j.job_id == job.job_id)
        await self._changed(mine.values(columns(job)))

    async def forget_packet_jobs(self, sites: Collection[str], before: datetime) -> None:
        ended = (_j.state.not_in((*OPEN, "done")), or_(_j.ended_at.is_(None), _j.ended_at < rows.text(before)))
        await self._changed(delete(tables.packet_jobs).where(_j.site_id.in_(sites), *ended))

    async def add_packet_part(self, job: PacketJob, name: str, number: int, content: bytes) -> None:
        part = {"job_id": job.job_id, "site_id": job.site_id, "name": name, "number": number, "content": content}
        await self._changed(insert(tables.packet_parts).values(part))

    async def clear_packet_parts(self, job: PacketJob) -> None:
        await self._changed(delete(tables.packet_parts).where(_p.site_id == job.site_id, _p.job_id == job.job_id))
