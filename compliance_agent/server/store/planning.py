"""Rules that people promoted, and how often cures have worked: each statement with its sites."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import Any

from sqlalchemy import ColumnElement, Executable, Select, case, delete, func, insert, select
from sqlalchemy.engine import RowMapping

from compliance_agent.evidence.canonical import canonical
from compliance_agent.server.records.planning import PlanRule, Worked
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.leasing import ENDED

_r, _b, _o = tables.plan_rules.c, tables.bundles.c, tables.orders.c


def rules(sites: Collection[str]) -> Select[Any]:
    """The rules of these sites."""
    return select(tables.plan_rules).where(_r.site_id.in_(sites)).order_by(_r.site_id, _r.check, _r.reason)


def rule_of(row: RowMapping) -> PlanRule:
    """A rule from its row."""
    return PlanRule(**{**row, "promoted_at": rows.when(row["promoted_at"])})


def cures(site_id: str, check: str, reason: str) -> Select[int, int, int]:
    """How cures of a finding have ended, counted."""
    return select(
        func.count().label("applied"), _times(_b.outcome == "success"), _times(_b.outcome == "reverted", "undone")
    ).where(
        _b.site_id == site_id,
        _b.kind == "remediation",
        _b.check == check,
        _b.reason == reason,
        _b.outcome.in_(ENDED),
        tables.NO_HEARTBEAT,
    )


def _times(holds: ColumnElement[bool], name: str = "passed") -> ColumnElement[int]:
    return func.coalesce(func.sum(case((holds, 1), else_=0)), 0).label(name)


def ordered(site_id: str, check: str) -> Select[Any]:
    """How many orders to cure a check succeeded, by the host's own record."""
    return select(func.count().label("ordered")).where(
        _o.site_id == site_id,
        _o.kind == "remediate",
        _o.parameters == canonical({"check": check}).decode("ascii"),
        _o.state == "answered",
        _o.outcome == "success",
    )


def worked(cured: RowMapping, orders: RowMapping) -> Worked:
    """Both, from their rows."""
    return Worked(orders["ordered"], cured["applied"], int(cured["passed"]), int(cured["undone"]))


class PlanRows:
    """The part of `records.Transaction` that is about promoted rules."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def plan_rule(self, site_id: str, check: str, reason: str) -> PlanRule | None:
        found = await self._all(rules([site_id]).where(_r.check == check, _r.reason == reason))
        return rule_of(found[0]) if found else None

    async def add_plan_rule(self, rule: PlanRule) -> None:
        await self._changed(
            insert(tables.plan_rules).values({**asdict(rule), "promoted_at": rows.text(rule.promoted_at)})
        )

    async def drop_plan_rule(self, site_id: str, check: str, reason: str) -> bool:
        same = (_r.site_id == site_id, _r.check == check, _r.reason == reason)
        return await self._changed(delete(tables.plan_rules).where(*same)) == 1
