"""Sheets 3 to 6 and 8: changes, exceptions, activity review, backups and drills, updates. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from compliance_agent.core.accepted import MEASURES, REASONS
from compliance_agent.packet.content import Record, Scope, stamp, statements
from compliance_agent.packet.register import Accepted
from compliance_agent.sheets.sheet import Row, Sheet, Table, alone, at, by_host, count, heads, host

_WATCHED = ("logging", "auditd", "ssh_access", "accounts")  # what a review of activity starts from


def changes(records: Sequence[Record]) -> Sheet:
    """What was done to hosts, or would have been."""
    rows = [
        (
            at(record),
            host(record),
            said["check"] or said["kind"],
            said["reason"] or "",
            _who(said),
            ", ".join(f"{step['action']}: {step['result']}" for step in said["actions"]) or "none",
            said["outcome"],
            said["error"] or said["post_reason"] or "",
            "yes" if said["rollback"]["available"] else "no",
            alone(record, said["post_result"] or ""),
        )
        for record in records
        if (said := record.document)["outcome"] is not None
    ]
    columns = ("When, UTC", "Host", "Check", "Found", "Who", "Steps", "Outcome", "Afterwards", "Way back", "Record")
    return Sheet(
        "Changes and remediation",
        (
            "Every change that the agent made or was kept from making, with what was found before and after. What an order asked "
            "for names the order; who signed it is in the export of orders, of which the record has the digest.",
        ),
        (
            Table("By outcome", ("Outcome", "Records"), tuple(_by(records, "outcome"))),
            Table("The register", columns, tuple(rows), "No change in the period."),
        ),
    )


def exceptions(scope: Scope, records: Sequence[Record]) -> Sheet:
    """What was accepted as it is: by a signed baseline, and by people at the server."""
    found: dict[tuple[str, str, str, str], list[Record]] = defaultdict(list)
    for record in records:
        for check, result, _ in statements(record.document):
            if result == "exception":
                baseline = record.document["baseline"]
                found[
                    host(record), check, record.document["exception_id"] or "in a heartbeat", baseline["version"]
                ].append(record)
    rows = tuple((*place, at(held[0]), at(held[-1]), count(held, "exception")) for place, held in sorted(found.items()))
    return Sheet(
        "Exceptions",
        (
            "An exception's reason, equivalent measure, approver and end stand in the baseline of that version; records carry its "
            "id and the baseline's SHA-256. For an addressable specification, 164.306(d)(3) asks for this documentation. What "
            "people recorded at the server changed no record: hosts signed fail, and are counted so. The log has an act of each, "
            "which the packet's verifier finds by its digest; of what was recorded in another year, that year's log has it.",
        ),
        (
            _recorded(scope, records),
            Table(
                "Of baselines",
                ("Host", "Check", "Exception", "Baseline", "First", "Last", "Records"),
                rows,
                "No exception in the period.",
            ),
        ),
    )


def _recorded(scope: Scope, records: Sequence[Record]) -> Table:
    """What stood at some time of the period, or waited then, with the failing records under it."""
    labels = {one.key_id: one.host_id for one in scope.hosts}
    start, end = stamp(scope.start), stamp(scope.end)
    rows: list[Row] = []
    for one in scope.exceptions or ():
        if one.created >= end or one.until <= start:
            continue
        under = [record for record in records if _fails_under(one, record)]
        who = one.approver + (f" and {one.seconded_by}" if one.seconded_by else "")
        ended = f"{one.withdrawn[:10]}, withdrawn" if one.withdrawn else one.expires[:10]
        rows.append(
            (
                "every host" if one.key_id is None else labels.get(one.key_id, one.key_id[:16]),
                one.check,
                REASONS[one.reason],
                MEASURES[one.measure],
                one.reference,
                who if one.since is not None else f"{who}; a second person has not approved it",
                one.created[:10],
                ended,
                count(under, "fail"),
            )
        )
    columns = ("Host", "Check", "Reason", "Instead", "Documented in", "Approved by", "From", "Until", "Fails under it")
    empty = "No exception in the period."
    if scope.exceptions is None:
        empty = "Not said: the packet was built by a version that did not say it."
    return Table("Recorded by people", columns, tuple(rows), empty)


def _fails_under(one: Accepted, record: Record) -> bool:
    said = record.document
    about_it = one.key_id is None or one.key_id == said["host"]["key_id"]
    at_time = one.since is not None and one.since <= said["created_at"] < one.until
    return (
        about_it and at_time and any(check == one.check and result == "fail" for check, result, _ in statements(said))
    )


def review(records: Sequence[Record]) -> Sheet:
    """For the person who reviews, 164.308(a)(1)(ii)(D)."""
    hosts = by_host(records)
    watched = [check for check in _WATCHED if any(check in own.checks for own in hosts.values())]
    rows: tuple[Row, ...] = tuple(
        (label, check, *own.results(check)) for label, own in hosts.items() for check in watched
    )
    return Sheet(
        "Review of information system activity",
        (
            "164.308(a)(1)(ii)(D) asks that records of activity be reviewed. A machine can show that they were made; that they "
            "were reviewed is for a person to state here.",
        ),
        (Table("What the host records of itself", ("Host", "Check", *heads()), rows, "Nothing of it was looked at."),),
        sign_off=(
            "I have reviewed the records of activity of this period.",
            "Findings and what was done about them:",
        ),
    )


def backups(records: Sequence[Record]) -> Sheet:
    """Backups and restores that were tried, 164.308(a)(7)(ii)(A) and (D)."""
    own = [record for record in records if record.document["check"] == "backup"]
    drills = [record for record in records if record.document["kind"] == "drill"]
    rows = _verdicts(records, "backup")
    log = tuple(
        (
            at(single),
            host(single),
            single.document["check"] or "",
            single.document["result"] or "",
            _facts(single, "drill"),
            alone(single, single.document["result"] or ""),
        )
        for single in drills
    )
    last = tuple(
        (
            label,
            at(mine.records[-1]),
            _last(mine.records[-1]),
            _facts(mine.records[-1], ""),
            alone(mine.records[-1], _last(mine.records[-1])),
        )
        for label, mine in by_host(own).items()
    )
    return Sheet(
        "Backups and restore drills",
        (
            "A drill restores into another place and compares. That somebody looked at it, and at what went wrong, is for a person "
            "to state.",
        ),
        (
            Table("Verdicts about backups", ("Host", *heads()), rows, "No backup was looked at."),
            Table(
                "The newest record of each host",
                ("Host", "When, UTC", "Result", "What was seen", "Record"),
                last,
                "No record about a backup alone; heartbeats state it in the table before.",
            ),
            Table(
                "Drills",
                ("When, UTC", "Host", "Check", "Result", "What was seen", "Record"),
                log,
                "No drill in the period.",
            ),
        ),
        sign_off=("I have looked at the backups and restore drills of this period.", "Corrective action:"),
    )


def updates(records: Sequence[Record]) -> Sheet:
    """How old updates are, against what the baseline allows."""
    own = [record for record in records if record.document["check"] == "patching"]
    last = tuple(
        (
            label,
            at(mine.records[-1]),
            _last(mine.records[-1]),
            _facts(mine.records[-1], ""),
            alone(mine.records[-1], _last(mine.records[-1])),
        )
        for label, mine in by_host(own).items()
    )
    rows = _verdicts(records, "patching")
    return Sheet(
        "Updates",
        (
            "A host fails when a security update waits for longer than its baseline allows; the figures are those it saw.",
        ),
        (
            Table("Verdicts about updates", ("Host", *heads()), rows, "No update was looked at."),
            Table(
                "The newest record of each host",
                ("Host", "When, UTC", "Result", "What was seen", "Record"),
                last,
                "No record about updates alone.",
            ),
        ),
    )


def _who(said: Mapping[str, Any]) -> str:
    if said["order_id"]:
        return f"order {said['order_id']}"
    return {
        "schedule": "the agent, by its rounds",
        "event": "the agent, by a change it saw",
        "manual": "a person at the host",
    }.get(said["trigger"], str(said["trigger"]))


def _last(record: Record) -> str:
    """What a record says in the end."""
    result: str = record.document["post_result"] or record.document["result"] or ""
    return result


def _facts(record: Record, word: str) -> str:
    """What was seen last in it, by name; digests are in the record."""
    state = record.document["post_state"] or record.document["pre_state"]
    shown = {
        name: value for name, value in state.items() if word in name and not str(name).endswith(("sha256", "digest"))
    }
    return ", ".join(f"{name} {_plain(value)}" for name, value in sorted(shown.items())) or "in the record"


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(len(value)) if isinstance(value, list) else str(value)


def _by(records: Iterable[Record], field: str) -> list[Row]:
    found: dict[str, list[Record]] = defaultdict(list)
    for record in records:
        if record.document[field] is not None:
            found[record.document[field]].append(record)
    return [(word, count(held)) for word, held in sorted(found.items())]


def _verdicts(records: Iterable[Record], check: str) -> tuple[Row, ...]:
    """Of each host that states one of this check."""
    return tuple((label, *own.results(check)) for label, own in by_host(records).items() if check in own.checks)
