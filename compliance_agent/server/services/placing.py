"""Verified batches get their places: one transaction over several of them, that reads what is held, decides in memory, writes.

The rule is `chain.place`. What follows from each bundle is collected on the way: its row, its entry for the log, the verdicts that
it brings up to date, the last day of its baseline version, the gap that it closes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from operator import itemgetter
from typing import Any, NamedTuple

import structlog

from compliance_agent.core.retention import day_of
from compliance_agent.entries.leaf import bundle_leaf, fork_leaf
from compliance_agent.errors import Refusal
from compliance_agent.server.records import (
    CheckVerdict,
    Fork,
    Gap,
    Head,
    Held,
    Host,
    NewBundle,
    NewLeaf,
    Place,
    Transaction,
)
from compliance_agent.server.records.alarms import Cause
from compliance_agent.server.records.orders import Answer
from compliance_agent.server.services import chain, standing
from compliance_agent.server.services.alarms import Alarms

KEPT_FORKS = 100  # per host: enough to prove it, not enough to fill the disk

log = structlog.get_logger()


@dataclass(frozen=True)
class Stopped:
    """The first bundle of a batch that was not taken, and why."""

    index: int
    refusal: Refusal


class Checked(NamedTuple):
    """A bundle that verifies, before it has a place."""

    document: dict[str, Any]
    sha256: str
    body: bytes
    sig: bytes

    @property
    def link(self) -> chain.Link:
        """What decides its place."""
        return chain.Link(self.document["epoch"], self.document["seq"], self.document["prev"], self.sha256)

    def held(self, *, new: bool) -> Held:
        """It, once it is held."""
        return Held(self.document["bundle_id"], self.document["epoch"], self.document["seq"], self.sha256, new)


@dataclass(frozen=True)
class Submission:
    """One host's batch after verification: `items` up to the first that failed, which `stopped` names."""

    host: Host
    items: tuple[Checked, ...]
    stopped: Stopped | None


@dataclass
class Outcome:
    """What a transaction decided for one submission."""

    taken: list[Held] = field(default_factory=list)
    stopped: Stopped | None = None


