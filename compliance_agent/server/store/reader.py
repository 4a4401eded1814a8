"""Reading what belongs to clinics: every statement here names the sites it may see, and the dates where the handle has any."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import date, datetime, timedelta
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Executable,
    Select,
    and_,
    case,
    func,
    literal,
    not_,
    or_,
    select,
    true,
    tuple_,
    union_all,
)
from sqlalchemy.engine import RowMapping

from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.server.records import (
    Backlog,
    Bundle,
    BundleQuery,
    Changed,
    CheckVerdict,
    Dates,
    Fork,
    Gap,
    Host,
    Kept,
    Leaf,
    NewestHead,
    Said,
    Shard,
    Site,
    Tally,
    Token,
)
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.records.orders import OrderMark, OrderRow
from compliance_agent.server.records.packets import PacketJob
from compliance_agent.server.records.planning import PlanRule, Worked
from compliance_agent.server.store import planning, rows, tables, turning
from compliance_agent.server.store.database import Database
from compliance_agent.server.store.exceptions import exception_of
from compliance_agent.server.store.keeping import KeepingRows
from compliance_agent.server.store.orders import mark_of, order_of
from compliance_agent.server.store.packets import job_of

_bundles = tables.bundles.c
MOST_ROWS = 200
LONGEST = timedelta(days=2)  # from the start of what a record is about until the record was made
MOST_SITE_DAYS = 200  # sites times days whose records are looked through by an index


class BoundReader(KeepingRows):
    """`records.SiteReader` over connections that can only read."""

    def __init__(self, database: Database, sites: Iterable[str], dates: Dates | None = None) -> None:
        self._database = database
        self._sites = frozenset(sites)
        self._dates = dates

    @property
    def sites(self) -> frozenset[str]:
        """The sites this handle is bound to."""
        return self._sites

    @property
    def dates(self) -> Dates | None:
        """The days whose records are there."""
        return self._dates

    def only(self, site_id: str) -> BoundReader:
        """The same for one site; nothing for a site that is not among ours."""
        return BoundReader(self._database, self._sites & {site_id}, self._dates)

    def _dated(self, column: Column[Any]) -> tuple[ColumnElement[bool], ...]:
        """The predicate for a column of times; none for a handle without dates."""
        if self._dates is None:
            return ()
        return (column >= rows.text(self._dates.start), column < rows.text(self._dates.stop))

    async def changed(self, since: datetime) -> list[Changed]:
        made, seen = self._dated(_bundles.created_at), self._dated(tables.verdicts.c.seen_at)
        query = turning.moved(self._sites, since, made, seen, self._lived())
        return [Changed(*row.values()) for row in await self._all(query)]

    async def changes(self, since: datetime, at_most: int) -> tuple[list[Changed], list[Bundle]]:
        made, seen = self._dated(_bundles.created_at), self._dated(tables.verdicts.c.seen_at)
        hosts = (self._lived(), self._live())
        query = turning.moved_and_turns(self._sites, since, min(at_most, MOST_ROWS), made, seen, *hosts)
        found = await self._all(query)
        counts = [Changed(*(row[name] for name in Changed._fields)) for row in found if row["site_id"]]
        numbers = [row["number"] for row in found if not row["site_id"]]
        listed = await self._all(turning.numbered(self._sites, numbers, made))
        return counts, [rows.bundle(row) for row in listed]

    async def site_rows(self) -> list[Site]:
        query = select(tables.sites).where(tables.sites.c.site_id.in_(self._sites)).order_by(tables.sites.c.site_id)
        return [rows.site(row) for row in await self._all(query)]

    async def orders(
        self, key_id: str | None = None, at_most: int = 100, states: Collection[str] | None = None
    ) -> list[OrderRow]:
        c = tables.orders.c
        query = self._orders().order_by(c.drafted_at.desc(), c.order_id).limit(min(at_most, MOST_ROWS))
        if key_id is not None:
            query = query.where(c.key_id == key_id)
        if states is not None:
            query = query.where(c.state.in_(states))
        return [order_of(row) for row in await self._all(query)]

    async def plan_rules(self) -> list[PlanRule]:
        query = planning.rules(self._sites).where(*self._dated(tables.plan_rules.c.promoted_at))
        return [planning.rule_of(row) for row in await self._all(query)]

    async def exceptions(self) -> list[RecordedException]:
        c = tables.exceptions.c
        query = select(tables.exceptions).where(c.site_id.in_(self._sites), *self._stood())
        found = await self._all(query.order_by(c.created_at, c.exception_id))
        return [self._ended(exception_of(row)) for row in found]

    def _stood(self) -> tuple[ColumnElement[bool], ...]:
        """Exceptions that stood at some time of the dates, as hosts are there that lived then."""
        if self._dates is None:
            return ()
        start, stop, x = rows.text(self._dates.start), rows.text(self._dates.stop), tables.exceptions.c
        return (x.created_at < stop, x.expires_at > start, or_(x.withdrawn_at.is_(None), x.withdrawn_at >= start))

    def _ended(self, made: RecordedException) -> RecordedException:
        """One as far as the dates go: what was done about it afterwards is no part of them."""
        if self._dates is None:
            return made
        if made.withdrawn_at is not None and made.withdrawn_at >= self._dates.stop:
            made = replace(made, withdrawn_at=None, withdrawn_by=None)
        if made.seconded_at is not None and made.seconded_at >= self._dates.stop:
            made = replace(made, seconded_at=None, seconded_by=None, seconded_by_id=None)
        return made

    async def sites_and_exceptions(self) -> tuple[list[Site], list[RecordedException]]:
        s, x = tables.sites, tables.exceptions.c
        theirs = and_(x.site_id == s.c.site_id, *self._stood())
        columns = [column.label(f"x_{column.name}") for column in x]
        query = select(s, *columns).outerjoin(tables.exceptions, theirs).where(s.c.site_id.in_(self._sites))
        found = await self._all(query.order_by(s.c.site_id, x.created_at, x.exception_id))
        sites = {row["site_id"]: rows.site(row) for row in found}
        own = [{column.name: row[f"x_{column.name}"] for column in x} for row in found if row["x_exception_id"]]
        return list(sites.values()), [self._ended(exception_of(row)) for row in own]

    async def worked(self, site_id: str, check: str, reason: str) -> Worked:
        if site_id not in self._sites:
            return Worked()
        cures = planning.cures(site_id, check, reason).where(*self._dated(_bundles.created_at))
        ordered = planning.ordered(site_id, check).where(*self._dated(tables.orders.c.drafted_at))
        return planning.worked((await self._all(cures))[0], (await self._all(ordered))[0])

    async def order(self, order_id: str) -> OrderRow | None:
        found = await self._all(self._orders().where(tables.orders.c.order_id == order_id))
        return order_of(found[0]) if found else None

    async def order_marks(self, order_id: str) -> list[OrderMark]:
        c = tables.order_marks.c
        query = select(tables.order_marks).where(c.site_id.in_(self._sites), c.order_id == order_id, *self._dated(c.at))
        return [mark_of(row) for row in await self._all(query.order_by(c.at, c.what, c.who))]

    def _orders(self) -> Select[Any]:
        c = tables.orders.c
        return select(tables.orders).where(c.site_id.in_(self._sites), *self._dated(c.drafted_at))

    async def packet_jobs(self, person_id: str | None = None, job_id: str | None = None) -> list[PacketJob]:
        c = tables.packet_jobs.c
        query = select(tables.packet_jobs).where(c.site_id.in_(self._sites))
        if person_id is not None:
            query = query.where(c.person_id == person_id)
        if self._dates is not None:
            query = query.where(c.first >= self._dates.first.isoformat(), c.last < self._dates.stop.date().isoformat())
        if job_id is not None:
            query = query.where(c.job_id == job_id)
        return [job_of(row) for row in await self._all(query.order_by(c.asked_at.desc(), c.job_id))]

    async def packet_part(self, job_id: str, name: str, number: int) -> bytes | None:
        c = tables.packet_parts.c
        query = select(c.content).where(c.site_id.in_(self._sites), c.job_id == job_id, c.name == name)
        found = await self._all(query.where(c.number == number))
        return bytes(found[0]["content"]) if found else None

    async def hosts(self, site_id: str | None = None) -> list[Host]:
        query = self._hosts().order_by(tables.hosts.c.site_id, tables.hosts.c.host_id, tables.hosts.c.enrolled_at)
        if site_id is not None:
            query = query.where(tables.hosts.c.site_id == site_id)
        return [self._life(rows.host(row)) for row in await self._all(query)]

    async def host(self, key_id: str) -> Host | None:
        found = await self._all(self._hosts().where(tables.hosts.c.key_id == key_id))
        return self._life(rows.host(found[0])) if found else None

    async def host_and_exceptions(self, key_id: str) -> tuple[Host | None, list[RecordedException]]:
        x = tables.exceptions.c
        theirs = and_(x.site_id == tables.hosts.c.site_id, *self._stood())
        query = self._hosts().outerjoin(tables.exceptions, theirs).where(tables.hosts.c.key_id == key_id)
        query = query.add_columns(*(column.label(f"x_{column.name}") for column in x))
        found = await self._all(query.order_by(x.created_at, x.exception_id))
        own = [{column.name: row[f"x_{column.name}"] for column in x} for row in found if row["x_exception_id"]]
        return self._life(rows.host(found[0])) if found else None, [self._ended(exception_of(row)) for row in own]

    def _hosts(self) -> Select[Any]:
        return (
            select(tables.hosts, tables.sites.c.client_id)
            .join(tables.sites, tables.sites.c.site_id == tables.hosts.c.site_id)
            .where(tables.hosts.c.site_id.in_(self._sites), *self._lived())
        )

    def _lived(self) -> tuple[ColumnElement[bool], ...]:
        """Hosts that were enrolled at some time of the dates."""
        if self._dates is None:
            return ()
        start, stop, c = rows.text(self._dates.start), rows.text(self._dates.stop), tables.hosts.c
        return (c.enrolled_at < stop, or_(c.revoked_at.is_(None), c.revoked_at >= start))

    def _live(self) -> tuple[ColumnElement[bool], ...]:
        """Hosts that have not given way to another key and, as far as the dates go, are not revoked (`_life`)."""
        c = tables.hosts.c
        if self._dates is None:
            return (c.rotated_to.is_(None), c.revoked_at.is_(None))
        seen, over = (
            func.coalesce(and_(true(), *self._dated(column)), literal(value=False))
            for column in (c.last_seen_at, c.revoked_at)
        )
        return (c.rotated_to.is_(None), or_(c.revoked_at.is_(None), not_(or_(seen, over))), *self._lived())

    def _life(self, host: Host) -> Host:
        """A host as far as the dates go: what it is now is no part of days that are over."""
        if self._dates is None or self._dates.hold(host.last_seen_at):
            return host
        return replace(
            host,
            revoked_at=host.revoked_at if self._dates.hold(host.revoked_at) else None,
            head=None,
            last_seen_at=None,
            heartbeat_at=None,
            heartbeat_made_at=None,
            agent_version="",
            baseline_version="",
            baseline_sha256="",
            pending=None,
            forks=0,
        )

    async def tokens(self) -> list[Token]:
        table, sites = tables.enrol_tokens, tables.sites
        query = select(table, sites.c.client_id).join(sites, sites.c.site_id == table.c.site_id)
        query = query.where(table.c.site_id.in_(self._sites), *self._dated(table.c.created_at))
        query = query.order_by(table.c.created_at.desc(), table.c.hash)
        return [rows.token(row) for row in await self._all(query)]

    async def verdicts(self, key_id: str | None = None) -> list[CheckVerdict]:
        table = tables.verdicts
        query = select(table).where(table.c.site_id.in_(self._sites), *self._dated(table.c.seen_at))
        query = query.order_by(table.c.key_id, table.c.check)
        if key_id is not None:
            query = query.where(table.c.key_id == key_id)
        return [rows.verdict(row) for row in await self._all(query)]

    async def tallies(self, stale_before: datetime) -> list[Tally]:
        c = tables.verdicts.c
        alone = case((c.result.in_(("fail", "unknown")), c.check), else_="").label("alone")
        alike = (c.key_id, c.site_id, alone, c.result, (c.seen_at < rows.text(stale_before)).label("stale"))
        found = (func.count().label("count"), func.min(c.since).label("first"), func.min(c.seen_at).label("seen"))
        query = select(*alike, *found).where(c.site_id.in_(self._sites), *self._dated(c.seen_at)).group_by(*alike)
        return [rows.tally(row) for row in await self._all(query)]

    async def cures(self, since: datetime, error: str) -> list[Bundle]:
        v, mine = tables.verdicts.c, tables.site_of(tables.bundles).in_(self._sites)
        # Check by check: joined, SQLite begins with every cure that there ever was.
        of_check = (
            _bundles.key_id == v.key_id,
            _bundles.check == v.check,
            tables.CURE,
            *self._dated(_bundles.created_at),
        )
        last = select(func.max(_bundles.number)).where(*of_check).correlate(tables.verdicts).scalar_subquery()
        newest = select(last).where(v.site_id.in_(self._sites), v.result == "fail")
        done = BundleQuery(kind="remediation", outcome="success", since=since)
        healed = select(_bundles.number).where(*self._narrowed(done))
        whole = select(*rows.BUNDLE_COLUMNS).where(mine, *self._dated(_bundles.created_at))
        whole = whole.order_by(_bundles.number.desc()).limit(MOST_ROWS)
        parts = (
            whole.where(_bundles.number.in_(healed)).subquery(),
            whole.where(_bundles.number.in_(newest), _bundles.error == error).subquery(),
        )
        return [rows.bundle(row) for row in await self._all(union_all(*(select(part) for part in parts)))]

    async def remediations(self, key_id: str) -> dict[str, Bundle]:
        newest = (
            select(func.max(_bundles.number))
            .where(
                tables.site_of(tables.bundles).in_(self._sites),
                _bundles.key_id == key_id,
                _bundles.kind == "remediation",
                _bundles.check.is_not(None),
                *self._dated(_bundles.created_at),
            )
            .group_by(_bundles.check)
        )
        whole = select(*rows.BUNDLE_COLUMNS).where(
            tables.site_of(tables.bundles).in_(self._sites), *self._dated(_bundles.created_at)
        )
        found = await self._all(whole.where(_bundles.number.in_(newest)))
        return {row["check"]: rows.bundle(row) for row in found}

    def _bundles(self) -> Select[Any]:
        return select(*rows.BUNDLE_COLUMNS).where(_bundles.site_id.in_(self._sites))

    async def bundles(self, query: BundleQuery) -> list[Bundle]:
        # One host's records arrive in the order of its chain, which has an index.
        newest = (_bundles.number.desc(),) if query.key_id is None else (_bundles.epoch.desc(), _bundles.seq.desc())
        wanted = [tables.site_of(tables.bundles).in_(self._sites), *self._wanted(query)]
        narrowed = self._narrowed(query)
        if narrowed:  # what an index covers decides which rows are read at all
            wanted.append(_bundles.number.in_(select(_bundles.number).where(*narrowed)))
        statement = select(*rows.BUNDLE_COLUMNS).where(*wanted, *self._dated(_bundles.created_at))
        if query.since is not None:
            statement = statement.where(_bundles.received_at >= rows.text(query.since))
        statement = statement.order_by(*newest).limit(min(max(query.limit, 1), MOST_ROWS))
        return [rows.bundle(row) for row in await self._all(statement)]

    def _wanted(self, query: BundleQuery) -> list[ColumnElement[bool]]:
        names = ("key_id", "bundle_id", "check", "kind", "result", "outcome")
        wanted = [_bundles[name] == getattr(query, name) for name in names if getattr(query, name) is not None]
        if _no_heartbeats(query):
            wanted.append(tables.NO_HEARTBEAT)
        if query.checks is not None:
            wanted.append(_bundles.check.in_(query.checks))
        if query.days is not None:
            wanted += _made_on(query.days)
        if query.before is not None:
            wanted.append(_bundles.number < query.before)
        return wanted

    def _narrowed(self, query: BundleQuery) -> list[ColumnElement[bool]]:
        """Conditions that one index covers and that leave few rows; none where going through all from the newest on is quicker."""
        before = [_bundles.number < query.before] if query.before is not None else []
        if query.key_id is not None:
            return []
        if query.label is not None or query.bundle_id is not None:
            h = tables.hosts.c
            named = select(h.key_id).where(h.site_id.in_(self._sites))
            named = named if query.label is None else named.where(h.host_id == query.label)
            one = [_bundles.bundle_id == query.bundle_id] if query.bundle_id is not None else before
            return [_bundles.key_id.in_(named), *one]
        ours, days = _bundles.site_id.in_(self._sites), query.days
        if _no_heartbeats(query):
            # The day is compared by an expression, so that the index of days does not look better than the one that has it all.
            made = _made_on(days, _bundles.created_at.concat("")) if days is not None else ()
            lately = [_bundles.received_at >= rows.text(query.since)] if query.since is not None else []
            return [ours, *self._wanted(replace(query, days=None)), *made, *lately]
        if days is not None and ((days.last - days.first).days + 1) * len(self._sites) <= MOST_SITE_DAYS:
            return [ours, *_made_on(days), *before]
        return []

    async def said(self, days: Dates) -> list[Said]:
        day, last = func.substr(_bundles.created_at, 1, 10), func.max(_bundles.number)
        alike = (_bundles.key_id, day, _bundles.kind, _bundles.check, _bundles.result, _bundles.outcome)
        query = select(*alike[:1], day.label("day"), *alike[2:], func.count().label("times"), last.label("last"))
        ours = (_bundles.site_id.in_(self._sites), *_made_on(days), *self._dated(_bundles.created_at))
        return [Said(*row.values()) for row in await self._all(query.where(*ours).group_by(*alike))]

    async def bodies(self, numbers: Collection[int]) -> dict[int, bytes]:
        query = select(_bundles.number, _bundles.body).where(tables.site_of(tables.bundles).in_(self._sites))
        wanted = (_bundles.number.in_(numbers), *self._dated(_bundles.created_at))
        return {row["number"]: row["body"] for row in await self._all(query.where(*wanted))}

    async def hosts_of(self, key_ids: Collection[str]) -> dict[str, Host]:
        found = await self._all(self._hosts().where(tables.hosts.c.key_id.in_(key_ids)))
        return {row["key_id"]: self._life(rows.host(row)) for row in found}

    async def newest(self, key_id: str, kinds: Collection[str], at_most: int) -> list[Bundle]:
        parts = [
            self._bundles()
            .where(_bundles.key_id == key_id, _bundles.kind == kind, *self._dated(_bundles.created_at))
            .order_by(_bundles.epoch.desc(), _bundles.seq.desc())
            .limit(min(at_most, MOST_ROWS))
            .subquery()
            for kind in kinds
        ]
        found = [rows.bundle(row) for row in await self._all(union_all(*(select(part) for part in parts)))]
        return sorted(found, key=lambda bundle: (bundle.epoch, bundle.seq), reverse=True)

    async def bundle(self, bundle_id: str, key_id: str | None = None) -> tuple[Bundle, bytes, bytes] | None:
        # Ids are found host by host: an index over all of them would be written in another place with each record.
        hosts = select(tables.hosts.c.key_id).where(tables.hosts.c.site_id.in_(self._sites))
        query = (
            select(tables.bundles)
            .where(tables.site_of(tables.bundles).in_(self._sites), _bundles.bundle_id == bundle_id)
            .where(_bundles.key_id.in_(hosts) if key_id is None else _bundles.key_id == key_id)
            .where(*self._dated(_bundles.created_at))
            .order_by(_bundles.number)
            .limit(1)
        )
        found = await self._all(query)
        return (rows.bundle(found[0]), found[0]["body"], found[0]["sig"]) if found else None

    async def neighbours(self, bundle: Bundle) -> tuple[Bundle | None, Bundle | None]:
        chain = self._bundles().where(_bundles.key_id == bundle.key_id).limit(1)
        before = or_(_bundles.epoch < bundle.epoch, and_(_bundles.epoch == bundle.epoch, _bundles.seq < bundle.seq))
        after = or_(_bundles.epoch > bundle.epoch, and_(_bundles.epoch == bundle.epoch, _bundles.seq > bundle.seq))
        parts = (
            chain.where(before).order_by(_bundles.epoch.desc(), _bundles.seq.desc()).subquery(),
            chain.where(after).order_by(_bundles.epoch, _bundles.seq).subquery(),
        )
        found = [rows.bundle(row) for row in await self._all(union_all(*(select(part) for part in parts)))]
        place = (bundle.epoch, bundle.seq)
        previous = next((one for one in found if (one.epoch, one.seq) < place), None)
        following = next((one for one in found if (one.epoch, one.seq) > place), None)
        return self._neighbour(previous), self._neighbour(following)

    def _neighbour(self, bundle: Bundle | None) -> Bundle | None:
        """The record, or no more than its place and digest where it is outside the dates: the chain goes on there."""
        if bundle is None or self._dates is None or self._dates.hold(rows.when(bundle.created_at)):
            return bundle
        unsaid = replace(bundle, number=0, bundle_id="", kind="", created_at="")
        return replace(unsaid, check=None, result=None, reason=None, outcome=None, error=None)

    async def gapped(self) -> frozenset[str]:
        return frozenset(row["key_id"] for row in await self._all(self._gapped(tables.gaps.c.key_id)))

    def _gapped(self, *wanted: ColumnElement[Any]) -> Select[Any]:
        c = tables.gaps.c
        return (
            select(*wanted).distinct().where(c.site_id.in_(self._sites), c.closed_at.is_(None), *self._dated(c.seen_at))
        )

    async def lacking(self) -> tuple[frozenset[str], dict[str, int]]:
        gapped = self._gapped(
            tables.gaps.c.key_id, literal(0).label("count")
        )  # a host with something unlogged has more
        found = await self._all(union_all(gapped, *self._unlogged()))
        return frozenset(row["key_id"] for row in found if not row["count"]), _counted(found)

    async def gaps(self, key_id: str) -> list[Gap]:
        table = tables.gaps
        query = (
            select(table)
            .where(table.c.site_id.in_(self._sites), table.c.key_id == key_id, *self._dated(table.c.seen_at))
            .order_by(table.c.closed_at.is_not(None), table.c.number.desc())
            .limit(100)
        )
        return [rows.gap(row) for row in await self._all(query)]

    async def forks(self, key_id: str) -> list[Fork]:
        table = tables.forks
        query = (
            select(table)
            .where(table.c.site_id.in_(self._sites), table.c.key_id == key_id, *self._dated(table.c.received_at))
            .order_by(table.c.number.desc())
            .limit(100)
        )
        return [rows.fork(row) for row in await self._all(query)]

    async def shards(self) -> list[Shard]:
        c = tables.log_shards.c
        query = select(tables.log_shards).where(c.site_id.in_(self._sites)).order_by(c.site_id, c.year)
        return [rows.shard(row) for row in await self._all(query)]

    async def newest_heads(self) -> list[NewestHead]:
        c, more = tables.log_shards.c, tables.log_cosigned.c
        same = and_(more.site_id == c.site_id, more.year == c.year)
        query = select(
            c.site_id,
            c.year,
            c.checkpoint_size.label("size"),
            func.coalesce(more.size, 0).label("cosigned_size"),
            func.coalesce(func.length(more.note), 0).label("cosigned_bytes"),
        ).select_from(tables.log_shards.outerjoin(tables.log_cosigned, same))
        found = await self._all(query.where(c.site_id.in_(self._sites)).order_by(c.site_id, c.year))
        return [NewestHead(*(row[name] for name in NewestHead._fields)) for row in found]

    async def placed(self, site_id: str, year: int, start: int, stop: int) -> list[Leaf]:
        c = tables.log_entries.c
        within = (c.leaf_index >= start, c.leaf_index < stop)
        query = select(tables.log_entries).where(c.site_id.in_(self._sites & {site_id}), c.year == year, *within)
        return [
            Leaf(*(row[name] for name in ("site_id", "year", "leaf_index", "leaf", "key_id", "epoch", "seq")))
            for row in await self._all(query.order_by(c.leaf_index))
        ]

    async def cosigned(self, site_id: str, year: int) -> tuple[int, bytes] | None:
        c = tables.log_cosigned.c
        found = await self._all(
            select(tables.log_cosigned).where(c.site_id.in_(self._sites & {site_id}), c.year == year)
        )
        return (found[0]["size"], found[0]["note"]) if found else None

    async def log_stops(self) -> dict[str, str]:
        c = tables.log_stops.c
        query = select(c.site_id, c.code).where(c.site_id.in_(self._sites)).order_by(c.site_id)
        return {row["site_id"]: row["code"] for row in await self._all(query)}

    async def first_without_record(self, site_id: str, year: int) -> int | None:
        e, b = tables.log_entries.c, tables.bundles.c
        record = select(b.number).where(b.key_id == e.key_id, b.epoch == e.epoch, b.seq == e.seq).exists()
        ours = (e.site_id.in_(self._sites & {site_id}), e.year == year, e.seq.is_not(None))
        [found] = await self._all(select(func.min(e.leaf_index).label("first")).where(*ours, ~record))
        return None if found["first"] is None else int(found["first"])

    async def any_pending(self) -> bool:
        c = tables.log_entries.c
        query = select(c.number).where(c.site_id.in_(self._sites), c.leaf_index.is_(None))
        return bool(
            await self._all(query.order_by(c.site_id, c.number).limit(1))
        )  # the order of the index of what waits

    async def backlog(self) -> Backlog:
        c = tables.log_entries.c
        # Every number is above 0: said so that the index of what waits is taken, and not all entries are read.
        pending = (c.site_id.in_(self._sites), c.leaf_index.is_(None), c.number > 0)
        [found] = await self._all(
            select(func.count().label("count"), func.min(c.number).label("first")).where(*pending)
        )
        at = select(c.decided_at).where(c.site_id.in_(self._sites), c.number == found["first"])
        oldest = await self._all(at) if found["count"] else []
        return Backlog(found["count"], rows.when(oldest[0]["decided_at"]) if oldest else None)

    async def unlogged(self) -> dict[str, int]:
        return _counted(await self._all(union_all(*self._unlogged())))

    def _unlogged(self) -> tuple[Select[Any], Select[Any]]:
        """Two parts, so that each uses its index."""
        c, shard = tables.log_entries.c, tables.log_shards.c
        count = func.count().label("count")
        ours = (c.site_id.in_(self._sites), c.seq.is_not(None))
        pending = select(c.key_id, count).where(*ours, c.leaf_index.is_(None)).group_by(c.key_id)
        # Said so that SQLite begins with the few logs, not with every entry of them.
        same_log = and_(c.site_id == shard.site_id.concat(""), c.year == shard.year + 0)
        unpublished = (
            select(c.key_id, count)
            .select_from(tables.log_shards.join(tables.log_entries, same_log))
            .where(shard.site_id.in_(self._sites), c.seq.is_not(None), c.leaf_index >= shard.checkpoint_size)
            .group_by(c.key_id)
        )
        return pending, unpublished

    async def leaves(self, site_id: str, year: int, start: int, stop: int) -> list[bytes]:
        c = tables.log_entries.c
        within = (c.leaf_index >= start, c.leaf_index < stop)
        query = select(c.leaf).where(c.site_id.in_(self._sites & {site_id}), c.year == year, *within)
        return [row["leaf"] for row in await self._all(query.order_by(c.leaf_index))]

    async def leaves_of(self, key_id: str, bundle_ids: Collection[str]) -> list[Leaf]:
        table = tables.log_entries
        same_place = (
            _bundles.key_id == table.c.key_id,
            _bundles.epoch == table.c.epoch,
            _bundles.seq == table.c.seq,
        )
        query = (
            select(table, _bundles.bundle_id)
            .join(tables.bundles, and_(*same_place))
            .where(
                tables.site_of(tables.bundles).in_(self._sites),
                _bundles.key_id == key_id,
                _bundles.bundle_id.in_(bundle_ids),
                table.c.leaf_index.is_not(None),
                *self._dated(_bundles.created_at),
            )
        )
        return [rows.leaf(row) for row in await self._all(query)]

    async def signed_places(self, site_id: str, after: int, limit: int) -> list[tuple[int, bytes, bytes | None, bool]]:
        b, e = tables.bundles.c, tables.log_entries.c
        same_place = and_(b.key_id == e.key_id, b.epoch == e.epoch, b.seq == e.seq)
        query = (
            select(b.number, b.key_id, b.epoch, b.seq, b.prev, b.sha256, b.body, b.sig, e.leaf, e.leaf_index)
            .select_from(tables.bundles.outerjoin(tables.log_entries, same_place))
            .where(b.site_id.in_(self._sites & {site_id}), b.number > after, *self._dated(b.created_at))
            .order_by(b.number)
            .limit(limit)
        )
        return [
            (
                row["number"],
                bundle_leaf(row["key_id"], row["epoch"], row["seq"], row["prev"], _digest(row), row["sig"]),
                row["leaf"],
                row["leaf_index"] is not None,
            )
            for row in await self._all(query)
        ]

    async def emptied_early(self, site_id: str) -> list[int]:
        b, e, p = tables.bundles.c, tables.log_entries.c, tables.pruned_logs.c
        same_place = and_(b.key_id == e.key_id, b.epoch == e.epoch, b.seq == e.seq)
        same_log = and_(p.site_id == e.site_id, p.year == e.year)
        entries = tables.bundles.outerjoin(tables.log_entries, same_place).outerjoin(tables.pruned_logs, same_log)
        below = and_(e.leaf_index.is_not(None), p.minimum.is_not(None), e.leaf_index < p.minimum)
        query = (
            select(b.number)
            .select_from(entries)
            .where(b.site_id.in_(self._sites & {site_id}), *self._dated(b.created_at))
        )
        return [row["number"] for row in await self._all(query.where(func.length(b.body) == 0, not_(below)))]

    async def kept(self, site_id: str, after: tuple[str, int], limit: int) -> list[Kept]:
        b = tables.bundles.c
        rest = (
            tuple_(b.created_at, b.number) > after
        )  # in the order of an index: by number, all of a site would be sorted each time
        query = self._placed().where(b.site_id.in_(self._mine(site_id)), rest).order_by(b.created_at, b.number)
        return await self._kept(query.limit(limit))

    async def kept_of(self, site_id: str, numbers: Collection[int]) -> list[Kept]:
        ours = tables.site_of(tables.bundles).in_(self._mine(site_id))  # by number, not by going through all of a site
        return await self._kept(self._placed().where(ours, tables.bundles.c.number.in_(numbers)))

    async def kept_on(self, site_id: str, wanted: Mapping[date, Collection[str]]) -> list[Kept]:
        parts = [self._about(site_id, day, keys) for day, keys in sorted(wanted.items())]
        if not parts:
            parts = [self._about(site_id, date(1970, 1, 1), ())]
        ours = tables.site_of(tables.bundles).in_(self._mine(site_id))
        return await self._kept(self._placed().where(ours, tables.bundles.c.number.in_(union_all(*parts))))

    def _about(self, site_id: str, day: date, keys: Collection[str]) -> Select[Any]:
        """Numbers of the bundles of these keys that may be about a day: a heartbeat is made at once, a cure may take long."""
        b, made = tables.bundles.c, Dates(day, day)
        soon, late = rows.text(made.stop + timedelta(hours=1)), rows.text(made.stop + LONGEST)
        within = (b.created_at >= rows.text(made.start), b.created_at < late)
        beat = or_(b.created_at < soon, b.kind != "heartbeat")
        return select(b.number).where(b.site_id.in_(self._mine(site_id)), *within, b.key_id.in_(keys), beat)

    async def spoken(self, key_ids: Collection[str], days: Dates) -> set[tuple[str, date]]:
        day = func.substr(_bundles.created_at, 1, 10).label("day")
        ours = (_bundles.site_id.in_(self._sites), *_made_on(days), *self._dated(_bundles.created_at))
        found = await self._all(select(_bundles.key_id, day).distinct().where(*ours, _bundles.key_id.in_(key_ids)))
        return {(row["key_id"], date.fromisoformat(row["day"])) for row in found}

    def _placed(self) -> Select[Any]:
        """Bundles with their places in the log; the sites are the caller's to name."""
        b, e = tables.bundles.c, tables.log_entries.c
        same_place = and_(b.key_id == e.key_id, b.epoch == e.epoch, b.seq == e.seq)
        return (
            select(b.number, b.key_id, b.epoch, b.seq, b.body, b.sig, e.year, e.leaf_index.label("index"), b.created_at)
            .select_from(tables.bundles.outerjoin(tables.log_entries, same_place))
            .where(*self._dated(b.created_at))
        )

    async def _kept(self, query: Executable) -> list[Kept]:
        return [Kept(*row.values()) for row in await self._all(query)]  # `_placed` names them in this order

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        return await self._database.all(query, values, sites=self._sites)

    def _mine(self, site_id: str) -> Collection[str]:
        return self._sites & {site_id}


def _made_on(days: Dates, at: ColumnElement[str] = _bundles.created_at) -> tuple[ColumnElement[bool], ...]:
    return (at >= rows.text(days.start), at < rows.text(days.stop))


def _counted(found: Iterable[RowMapping]) -> dict[str, int]:
    """Sums by key; nothing of a key that has none."""
    sums: dict[str, int] = {}
    for row in found:
        if row["count"]:
            sums[row["key_id"]] = sums.get(row["key_id"], 0) + row["count"]
    return sums


def _no_heartbeats(query: BundleQuery) -> bool:
    """A heartbeat is about no single check, and has neither verdict nor outcome."""
    asked = (query.check, query.checks, query.result, query.outcome)
    return any(one is not None for one in asked) or query.kind not in {None, "heartbeat"}


def _digest(row: RowMapping) -> str:
    """The digest that a row names, when its bytes have it or were destroyed; else none, which fits no entry."""
    if not row["body"]:
        return str(row["sha256"])
    return str(row["sha256"]) if hashlib.sha256(row["body"]).hexdigest() == row["sha256"] else ""
