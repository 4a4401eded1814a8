"""From what the fleet service answers to pages: choose sentences, put words and figures side by side. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from compliance_agent.core.retention import Keep
from compliance_agent.server.records import NO_DIGEST, Bundle, Fork, Gap
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services.fleet import BundleStanding, CheckStanding, HostStanding, Moved, SiteStanding
from compliance_agent.server.services.orders import standing
from compliance_agent.web import words
from compliance_agent.web.pages import (
    BundlePage,
    BundleRow,
    CheckRow,
    Counts,
    Finding,
    HostRow,
    Proof,
    SiteRow,
    StepRow,
    Verification,
    checks_by_urgency,
    fact_rows,
)


def instant(text: object) -> datetime | None:
    """A time as evidence writes it, or None when it is not one."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC) if isinstance(text, str) else None
    except (ValueError, OverflowError):
        return None


def made_at(bundle: Bundle) -> datetime:
    """When the host says it made the bundle; when it arrived, where the claim is no time."""
    return instant(bundle.created_at) or bundle.received_at


def check_row(standing: CheckStanding) -> CheckRow:
    """One check as it stands, with the newest remediation if there was one."""
    verdict, cure = standing.verdict, standing.remediation
    return CheckRow(
        check=verdict.check,
        title=words.check_title(verdict.check),
        result=standing.result,
        reported=verdict.result,
        reason=standing.reason,
        sentence=words.reason_sentence(verdict.check, standing.reason),
        since=verdict.since,
        outcome=cure.outcome if cure else None,
        gate=cure.error if cure else None,
        gate_sentence=words.gate_sentence(cure.error) if cure and cure.error else "",
        remediated_at=made_at(cure) if cure else None,
        remediation_id=cure.bundle_id if cure else None,
        bundle_id=verdict.bundle_id,
    )


def host_row(standing: HostStanding) -> HostRow:
    """One host with its checks, worst first."""
    host = standing.host
    return HostRow(
        key_id=host.key_id,
        host_id=host.host_id,
        site_id=host.site_id,
        site_name=host.site_id,
        last_seen=host.last_seen_at,
        silent=standing.silent,
        checks=tuple(checks_by_urgency(check_row(item) for item in standing.checks)),
        oldest_unmet=standing.oldest_unmet_at,
        agent_version=host.agent_version,
        baseline_version=host.baseline_version,
        epoch=host.head.epoch if host.head else None,
        seq=host.head.seq if host.head else None,
        pending=host.pending,
        enrolled_at=host.enrolled_at,
        revoked=host.revoked_at is not None,
        broken=standing.broken,
        unlogged=standing.unlogged,
    )


def site_row(standing: SiteStanding, moved: Mapping[str, Moved]) -> SiteRow:
    """One clinic."""
    counts = standing.counts
    site = standing.site
    return SiteRow(
        site_id=site.site_id,
        name=site.site_id,
        client_id=site.client_id,
        hosts=len(standing.live),
        silent=standing.silent,
        counts=Counts(counts["pass"], counts["fail"], counts["unknown"], counts["exception"], counts["not_applicable"]),
        oldest_unmet=standing.oldest_unmet_at,
        changes=moved.get(site.site_id, Moved()),
        findings=sum(host.broken for host in standing.live),
        unlogged=sum(host.unlogged for host in standing.hosts),
    )


def findings(gaps: Iterable[Gap], forks: Sequence[Fork]) -> list[Finding]:
    """What is wrong with a host's chain, the worst first."""
    found = []
    if forks:
        one = forks[0]
        found.append(
            Finding(
                "Two histories under one key.",
                f"{len(forks)} signed {'record contradicts' if len(forks) == 1 else 'records contradict'} the chain held here, "
                f"the newest at epoch {one.epoch}, seq {one.seq}. The host was cloned, set back, or its key is in other hands; "
                "both histories are kept.",
            )
        )
    found += [
        Finding(
            "Records are missing.",
            f"Expected epoch {gap.expected_epoch}, seq {gap.expected_seq}; epoch {gap.got_epoch}, seq {gap.got_seq} came instead. "
            "Nothing later is taken until the missing ones arrive.",
        )
        for gap in gaps
        if gap.closed_at is None
    ]
    return found


