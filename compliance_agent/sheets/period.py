"""Sheets 1 and 2: the period by section, host, check and day; and what was asked for (45 CFR 164 Subpart C). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import date, timedelta

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.packet.content import Record, Scope, checks_of, day_of, statements
from compliance_agent.sheets.sheet import LETTERS, Bar, Number, Row, Sheet, Table, count, heads, host, results, stated

_KEY = "F fail, U unknown, E exception, N not applicable, P pass"
_MONTH = 31  # days side by side
REACH = {
    Reach.DIRECT: "a host's state is evidence",
    Reach.PARTIAL: "in part; a person's record is needed as well",
    Reach.NONE: "nothing on a host is",
}


def period(scope: Scope, records: Sequence[Record]) -> Sheet:
    """Every verdict of the period."""
    said = {check for record in records for check, _, _ in statements(record.document)}
    cited = [section for section in SECTIONS if said.intersection(checks_of(section))]
    counted = {section: results(records, set(checks_of(section)).__contains__) for section in cited}
    sections = tuple(
        (
            section,
            SECTIONS[section].title,
            SECTIONS[section].force.value,
            REACH[SECTIONS[section].reach],
            *counted[section],
        )
        for section in cited
    )
    return Sheet(
        "The period",
        (
            "Counted from the records, verdict by verdict: a heartbeat states one of each check, a cure one before and one after. "
            "Unknown means that nobody could tell, and is never counted as a pass.",
        ),
        (
            Table("By section of 45 CFR 164 Subpart C", ("Section", "Title", "Force", "Evidence", *heads()), sections),
            Table("By host and check", ("Host", "Check", *heads()), tuple(_by_check(records))),
            *_maps(scope, records),
        ),
        tuple(Bar(section, counted[section]) for section in cited),
    )


LIMITED = (
    "It was built for an account that sees certain days alone, so where a host's records begin and end it cannot show that none "
    "was kept back: sheet 9 names these ends."
)


def sample(scope: Scope, records: Sequence[Record]) -> Sheet:
    """What was asked for, and from how much it was taken."""
    asked = (
        ("Site", scope.site_id),
        ("Days, UTC", f"{scope.since} to {scope.until}"),
        ("Section", scope.control or "all"),
        ("Host", scope.host or "all of the site"),
        ("Records of it here", count(records)),
        *(
            [("Built for an account that sees", f"{scope.limits.first} to {scope.limits.last} alone")]
            if scope.limits
            else ()
        ),
        ("Of it, not in the log yet", str(scope.pending)),
        ("Of it, in the logs of other years", str(sum(scope.elsewhere.values()))),
        ("Of it, destroyed when their time was over", str(scope.destroyed)),
        ("Entries of the log it was taken from", f"{scope.size} of {scope.origin}"),
    )
    return Sheet(
        "The sample",
        (
            "A frozen sample: which records there are is said by the log, whose whole tree is in the packet, so a record that was "
            "kept back would be named in sheet 10. The list of records at the end has every one of them.",
            *([LIMITED] if scope.limits else ()),
        ),
        (Table("What was asked for", ("", ""), asked),),
    )


def _by_check(records: Sequence[Record]) -> list[Row]:
    rows: list[Row] = []
    for label, own in _by_host(records).items():
        for check in sorted({check for record in own for check, _, _ in statements(record.document)}):
            rows.append((label, check, *results(own, check.__eq__)))
    return rows


def _maps(scope: Scope, records: Sequence[Record]) -> list[Table]:
    """A map of checks and days for each host and month: the worst result of the day, and how often it was stated."""
    first, last = date.fromisoformat(scope.since), date.fromisoformat(scope.until)
    days = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    pages = [days[n : n + _MONTH] for n in range(0, len(days), _MONTH)]
    maps = []
    for label, own in _by_host(records).items():
        by_day: dict[str, list[Record]] = defaultdict(list)
        for record in own:
            by_day[day_of(record.document)].append(record)
        checks = sorted({check for record in own for check, _, _ in statements(record.document)})
        for page in pages:
            rows = tuple((check, *(_worst(by_day[day], check) for day in page)) for check in checks)
            title = f"{label}, {page[0]} to {page[-1]}: the worst of each day ({_KEY})"
            maps.append(Table(title, ("", *(day[8:] for day in page)), rows, dense=True))
    return maps


def _worst(records: Sequence[Record], check: str) -> str | Number:
    for result, letter in LETTERS.items():
        if (found := stated(records, result, check.__eq__)).records:
            return Number(f"{letter}{found.text}", found.records, result)
    return ""


def _by_host(records: Sequence[Record]) -> dict[str, list[Record]]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        found[host(record)].append(record)
    return dict(sorted(found.items()))
