"""The lists under the first page's table: what waits for a person, and what healed itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from compliance_agent.server.records import Bundle, Host
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services.cures import Cures
from compliance_agent.web import words
from compliance_agent.web.present import made_at, order_line

NEEDS = {"draft": "Approval of the order", "approved": "Signatures, made where the signers' keys are"}


@dataclass(frozen=True)
class CureLine:
    """A cure, or a plan for one, with its record."""

    key_id: str
    host_id: str
    site_id: str
    title: str
    bundle_id: str
    at: datetime


@dataclass(frozen=True)
class WaitingLine:
    """Something that waits for a person: a plan, or an order that somebody drafted. It has one of the two ids."""

    key_id: str
    host_id: str
    site_id: str
    what: str
    needs: str
    at: datetime
    bundle_id: str | None = None  # the record of a plan
    order_id: str | None = None


def cure_lines(hosts: Mapping[str, Host], found: Iterable[Bundle]) -> list[CureLine]:
    """Cures, in the order they were found."""
    return [
        CureLine(
            bundle.key_id,
            hosts[bundle.key_id].host_id,
            hosts[bundle.key_id].site_id,
            words.check_title(bundle.check or ""),
            bundle.bundle_id,
            made_at(bundle),
        )
        for bundle in found
    ]


def waiting_lines(cures: Cures, orders: Iterable[OrderRow], now: datetime) -> list[WaitingLine]:
    """Plans and orders that go no further without a person, the longest waiting first; none of a revoked host."""
    lines = [
        WaitingLine(one.key_id, one.host_id, one.site_id, one.title, "Approval of the plan", one.at, one.bundle_id)
        for one in cure_lines(cures.hosts, cures.waiting)
    ]
    for row in orders:
        host = cures.hosts.get(row.key_id)
        if host is not None:
            what = f"Order: {order_line(row, now).what}"
            needs, at = NEEDS[row.state], row.drafted_at
            lines.append(WaitingLine(row.key_id, host.host_id, host.site_id, what, needs, at, order_id=row.order_id))
    return sorted(lines, key=lambda line: (line.at, line.key_id, line.what))
