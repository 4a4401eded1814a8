"""Sheets 1 and 2: the period by section, host, check and day; and what was asked for (45 CFR 164 Subpart C). Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, timedelta

from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.packet.content import Record, Scope, checks_of, day_of
from compliance_agent.sheets.sheet import LETTERS, Bar, Number, Row, Said, Sheet, Table, by_host, count, heads

_KEY = "F fail, U unknown, E exception, N not applicable, P pass"
_MONTH = 31  # days side by side
MAPPED = 20  # hosts that have a map each; of more nobody turns the pages, and days.csv has it all
REACH = {
    Reach.DIRECT: "a host's state is evidence",
    Reach.PARTIAL: "in part; a person's record is needed as well",
    Reach.NONE: "nothing on a host is",
}


def period(scope: Scope, records: Sequence[Record]) -> Sheet:
    """Every verdict of the period."""
    said, hosts = Said(records), by_host(records)
    cited = [section for section in SECTIONS if set(said.checks).intersection(checks_of(section))]
    counted = {section: said.results(*checks_of(section)) for section in cited}
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
            Table("By host and check", ("Host", "Check", *heads()), tuple(_by_check(hosts))),
            *_maps(scope, hosts),
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


def _by_check(hosts: Mapping[str, Said]) -> list[Row]:
    return [(label, check, *own.results(check)) for label, own in hosts.items() for check in own.checks]


def _maps(scope: Scope, hosts: Mapping[str, Said]) -> list[Table]:
    """A map of checks and days for each host and month; of many hosts one for all, host by host."""
    first, last = date.fromisoformat(scope.since), date.fromisoformat(scope.until)
    days = [(first + timedelta(days=n)).isoformat() for n in range((last - first).days + 1)]
    pages = [days[n : n + _MONTH] for n in range(0, len(days), _MONTH)]
    by_day = {label: _by_day(own) for label, own in hosts.items()}
    if len(hosts) > MAPPED:
        lines = [(label, by_day[label], own.checks) for label, own in hosts.items()]
        return [_map("Every host and all its checks", lines, page) for page in pages]
    return [
        _map(label, [(check, by_day[label], [check]) for check in own.checks], page)
        for label, own in hosts.items()
        for page in pages
    ]


def _map(title: str, lines: Sequence[tuple[str, Mapping[str, Said], Sequence[str]]], page: Sequence[str]) -> Table:
    """The worst result of each day, and how often it was stated."""
    rows = tuple((name, *(_worst(days.get(day), checks) for day in page)) for name, days, checks in lines)
    return Table(
        f"{title}, {page[0]} to {page[-1]}: the worst of each day ({_KEY})",
        ("", *(day[8:] for day in page)),
        rows,
        dense=True,
    )


def _by_day(own: Said) -> dict[str, Said]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in own.records:
        found[day_of(record.document)].append(record)
    return {day: Said(held) for day, held in found.items()}


def _worst(said: Said | None, checks: Sequence[str]) -> str | Number:
    for result, letter in LETTERS.items():
        if said is not None and (found := said.number(result, *checks)).records:
            return Number(f"{letter}{found.text}", found.records, result)
    return ""
