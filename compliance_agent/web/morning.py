"""The lists under the first page's table: what waits for a person, what changed, and what healed itself. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from compliance_agent.server.records import Bundle, Host
from compliance_agent.server.records.exceptions import RecordedException
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services.cures import Cures
from compliance_agent.server.services.fleet import SiteStanding
from compliance_agent.web import words
from compliance_agent.web.present import made_at, order_line

SOON, GONE = timedelta(days=14), timedelta(days=7)  # how long before its end, and after it, an exception is listed
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


@dataclass(frozen=True)
class TurnLine:
    """A verdict that became another one, or a cure that held, with its record."""

    key_id: str
    host_id: str
    site_id: str
    title: str
    result: str | None
    outcome: str | None
    sentence: str
    bundle_id: str
    at: datetime


def turn_lines(hosts: Mapping[str, Host], records: Iterable[Bundle]) -> list[TurnLine]:
    """Changes, worded; of a host that was revoked a moment ago none."""
    return [_turn_line(hosts[one.key_id], one) for one in records if one.key_id in hosts]


def _turn_line(host: Host, one: Bundle) -> TurnLine:
    healed, check = one.kind == "remediation" and one.outcome == "success", one.check or ""
    why = words.reason_sentence(check, one.reason) if one.reason else ""
    return TurnLine(
        key_id=host.key_id,
        host_id=host.host_id,
        site_id=host.site_id,
        title=words.check_title(check),
        result=None if healed else one.result,
        outcome=one.outcome,
        sentence=f"It was so: {why}" if why and healed else why,
        bundle_id=one.bundle_id,
        at=made_at(one),
    )


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


@dataclass(frozen=True)
class ExceptionLine:
    """An exception that somebody has to see to: it waits for a second person, ends soon, or ended and what it covered fails.

    Attributes:
        key_id, host_id: of its host; None where it is about every host of the site.
        state: `waiting`, `ends` or `ended`.
        at: since when it waits, or when it ends or ended.
        failing: hosts of which the check fails now, under it or not.
    """

    site_id: str
    key_id: str | None
    host_id: str | None
    check: str
    title: str
    state: str
    at: datetime
    failing: int


def exception_lines(sites: Iterable[SiteStanding], now: datetime) -> list[ExceptionLine]:
    """What ran out in the last week and is not met still, what waits for a second person, and what runs out in two weeks.

    What ended and was made anew, or is met now, needs nobody. The one that ended longest ago, or ends first, comes first.
    """
    found = []
    for site in sites:
        labels = {item.host.key_id: item.host.host_id for item in site.live}
        for one in site.recorded:
            if one.key_id is not None and one.key_id not in labels:
                continue  # its host is revoked
            line = _exception_line(site, one, labels, now)
            found += [line] if line is not None else []
    order = {"ended": 0, "waiting": 1, "ends": 2}
    return sorted(found, key=lambda line: (order[line.state], line.at, line.site_id, line.check))


def _exception_line(
    site: SiteStanding, one: RecordedException, labels: Mapping[str, str], now: datetime
) -> ExceptionLine | None:
    unmet = [check.result for item in site.live for check in item.checks if one.about(item.host.key_id, check.check)]
    state, at = one.state(now), one.expires_at
    if state == "waiting":
        what, at = "waiting", one.created_at
    elif state == "stands" and at <= now + SOON:
        what = "ends"
    elif state == "expired" and one.since is not None and at > now - GONE and "fail" in unmet:
        what = "ended"
    else:
        return None
    failing = sum(result in {"fail", "exception"} for result in unmet)
    label = None if one.key_id is None else labels[one.key_id]
    return ExceptionLine(
        site.site.site_id, one.key_id, label, one.check, words.check_title(one.check), what, at, failing
    )
