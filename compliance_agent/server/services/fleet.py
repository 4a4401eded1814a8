"""What stands at every site, host and check, for people: the read model of the viewer and of the read API.

Two rules keep it honest. A host that has not been heard for too long is `silent`, and what it said last stays visible but counts as
unknown: it never shows green. The same holds for one verdict that no heartbeat has repeated for too long (`stale`).
What is outside the caller's sites does not exist here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from compliance_agent.core.retention import Keep
from compliance_agent.errors import Refusal
from compliance_agent.server.records import (
    NO_DIGEST,
    Bundle,
    BundleQuery,
    CheckVerdict,
    Clock,
    Fork,
    Gap,
    Host,
    Site,
    SiteReader,
    Tally,
)
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.services.retention import keep_of, rules_of
from compliance_agent.server.services.verification import Verifier

UNMET = frozenset({"fail", "unknown"})
RESULTS = ("pass", "fail", "unknown", "not_applicable", "exception")


@dataclass(frozen=True)
class Silence:
    """When saying nothing means something.

    Attributes:
        interval_s: how often hosts are asked to check in.
        silent_after_s: least time without a word after which a host is silent.
        stale_after_s: time after which a green verdict that nobody repeated counts as unknown.
    """

    interval_s: int = 60
    silent_after_s: int = 600
    stale_after_s: int = 3 * 3_600 + 900  # heartbeats come hourly

    def silent(self, host: Host, now: datetime) -> bool:
        """Whether the host is silent; a new one counts from its enrolment."""
        return host.revoked_at is None and (host.last_seen_at or host.enrolled_at) < self.since(now)

    def since(self, now: datetime) -> datetime:
        """A host that nothing was heard of since then is silent."""
        return now - timedelta(seconds=max(3 * self.interval_s, self.silent_after_s))

    def stale_before(self, now: datetime) -> datetime:
        """What was said last before then is stale."""
        return now - timedelta(seconds=self.stale_after_s)

    def stale(self, said_at: datetime | None, now: datetime) -> bool:
        """Whether what a verdict's own bundles or a heartbeat said then is not late enough to go by; None is never."""
        return said_at is None or now - said_at > timedelta(seconds=self.stale_after_s)


class CheckStanding(NamedTuple):
    """One check as it stands.

    Attributes:
        verdict: what the evidence said last.
        result, reason: what may be shown: `unknown` with `silent`, `stale` or `revoked` in place of an old green verdict.
            A failing check that a recorded exception covers shows `exception`.
        remediation: the newest remediation bundle of this check, where it was asked for.
        exception: that was recorded at the server and covers it now; the host's own word is `verdict` all the same.
    """

    verdict: CheckVerdict
    result: str
    reason: str
    remediation: Bundle | None = None
    exception: RecordedException | None = None

    @property
    def check(self) -> str:
        """The check's id."""
        return self.verdict.check


@dataclass(frozen=True)
class Met:
    """Checks of a host whose verdicts are met, or were, counted instead of listed.

    Attributes:
        counts: by the result that may be shown.
        stale_at: when the one that nobody repeated longest was said, where it is stale.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    stale_at: datetime | None = None


@dataclass(frozen=True)
class HostStanding:
    """One host with its checks.

    Attributes:
        broken: its chain has a fork or an open gap.
        unlogged: bundles that no published checkpoint of the log covers yet.
        gaps: of its chain, open ones first; only where one host was asked for.
        met: where all sites were asked for; then `checks` has the others alone.
        recorded: exceptions of its site, ended ones included; only where one host was asked for.
    """

    host: Host
    silent: bool
    checks: tuple[CheckStanding, ...]
    broken: bool = False
    unlogged: int = 0
    gaps: tuple[Gap, ...] = ()
    met: Met = Met()
    recorded: tuple[RecordedException, ...] = ()

    @property
    def spoke(self) -> bool:
        """Whether it ever said how a check ended."""
        return bool(self.checks or self.met.counts)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Verdicts as shown; a host that never said anything is one unknown."""
        counts = dict.fromkeys(RESULTS, 0)
        for check in self.checks:
            counts[check.result if check.result in counts else "unknown"] += 1
        for result, count in self.met.counts.items():
            counts[result if result in counts else "unknown"] += count
        return counts if self.spoke else {**counts, "unknown": 1}

    @cached_property
    def oldest_unmet_at(self) -> datetime | None:
        """Since when the longest standing item is not met; a silent host is unmet since it was last heard."""
        starts = [item.verdict.since for item in self.checks if item.verdict.result in UNMET and item.exception is None]
        starts += [item.verdict.seen_at for item in self.checks if item.reason == "stale"]
        if self.met.stale_at is not None:
            starts.append(self.met.stale_at)
        if self.silent or not self.spoke:
            starts.append(self.host.last_seen_at or self.host.enrolled_at)
        return min(starts, default=None)


