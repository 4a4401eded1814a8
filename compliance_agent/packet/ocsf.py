"""`ocsf.jsonl`: changes of verdict as OCSF Compliance Findings (2003) and cures as Remediation Activities (7001). Pure.

Both lines of one record carry its id, as `finding_info.uid` and `command_uid`, and its digest. Heartbeats repeat what stands and
are left to the records themselves. "Could not tell" is Warning, which OCSF defines as "no result due to missing information".
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from json.encoder import encode_basestring
from typing import Any

from compliance_agent import __version__
from compliance_agent.evidence.allowlist import registry
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
    return map(of, in_order(records, scope))


def of(record: Record) -> bytes:
    """The lines of a record, of which there may be none."""
    return writer(record.document)(record)


def writer(said: Mapping[str, Any]) -> Callable[[Record], bytes]:
    """What writes the lines of this record, and of those that are like it but for what is their own (`evidence.alike.OWN`)."""
    if said["check"] is None or said["result"] is None:
        return _nothing
    finding = _finding(said)
    if said["kind"] == "remediation" and said["outcome"] in _DONE:
        return lambda record: f"{finding(record)}{_remediation(record)}\n".encode()
    return lambda record: finding(record).encode()


def _nothing(_: Record) -> bytes:
    return b""


# Each line is written out with its keys in their canonical order: as `canonical` writes it, in a fraction of the time. `_text` is
# the string of a value, or null.


def _finding(like: Mapping[str, Any]) -> Callable[[Record], str]:
    host, check, result = like["host"], like["check"], like["result"]
    begins = _compliance(check, result, like["reason"], tuple(like["hipaa_controls"]), host["id"], host["key_id"])
    title, (product, version) = _title(check), _metadata(like, COMPLIANCE)
    severity, kind = _severity(like, result), COMPLIANCE * 100 + 1

    def line(record: Record) -> str:
        said = record.document
        bundle = said["bundle_id"]
        return (
            f'{begins}"evidences":[{{"data":{{{_digests(record)}}}}}],'
            f'"finding_info":{{"created_time":{_milliseconds(said["created_at"])},"title":{title},"uid":"{bundle}"}},'
            f'{product}"{bundle}{version},"severity_id":{severity},"time":{_milliseconds(said["timestamp_end"])},'
            f'"type_uid":{kind}}}\n'
        )

    return line


@functools.lru_cache(1_024)
def _compliance(
    check: str, result: str, reason: str | None, controls: tuple[str, ...], host_id: str, key_id: str
) -> str:
    """What a finding begins with, which is the same in many of them."""
    return (
        f'{{"activity_id":1,"category_uid":{COMPLIANCE // 1_000},"class_uid":{COMPLIANCE},"compliance":{{"control":{_text(check)},'
        f'"requirements":[{",".join(map(_text, controls))}],"standards":["{STANDARD}"],"status":{_text(result)},'
        f'"status_detail":{_text(reason)},"status_id":{STATUS.get(result, 99)}}},'
        f'"device":{_device({"id": host_id, "key_id": key_id})},'
    )


@functools.cache
def _title(check: str) -> str:
    return _text(registry().checks[check]["title"])


def _remediation(record: Record) -> str:
    said, host = record.document, record.document["host"]
    activity = HARDEN if said["check"] == "patching" else RESTORE
    severity, (product, version) = _severity(said, said["post_result"] or "unknown"), _metadata(said, REMEDIATION)
    return (
        f'{{"activity_id":{activity},"category_uid":{REMEDIATION // 1_000},"class_uid":{REMEDIATION},'
        f'"command_uid":{_text(said["bundle_id"])},"device":{_device(host)},{product}"{said["bundle_id"]}{version},'
        f'"severity_id":{severity},"status":{_text(said["outcome"])},"status_code":{_text(said["error"] or "none")},'
        f'"status_id":{_DONE[said["outcome"]]},"time":{_milliseconds(said["timestamp_end"])},'
        f'"type_uid":{REMEDIATION * 100 + activity},'
        f'"unmapped":{{{_digests(record)},"post_result":{_text(said["post_result"])}}}}}'
    )


def _metadata(said: Mapping[str, Any], kind: int) -> tuple[str, str]:
    """Before and after the record's id."""
    return (
        f'"metadata":{{"product":{{"name":"compliance-agent","vendor_name":"compliance-agent","version":{_text(__version__)}}},'
        f'"tenant_uid":{_text(said["client_id"])},"uid":',
        f'-{kind}","version":"{SCHEMA_VERSION}"}}',
    )


def _device(host: Mapping[str, Any]) -> str:
    return f'{{"hostname":{_text(host["id"])},"type_id":0,"uid":{_text(host["key_id"])}}}'


def _digests(record: Record) -> str:
    return f'"bundle_sha256":"{record.digest}","log_index":{record.index},"path":{_text(record.directory)}'


def _severity(said: Mapping[str, Any], result: str) -> int:
    return 1 if result == "pass" else SEVERITY.get(said["severity"] or "", 0)


@functools.lru_cache(64)
def _milliseconds(text: str) -> int:
    return (moment(text) - _EPOCH) // timedelta(milliseconds=1)


def _text(value: str | None) -> str:
    return "null" if value is None else encode_basestring(value)
