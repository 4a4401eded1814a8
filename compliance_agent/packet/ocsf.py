"""`ocsf.jsonl`: changes of verdict as OCSF Compliance Findings (2003) and cures as Remediation Activities (7001). Pure.

Both lines of one record carry its id, as `finding_info.uid` and `command_uid`, and its digest. Heartbeats repeat what stands and
are left to the records themselves. "Could not tell" is Warning, which OCSF defines as "no result due to missing information".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent import __version__
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet.content import Record, Scope, in_order, moment

SCHEMA_VERSION = "1.5.0"
STANDARD = "45 CFR 164 Subpart C"
COMPLIANCE, REMEDIATION = 2003, 7001
STATUS = {"pass": 1, "fail": 3, "unknown": 2}  # else 99, with the word itself
SEVERITY = {"info": 1, "low": 2, "medium": 3, "high": 4, "critical": 5}
RESTORE, HARDEN = 3, 4
_DONE = {"success": 1, "failed": 2, "reverted": 2}  # OCSF: Success, Failure
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def lines(scope: Scope, records: Iterable[Record]) -> bytes:
    """The file: one canonical JSON object a line."""
    return b"".join(pieces(scope, records))


def pieces(scope: Scope, records: Iterable[Record]) -> Iterator[bytes]:
    """Its lines, one after the other."""
    return (canonical(line) + b"\n" for record in in_order(records, scope) for line in _of(record))


def _of(record: Record) -> Iterator[dict[str, Any]]:
    said = record.document
    if said["check"] is None or said["result"] is None:
        return
    yield _finding(record)
    if said["kind"] == "remediation" and said["outcome"] in _DONE:
        yield _remediation(record)


def _event(record: Record, kind: int, activity: int, result: str) -> dict[str, Any]:
    said = record.document
    return {
        "class_uid": kind,
        "category_uid": kind // 1_000,
        "type_uid": kind * 100 + activity,
        "activity_id": activity,
        "time": (moment(said["timestamp_end"]) - _EPOCH) // timedelta(milliseconds=1),
        "severity_id": 1 if result == "pass" else SEVERITY.get(said["severity"] or "", 0),
        "metadata": {
            "version": SCHEMA_VERSION,
            "uid": f"{said['bundle_id']}-{kind}",
            "tenant_uid": said["client_id"],
            "product": {"name": "compliance-agent", "vendor_name": "compliance-agent", "version": __version__},
        },
        "device": {"hostname": said["host"]["id"], "type_id": 0, "uid": said["host"]["key_id"]},
    }


def _finding(record: Record) -> dict[str, Any]:
    said = record.document
    status = STATUS.get(said["result"], 99)
    return {
        **_event(record, COMPLIANCE, 1, said["result"]),
        "compliance": {
            "control": said["check"],
            "requirements": list(said["hipaa_controls"]),
            "standards": [STANDARD],
            "status": said["result"],
            "status_detail": said["reason"],
            "status_id": status,
        },
        "finding_info": {
            "uid": said["bundle_id"],
            "title": registry().checks[said["check"]]["title"],
            "created_time": (moment(said["created_at"]) - _EPOCH) // timedelta(milliseconds=1),
        },
        "evidences": [{"data": _digests(record)}],
    }


def _remediation(record: Record) -> dict[str, Any]:
    said = record.document
    status = _DONE[said["outcome"]]
    activity = HARDEN if said["check"] == "patching" else RESTORE
    return {
        **_event(record, REMEDIATION, activity, said["post_result"] or "unknown"),
        "command_uid": said["bundle_id"],
        "status_id": status,
        "status": said["outcome"],
        "status_code": said["error"] or "none",
        "unmapped": {"post_result": said["post_result"], **_digests(record)},
    }


def _digests(record: Record) -> dict[str, Any]:
    digest = hashlib.sha256(record.body).hexdigest()
    return {"bundle_sha256": digest, "log_index": record.index, "path": record.directory}
