"""Packets that people ask for in the viewer: built beside the requests by whichever replica is free, kept for a day.

A person sees what the person has asked for and nothing else, and only while the site and its days are still the person's. How many
there may be is bounded, by site and by person. Who asked, that one was built, and each time one was taken is in the site's log.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import replace
from datetime import date, timedelta

from compliance_agent.core.citations import SECTIONS
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import ConfigError, Refusal
from compliance_agent.packet.sampled import Drawing
from compliance_agent.server.records import Clock, Dates, SiteReader, Store, Transaction, User
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.services import roles
from compliance_agent.server.services.acts import Act, note

KEPT = timedelta(hours=24)
REMEMBERED = timedelta(days=7)  # that there was one, after its files are gone
MOST_DAYS = 366
OPEN_OF_SITE, OPEN_OF_PERSON, HELD_OF_PERSON, HELD_OF_SITE = 3, 2, 5, 20
FILES = ("packet.zip", "report.pdf")


def subject_of(job: PacketJob) -> str:
    """What names a packet in a log: who holds what was asked for can show that it was this."""
    scope = {"site": job.site_id, "from": job.days.first.isoformat(), "to": job.days.last.isoformat()}
    drawn = {"sample": json.loads(job.sample)} if job.sample is not None else {}
    return digest_of({**scope, "control": job.control, "host": job.host, **drawn})


class Packets:
    """The desk for packets. `asked` is set when there is work."""

    def __init__(self, store: Store, clock: Clock, rng: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._store = store
        self.clock = clock
        self._rng = rng
        self.asked = asyncio.Event()

    async def ask(
        self,
        user: User,
        reader: SiteReader,
        site_id: str,
        days: Dates,
        control: str | None,
        host: str | None,
        drawing: Drawing | None = None,
    ) -> PacketJob:
        """Ask for a packet, with a drawing for one of that sample; the one that was asked for already, where it is still built.

        Raises:
            Refusal: 404 no such site or host; 422 a period that is none, is too long, or is not the person's, or no such section;
                409 `too_many_packets`.
        """
        if site_id not in reader.sites:
            raise Refusal("no such site", code="not_found", status=404)
        if days.first > days.last or (days.last - days.first).days >= MOST_DAYS:
            raise Refusal(f"days: expected at most {MOST_DAYS}, in order", code="bad_period", status=422)
        if reader.dates is not None and not (reader.dates.first <= days.first and days.last <= reader.dates.last):
            raise Refusal("days: not all of them are days that you may see", code="outside_dates", status=422)
        if control is not None and control not in SECTIONS:
            raise Refusal("control: no section of the rule that is known here", code="unknown_control", status=422)
        if host is not None and host not in {one.host_id for one in await reader.hosts(site_id)}:
            raise Refusal("no such host", code="not_found", status=404)
        if drawing is not None:
            try:
                drawing.asked(site_id, control, days.first, days.last)
            except ConfigError as error:
                raise Refusal(str(error), code=error.code, status=422) from error
        wanted = PacketJob(
            self._rng(16).hex(), site_id, user.person_id, days, self.clock(), reader.dates, control, host, stage="waiting",
            sample=drawing.encode() if drawing is not None else None,
        )  # fmt: skip
        job = await self._store.write(lambda tx: self._asked(tx, user, wanted, reader.sites))
        self.asked.set()
        return job

    async def _asked(self, tx: Transaction, user: User, wanted: PacketJob, sites: frozenset[str]) -> PacketJob:
        there = await tx.packet_jobs(sites | {wanted.site_id})
        mine, here = (
            [one for one in there if one.person_id == user.person_id],
            [one for one in there if one.site_id == wanted.site_id],
        )
        for one in mine:
            if one.open and (subject_of(one), one.dates) == (subject_of(wanted), wanted.dates):
                return one
        bounds = (
            (sum(one.open for one in here), OPEN_OF_SITE, "are being built for this site"),
            (sum(one.open for one in mine), OPEN_OF_PERSON, "are being built for you"),
            (sum(one.open or one.state == "done" for one in mine), HELD_OF_PERSON, "are kept for you; remove one"),
            (sum(one.open or one.state == "done" for one in here), HELD_OF_SITE, "are kept for this site"),
        )
        for count, most, what in bounds:
            if count >= most:
                raise Refusal(f"packets: {count} {what}", code="too_many_packets", status=409)
        await tx.add_packet_job(wanted)
        await note(
            tx, wanted.asked_at, Act.PACKET_ASKED, by=user, sites={wanted.site_id}, subject=subject_of(wanted),
            said=wanted.job_id,
        )  # fmt: skip
        return wanted

    async def jobs(self, user: User, reader: SiteReader, site_id: str) -> list[PacketJob]:
        """What this person has asked for of a site, the newest first."""
        if site_id not in reader.sites:
            raise Refusal("no such site", code="not_found", status=404)
        found = await reader.only(site_id).packet_jobs(user.person_id)
        return [one for one in found if reader.dates in {None, one.dates}]

    async def listed(self, user: User, reader: SiteReader, site_id: str | None = None) -> list[tuple[PacketJob, str]]:
        """Packets of these sites with the name of who asked, the newest first: a person's own, for an owner everybody's.

        Seeing that there is one is not seeing what is in it: its files are for who asked alone.

        Raises:
            Refusal: 404 no such site.
        """
        if site_id is not None and site_id not in reader.sites:
            raise Refusal("no such site", code="not_found", status=404)
        within = reader if site_id is None else reader.only(site_id)
        everybody = roles.may(user, roles.Act.PEOPLE)
        found = await within.packet_jobs(None if everybody else user.person_id)
        names = {one.person_id: one.name for one in await self._store.users()} if everybody else {}
        names[user.person_id] = user.name
        return [(one, names.get(one.person_id, "")) for one in found if reader.dates in {None, one.dates}]

    async def job(self, user: User, reader: SiteReader, job_id: str) -> PacketJob:
        """One of them.

        Raises:
            Refusal: 404 there is none, it is another person's, or of a site or days that are not this person's any more.
        """
        found = await reader.packet_jobs(user.person_id, job_id)
        if not found or reader.dates not in {None, found[0].dates}:
            raise Refusal("no such packet", code="not_found", status=404)
        return found[0]

    async def remove(self, user: User, reader: SiteReader, job_id: str) -> PacketJob:
        """End one that is being built, or remove the files of one that is done."""
        job, now = await self.job(user, reader, job_id), self.clock()
        if not job.open and job.state != "done":
            return job
        ended = replace(job, state="cancelled" if job.open else "gone", ended_at=now, holder=None, until=None)

        async def work(tx: Transaction) -> None:
            await tx.end_packet_job(ended)
            about = subject_of(job)
            await note(
                tx, now, Act.PACKET_REMOVED, by=user, sites={job.site_id}, subject=about, said=f"{job_id} {ended.state}"
            )

        await self._store.write(work)
        self.asked.set()  # its files, and who builds it, go at once
        return ended

    async def taken(self, user: User, job: PacketJob, name: str) -> None:
        """Note that a file is handed out, before its first byte."""
        now, digest = self.clock(), job.sha256 if name == FILES[0] else job.report_sha256
        await self._store.write(
            lambda tx: note(
                tx, now, Act.PACKET_TAKEN, by=user, sites={job.site_id}, subject=digest, said=f"{job.job_id} {name}"
            )
        )

    async def over(self) -> list[PacketJob]:
        """Let go of what was kept long enough; every packet there still is, over all sites."""
        now, sites = self.clock(), await self._store.all_sites()
        there = await self._store.for_sites(sites).packet_jobs()
        late = [one for one in there if one.state == "done" and one.ended_at is not None and one.ended_at + KEPT <= now]
        old = any(not one.open and one.ended_at is not None and one.ended_at + REMEMBERED <= now for one in there)

        async def work(tx: Transaction) -> None:
            for job in late:
                await tx.end_packet_job(replace(job, state="gone", ended_at=now))
            await tx.forget_packet_jobs(sites, now - REMEMBERED)

        if late or old:
            await self._store.write(work)
        return [one for one in there if one not in late]


def day_or(text: str, otherwise: date) -> date:
    """A day as forms give it; Refusal 422 for anything else."""
    try:
        return date.fromisoformat(text) if text else otherwise
    except ValueError:
        raise Refusal("days: expected YYYY-MM-DD", code="bad_period", status=422) from None
