"""`assessment-results.json`: the period in OSCAL 1.2.1, for tools that read assessments. Pure.

Every number in it is counted from records, and every observation names the records it stands on, by path and digest. Ids are
UUIDs of version 5 over digests, so the same records give the same document. No assessment plan exists for evidence that never
stops; `import-ap` points at a resource that says so. A finding is `satisfied` only where a host's own state is direct evidence for
the section, every host of the scope has spoken for each of its checks, and nothing but `pass` and `not_applicable` stood at
the end.
"""

from __future__ import annotations

import hashlib
import operator
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

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
Place = tuple[str, str]  # host and check
_OBSERVATIONS, _EVIDENCE, _RESULTS = b'"observations":[', b'"relevant-evidence":[', b',"results":['
_NO_PLAN = (
    "There is no assessment plan: hosts assess themselves without pause, against the baseline whose digest every record "
    "names. This resource stands where a plan would be referenced."
)


def assessment_results(scope: Scope, records: Iterable[Record]) -> bytes:
    """The document, in canonical JSON, so that a digest of the file is one of its content."""
    shown = in_order(records, scope)
    root, stated, own = Root(scope), Stated(), defaultdict[Place, list[bytes]](list)
    for record in shown:
        root.take(record.digest)
        stated.take(record)
        if (check := own_check(record.document)) is not None:
            own[record.document["host"]["id"], check].append(evidence(record.directory, record.digest))
    pieces = document(scope, root, stated)
    return b"".join(b",".join(own[piece]) if isinstance(piece, tuple) else piece for piece in pieces)


def document(scope: Scope, root: Root, stated: Stated) -> Iterator[bytes | Place]:
    """The document piece by piece; a host and check stand for the `evidence` of all records that are about that check on that
    host, in their order, with commas between.
    """
    ids = _Ids(root.hexdigest())
    wanted = set(checks_of(scope.control)) if scope.control else set(registry().checks)
    said = {place: spoken for place, spoken in sorted(stated.said.items()) if place[1] in wanted}
    plan = ids.of("plan")
    whole = {
        "uuid": ids.of("assessment-results"),
        "metadata": {
            "title": f"Evidence of {scope.site_id}, {scope.since} to {scope.until}",
            "last-modified": scope.signed_at,
            "version": f"{scope.size}",
            "oscal-version": VERSION,
            "props": [_prop("generator", f"compliance-agent-{__version__}"), _prop("log-origin", scope.origin)],
        },
        "import-ap": {"href": f"#{plan}"},
        "results": [_result(scope, root.count, stated, said, ids)],
        "back-matter": {
            "resources": [{"uuid": plan, "title": "Continuous evidence, without a plan", "description": _NO_PLAN}]
        },
    }
    before, _, after = canonical({"assessment-results": whole}).partition(_OBSERVATIONS)
    yield before
    if not said:  # OSCAL has no empty lists, and `_result` none at all
        return
    for at, (place, spoken) in enumerate(said.items()):
        opened, _, closed = canonical(_observation(*place, spoken, ids)).partition(_EVIDENCE)
        yield (b"," if at else _OBSERVATIONS) + opened + _EVIDENCE + spoken.first_cited + b"," * spoken.parted
        if spoken.own:
            yield place
        yield spoken.last_cited + closed
    yield after


def generator(start: bytes) -> str | None:
    """The version of this program that wrote an export that starts so; None when another one did, or it cannot be read."""
    head, found, _ = start.partition(_RESULTS)
    try:
        said = read_json(head + b"}}" if found else start, limit_bytes=len(start) + 2)["assessment-results"]["metadata"]
        named = next(str(prop["value"]) for prop in said["props"] if prop["name"] == "generator")
    except (DocumentError, KeyError, TypeError, StopIteration):
        return None
    return named.removeprefix("compliance-agent-")


def own_check(said: Mapping[str, Any]) -> str | None:
    """The check that a record is about and states something of; None where it is about none, or states nothing of it."""
    check: str | None = said["check"]
    stated = said["result"] is not None or said["post_result"] is not None or check in said["states"]
    return check if stated else None


def evidence(path: str, digest: str) -> bytes:
    """A record as an observation cites it."""
    return (
        f'{{"description":"A signed record, its signature and its receipt.","href":"../{path}/bundle.json",'
        f'"props":[{{"name":"sha256","ns":"{NS}","value":"{digest}"}}]}}'
    ).encode("ascii")


class Root:
    """What all ids of a document follow from: the scope, and the digest of each record in order."""

    def __init__(self, scope: Scope) -> None:
        self._digest = hashlib.sha256(scope.encode())
        self.count = 0

    def take(self, digest: str) -> None:
        """The next record."""
        self._digest.update(digest.encode())
        self.count += 1

    def hexdigest(self) -> str:
        """Of all of it."""
        return self._digest.hexdigest()


class _Ids:
    """UUIDs that are the same for the same packet and name."""

    def __init__(self, digest: str) -> None:
        self._digest = digest

    def of(self, *names: str) -> str:
        return str(uuid.uuid5(NAMESPACE, "\n".join([self._digest, *names])))


