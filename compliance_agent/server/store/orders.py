"""Orders in the database: whole rows in and out, each statement with its site."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records.orders import (
    Answer,
    OrderHost,
    OrderMark,
    OrderRow,
    SignedBaseline,
    TrustDocument,
)
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.tables import among

_b = tables.signed_baselines.c
_TIMES = {"added_at", "drafted_at", "not_before", "expires", "ended_at", "at", "nonce_at"}
_o, _m, _h = tables.orders.c, tables.order_marks.c, tables.order_hosts.c
_ORDER_HOSTS = select(tables.order_hosts).where(among(_h.site_id, "sites"), among(_h.key_id, "keys"))
_t = tables.order_trust.c
_TRUST_HEADS = (
    select(_t.site_id, _t.role, func.max(_t.version).label("version"))
    .where(among(_t.site_id, "sites"))
    .group_by(_t.site_id, _t.role)
)
_AWAITED = (
    select(_o.key_id)
    .where(among(_o.site_id, "sites"), among(_o.key_id, "keys"), _o.state.in_(("signed", "delivered")))
    .where(_o.not_before <= bindparam("at"), _o.expires > bindparam("at"))
)


def columns(row: OrderRow | OrderMark | OrderHost | SignedBaseline | TrustDocument) -> dict[str, Any]:
    """A row's values as they are stored."""
    return {name: rows.text(value) if isinstance(value, datetime) else value for name, value in asdict(row).items()}


def _values(row: RowMapping) -> dict[str, Any]:
    return {name: rows.when(value) if name in _TIMES and value is not None else value for name, value in row.items()}


def order_of(row: RowMapping) -> OrderRow:
    """An order from its row."""
    return OrderRow(**_values(row))


def mark_of(row: RowMapping) -> OrderMark:
    """A mark from its row."""
    return OrderMark(**_values(row))


def trust_of(row: RowMapping) -> TrustDocument:
    """A root or list of order keys from its row."""
    return TrustDocument(**_values(row))


class OrderRows:
    """The part of `records.Transaction` that is about orders."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def add_order(self, order: OrderRow) -> None:
        await self._changed(insert(tables.orders).values(columns(order)))

    async def order(self, site_id: str, order_id: str) -> OrderRow | None:
        found = await self._all(select(tables.orders).where(_o.site_id == site_id, _o.order_id == order_id))
        return order_of(found[0]) if found else None

    async def orders_since(self, site_id: str, since: datetime, states: Collection[str]) -> list[OrderRow]:
        wanted = or_(_o.drafted_at >= rows.text(since), _o.state.in_(states))
        return [order_of(row) for row in await self._all(select(tables.orders).where(_o.site_id == site_id, wanted))]

    async def save_order(self, order: OrderRow) -> None:
        same = (_o.site_id == order.site_id, _o.order_id == order.order_id)
        await self._changed(update(tables.orders).where(*same).values(columns(order)))

    async def forwardable(self, site_id: str, key_id: str, now: datetime, at_most: int) -> list[OrderRow]:
        at = rows.text(now)
        query = (
            select(tables.orders)
            .where(_o.site_id == site_id, _o.key_id == key_id, _o.state.in_(("signed", "delivered")))
            .where(_o.not_before <= at, _o.expires > at)
            .order_by(_o.counter, _o.order_id)
            .limit(at_most)
        )
        return [order_of(row) for row in await self._all(query)]

    async def awaited(self, sites: Collection[str], key_ids: Collection[str], now: datetime) -> set[str]:
        found = await self._all(_AWAITED, sites=list(sites), keys=list(key_ids), at=rows.text(now))
        return {row["key_id"] for row in found}

    async def add_order_mark(self, mark: OrderMark) -> None:
        await self._changed(insert(tables.order_marks).values(columns(mark)))

    async def order_marks(self, site_id: str, order_id: str) -> list[OrderMark]:
        query = select(tables.order_marks).where(_m.site_id == site_id, _m.order_id == order_id)
        return [mark_of(row) for row in await self._all(query.order_by(_m.at, _m.what, _m.who))]

    async def order_hosts(self, sites: Collection[str], key_ids: Collection[str]) -> dict[str, OrderHost]:
        found = await self._all(_ORDER_HOSTS, sites=list(sites), keys=list(key_ids))
        return {row["key_id"]: OrderHost(**_values(row)) for row in found}

    async def save_order_host(self, host: OrderHost) -> None:
        same = (_h.site_id == host.site_id, _h.key_id == host.key_id)
        if not await self._changed(update(tables.order_hosts).where(*same).values(columns(host))):
            await self._changed(insert(tables.order_hosts).values(columns(host)))

    async def add_baseline(self, baseline: SignedBaseline) -> None:
        if await self.baseline(baseline.site_id, baseline.sha256) is None:
            await self._changed(insert(tables.signed_baselines).values(columns(baseline)))

    async def baseline(self, site_id: str, sha256: str) -> SignedBaseline | None:
        found = await self._all(select(tables.signed_baselines).where(_b.site_id == site_id, _b.sha256 == sha256))
        return SignedBaseline(**_values(found[0])) if found else None

    async def add_trust(self, document: TrustDocument) -> None:
        await self._changed(insert(tables.order_trust).values(columns(document)))

    async def drop_trust(self, site_id: str) -> None:
        await self._changed(delete(tables.order_trust).where(_t.site_id == site_id))

    async def trust_heads(self, sites: Collection[str]) -> dict[tuple[str, str], int]:
        found = await self._all(_TRUST_HEADS, sites=list(sites))
        return {(row["site_id"], row["role"]): row["version"] for row in found}

    async def trust(self, site_id: str, role: str, first: int, at_most: int) -> list[TrustDocument]:
        query = select(tables.order_trust).where(_t.site_id == site_id, _t.role == role, _t.version >= first)
        return [trust_of(row) for row in await self._all(query.order_by(_t.version).limit(at_most))]

    async def trust_version(self, site_id: str, sha256: str) -> int | None:
        query = select(_t.version).where(_t.site_id == site_id, _t.role == "root", _t.sha256 == sha256)
        found = await self._all(query)
        return found[0]["version"] if found else None

    async def answer_orders(self, answers: Iterable[Answer], now: datetime) -> None:
        for answer in answers:
            said = {"outcome": answer.outcome, "error": answer.error, "bundle_id": answer.bundle_id}
            same = (_o.site_id == answer.site_id, _o.sha256 == answer.sha256)
            await self._changed(
                update(tables.orders).where(*same).values(**said, state="answered", ended_at=rows.text(now))
            )
