"""What changed lately, counted and picked in the database: a large fleet has ten thousand changes a day, and a page lists twenty.

The changes of one check of one host follow each other in the order of its chain. A cure that held is two of them: it had failed,
and it passes. Both statements read the index of changes and nothing else of the records, but for those that are listed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, and_, case, func, literal, or_, select

from compliance_agent.server.store import rows, tables

_b, _v = tables.bundles.c, tables.verdicts.c
_UNMET = ("fail", "unknown")
Where = Sequence[ColumnElement[bool]]


def _flag(that: ColumnElement[bool]) -> ColumnElement[int]:
    """1 where it holds; 0 where it does not, or nobody can say."""
    return case((that, 1), else_=0)


_MET = case((_b.result.in_(_UNMET), 0), else_=1)  # a record without a verdict says nothing against the check
_CURED = _flag(and_(_b.kind == "remediation", _b.outcome == "success"))
_SAID = case((_CURED == 1, literal("pass")), else_=func.coalesce(_b.result, ""))


def _lately(sites: Collection[str], since: datetime, dated: Where, *wanted: ColumnElement[Any]) -> Select[Any]:
    """Verdicts and cures that arrived since then."""
    return select(_b.key_id, _b.check, *wanted).where(
        _b.site_id.in_(sites),
        _b.received_at >= rows.text(since),
        _b.kind.in_(("drift", "remediation")),
        _b.check.is_not(None),
        tables.NO_HEARTBEAT,
        *dated,
    )


def moved(sites: Collection[str], since: datetime, dated: Where, seen: Where, lived: Where) -> Select[Any]:
    """Of each site, how often something became unmet, how often it was met again, and how often a cure did that.

    What stood before a check's first event is not among the events: it was met if the event says that something is not, unless that
    had begun long before; the first word of a new host is no change. A key that gave way to another does not count.

    Args:
        sites: that may be seen.
        since: what arrived before is not read.
        dated, seen, lived: further conditions on records, on verdicts and on hosts.
    """
    stood = func.lag(case((_CURED == 1, 1), else_=_MET))
    before = stood.over(partition_by=(_b.key_id, _b.check), order_by=(_b.epoch, _b.seq))
    ever = _flag(or_(_MET == 1, _b.outcome == "success"))
    named = (_MET.label("met"), _CURED.label("cured"), before.label("before"), ever.label("ever"))
    e = _lately(sites, since, dated, *named).subquery("each").c
    worse = _flag(and_(e.before == 1, e.met == 0))
    better = _flag(and_(e.before == 0, e.met == 1)) + _flag(and_(e.cured == 1, e.met == 0))
    first = func.max(case((e.before.is_(None), e.met)))
    sums = {"worse": func.sum(worse), "better": func.sum(better), "healed": func.sum(e.cured)}
    counted = [count.label(name) for name, count in (*sums.items(), ("first", first), ("ever", func.max(e.ever)))]
    g = select(e.key_id, e.check, *counted).group_by(e.key_id, e.check).subquery("checks").c
    h = tables.hosts.c
    long_unmet = and_(
        _v.key_id == g.key_id, _v.check == g.check, _v.result.in_(_UNMET), _v.since < rows.text(since), *seen
    )
    opened = _flag(and_(g.first == 0, or_(g.ever == 1, ~select(_v.key_id).where(long_unmet).exists())))
    known = _flag(and_(g.first == 1, h.enrolled_at < rows.text(since)))
    totals = {"worse": g.worse + opened, "better": g.better + known, "healed": g.healed}
    return (
        select(h.site_id, *(func.sum(total).label(name) for name, total in totals.items()))
        .join_from(g.key_id.table, tables.hosts, h.key_id == g.key_id)
        .where(h.site_id.in_(sites), h.rotated_to.is_(None), *lived)
        .group_by(h.site_id)
    )


def turns(sites: Collection[str], since: datetime, at_most: int, dated: Where, seen: Where, live: Where) -> Select[Any]:
    """The newest changes of verdict and cures that held, newest arrival first.

    A record that only says again what stood is no change, and neither is a cure that did not hold of what had long been unmet.

    Args:
        sites: that may be seen.
        since: what arrived before is not read.
        at_most: how many are wanted.
        dated, seen, live: further conditions on records, on verdicts and on hosts.
    """
    before = func.lag(_SAID).over(partition_by=(_b.key_id, _b.check), order_by=_b.number)
    named = (_SAID.label("said"), before.label("before"), _CURED.label("cured"))
    e = _lately(sites, since, dated, _b.number, _b.kind, *named).subquery("each").c
    long_unmet = and_(
        _v.key_id == e.key_id, _v.check == e.check, _v.result.in_(_UNMET), _v.since < rows.text(since), *seen
    )
    old = and_(e.kind == "remediation", select(_v.key_id).where(long_unmet).exists())
    turned = case(
        (e.cured == 1, 1), (e.before.is_(None), _flag(and_(e.said != "", ~old))), else_=_flag(e.said != e.before)
    )
    there = select(tables.hosts.c.key_id).where(tables.hosts.c.site_id.in_(sites), *live)
    newest = select(e.number).where(turned == 1, e.key_id.in_(there)).order_by(e.number.desc()).limit(at_most)
    whole = select(*rows.BUNDLE_COLUMNS).where(tables.site_of(tables.bundles).in_(sites), *dated)
    return whole.where(_b.number.in_(newest)).order_by(_b.number.desc())
