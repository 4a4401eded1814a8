"""What services may ask of the rows of certain sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import date, datetime
from typing import Protocol

from compliance_agent.server.records.chains import (
    Bundle,
    BundleQuery,
    Changed,
    CheckVerdict,
    Fork,
    Gap,
    Host,
    Said,
    Site,
    Tally,
)
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.records.keeping import Hold, LoggedRecord, Minimum
from compliance_agent.server.records.logs import Backlog, Kept, Leaf, NewestHead, Shard
from compliance_agent.server.records.orders import OrderMark, OrderRow
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.records.people import Dates, Token
from compliance_agent.server.records.planning import PlanRule, Worked


class Keeping(Protocol):
    """What decides how long the records of a site are kept."""

    async def baselines(self, site_id: str) -> tuple[dict[tuple[str, str], date], set[tuple[str, str]]]:
        """The last day of each baseline version, by host label and version; and label and version of each host that is not revoked,
        as it checked in last.
        """
        ...

    async def holds(self, site_id: str) -> list[Hold]:
        """Every hold of a site, released ones included, in the order in which they were made."""
        ...

    async def minimum(self, site_id: str, year: int) -> Minimum | None:
        """The minimum index of a log; None while nothing of it was pruned."""
        ...

    async def logged_records(self, site_id: str, year: int, start: int, stop: int) -> list[LoggedRecord]:
        """The entries of a log with index `start` to `stop`, exclusive, in order, and their records."""
        ...


class SiteReader(Keeping, Protocol):
    """The rows of certain sites. What belongs to another site is not there.

    A handle with dates is an auditor's: records of other days are not there either, and of a record's neighbours outside them no
    more than place and digest. The log is whole all the same: it holds digests and signatures, and proves nothing in pieces.
    """

    @property
    def sites(self) -> frozenset[str]:
        """The sites this handle is bound to."""
        ...

    @property
    def dates(self) -> Dates | None:
        """The days whose records are there; None is all."""
        ...

    def only(self, site_id: str) -> SiteReader:
        """The same handle for one of its sites; for another site, a handle that sees nothing."""
        ...

    async def changed(self, since: datetime) -> list[Changed]:
        """What became unmet, was met again and was healed since then, of each site with any of it, counted."""
        ...

    async def changes(self, since: datetime, at_most: int) -> tuple[list[Changed], list[Bundle]]:
        """The same, and the changes of verdict and cures that held among them, at most 200, the newest first; none of a revoked
        host.
        """
        ...

    async def site_rows(self) -> list[Site]:
        """The sites themselves, by id."""
        ...

    async def orders(
        self, key_id: str | None = None, at_most: int = 100, states: Collection[str] | None = None
    ) -> list[OrderRow]:
        """Orders, newest first, of one host or of all, in any of these states."""
        ...

    async def plan_rules(self) -> list[PlanRule]:
        """What people promoted to a rule, by site, check and reason."""
        ...

    async def exceptions(self) -> list[RecordedException]:
        """Exceptions that people recorded, ended ones included, in the order in which they were made."""
        ...

    async def sites_and_exceptions(self) -> tuple[list[Site], list[RecordedException]]:
        """Both at once, for a page that has every site."""
        ...

    async def host_and_exceptions(self, key_id: str) -> tuple[Host | None, list[RecordedException]]:
        """One host, and the exceptions of its site."""
        ...

    async def worked(self, site_id: str, check: str, reason: str) -> Worked:
        """How often the cure of a finding has worked at one of these sites; nothing at another."""
        ...

    async def order(self, order_id: str) -> OrderRow | None:
        """One order."""
        ...

    async def order_marks(self, order_id: str) -> list[OrderMark]:
        """Who approved and signed it, in order."""
        ...

    async def packet_jobs(self, person_id: str | None = None, job_id: str | None = None) -> list[PacketJob]:
        """Packets that this person asked for, or anybody, the newest first; with dates, those of these days alone."""
        ...

    async def packet_part(self, job_id: str, name: str, number: int) -> bytes | None:
        """A piece of a file of a packet; None after the last one, and where the files are not in the database."""
        ...

    async def hosts(self, site_id: str | None = None) -> list[Host]:
        """Hosts of one site or of all, revoked ones included, by site and label."""
        ...

    async def host(self, key_id: str) -> Host | None:
        """One host."""
        ...

    async def tokens(self) -> list[Token]:
        """Enrolment tokens, newest first."""
        ...

    async def verdicts(self, key_id: str | None = None) -> list[CheckVerdict]:
        """Current verdicts of one host or of all, by host and check."""
        ...

    async def tallies(self, stale_before: datetime) -> list[Tally]:
        """The same of all, counted; what was said last before this time is stale."""
        ...

    async def cures(self, since: datetime, error: str) -> list[Bundle]:
        """Cures that succeeded since then, and of each check that fails the newest record of a cure, where it ended with this code;
        at most 200 of either.
        """
        ...

    async def remediations(self, key_id: str) -> dict[str, Bundle]:
        """The newest remediation bundle of each check of a host."""
        ...

    async def bundles(self, query: BundleQuery) -> list[Bundle]:
        """Bundles, newest arrival first."""
        ...

    async def said(self, days: Dates) -> list[Said]:
        """What each host said on each of these days, as its records say when they were made."""
        ...

    async def bodies(self, numbers: Collection[int]) -> dict[int, bytes]:
        """The bytes of these bundles by number; empty where they were destroyed."""
        ...

    async def hosts_of(self, key_ids: Collection[str]) -> dict[str, Host]:
        """These hosts by key id."""
        ...

    async def newest(self, key_id: str, kinds: Collection[str], at_most: int) -> list[Bundle]:
        """The newest bundles of a host, so many of each kind, newest first."""
        ...

    async def bundle(self, bundle_id: str, key_id: str | None = None) -> tuple[Bundle, bytes, bytes] | None:
        """One bundle with its bytes and its signature, as received; the first to arrive when two keys used the id."""
        ...

    async def neighbours(self, bundle: Bundle) -> tuple[Bundle | None, Bundle | None]:
        """The bundles before and after it in its key's chain, across epochs."""
        ...

    async def gapped(self) -> frozenset[str]:
        """Key ids of hosts with an open gap."""
        ...

    async def lacking(self) -> tuple[frozenset[str], dict[str, int]]:
        """What `gapped` and `unlogged` say, in one statement."""
        ...

    async def gaps(self, key_id: str) -> list[Gap]:
        """Gaps of a host, open ones first, at most 100."""
        ...

    async def forks(self, key_id: str) -> list[Fork]:
        """Contradicting bundles of a host, newest first, at most 100."""
        ...

    async def shards(self) -> list[Shard]:
        """Logs by site and year."""
        ...

    async def newest_heads(self) -> list[NewestHead]:
        """How far each log is published, without what it takes to grow it."""
        ...

    async def placed(self, site_id: str, year: int, start: int, stop: int) -> list[Leaf]:
        """As `leaves`, with what each is for."""
        ...

    async def cosigned(self, site_id: str, year: int) -> tuple[int, bytes] | None:
        """The newest checkpoint that witnesses cosigned, with their lines, and its size."""
        ...

    async def log_stops(self) -> dict[str, str]:
        """Why logs stand still at every replica, by site."""
        ...

    async def first_without_record(self, site_id: str, year: int) -> int | None:
        """Index of the first entry of a record that is not held (see `readopt`); None when all are."""
        ...

    async def any_pending(self) -> bool:
        """Whether an entry of these sites waits for an index."""
        ...

    async def backlog(self) -> Backlog:
        """Entries of these sites that wait for an index."""
        ...

    async def unlogged(self) -> dict[str, int]:
        """How many bundles of each host no published checkpoint covers yet; hosts with none are left out."""
        ...

    async def leaves(self, site_id: str, year: int, start: int, stop: int) -> list[bytes]:
        """The entries with index `start` to `stop`, exclusive, in order."""
        ...

    async def leaves_of(self, key_id: str, bundle_ids: Collection[str]) -> list[Leaf]:
        """The integrated entries of these bundles of a host."""
        ...

    async def signed_places(self, site_id: str, after: int, limit: int) -> list[tuple[int, bytes, bytes | None, bool]]:
        """For each bundle by arrival: its number, the leaf it must have, the leaf it has, and whether that has an index."""
        ...

    async def emptied_early(self, site_id: str) -> list[int]:
        """Numbers of the bundles whose bytes are gone although no published minimum index covers them."""
        ...

    async def kept(self, site_id: str, after: tuple[str, int], limit: int) -> list[Kept]:
        """Bundles with their bytes and places in the log, by `created_at` and number, from the one after `after` on."""
        ...

    async def kept_on(self, site_id: str, wanted: Mapping[date, Collection[str]]) -> list[Kept]:
        """As `kept`, the bundles of these keys that are about these days, and some of the days after, in any order."""
        ...

    async def spoken(self, key_ids: Collection[str], days: Dates) -> set[tuple[str, date]]:
        """On which of these days these keys recorded anything."""
        ...

    async def kept_of(self, site_id: str, numbers: Collection[int]) -> list[Kept]:
        """As `kept`, the bundles of these numbers, in any order."""
        ...
