"""Exceptions: a person says that a failing check of a host, or of a site, is accepted for a while, and why. They always end.

It is an act in the site's log, and changes nothing on a host: the host's signed verdict stays `fail` and is shown beside, and the
agent heals on as its baseline says. What the agent itself is to honour is a line of a signed baseline (docs/adr/0021). Nothing that
can be typed is free text: reason and measure are words of the lists here, and the full words stand in a document of the
provider's own books, named by its id. So no exception has room for what belongs to a patient.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from compliance_agent.core.accepted import DAYS, MEASURES, REASONS
from compliance_agent.core.retention import REASON_ID
from compliance_agent.entries.act import digest_of
from compliance_agent.errors import Refusal
from compliance_agent.evidence.allowlist import registry
from compliance_agent.server.records import Clock, Site, SiteReader, Store, Transaction, User
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services import acts, roles

MOST = 200  # that stand at a site


@dataclass(frozen=True)
class Wanted:
    """What somebody wants to record; `key_id` names the host, `whole` makes it about every host of its site."""

    key_id: str
    check: str
    reason: str
    measure: str
    reference: str
    days: int
    whole: bool = False


def people_now(reader: SiteReader, site: Site, now: datetime) -> int | None:
    """How many people have to approve an exception of a site at this moment; None for a person whose dates do not hold it.

    It is what stands now, like what a host is now, and no part of days that are over; each change of it is an act in the log.
    """
    return site.exception_people if reader.dates is None or reader.dates.hold(now) else None


class Exceptions:
    """The desk for exceptions. Every act names the person, and sees the sites of `reader` alone."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def record(self, user: User, reader: SiteReader, wanted: Wanted, exception_id: str) -> RecordedException:
        """Record one, approved by this person, from now on. Asked twice for the same id it is recorded once.

        Raises:
            Refusal: not allowed, no such host, not of the agreed form, or one about it stands already.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        check_wanted(wanted)
        host = await reader.host(wanted.key_id)
        if host is None or host.revoked_at is not None:
            raise Refusal("host: no such host", code="no_such_host", status=404)
        now = self._clock()
        made = RecordedException(
            exception_id,
            host.site_id,
            None if wanted.whole else host.key_id,
            wanted.check,
            wanted.reason,
            wanted.measure,
            wanted.reference,
            user.name,
            user.person_id,
            now,
            now + timedelta(days=wanted.days),
        )

        async def work(tx: Transaction) -> RecordedException:
            held = await tx.exceptions_of(made.site_id)
            same = next((one for one in held if one.exception_id == exception_id), None)
            if same is not None:
                return same
            there = [one for one in held if one.open(now)]
            if any(one.check == made.check and one.key_id == made.key_id for one in there):
                raise Refusal("exception: one about it stands or waits already", code="exception_stands", status=409)
            if len(there) >= MOST:
                raise Refusal(f"exception: {MOST} stand or wait at this site", code="too_many_exceptions", status=409)
            asked = replace(made, people=await tx.exception_people(made.site_id))
            await tx.add_exception(asked)
            await _note(tx, now, acts.Act.EXCEPTION_RECORDED, user, asked)
            return asked

        return await self._store.write(work)

    async def approve(self, user: User, reader: SiteReader, exception_id: str) -> RecordedException:
        """Another person approves what waits for one; it counts from now on.

        Raises:
            Refusal: not allowed, none like it, it waits for nobody, or this is the person who recorded it.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        now = self._clock()
        found = await self.find(reader, exception_id)
        if found.approver_id == user.person_id:
            raise Refusal("exception: it needs another person than who recorded it", code="same_person", status=409)

        async def work(tx: Transaction) -> RecordedException:
            waits = found.state(now) == "waiting"
            if not waits or not await tx.second_exception(found.site_id, exception_id, user.name, user.person_id, now):
                raise Refusal("exception: it waits for nobody", code="exception_not_waiting", status=409)
            await _note(tx, now, acts.Act.EXCEPTION_APPROVED, user, found)
            return replace(found, seconded_at=now, seconded_by=user.name, seconded_by_id=user.person_id)

        return await self._store.write(work)

    async def set_people(self, user: User, reader: SiteReader, site_id: str, people: int) -> None:
        """Say how many people have to approve an exception of a site, from now on. What waits goes on waiting.

        Raises:
            Refusal: not allowed, no such site, or neither one nor two.
        """
        roles.check(user, roles.Act.PEOPLE)
        if site_id not in reader.sites:
            raise Refusal("site: no such site", code="no_such_site", status=404)
        if people not in {1, 2}:
            raise Refusal("people: expected 1 or 2", code="bad_exception", status=422)
        now = self._clock()

        async def work(tx: Transaction) -> None:
            await tx.set_exception_people(site_id, people)
            rule = digest_of({"site_id": site_id, "people": people})
            said = f"{site_id} {people}"
            await acts.note(tx, now, acts.Act.EXCEPTION_RULE, by=user, sites={site_id}, subject=rule, said=said)

        await self._store.write(work)

    async def withdraw(self, user: User, reader: SiteReader, exception_id: str) -> RecordedException:
        """End it now; one that waits for a second person is refused by this.

        Raises:
            Refusal: not allowed, or none like it stands or waits within these sites.
        """
        roles.check(user, roles.Act.APPROVE_ORDER)
        now = self._clock()
        found = await self.find(reader, exception_id)

        async def work(tx: Transaction) -> RecordedException:
            if not found.open(now) or not await tx.withdraw_exception(found.site_id, exception_id, user.name, now):
                raise Refusal("exception: it has ended", code="exception_ended", status=409)
            await _note(tx, now, acts.Act.EXCEPTION_WITHDRAWN, user, found)
            return replace(found, withdrawn_at=now, withdrawn_by=user.name)

        return await self._store.write(work)

    async def listed(
        self, reader: SiteReader, site_id: str | None = None, key_id: str | None = None
    ) -> list[RecordedException]:
        """Those of these sites, ended ones included; of one site, or of what is about one host alone."""
        host = await reader.host(key_id) if key_id is not None else None
        sites = reader.sites if site_id is None else reader.sites & {site_id}
        if key_id is not None:
            sites = sites & ({host.site_id} if host is not None else set())
        found = [one for one in await reader.exceptions() if one.site_id in sites]
        return [one for one in found if key_id is None or one.key_id in {None, key_id}]

    async def find(self, reader: SiteReader, exception_id: str) -> RecordedException:
        """One of them.

        Raises:
            Refusal: there is none within these sites.
        """
        found = next((one for one in await reader.exceptions() if one.exception_id == exception_id), None)
        if found is None:
            raise Refusal("exception: no such exception", code="no_such_exception", status=404)
        return found


