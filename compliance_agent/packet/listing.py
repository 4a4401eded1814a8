"""The records of a packet one after the other, for counting what they say: read where they stand, and little of each kept.

A packet of a large site has a gigabyte of records, and what they say repeats itself, a heartbeat that of the one before it.
So only the parts that something counts are kept, and parts that are equal are kept once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.allowlist import check_document
from compliance_agent.log.proof import Proof
from compliance_agent.packet.archive import Container, Entry, check_crc, in_order
from compliance_agent.packet.content import Record

# What a sheet, a grid or an export to a person is made from. The rest of a record is for its verifier.
SAID = (
    "actions", "baseline", "bundle_id", "check", "clock", "created_at", "epoch", "error", "exception_id", "hipaa_controls", "host",
    "incident", "kind", "order_id", "outcome", "post_reason", "post_result", "post_state", "pre_state", "reason", "recovered",
    "result", "rollback", "seq", "states", "timestamp_start", "trigger",
)  # fmt: skip


def records_in(container: Container) -> Iterator[Record]:
    """The records of a packet, by name, with no bytes of theirs; one that cannot be read is left to its verifier to name.

    Raises:
        BadEvidence: code `bad_container`; it is not written as a packet.
    """
    once: dict[str, Any] = {}
    for above, entries in itertools.groupby(in_order(container), lambda entry: entry.above):
        parts = {entry.name.rpartition("/")[2]: entry for entry in entries}
        if "bundle.json" in parts:
            with contextlib.suppress(BadEvidence, DocumentError, KeyError):
                yield _record(container, above, parts, once)


def _record(container: Container, above: str, parts: Mapping[str, Entry], once: dict[str, Any]) -> Record:
    index = Proof.parse(_content(container, parts["bundle.tlog-proof"])).index
    check_document(document := read_json(body := _content(container, parts["bundle.json"])))
    said = {name: _shared(document[name], once) for name in SAID}
    said["clock"] = _shared({"synchronized": document["clock"]["synchronized"]}, once)
    return Record(said, b"", b"", b"", index, sha256=hashlib.sha256(body).hexdigest(), at=above)


def _content(container: Container, entry: Entry) -> bytes:
    content = container.content(entry)
    check_crc(entry, content)
    return content


def _shared(value: Any, once: dict[str, Any]) -> Any:
    """The first value that was equal to it, where it is made of parts."""
    if isinstance(value, (dict, list)):
        return once.setdefault(json.dumps(value), value)
    return value
