"""A sample of a site's evidence as the server holds it: the same that `packet sample` draws from a packet (packet/sample.py).

Only records count that the log holds at the named checkpoint, which is verified under the log's key; an older size is computed from
the tiles and held to the newest. A handle with dates draws from its days alone.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from datetime import date, timedelta
from typing import Any, Protocol

import orjson

from compliance_agent.entries.act import Act, digest_of
from compliance_agent.errors import AgentError, ConfigError, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import VerifierKey
from compliance_agent.log.tiles import Tile
from compliance_agent.packet.content import concerns, day_of
from compliance_agent.packet.sample import (
    BACK,
    OFFERED,
    Asked,
    Instance,
    Item,
    Life,
    Population,
    Sample,
    Unsealed,
    checkpoint_at,
    draw,
    item_of,
    population,
    pull,
)
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Clock, Dates, Host, Kept, SiteReader, Store, User
from compliance_agent.server.services.acts import note
from compliance_agent.server.services.checkpoints import State, signed_checkpoint

Keys = Mapping[str, list[Host]]  # of each label


class Verifiers(Protocol):
    """Knows the key of a log."""

    def verifier(self, origin: str, /) -> VerifierKey:
        """That its checkpoints verify under."""
        ...


class Sampling:
    """Draws from the sites that its reader sees; raises Refusal 404 for all others."""

    def __init__(self, reader: SiteReader, files: LogFiles, keys: Verifiers) -> None:
        self._reader = reader
        self._files = files
        self._keys = keys

    async def sample(self, asked: Asked, size: int | None = None) -> Sample:
        """The sample, from what the log held at `size` entries; at its newest checkpoint where none is given.

        Raises:
            Refusal: 404 no such site; 422 `outside_dates`, `unknown_host` or `bad_sample`; 409 the log cannot be read.
        """
        reader = self._reader.only(asked.site_id)
        if asked.site_id not in reader.sites:
            raise Refusal("no such site", code="not_found", status=404)
        if reader.dates is not None and not reader.dates.first <= asked.days[0] <= asked.days[-1] <= reader.dates.last:
            raise Refusal("days: not all of them are days that you may see", code="outside_dates", status=422)
        of: dict[str, list[Host]] = defaultdict(list)
        for host in await reader.hosts():
            of[host.host_id].append(host)
        year = asked.days[-1].year
        try:
            among = population((_life(host) for hosts in of.values() for host in hosts), asked)
            log = await self._log(reader, asked.site_id, year, size)
        except ConfigError as error:
            raise Refusal(str(error), code=error.code, status=422) from error
        found, unsealed = await self._of(reader, asked, draw(asked, among), of, (year, log.size))
        found += await self._earlier(reader, asked, among, of, found, (year, log.size))
        return await asyncio.to_thread(pull, asked, log, among, found, unsealed)

    async def _log(self, reader: SiteReader, site_id: str, year: int, size: int | None) -> Checkpoint:
        shard = next((one for one in await reader.shards() if one.year == year), None)
        if shard is None:
            raise Refusal("nothing of that year is in a log", code="no_log", status=409)

        def read() -> Checkpoint:
            note = self._files.published(site_id, year)
            line, newest = signed_checkpoint(note or b"", self._keys.verifier(shard.origin))
            if newest is None or line.state is not State.VERIFIED:
                raise Refusal("the log's checkpoint does not verify", code="log_unusable", status=409)
            return checkpoint_at(newest, size, lambda *tile: self._files.read(site_id, year, Tile(*tile)))

        try:
            return await asyncio.to_thread(read)
        except (ConfigError, Refusal):
            raise
        except AgentError as error:
            raise Refusal("the log's files do not hold together", code="log_unusable", status=409) from error

    async def _of(
        self, reader: SiteReader, asked: Asked, instances: Iterable[Instance], of: Keys, place: tuple[int, int]
    ) -> tuple[list[Item], dict[Instance, Unsealed]]:
        """Their records that the log holds, and what else there is of them."""
        wanted, keys = defaultdict[date, set[str]](set), set(instances)
        for one in keys:
            wanted[one.day] |= {host.key_id for host in of[one.host]}
        labels = {host.key_id: label for label, hosts in of.items() for host in hosts}
        kept = await reader.kept_on(asked.site_id, wanted) if wanted else []
        return await asyncio.to_thread(_read, kept, keys, labels, asked.control, place)

    async def _earlier(
        self, reader: SiteReader, asked: Asked, among: Population, of: Keys, found: list[Item], place: tuple[int, int]
    ) -> list[Item]:
        """Records that may be offered beside instances that have none: of the latest days before them on which the host spoke."""
        chosen = set(draw(asked, among))
        missing = chosen - {one.instance for one in found}
        if not missing:
            return []
        days = [one.day for one in missing]
        labels = {host.key_id: one.host for one in missing for host in of[one.host]}
        spoken = await reader.spoken(labels, Dates(min(days) - BACK, max(days)))
        there = {Instance(labels[key], day) for key, day in spoken} - chosen
        wanted = set[Instance]()
        for one in missing:
            before = (other for other in there if other.host == one.host and one.day - BACK <= other.day < one.day)
            wanted |= set(sorted(before, reverse=True)[:OFFERED])
        return (await self._of(reader, asked, wanted, of, place))[0]


def _read(
    kept: Iterable[Kept], wanted: set[Instance], labels: Mapping[str, str], control: str | None, place: tuple[int, int]
) -> tuple[list[Item], dict[Instance, Unsealed]]:
    year, size = place
    items, others = list[Item](), defaultdict[Instance, Counter[str]](Counter)
    for one in kept:
        sealed = one.index is not None and one.year == year and one.index < size
        if not one.body:  # what it said is not known any more
            others[Instance(labels[one.key_id], date.fromisoformat(one.created_at[:10]))]["destroyed"] += 1
            continue
        document: Mapping[str, Any] = orjson.loads(one.body)
        instance = Instance(document["host"]["id"], date.fromisoformat(day_of(document)))
        if instance not in wanted or not concerns(document, control):
            continue
        if not sealed or one.index is None:
            others[instance]["elsewhere" if one.year not in {None, year} else "pending"] += 1
            continue
        item = item_of(document, hashlib.sha256(one.body).hexdigest(), one.index, control)
        items += [item] if item is not None else []
    return items, {instance: Unsealed(**counts) for instance, counts in others.items()}


def _life(host: Host) -> Life:
    ended = host.revoked_at.date() if host.revoked_at is not None else None
    return Life(host.host_id, host.enrolled_at.date(), ended)


async def drawn(
    store: Store, clock: Clock, user: User, sampling: Sampling, asked: Asked, size: int | None = None
) -> Sample:
    """A sample, and the act of drawing it in the site's log: what was asked for, the seed, and what came of it, by their digest.

    Raises:
        Refusal: as `Sampling.sample`.
    """
    found = await sampling.sample(asked, size)
    now, subject = clock(), subject_of(found)
    await store.write(
        lambda tx: note(tx, now, Act.SAMPLE_DRAWN, by=user, sites={asked.site_id}, subject=subject, said=subject)
    )
    return found


def subject_of(found: Sample) -> str:
    """What names a sample in a log: who holds what was asked for can show that it was this, and that this came of it."""
    said = found.as_document()
    names = ("site_id", "control", "hosts", "number", "seed")
    days = {"from": said["days"][0], "to": said["days"][-1]}
    return digest_of(
        {**{name: said[name] for name in names}, **days, "size": found.log.size, "sample": said["sample"]["sha256"]}
    )


def month_before(last: date, dates: Dates | None) -> Dates:
    """Thirty days up to this one, of those that one may see."""
    end = last if dates is None else min(last, dates.last)
    first = end - timedelta(days=29)
    return Dates(first if dates is None else min(max(first, dates.first), end), end)