def check_wanted(wanted: Wanted) -> None:
    """Raises Refusal 422 (`bad_exception`) when it says anything but words of the lists, an id and a time to end."""
    wrong = [
        name
        for name, right in (
            ("check", wanted.check in registry().checks),
            ("reason", wanted.reason in REASONS),
            ("measure", wanted.measure in MEASURES),
            ("reference", re.fullmatch(REASON_ID, wanted.reference, re.ASCII) is not None),
            ("days", wanted.days in DAYS),
        )
        if not right
    ]
    if wrong:
        raise Refusal(f"exception: {', '.join(wrong)}: not of the form", code="bad_exception", status=422)


def digest(made: RecordedException) -> str:
    """What the log's entries about it name: SHA-256 of the canonical JSON of all that it says."""
    names = ("exception_id", "site_id", "key_id", "check", "reason", "measure", "reference", "approver_id")
    times = {"created": _time(made.created_at), "expires": _time(made.expires_at)}
    return digest_of({**{name: getattr(made, name) for name in names}, **times})


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def _note(tx: Transaction, now: datetime, act: acts.Act, user: User, made: RecordedException) -> None:
    await acts.note(
        tx, now, act, by=user, sites={made.site_id}, subject=digest(made), said=f"{made.exception_id} {made.check}"
    )