def bundle_row(bundle: Bundle) -> BundleRow:
    """One bundle in a list."""
    sentence = words.reason_sentence(bundle.check or "", bundle.reason) if bundle.reason else ""
    gate = words.gate_sentence(bundle.error) if bundle.error else ""
    return BundleRow(
        bundle_id=bundle.bundle_id,
        kind=bundle.kind,
        check=bundle.check,
        title=words.check_title(bundle.check) if bundle.check else "",
        result=bundle.result,
        outcome=bundle.outcome,
        reason=bundle.reason or "",
        sentence=sentence,
        gate=gate,
        at=made_at(bundle),
        epoch=bundle.epoch,
        seq=bundle.seq,
    )


NOT_BEFORE = "The record before it is not here."
NOT_AFTER = "No record after it is here: it may be the newest of this host."


def bundle_page(standing: BundleStanding, host: HostRow, took_ms: int) -> BundlePage:
    """One bundle, whole, with its verification. Nothing in it is trusted to have its proper shape: the bytes may be damaged."""
    document, bundle = standing.document, standing.bundle
    before, after = _object(document, "pre_state"), _object(document, "post_state")
    controls = document.get("hipaa_controls")
    return BundlePage(
        row=bundle_row(bundle),
        host=host,
        digest=bundle.sha256,
        prev=bundle.prev,
        is_first=bundle.prev == NO_DIGEST,
        size_bytes=len(standing.body),
        received_at=bundle.received_at,
        verification=Verification(tuple(proof(point.name, point.holds) for point in standing.points), took_ms),
        pretty=pretty(standing.body),
        pem_name=pem_name(host.host_id),
        previous_id=standing.previous.bundle_id if standing.previous else None,
        next_id=standing.following.bundle_id if standing.following else None,
        previous_why="The record before it is outside the dates that you may see." if standing.previous else NOT_BEFORE,
        next_why="The record after it is outside the dates that you may see." if standing.following else NOT_AFTER,
        facts=fact_rows(before, after, {name: words.fact_doc(bundle.check or "", name) for name in {*before, *after}}),
        two_looks=bool(after),
        after=str(document["post_result"]) if document.get("post_result") else None,
        states=state_rows(document.get("states")),
        steps=step_rows(document.get("actions")),
        controls=tuple(str(section) for section in controls) if isinstance(controls, list) else (),
        details=(*details(document), ("Kept until", kept(standing.keep))),
    )


def kept(keep: Keep) -> str:
    """How long a record is kept, in words."""
    until = f"{keep.until}, six years after its baseline version was last in effect, or after the record"
    if keep.in_effect:
        until = f"{keep.until} or later: its baseline version is in effect"
    return f"held ({', '.join(keep.holds)}); else {until}" if keep.holds else until


def proof(name: str, holds: bool) -> Proof:
    """One verified point in words."""
    title, good, bad = words.POINTS.get(name, (words.humanise(name), "It holds.", "It does not hold."))
    return Proof(title, holds, good if holds else bad)


def pem_name(host_id: str) -> str:
    """File name of a host's public key, safe to type into a shell."""
    return re.sub(r"[^A-Za-z0-9._]", "-", host_id).lstrip(".-") + ".pub.pem"


def state_rows(states: Any) -> tuple[CheckRow, ...]:
    """A heartbeat's verdicts; what is not shaped like one is unknown rather than missing."""
    rows = []
    for check, state in states.items() if isinstance(states, dict) else ():
        shaped = state if isinstance(state, dict) else {}
        result, reason = str(shaped.get("result") or "unknown"), str(shaped.get("reason") or "")
        sentence = words.reason_sentence(check, reason)
        rows.append(CheckRow(check, words.check_title(check), result, result, reason, sentence))
    return tuple(checks_by_urgency(rows))