class Placing:
    """One transaction over several submissions: read what is held, decide in memory, write what follows."""

    def __init__(self, tx: Transaction, now: datetime, alarms: Alarms | None = None) -> None:
        self._tx = tx
        self._alarms = alarms
        self._now = now
        self._hosts: dict[str, Host] = {}
        self._heads: dict[str, Head] = {}  # of chains that grow here; a host's record follows once, not for each bundle
        self._held: dict[tuple[str, int, int], str] = {}
        self._ids: set[tuple[str, str]] = set()
        self._logged: dict[tuple[str, int, int], bytes] = {}  # entries whose record a restored backup lacks
        self._verdicts: dict[str, dict[str, CheckVerdict]] = {}
        self._new: list[NewBundle] = []
        self._uses: dict[tuple[str, str, str], date] = {}  # the last day of each baseline version named here
        self._days: dict[str, date] = {}  # the day that counts, by the day that a bundle names
        self._leaves: list[NewLeaf] = []  # what the log is to say of it, in this order
        self._gapped: set[str] = set()  # hosts with an open gap
        self._answers: list[Answer] = []  # of hosts to orders
        self._advanced: set[str] = set()  # hosts whose expected bundle has come: their gaps are closed

    async def run(self, submissions: Sequence[Submission]) -> list[Outcome]:
        """The outcome of each submission."""
        sites = {submission.host.site_id for submission in submissions}
        keys = {submission.host.key_id for submission in submissions}
        self._hosts = await self._tx.hosts(sites, keys)
        self._logged = await self._tx.logged_ahead(sites, keys)
        self._gapped = await self._tx.gapped(sites, keys)
        ids = {(one.host.key_id, item.document["bundle_id"]) for one in submissions for item in one.items}
        for place in await self._tx.places(sites, ids):
            self._remember(place)
        before = await self._tx.verdicts(sites, keys)
        for verdict in before.values():
            self._verdicts.setdefault(verdict.key_id, {})[verdict.check] = verdict
        outcomes = [await self._place(submission) for submission in submissions]
        for host in self._hosts.values():
            await self._close_gaps(host)
        await self._tx.add_bundles(self._new)
        await self._tx.answer_orders(self._answers, self._now)
        if self._uses:
            await self._tx.note_baselines(self._uses)
        await self._tx.add_leaves(self._leaves, self._now)
        await self._tx.save_hosts(self._hosts.values())
        now_standing = {(key, check): v for key, checks in self._verdicts.items() for check, v in checks.items()}
        changed = [verdict for at, verdict in now_standing.items() if before.get(at) != verdict]
        await self._tx.save_verdicts(changed, before.keys(), [v for at, v in before.items() if at not in now_standing])
        return outcomes

    def _remember(self, place: Place) -> None:
        self._held[place.key_id, place.epoch, place.seq] = place.sha256
        self._ids.add((place.key_id, place.bundle_id))

    async def _place(self, submission: Submission) -> Outcome:
        host = self._hosts.get(submission.host.key_id)
        if host is None or host.revoked_at is not None:
            return Outcome(stopped=Stopped(0, Refusal("this host is revoked", code="host_revoked", status=403)))
        outcome = Outcome(stopped=submission.stopped)
        for index, item in enumerate(submission.items):
            host = self._hosts[host.key_id]
            refusal = await self._place_one(host, item, outcome)
            if refusal is not None:
                outcome.stopped = Stopped(index, refusal)
                break
        host = self._hosts[host.key_id]
        self._hosts[host.key_id] = host.seen(self._head(host), self._now)
        return outcome

    def _head(self, host: Host) -> Head | None:
        return self._heads.get(host.key_id, host.head)

    async def _place_one(self, host: Host, item: Checked, outcome: Outcome) -> Refusal | None:
        link = item.link
        match chain.place(link, self._head(host), await self._sha256_at(host, link)):
            case chain.Placed.KNOWN:
                outcome.taken.append(item.held(new=False))
                return None
            case chain.Placed.NEXT:
                if (host.key_id, item.document["bundle_id"]) in self._ids:
                    return Refusal(
                        "bundle: bundle_id stands in this chain already", code="bundle_id_reused", status=422
                    )
                logged = self._logged.get((host.key_id, link.epoch, link.seq))
                if logged is not None and logged != _leaf_of(_new_bundle(host, item, self._now)).leaf:
                    self._held[host.key_id, link.epoch, link.seq] = json.loads(logged)["bundle_sha256"]
                    return await self._fork(host, item)
                await self._take(host, item)
                outcome.taken.append(item.held(new=True))
                return None
            case chain.Placed.FORK:
                return await self._fork(host, item)
            case chain.Placed.GAP:
                return await self._gap(host, link)

    async def _sha256_at(self, host: Host, link: chain.Link) -> str | None:
        at, head = (host.key_id, link.epoch, link.seq), self._head(host)
        if at not in self._held and head is not None and at[1:] <= (head.epoch, head.seq):
            place = await self._tx.place_at(host.site_id, *at)
            if place is not None:
                self._remember(place)
        return self._held.get(at)

    async def _take(self, host: Host, item: Checked) -> None:
        new = _new_bundle(host, item, self._now)
        self._new.append(new)
        self._use(host, item)
        if (new.key_id, new.epoch, new.seq) not in self._logged:
            self._leaves.append(_leaf_of(new))
        self._held[host.key_id, new.epoch, new.seq] = new.sha256
        self._ids.add((host.key_id, new.bundle_id))
        standing.apply(self._verdicts.setdefault(host.key_id, {}), host, item.document, self._now)
        self._heads[host.key_id] = Head(new.epoch, new.seq, new.sha256)
        if new.kind == "heartbeat":
            made = min(datetime.fromisoformat(new.created_at), self._now)
            self._hosts[host.key_id] = replace(host, heartbeat_at=self._now, heartbeat_made_at=made)
        if new.kind == "order":
            said = (item.document["outcome"], item.document["error"], new.bundle_id)
            self._answers += [Answer(host.site_id, of["sha256"], *said) for of in item.document["artifacts"]]
        self._advanced.add(host.key_id)

    def _use(self, host: Host, item: Checked) -> None:
        if item.document["baseline"] is not None:
            use = (host.site_id, host.host_id, item.document["baseline"]["version"])
            said = item.document["created_at"]
            day = self._days.get(said[:10])  # times of a bundle are in UTC
            if day is None:
                day = self._days[said[:10]] = day_of(said, self._now)
            self._uses[use] = max(day, self._uses.get(use, day))

    async def _close_gaps(self, host: Host) -> None:
        if host.key_id in self._advanced & self._gapped:
            self._advanced.remove(host.key_id)
            await self._tx.close_gaps(host.site_id, host.key_id, self._now)

    async def _fork(self, host: Host, item: Checked) -> Refusal:
        link = item.link
        fork = Fork(host.key_id, host.site_id, link.epoch, link.seq, item.sha256, item.body, item.sig, self._now)
        if await self._tx.add_fork(fork, at_most=KEPT_FORKS):
            self._use(host, item)
            self._hosts[host.key_id] = replace(host, forks=host.forks + 1, contested_at=host.contested_at or self._now)
            held = self._held.get((host.key_id, link.epoch, link.seq))
            leaf = fork_leaf(host.key_id, link.epoch, link.seq, held, item.sha256, item.sig)
            self._leaves.append(NewLeaf(host.site_id, leaf, host.key_id))
            if self._alarms is not None:
                await self._alarms.begin(self._tx, Cause("fork", host.site_id, host.key_id))
            log.error("evidence.fork", key_id=host.key_id, site_id=host.site_id, epoch=link.epoch, seq=link.seq)
        return Refusal(
            f"bundle: epoch {link.epoch} seq {link.seq} contradicts the chain held here; both are kept",
            code="fork",
            status=409,
            expected=chain.expected(self._head(host)),
        )

    async def _gap(self, host: Host, link: chain.Link) -> Refusal:
        wanted = chain.expected(self._head(host))
        epoch, seq = int(wanted["epoch"]), int(wanted["seq"])
        await self._close_gaps(host)
        self._gapped.add(host.key_id)
        await self._tx.open_gap(Gap(host.key_id, host.site_id, epoch, seq, link.epoch, link.seq, self._now))
        log.warning("evidence.gap", key_id=host.key_id, site_id=host.site_id, epoch=link.epoch, seq=link.seq)
        return Refusal(
            f"bundle: expected epoch {epoch} seq {seq} after the digest given, found epoch {link.epoch} seq {link.seq}",
            code="seq_gap",
            status=409,
            expected=wanted,
        )


def _leaf_of(new: NewBundle) -> NewLeaf:
    leaf = bundle_leaf(new.key_id, new.epoch, new.seq, new.prev, new.sha256, new.sig)
    return NewLeaf(new.site_id, leaf, new.key_id, new.epoch, new.seq)


_said = itemgetter(*NewBundle._fields[: NewBundle._fields.index("key_id")])  # a bundle's own words


def _new_bundle(host: Host, item: Checked, now: datetime) -> NewBundle:
    ours = (host.key_id, host.site_id, item.sha256, item.body, item.sig, now)
    return NewBundle._make((*_said(item.document), *ours))
