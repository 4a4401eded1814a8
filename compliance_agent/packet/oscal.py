"""`assessment-results.json`: the period in OSCAL 1.2.1, for tools that read assessments. Pure.

Every number in it is counted from records, and every observation names the records it stands on, by path and digest. Ids are
UUIDs of version 5 over digests, so the same records give the same document. No assessment plan exists for evidence that never
stops; `import-ap` points at a resource that says so. A finding is `satisfied` only where a host's own state is direct evidence for
the section, every host of the scope has spoken for each of its checks, and nothing but `pass` and `not_applicable` stood at
the end.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from compliance_agent import __version__
from compliance_agent.core.citations import SECTIONS, Reach
from compliance_agent.documents import read_json
from compliance_agent.errors import DocumentError
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet.content import (
    RESULTS,
    Record,
    Scope,
    checks_of,
    control_id,
    counted,
    in_order,
    section,
    stamp,
    statements,
)

VERSION = "1.2.1"
NAMESPACE = uuid.UUID("b7d3a2f4-3c1e-5d0a-9a44-6c1f0f6f2b10")
NS = "urn:compliance-agent:oscal"
_NO_PLAN = (
    "There is no assessment plan: hosts assess themselves without pause, against the baseline whose digest every record "
    "names. This resource stands where a plan would be referenced."
)


def assessment_results(scope: Scope, records: Iterable[Record]) -> bytes:
    """The document, in canonical JSON, so that a digest of the file is one of its content."""
    shown = in_order(records, scope)
    digest, found = hashlib.sha256(scope.encode()), _Found()
    wanted = set(checks_of(scope.control)) if scope.control else set(registry().checks)
    for record in shown:  # once: they may be read from a file each time
        digest.update((sha256 := _digest(record)).encode())
        found.take(record, sha256, wanted)
    root = _Ids(digest.hexdigest())
    plan = root.of("plan")
    document = {
        "uuid": root.of("assessment-results"),
        "metadata": {
            "title": f"Evidence of {scope.site_id}, {scope.since} to {scope.until}",
            "last-modified": scope.signed_at,
            "version": f"{scope.size}",
            "oscal-version": VERSION,
            "props": [_prop("generator", f"compliance-agent-{__version__}"), _prop("log-origin", scope.origin)],
        },
        "import-ap": {"href": f"#{plan}"},
        "results": [_result(scope, len(shown), found, root)],
        "back-matter": {
            "resources": [{"uuid": plan, "title": "Continuous evidence, without a plan", "description": _NO_PLAN}]
        },
    }
    return canonical({"assessment-results": document})


def generator(raw: bytes) -> str | None:
    """The version of this program that wrote an export; None when another one did, or it cannot be read."""
    try:
        props = read_json(raw, limit_bytes=len(raw))["assessment-results"]["metadata"]["props"]
        named = next(str(prop["value"]) for prop in props if prop["name"] == "generator")
    except (DocumentError, KeyError, TypeError, StopIteration):
        return None
    return named.removeprefix("compliance-agent-")


class _Ids:
    """UUIDs that are the same for the same packet and name."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def of(self, *names: str) -> str:
        return str(uuid.uuid5(NAMESPACE, "\n".join([self._digest, *names])))


def _result(scope: Scope, count: int, found: _Found, ids: _Ids) -> dict[str, Any]:
    observations = {place: _observation(*place, said, ids) for place, said in found.said.items()}
    controls = [section(scope.control)] if scope.control else list(registry().citations)
    result: dict[str, Any] = {
        "uuid": ids.of("result"),
        "title": f"{scope.site_id}: what its hosts recorded",
        "description": f"{count} signed records of {len(scope.hosts)} host(s), all in the log {scope.origin}.",
        "start": stamp(scope.start),
        "end": stamp(scope.end),
        "reviewed-controls": {
            "control-selections": [{"include-controls": [{"control-id": control_id(name)} for name in controls]}]
        },
        "findings": [_finding(name, scope, found.standing, observations, ids) for name in controls],
    }
    if observations:  # OSCAL has no empty lists
        result["observations"] = [observation for _, observation in sorted(observations.items())]
    return result


