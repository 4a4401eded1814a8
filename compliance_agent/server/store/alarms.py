"""Alerts and their outbox in the database.

A row of the outbox is claimed by the transaction that takes it, for a while: whoever died with it lets go by that. On PostgreSQL
`SKIP LOCKED` keeps two replicas from waiting for each other; SQLite has one writer. What is said of a row afterwards counts only
while the claim is still one's own.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Executable, and_, exists, func, insert, or_, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records.alarms import Alert, Cause, Delivery
from compliance_agent.server.store import rows, tables
from compliance_agent.server.store.database import Statements

_a, _o = tables.alerts.c, tables.alert_outbox.c


class AlarmRows:
    """The part of `records.Transaction` that opens and closes alerts and works through the outbox."""

    _connection: Statements

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def open_alert(self, cause: Cause, count: int, channels: Sequence[str], now: datetime) -> bool:
        """Open an alert and put its sending into the outbox; False when one of this cause is open, which gets the count."""
        if await self._all(select(_a.alert_id).where(_a.cause == cause.id, _a.closed_at.is_(None))):
            same = update(tables.alerts).where(_a.cause == cause.id, _a.closed_at.is_(None), _a.count != count)
            await self._connection.execute(same.values(count=count))
            return False
        alert_id = secrets.token_hex(16)
        names = {"alert_id": alert_id, "cause": cause.id, "kind": cause.kind, "site_id": cause.site_id}
        opened = {"key_id": cause.key_id, "count": count, "opened_at": rows.text(now)}
        await self._connection.execute(insert(tables.alerts).values(**names, **opened))
        await self._send(alert_id, "open", channels, now)
        return True

    async def close_alert(self, cause: Cause, channels: Sequence[str], now: datetime) -> bool:
        """Close the open alert of a cause; False when there is none."""
        found = await self._all(select(_a.alert_id).where(_a.cause == cause.id, _a.closed_at.is_(None)))
        for row in found:
            this = update(tables.alerts).where(_a.alert_id == row["alert_id"])
            await self._connection.execute(this.values(closed_at=rows.text(now)))
            await self._send(row["alert_id"], "close", channels, now)
        return bool(found)

    async def _send(self, alert_id: str, transition: str, channels: Sequence[str], now: datetime) -> None:
        at = rows.text(now)
        entry = {"alert_id": alert_id, "transition": transition, "made_at": at, "due_at": at, "tries": 0}
        for channel in channels:
            await self._connection.execute(
                insert(tables.alert_outbox).values(**entry, channel=channel, state="waiting")
            )

    async def ack_alert(self, alert_id: str, actor: str, now: datetime) -> Alert | None:
        """Somebody looks after it; the alert, or None when there is none of this id that nobody has acknowledged."""
        found = await self._all(select(tables.alerts).where(_a.alert_id == alert_id, _a.acked_at.is_(None)))
        if not found:
            return None
        this = update(tables.alerts).where(_a.alert_id == alert_id)
        await self._connection.execute(this.values(acked_at=rows.text(now), acked_by=actor))
        return alert(found[0])

    async def claim_deliveries(
        self, claim: str, now: datetime, until: datetime, channels: Sequence[str], at_most: int
    ) -> list[Delivery]:
        """Take what is due of these channels, the oldest first, never the end of an alert before its beginning."""
        earlier = tables.alert_outbox.alias()
        waits = exists().where(
            and_(
                earlier.c.alert_id == _o.alert_id,
                earlier.c.channel == _o.channel,
                earlier.c.number < _o.number,
                earlier.c.state == "waiting",
            )
        )
        free = or_(_o.claimed_until.is_(None), _o.claimed_until < rows.text(now))
        due = (
            select(_o.number)
            .where(_o.state == "waiting", _o.due_at <= rows.text(now), _o.channel.in_(channels), free, ~waits)
            .order_by(_o.number)
            .limit(at_most)
            .with_for_update(skip_locked=True)
        )
        numbers = [row["number"] for row in await self._all(due)]
        if not numbers:
            return []
        taken = {"claim": claim, "claimed_until": rows.text(until)}
        await self._connection.execute(update(tables.alert_outbox).where(_o.number.in_(numbers)).values(**taken))
        query = select(tables.alerts, _o.number, _o.channel, _o.transition, _o.tries).join(
            tables.alert_outbox, _o.alert_id == _a.alert_id
        )
        found = await self._all(query.where(_o.number.in_(numbers)).order_by(_o.number))
        return [Delivery(row["number"], row["channel"], row["transition"], alert(row), row["tries"]) for row in found]

    async def settle_delivery(self, number: int, claim: str, **became: Any) -> bool:
        """Say what became of it; False when the claim is no longer ours."""
        mine = update(tables.alert_outbox).where(_o.number == number, _o.claim == claim)
        done = await self._connection.execute(mine.values(claim=None, claimed_until=None, **became))
        return done.rowcount == 1

    async def alerts(self, at_most: int) -> list[Alert]:
        """Open alerts first, then the newest."""
        query = select(tables.alerts).order_by(_a.closed_at.is_not(None), _a.opened_at.desc(), _a.alert_id)
        return [alert(row) for row in await self._all(query.limit(at_most))]

    async def outbox_counts(self) -> dict[tuple[str, str], int]:
        """How many deliveries stand at what, by channel and state."""
        query = select(_o.channel, _o.state, func.count().label("count")).group_by(_o.channel, _o.state)
        return {(row["channel"], row["state"]): row["count"] for row in await self._all(query)}


def alert(row: RowMapping) -> Alert:
    """An alert from its row."""
    return Alert(
        row["alert_id"],
        Cause(row["kind"], row["site_id"], row["key_id"]),
        row["count"],
        rows.when(row["opened_at"]),
        rows.when(row["closed_at"]) if row["closed_at"] else None,
        rows.when(row["acked_at"]) if row["acked_at"] else None,
        row["acked_by"],
    )
