"""The period on one page: hosts x checks x days, how much of it is covered, and where nobody spoke. Pure.

Everything is counted from the records at hand. An hour is covered when a record of the host is about it, so coverage says how
much of the time anybody looked, never that all was well.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from compliance_agent.packet.content import PacketHost, Record, Scope, counted, in_order, moment, stamp, statements

SILENT_AFTER = timedelta(hours=2)  # a heartbeat is due every hour, give or take a tenth
_HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Row:
    """What one host said of one check on one day, counted by result."""

    host_id: str
    check: str
    day: str
    counts: dict[str, int]


@dataclass(frozen=True)
class Coverage:
    """How much of a host's time in the period has a record, and the spans without one.

    Attributes:
        hours_due: whole and begun hours in which the host was enrolled, up to the checkpoint.
        hours_covered: those with at least one record.
        silent: (start, end) of every span of more than SILENT_AFTER without a record.
    """

    host_id: str
    key_id: str
    records: int
    hours_due: int
    hours_covered: int
    silent: tuple[tuple[datetime, datetime], ...]

    @property
    def percent(self) -> int:
        """Rounded down; 100 when nothing was due."""
        return 100 * self.hours_covered // self.hours_due if self.hours_due else 100


def rows(scope: Scope, records: Iterable[Record]) -> list[Row]:
    """The grid, by host, check and day."""
    said: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for record in in_order(records, scope):
        day = record.document["timestamp_start"][:10]
        for check, result, _ in statements(record.document):
            said[record.document["host"]["id"], check, day].append(result)
    return [Row(*place, counted(results)) for place, results in sorted(said.items())]


def coverage(scope: Scope, records: Iterable[Record]) -> list[Coverage]:
    """Each host of the scope, those without a record too."""
    times: dict[str, list[datetime]] = defaultdict(list)
    for record in in_order(records, scope):
        times[record.place[0]].append(moment(record.document["timestamp_start"]))
    return [_coverage(scope, host, sorted(times[host.key_id])) for host in scope.hosts]


def _coverage(scope: Scope, host: PacketHost, times: Sequence[datetime]) -> Coverage:
    start = max(scope.start, moment(host.enrolled_at))
    ends = [scope.end, moment(scope.signed_at), *([moment(host.revoked_at)] if host.revoked_at else [])]
    end = max(start, min(ends))
    first = start.replace(minute=0, second=0, microsecond=0)
    due = -(-(end - first) // _HOUR) if end > start else 0
    covered = {(at - first) // _HOUR for at in times if start <= at < end}
    edges = [start, *(at for at in times if start <= at < end), end]
    silent = [(a, b) for a, b in itertools.pairwise(edges) if b - a > SILENT_AFTER]
    return Coverage(host.host_id, host.key_id, len(times), due, len(covered), tuple(silent))


def as_document(scope: Scope, records: Sequence[Record]) -> dict[str, Any]:
    """The page as JSON; whole numbers only."""
    shown = in_order(records, scope)
    return {
        "site_id": scope.site_id,
        "from": scope.since,
        "to": scope.until,
        "control": scope.control,
        "host": scope.host,
        "log": {"origin": scope.origin, "size": scope.size, "signed_at": scope.signed_at},
        "records": len(shown),
        "beside_the_period": len(records) - len(shown),
        "pending": scope.pending,
        "elsewhere": dict(scope.elsewhere),
        "destroyed": scope.destroyed,
        "limits": asdict(scope.limits) if scope.limits else None,
        "counts": counted(result for record in shown for _, result, _ in statements(record.document)),
        "grid": [
            {"host": row.host_id, "check": row.check, "day": row.day, "counts": row.counts}
            for row in rows(scope, records)
        ],
        "coverage": [
            {
                "host": item.host_id,
                "key_id": item.key_id,
                "records": item.records,
                "hours_due": item.hours_due,
                "hours_covered": item.hours_covered,
                "percent": item.percent,
                "silent": [{"from": stamp(a), "to": stamp(b)} for a, b in item.silent],
            }
            for item in coverage(scope, records)
        ],
    }
