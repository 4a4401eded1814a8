"""What changed lately, counted and picked in the database: a large fleet has ten thousand changes a day, and a page lists twenty.

The changes of one check of one host follow each other in the order of its chain. A cure that held is two of them: it had failed,
and it passes. The day is read once for both questions, in the index of changes alone; of the records themselves, only those that
are listed.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import CTE, ColumnElement, Select, and_, case, func, literal, or_, select, union_all
from sqlalchemy.sql.selectable import CompoundSelect

from compliance_agent.server.store import rows, tables

_b, _v = tables.bundles.c, tables.verdicts.c
_UNMET = ("fail", "unknown")
Where = Sequence[ColumnElement[bool]]


def _flag(that: ColumnElement[bool]) -> ColumnElement[int]:
    """1 where it holds; 0 where it does not, or nobody can say."""
    return case((that, 1), else_=0)


def _cured(of: Any) -> ColumnElement[bool]:
    return and_(of.kind == "remediation", of.outcome == "success")


def _said(of: Any) -> ColumnElement[str]:
    """What a record leaves standing; nothing where it has no verdict, which says nothing against the check either."""
    return case((_cured(of), literal("pass")), else_=func.coalesce(of.result, ""))


def _met(of: Any) -> ColumnElement[int]:
    return case((of.result.in_(_UNMET), 0), else_=1)


def _each(sites: Collection[str], since: datetime, dated: Where) -> CTE:
    """Verdicts and cures that arrived since then, each with what stood before it: NULL for the first that is read of its check.

    Few and narrow columns: the database sorts them, and what is reckoned from them is reckoned later.
    """
    before = func.lag(_said(_b)).over(partition_by=(_b.key_id, _b.check), order_by=(_b.epoch, _b.seq))
    named = (_b.key_id, _b.check, _b.number, _b.kind, _b.result, _b.outcome, before.label("before"))
    arrived = (_b.site_id.in_(sites), _b.received_at >= rows.text(since), tables.NO_HEARTBEAT)
    verdicts = (_b.kind.in_(("drift", "remediation")), _b.check.is_not(None))
    return select(*named).where(*arrived, *verdicts, *dated).cte("each")


def _long_unmet(of: Any, since: datetime, seen: Where) -> ColumnElement[bool]:
    """Whether what is not met now had begun before."""
    same = (_v.key_id == of.key_id, _v.check == of.check)
    return select(_v.key_id).where(*same, _v.result.in_(_UNMET), _v.since < rows.text(since), *seen).exists()


def moved(sites: Collection[str], since: datetime, dated: Where, seen: Where, lived: Where) -> Select[Any]:
    """Of each site, how often something became unmet, how often it was met again, and how often a cure did that.

    What stood before a check's first event is not among the events: it was met if the event says that something is not, unless that
    had begun long before; the first word of a new host is no change. A key that gave way to another does not count.

    Args:
        sites: that may be seen.
        since: what arrived before is not read.
        dated, seen, lived: further conditions on records, on verdicts and on hosts.
    """
    return _moved(_each(sites, since, dated), sites, since, seen, lived)


def _moved(each: CTE, sites: Collection[str], since: datetime, seen: Where, lived: Where) -> Select[Any]:
    e, h = each.c, tables.hosts.c
    met, cured = _met(e), _cured(e)
    worse = _flag(and_(e.before.not_in(_UNMET), met == 0))
    better = _flag(and_(e.before.in_(_UNMET), met == 1)) + _flag(and_(cured, met == 0))
    sums = {"worse": worse, "better": better, "healed": _flag(cured)}
    most = {"first": case((e.before.is_(None), met)), "ever": _flag(or_(met == 1, e.outcome == "success"))}
    counted = [func.sum(each_).label(name) for name, each_ in sums.items()]
    counted += [func.max(each_).label(name) for name, each_ in most.items()]
    g = select(e.key_id, e.check, *counted).group_by(e.key_id, e.check).subquery("checks").c
    opened = _flag(and_(g.first == 0, or_(g.ever == 1, ~_long_unmet(g, since, seen))))
    known = _flag(and_(g.first == 1, h.enrolled_at < rows.text(since)))
    totals = {"worse": g.worse + opened, "better": g.better + known, "healed": g.healed}
    return (
        select(h.site_id, *(func.sum(total).label(name) for name, total in totals.items()))
        .join_from(g.key_id.table, tables.hosts, h.key_id == g.key_id)
        .where(h.site_id.in_(sites), h.rotated_to.is_(None), *lived)
        .group_by(h.site_id)
    )


def moved_and_turns(
    sites: Collection[str], since: datetime, at_most: int, dated: Where, seen: Where, lived: Where, live: Where
) -> CompoundSelect[Any]:
    """The same, and in further rows with a `number` and no site the newest changes of verdict and cures that held.

    A record that only says again what stood is no change, and neither is a cure that did not hold of what had long been unmet.

    Args:
        sites, since, dated, seen, lived: as of `moved`.
        at_most: how many changes are wanted, the last that arrived.
        live: further conditions on the hosts whose changes are listed.
    """
    each = _each(sites, since, dated)
    counts = _moved(each, sites, since, seen, lived).add_columns(literal(0).label("number"))
    newest = _turns(each, sites, since, at_most, seen, live).subquery("newest").c
    listed = select(literal("").label("site_id"), literal(0), literal(0), literal(0), newest.number)
    return union_all(counts, listed)


def _turns(each: CTE, sites: Collection[str], since: datetime, at_most: int, seen: Where, live: Where) -> Select[Any]:
    e = each.c
    old = and_(e.kind == "remediation", _long_unmet(e, since, seen))
    first = _flag(and_(_said(e) != "", ~old))
    turned = case((_cured(e), 1), (e.before.is_(None), first), else_=_flag(_said(e) != e.before))
    there = select(tables.hosts.c.key_id).where(tables.hosts.c.site_id.in_(sites), *live)
    return select(e.number).where(turned == 1, e.key_id.in_(there)).order_by(e.number.desc()).limit(at_most)


def numbered(sites: Collection[str], numbers: Collection[int], dated: Where) -> Select[Any]:
    """These records, newest arrival first."""
    whole = select(*rows.BUNDLE_COLUMNS).where(tables.site_of(tables.bundles).in_(sites), *dated)
    return whole.where(_b.number.in_(numbers)).order_by(_b.number.desc())
