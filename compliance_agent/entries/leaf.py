"""What the log's entries say: canonical JSON that holds digests, keys and signatures, and nothing of a patient or a machine's name.

A tenant's whole log can be given to auditors, witnesses and mirrors. Every entry has `v` and `kind`:

bundle   a host's signed record, by its place in the host's chain, its digest and its signature
key      a host's key is enrolled or revoked; a signature counts by its place between the two
fork     a host signed two records for one place; both digests, and the second one's signature
time     a checkpoint of this log with its cosignatures, and time stamps (RFC 3161) over exactly that note
shard    the first entry of a year, which binds the last checkpoint of the year before
act      what a person did at the server, by ids alone (act.py)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from compliance_agent.log.fields import to_base64

VERSION = 1
KeyEvent = Literal["enrol", "rotate", "revoke"]


def bundle_leaf(key_id: str, epoch: int, seq: int, prev: str, bundle_sha256: str, signature: bytes) -> bytes:
    """The entry of a bundle; host and server make the same bytes."""
    if not f"{key_id}{prev}{bundle_sha256}".encode(
        "ascii"
    ).isalnum():  # hex never needs escaping; nothing else is meant here
        raise ValueError("key, prev and digest of an entry are hexadecimal")
    return (
        f'{{"bundle_sha256":"{bundle_sha256}","epoch":{epoch},"key":"{key_id}","kind":"bundle","prev":"{prev}",'
        f'"seq":{seq},"sig":"{to_base64(signature)}","v":{VERSION}}}'
    ).encode("ascii")


def key_leaf(event: KeyEvent, key_id: str, public_key: bytes, at: str) -> bytes:
    """The entry of a key's beginning or end; `at` is the server's time, a claim like every time in a log."""
    return entry("key", event=event, key=key_id, public_key=to_base64(public_key), at=at)


def fork_leaf(key_id: str, epoch: int, seq: int, held: str | None, seen: str, signature: bytes) -> bytes:
    """The entry of a contradiction: digest held (None where a later epoch had begun), digest seen, and its signature."""
    return entry("fork", key=key_id, epoch=epoch, seq=seq, held=held, seen=seen, sig=to_base64(signature))


def time_leaf(checkpoint: bytes, tokens: Sequence[bytes]) -> bytes:
    """The entry that proves time: the whole signed note of an earlier size, and what time-stamping authorities answered over it."""
    return entry("time", checkpoint=to_base64(checkpoint), tokens=[to_base64(token) for token in tokens])


def shard_leaf(origin: str, previous: bytes | None, at: str) -> bytes:
    """The first entry of a year; `previous` is the last signed checkpoint of the year before, None when there is none."""
    return entry("shard", origin=origin, previous=to_base64(previous) if previous is not None else None, at=at)


def entry(kind: str, **content: Any) -> bytes:
    """An entry of this kind."""
    return canonical({"v": VERSION, "kind": kind, **content})


def canonical(document: Mapping[str, Any]) -> bytes:
    """RFC 8785, which this is for ASCII text, whole numbers and null."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