def step_rows(actions: Any) -> tuple[StepRow, ...]:
    """The steps of a cure, in the order they were taken."""
    rows = []
    for action in actions if isinstance(actions, list) else ():
        if not isinstance(action, dict):
            continue
        parts = [
            f"exit {action['exit_code']}" if action.get("exit_code") is not None else "",
            f"{action['duration_ms']} ms" if action.get("duration_ms") is not None else "",
            words.humanise(str(action["code"])) if action.get("code") else "",
        ]
        detail = " · ".join(part for part in parts if part)
        rows.append(StepRow(str(action.get("step")), str(action.get("action")), str(action.get("result")), detail))
    return tuple(rows)


def details(document: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """(label, value) of what the record says besides facts, steps and chain; empty ones left out."""
    trigger = document.get("trigger")
    wanted = (
        ("Bundle id", document.get("bundle_id")),
        ("Asked for by", words.TRIGGERS.get(str(trigger), trigger)),
        ("Severity", document.get("severity")),
        ("Agent", _object(document, "agent").get("version")),
        ("Baseline", _object(document, "baseline").get("version")),
        ("Policy", document.get("policy_version")),
        ("Host clock", _clock(_object(document, "clock"))),
        ("Look after the cure", _look_after(document)),
        ("Ended with", document.get("error")),
        ("Rollback point", _rollback(_object(document, "rollback"))),
        ("Found after a restart", "yes" if document.get("recovered") else None),
        ("Order", document.get("order_id")),
        ("Exception", document.get("exception_id")),
    )
    return tuple((label, str(value)) for label, value in wanted if value)


def _object(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = document.get(name)
    return value if isinstance(value, dict) else {}


def _clock(clock: Mapping[str, Any]) -> str | None:
    if not clock:
        return None
    said = clock.get("synchronized")
    synchronised = "synchronized" if said is True else "NOT synchronized" if said is False else "could not tell"
    offset = clock.get("offset_us")
    return f"{clock.get('source')}, {synchronised}" + (f", offset {offset} µs" if offset is not None else "")


def _look_after(document: Mapping[str, Any]) -> str | None:
    result = document.get("post_result")
    if not result:
        return None
    reason = words.reason_sentence(str(document.get("check")), str(document.get("post_reason") or ""))
    return f"{words.word(words.VERDICTS, str(result)).label}. {reason}"


def _rollback(rollback: Mapping[str, Any]) -> str | None:
    if not rollback.get("available"):
        return None
    generation = rollback.get("generation")
    return f"kept, generation {generation}" if generation is not None else "kept"


def pretty(body: bytes) -> str:
    """The document indented for reading; bytes that are no JSON any more are shown as what they are."""
    try:
        return json.dumps(json.loads(body), indent=2, ensure_ascii=True)
    except (ValueError, RecursionError):
        return body.decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class OrderLine:
    """An order in a host's list."""

    order_id: str
    what: str
    state: str
    drafted_by: str
    drafted_at: datetime
    outcome: str | None
    sentence: str
    bundle_id: str | None


def order_line(row: OrderRow, now: datetime) -> OrderLine:
    """An order as it stands, with what the host's record says of its end."""
    asked = json.loads(row.parameters)
    of = ", ".join(asked.get("checks", [])) or asked.get("check") or asked.get("version") or ""
    return OrderLine(
        order_id=row.order_id,
        what=f"{words.humanise(row.kind)} {of}".strip(),
        state=words.humanise(standing(row, now)),
        drafted_by=row.drafted_by,
        drafted_at=row.drafted_at,
        outcome=row.outcome,
        sentence=words.gate_sentence(row.error) if row.error else "",
        bundle_id=row.bundle_id,
    )