@dataclass
class _Spoken:
    """What was said of one check on one host; of the records nothing is held but path and digest."""

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    proof: dict[str, str] = field(default_factory=dict)
    last: tuple[str, str, str] = ("", "", "")

    def say(self, record: Record, digest: str, result: str, own: bool) -> None:
        """Another statement."""
        path = record.directory
        self.counts[result] += 1
        if own or not self.proof:
            self.proof.setdefault(path, digest)
        self.last = path, digest, record.document["timestamp_end"]


@dataclass
class _Found:
    """What the records say: of each host and check that somebody spoke of, and what stood at the end."""

    said: dict[tuple[str, str], _Spoken] = field(default_factory=lambda: defaultdict(_Spoken))
    standing: dict[tuple[str, str], str] = field(default_factory=dict)

    def take(self, record: Record, digest: str, wanted: Collection[str]) -> None:
        """The next record."""
        host = record.document["host"]["id"]
        for check, result, _ in statements(record.document):
            self.standing[host, check] = result
            if check in wanted:
                self.said[host, check].say(record, digest, result, record.document["check"] == check)


def _observation(host: str, check: str, said: _Spoken, ids: _Ids) -> dict[str, Any]:
    path, digest, collected = said.last
    said.proof.setdefault(path, digest)
    return {
        "uuid": ids.of("observation", host, check),
        "title": f"{check} on {host}",
        "description": registry().checks[check]["title"],
        "methods": ["TEST-AUTOMATED"],
        "collected": collected,
        "props": [
            _prop("host", host),
            _prop("check", check),
            *(_prop(f"count-{result}", str(count)) for result, count in said.counts.items()),
        ],
        "relevant-evidence": [_evidence(*proof) for proof in said.proof.items()],
    }


def _evidence(path: str, digest: str) -> dict[str, Any]:
    return {
        "href": f"../{path}/bundle.json",
        "description": "A signed record, its signature and its receipt.",
        "props": [_prop("sha256", digest)],
    }


def _finding(
    name: str,
    scope: Scope,
    standing: Mapping[tuple[str, str], str],
    observations: Mapping[tuple[str, str], dict[str, Any]],
    ids: _Ids,
) -> dict[str, Any]:
    checks = checks_of(name)
    verdicts = [standing.get((host.host_id, check), "unknown") for host in scope.hosts for check in checks]
    related = [found["uuid"] for (_, check), found in sorted(observations.items()) if check in checks]
    state, reason, remarks = _state(name, verdicts)
    finding: dict[str, Any] = {
        "uuid": ids.of("finding", name),
        "title": f"{name} {SECTIONS[name].title}",
        "description": f"What stood at the end of {scope.until} for the checks that cite this section: "
        + ", ".join(f"{count} {result}" for result, count in counted(verdicts).items()),
        "target": {
            "type": "objective-id",
            "target-id": control_id(name),
            "status": {"state": state, "reason": reason, "remarks": remarks},
        },
    }
    if related:
        finding["related-observations"] = [{"observation-uuid": found} for found in related]
    return finding


def _state(name: str, verdicts: Sequence[str]) -> tuple[str, str, str]:
    """State, reason and remark of a finding: never more than the records say."""
    if not verdicts or any(result not in {"pass", "not_applicable"} for result in verdicts):
        fails = "fail" in verdicts
        return "not-satisfied", "fail" if fails else "other", "A check failed, or nobody could tell, or nobody spoke."
    if "pass" not in verdicts:
        return "not-satisfied", "other", "Not applicable on every host."
    if SECTIONS[name].reach is not Reach.DIRECT:
        remark = "The technical part passed. A human record is needed as well, and is not in this packet."
        return "not-satisfied", "other", remark
    return "satisfied", "pass", "Every check that cites this section passed on every host when the period ended."


def _prop(name: str, value: str) -> dict[str, str]:
    return {"name": name, "ns": NS, "value": value}


def _digest(record: Record) -> str:
    return hashlib.sha256(record.body).hexdigest()