@dataclass(frozen=True)
class SiteStanding:
    """One clinic; revoked hosts do not count. `recorded` are its exceptions, ended ones included."""

    site: Site
    hosts: tuple[HostStanding, ...]
    recorded: tuple[RecordedException, ...] = ()

    @cached_property
    def live(self) -> tuple[HostStanding, ...]:
        """Hosts that are not revoked."""
        return tuple(item for item in self.hosts if item.host.revoked_at is None)

    @property
    def silent(self) -> int:
        """How many hosts are silent."""
        return sum(item.silent for item in self.live)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Verdicts of all live hosts."""
        each = [item.counts for item in self.live]
        return {result: sum(counts[result] for counts in each) for result in RESULTS}

    @cached_property
    def oldest_unmet_at(self) -> datetime | None:
        """Since when the longest standing item of the site is not met."""
        return min((at for item in self.live if (at := item.oldest_unmet_at) is not None), default=None)


@dataclass(frozen=True)
class Moved:
    """How often something became unmet, how often it was met again, and how often a cure did that."""

    worse: int = 0
    better: int = 0
    healed: int = 0

    def __add__(self, other: Moved) -> Moved:
        return Moved(self.worse + other.worse, self.better + other.better, self.healed + other.healed)


@dataclass(frozen=True)
class Page:
    """Part of a list, newest first; `next` is the cursor of the following part, None at the end."""

    items: tuple[Bundle, ...]
    next: int | None


@dataclass(frozen=True)
class Point:
    """One thing that was verified just now; `code` says what failed."""

    name: str  # signature | canonical | schema | identity | digest | chain
    holds: bool
    code: str = ""


@dataclass(frozen=True)
class BundleStanding:
    """One bundle with its bytes, its neighbours in the chain, how long it is kept, and its verification, done now."""

    bundle: Bundle
    host: Host
    body: bytes
    sig: bytes
    points: tuple[Point, ...]
    keep: Keep
    previous: Bundle | None
    following: Bundle | None

    @property
    def valid(self) -> bool:
        """Whether every point holds."""
        return all(point.holds for point in self.points)

    @property
    def document(self) -> dict[str, Any]:
        """The parsed bundle; empty when its bytes are no JSON object any more."""
        return document_of(self.body)


class Fleet:
    """What one caller may see. Everything raises Refusal 404 for what is not there, or not theirs.

    Of days that are over nobody can say who is silent now: a handle with such dates shows no host as silent.
    """

    def __init__(self, reader: SiteReader, clock: Clock, silence: Silence, verifier: Verifier | None = None) -> None:
        self._reader = reader
        self._clock = clock
        self._silence = silence
        self._verifier = verifier or Verifier()

    async def sites(self) -> list[SiteStanding]:
        """Every site, the one with the oldest unmet item first. Of what is met, hosts have counts alone."""
        now, hosts = self._clock(), dict[str, list[HostStanding]]()
        tallies: dict[str, list[Tally]] = {}
        for tally in await self._reader.tallies(self._silence.stale_before(now)):
            tallies.setdefault(tally.key_id, []).append(tally)
        gapped, unlogged = await self._reader.lacking()
        places, recorded = await self._reader.sites_and_exceptions()
        accepted = self._standing_now(recorded)
        for host in await self._reader.hosts():
            if host.rotated_to is None:
                standing = self._counted(host, tallies.get(host.key_id, ()), now, gapped=host.key_id in gapped)
                standing = _lacking(_excepted(standing, accepted), unlogged)
                hosts.setdefault(host.site_id, []).append(standing)
        found = [
            SiteStanding(
                site,
                tuple(hosts.get(site.site_id, ())),
                tuple(one for one in recorded if one.site_id == site.site_id),
            )
            for site in places
        ]
        return sorted(found, key=lambda item: (item.oldest_unmet_at or now, item.site.site_id))

    async def site(self, site_id: str) -> SiteStanding:
        """One site."""
        reader = self._reader.only(site_id)
        found, recorded = await reader.sites_and_exceptions()
        if not found:
            raise _not_found("site")
        return SiteStanding(found[0], tuple(await self._standings(reader, recorded)))

    async def hosts(self, site_id: str | None = None) -> list[HostStanding]:
        """Hosts of one site, or of all."""
        return (
            list((await self.site(site_id)).hosts)
            if site_id is not None
            else await self._standings(self._reader, await self._reader.exceptions())
        )

    async def host(self, key_id: str) -> HostStanding:
        """One host, its checks with their newest remediation."""
        host, recorded = await self._reader.host_and_exceptions(key_id)
        if host is None:
            raise _not_found("host")
        remediations = await self._reader.remediations(key_id)
        standing = self._standing(host, await self._reader.verdicts(key_id), remediations)
        standing = replace(_excepted(standing, self._standing_now(recorded)), recorded=tuple(recorded))
        gaps = tuple(await self._reader.gaps(key_id))
        gapped = any(gap.closed_at is None for gap in gaps)
        unlogged = (await self._reader.only(host.site_id).unlogged()).get(key_id, 0)
        return replace(standing, broken=standing.broken or gapped, unlogged=unlogged, gaps=gaps)

    async def checks(self, key_id: str) -> list[CheckStanding]:
        """The checks of one host."""
        return list((await self.host(key_id)).checks)

    async def evidence(self, query: BundleQuery) -> Page:
        """Bundles, newest arrival first."""
        if query.key_id is not None and await self._reader.host(query.key_id) is None:
            raise _not_found("host")
        return await self.evidence_of(query)

    async def evidence_of(self, query: BundleQuery) -> Page:
        """The same, where the host is known to be there."""
        found = await self._reader.bundles(replace(query, limit=query.limit + 1))
        items = tuple(found[: query.limit])
        return Page(items, items[-1].number if len(found) > query.limit else None)

    async def bundle(self, bundle_id: str, key_id: str | None = None) -> BundleStanding:
        """One bundle, verified now against the enrolled key and its neighbour in the chain."""
        found = await self._reader.bundle(bundle_id, key_id)
        host = await self._reader.host(found[0].key_id) if found else None
        if found is None or host is None:
            raise _not_found("bundle")
        bundle, body, sig = found
        if not body:
            raise Refusal(
                "this record was destroyed when its time was over; its digest is in the log", code="pruned", status=410
            )
        previous, following = await self._reader.neighbours(bundle)
        rules = await rules_of(self._reader, bundle.site_id)
        keep = keep_of(rules, host.host_id, body, bundle.created_at, bundle.received_at)
        points = tuple(_verified(self._verifier, bundle, host, body, sig, previous))
        return BundleStanding(bundle, host, body, sig, points, keep, previous, following)

    async def newest(self, host: Host, kinds: Collection[str], at_most: int) -> list[Bundle]:
        """The newest bundles of a host, so many of each kind, newest first."""
        return await self._reader.newest(host.key_id, kinds, at_most)

    async def body(self, bundle: Bundle) -> bytes | None:
        """The bytes of one of them as they are held, not verified; None when they were destroyed."""
        found = await self._reader.bundle(bundle.bundle_id, bundle.key_id)
        return found[1] or None if found else None

    async def bodies(self, bundles: Collection[Bundle]) -> dict[int, bytes]:
        """The same of several, by number; those that were destroyed are left out."""
        found = await self._reader.bodies([bundle.number for bundle in bundles]) if bundles else {}
        return {number: body for number, body in found.items() if body}

    async def forks(self, host: HostStanding) -> list[Fork]:
        """Bundles that contradict a host's chain."""
        return await self._reader.forks(host.host.key_id) if host.host.forks else []

    async def moved(self, site_id: str, last: timedelta = timedelta(hours=24)) -> dict[str, Moved]:
        """What changed lately at one site, by its id; nothing where nothing did."""
        reader = self._reader.only(site_id)
        return {one.site_id: Moved(*one[1:]) for one in await reader.changed(self._clock() - last)}

    async def changes(self, last: timedelta, at_most: int) -> tuple[dict[str, Moved], list[Bundle]]:
        """The same of all sites, and the newest changes of verdict and cures that held."""
        counts, newest = await self._reader.changes(self._clock() - last, at_most)
        return {one.site_id: Moved(*one[1:]) for one in counts}, newest

    async def _standings(self, reader: SiteReader, recorded: Iterable[RecordedException]) -> list[HostStanding]:
        by_host: dict[str, list[CheckVerdict]] = {}
        for verdict in await reader.verdicts():
            by_host.setdefault(verdict.key_id, []).append(verdict)
        gapped, unlogged = await reader.lacking()
        accepted = self._standing_now(recorded)
        return [
            _lacking(
                _excepted(
                    self._standing(host, by_host.get(host.key_id, ()), {}, gapped=host.key_id in gapped), accepted
                ),
                unlogged,
            )
            for host in await reader.hosts()
            if host.rotated_to is None
        ]

    def _standing(
        self, host: Host, verdicts: Iterable[CheckVerdict], remediations: Mapping[str, Bundle], *, gapped: bool = False
    ) -> HostStanding:
        now = self._clock()
        silent, why = self._quiet(host, now)
        beats = not self._silence.stale(host.heartbeat_made_at, now)  # then no verdict of it is stale
        checks = tuple(
            self._shown(
                item, why or ("" if beats or not self._silence.stale(item.seen_at, now) else "stale"), remediations
            )
            for item in verdicts
        )
        return HostStanding(host, silent, checks, broken=gapped or host.forks > 0)

    def _quiet(self, host: Host, now: datetime) -> tuple[bool, str]:
        """Whether a host is silent, and why nothing green of it may be shown."""
        dates = self._reader.dates
        silent = (dates is None or dates.hold(now)) and self._silence.silent(host, now)
        return silent, "silent" if silent else "revoked" if host.revoked_at else ""

    def _counted(self, host: Host, tallies: Iterable[Tally], now: datetime, *, gapped: bool) -> HostStanding:
        """As `_standing`, from counts."""
        silent, why = self._quiet(host, now)
        beats = not self._silence.stale(host.heartbeat_made_at, now)
        checks, counts, stale_at = list[CheckStanding](), dict[str, int](), list[datetime]()
        for one in tallies:
            stale = "stale" if one.stale and not beats else ""
            if one.check:
                unmet = CheckVerdict(one.key_id, one.site_id, one.check, one.result, "", one.since, one.seen_at, "")
                checks.append(self._shown(unmet, why or stale, {}))
                continue
            shown = "unknown" if why or stale else one.result
            counts[shown] = counts.get(shown, 0) + one.times
            if stale and not why:
                stale_at.append(one.seen_at)
        met = Met(counts, min(stale_at, default=None))
        return HostStanding(host, silent, tuple(checks), broken=gapped or host.forks > 0, met=met)

    def _standing_now(self, found: Iterable[RecordedException]) -> list[RecordedException]:
        """Those that count at this moment: one that has expired counts no more."""
        now = self._clock()
        return [one for one in found if one.stands(now)]

    @staticmethod
    def _shown(verdict: CheckVerdict, why: str, remediations: Mapping[str, Bundle]) -> CheckStanding:
        """A verdict as it may be shown: where there is a reason why it no longer counts, nothing green."""
        remediation = remediations.get(verdict.check)
        if why and verdict.result not in UNMET:
            return CheckStanding(verdict, "unknown", why, remediation)
        return CheckStanding(verdict, verdict.result, verdict.reason, remediation)