def _result(scope: Scope, count: int, stated: Stated, said: Mapping[Place, Spoken], ids: _Ids) -> dict[str, Any]:
    controls = [section(scope.control)] if scope.control else list(registry().citations)
    standing = {place: spoken.last.result for place, spoken in stated.said.items()}
    result: dict[str, Any] = {
        "uuid": ids.of("result"),
        "title": f"{scope.site_id}: what its hosts recorded",
        "description": f"{count} signed records of {len(scope.hosts)} host(s), all in the log {scope.origin}.",
        "start": stamp(scope.start),
        "end": stamp(scope.end),
        "reviewed-controls": {
            "control-selections": [{"include-controls": [{"control-id": control_id(name)} for name in controls]}]
        },
        "findings": [_finding(name, scope, standing, said, ids) for name in controls],
    }
    if said:
        result["observations"] = []
    return result


class Cited(NamedTuple):
    """A record that states something of a check: its place in the order of all, where it stands, and what it says last."""

    place: tuple[str, int, int]
    path: str
    digest: str
    own: bool
    end: str
    result: str


@dataclass
class Spoken:
    """What was said of one check on one host; of the records nothing is held but the first and the last.

    Cited are the records that are about the check, and of those that mention it the first and the last of all.
    """

    first: Cited
    last: Cited
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(RESULTS, 0))
    own: int = 0

    @property
    def first_cited(self) -> bytes:
        """The first record, where it is not one of its own."""
        return b"" if self.first.own else evidence(self.first.path, self.first.digest)

    @property
    def parted(self) -> bool:
        """Whether a comma stands between the first and the own ones."""
        return not self.first.own and self.own > 0

    @property
    def last_cited(self) -> bytes:
        """The last record with the comma before it, where it is not cited already."""
        if self.last.own or self.last.place == self.first.place:
            return b""
        return b"," + evidence(self.last.path, self.last.digest)


class Stated:
    """What records say: of each host and check that somebody spoke of. Records may come in any order, and in parts."""

    def __init__(self) -> None:
        self.said: dict[Place, Spoken] = {}

    def take(self, record: Record) -> None:
        """Another record."""
        said, host = record.document, record.document["host"]["id"]
        about, place, path, digest = own_check(said), record.place, record.directory, record.digest
        told: dict[str, str] = {}
        if about is None and said["post_result"] is None:
            self._mentioned(record, said["states"])
            return
        if about is not None and not said["states"] and said["post_result"] is None:  # most say one thing
            stated = [(about, said["result"])]
        else:
            stated = [(check, result) for check, result, _ in statements(said)]
        for check, result in stated:
            told[check] = result
            spoken = self.said.get((host, check))
            if spoken is None:
                cited = Cited(place, path, digest, check == about, said["timestamp_end"], result)
                spoken = self.said[host, check] = Spoken(cited, cited)
            spoken.counts[result] += 1
        for check, result in told.items():
            spoken, own = self.said[host, check], check == about
            spoken.own += own
            first, last = place < spoken.first.place, place >= spoken.last.place
            if first or last:
                cited = Cited(place, path, digest, own, said["timestamp_end"], result)
                spoken.first = cited if first else spoken.first
                spoken.last = cited if last else spoken.last

    def _mentioned(self, record: Record, states: Mapping[str, Any]) -> None:
        """As `take`, of a record that is about no single check and states each of these once, as heartbeats do."""
        said, place, known = record.document, record.place, self.said
        host, each = said["host"]["id"], dict[str, Cited]()
        for check, state in states.items():
            result = state["result"]
            cited = each.get(result)
            if cited is None:
                cited = Cited(place, record.directory, record.digest, False, said["timestamp_end"], result)
                each[result] = cited
            spoken = known.get((host, check))
            if spoken is None:
                spoken = known[host, check] = Spoken(cited, cited)
            spoken.counts[result] += 1
            if place < spoken.first.place:
                spoken.first = cited
            elif place >= spoken.last.place:
                spoken.last = cited

    def join(self, other: Stated) -> None:
        """What other records say."""
        for place, theirs in other.said.items():
            ours = self.said.setdefault(place, theirs)
            if ours is not theirs:
                ours.counts = {result: count + theirs.counts[result] for result, count in ours.counts.items()}
                ours.own += theirs.own
                ours.first = min(ours.first, theirs.first, key=_place)
                ours.last = max(ours.last, theirs.last, key=_place)


_place = operator.attrgetter("place")


def _observation(host: str, check: str, said: Spoken, ids: _Ids) -> dict[str, Any]:
    """Without what it cites."""
    return {
        "uuid": ids.of("observation", host, check),
        "title": f"{check} on {host}",
        "description": registry().checks[check]["title"],
        "methods": ["TEST-AUTOMATED"],
        "collected": said.last.end,
        "props": [
            _prop("host", host),
            _prop("check", check),
            *(_prop(f"count-{result}", str(count)) for result, count in said.counts.items()),
        ],
        "relevant-evidence": [],
    }


def _finding(
    name: str,
    scope: Scope,
    standing: Mapping[Place, str],
    observations: Iterable[Place],
    ids: _Ids,
) -> dict[str, Any]:
    checks = checks_of(name)
    verdicts = [standing.get((host.host_id, check), "unknown") for host in scope.hosts for check in checks]
    related = [ids.of("observation", host, check) for host, check in observations if check in checks]
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