def _lacking(standing: HostStanding, unlogged: Mapping[str, int]) -> HostStanding:
    count = unlogged.get(standing.host.key_id, 0)
    return replace(standing, unlogged=count) if count else standing


def _excepted(standing: HostStanding, accepted: Sequence[RecordedException]) -> HostStanding:
    """A host whose failing checks show the exceptions that cover them. What could not be told is never covered, and nothing is of a
    host that is silent or revoked.
    """
    own = [one for one in accepted if one.site_id == standing.host.site_id] if accepted else []
    if not own or standing.silent or standing.host.revoked_at is not None:
        return standing
    checks = []
    for item in standing.checks:
        covers = next((one for one in own if one.about(standing.host.key_id, item.check)), None)
        fails = item.result == item.verdict.result == "fail"
        checks.append(item._replace(result="exception", exception=covers) if fails and covers is not None else item)
    return replace(standing, checks=tuple(checks))


def document_of(body: bytes) -> dict[str, Any]:
    """A parsed bundle; empty when its bytes are no JSON object."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def _not_found(what: str) -> Refusal:
    return Refusal(f"no such {what}", code="not_found", status=404)


def _verified(
    verifier: Verifier, bundle: Bundle, host: Host, body: bytes, sig: bytes, previous: Bundle | None
) -> Iterable[Point]:
    """Every point on its own, so that a reader sees all that is wrong."""
    yield _point("signature", lambda: verifier.signature(host.public_key, body, sig))
    document: dict[str, Any] = {}
    yield _point("canonical", lambda: document.update(verifier.parsed(body)))
    yield _point("schema", lambda: verifier.schema(document))
    yield _point("identity", lambda: verifier.identity(document, host))
    right = hashlib.sha256(body).hexdigest() == bundle.sha256
    yield Point("digest", right, "" if right else "wrong_digest")
    linked = document.get("prev") == (previous.sha256 if previous else NO_DIGEST)
    yield Point("chain", linked, "" if linked else "broken_link")


def _point(name: str, act: Callable[[], None]) -> Point:
    try:
        act()
    except Refusal as refusal:
        return Point(name, False, refusal.code)
    return Point(name, True)
