"""Merkle trees of RFC 6962, section 2.1, and the verifiers of their proofs (RFC 9162, sections 2.1.3.2 and 2.1.4.2).

A row of hashes is one `bytes`, 32 for each: what a tile holds. A verifier returns nothing or raises `BadEvidence`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NewType

from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import MAX_SIZE

LeafHash = NewType("LeafHash", bytes)  # never an entry itself: `hash_leaf` makes it
RootHash = NewType("RootHash", bytes)

HASH_BYTES = 32
_LOWER = 6  # steps of a path that each entry climbs by itself
EMPTY_ROOT = RootHash(hashlib.sha256(b"").digest())
# Begun with what tells an entry from a node. A copy of a hash that was begun takes half as long as a new one: an auditor makes tens
# of millions of them.
_ENTRY, _NODE = hashlib.sha256(b"\x00"), hashlib.sha256(b"\x01")
begun_node = _NODE.copy


def hash_leaf(entry: bytes) -> LeafHash:
    """`SHA-256(0x00 || entry)`."""
    digest = _ENTRY.copy()
    digest.update(entry)
    return LeafHash(digest.digest())


def hash_node(left: bytes, right: bytes) -> bytes:
    """`SHA-256(0x01 || left || right)`."""
    digest = _NODE.copy()
    digest.update(left + right)
    return digest.digest()


def parents(row: bytes) -> bytes:
    """The row above. A last hash without a sibling moves up as it is, which is the split of MTH at a power of two."""
    paired, found = len(row) & ~63, list[bytes]()
    for at in range(0, paired, 64):
        digest = _NODE.copy()
        digest.update(row[at : at + 64])
        found.append(digest.digest())
    return b"".join(found) + row[paired:]


def root_of(row: bytes) -> RootHash:
    """MTH over a whole tree, given its leaf hashes joined together."""
    while len(row) > HASH_BYTES:
        row = parents(row)
    return RootHash(row) if row else EMPTY_ROOT


def verify_inclusion(leaf: LeafHash, index: int, size: int, path: Sequence[bytes], root: RootHash) -> None:
    """Hold a leaf to its place in a tree (RFC 9162, 2.1.3.2); code `bad_inclusion_proof`."""
    if (
        not 0 <= index < size <= MAX_SIZE
        or not _are_hashes(leaf, root, *path)
        or not _leads(leaf, index, size, path, root)
    ):
        raise BadEvidence(f"no proof that entry {index} is in the tree of size {size}", code="bad_inclusion_proof")


def _leads(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Whether the path leads there. Entries that are near each other share the upper part, which is climbed once."""
    seen, at, last = _ascend(leaf, path[:_LOWER], index, size - 1)
    if len(path) > _LOWER:
        seen, at, last = _ascend_upper(seen, tuple(path[_LOWER:]), at, last)
    return (seen, last) == (root, 0)


def _ascend(seen: bytes, path: Sequence[bytes], at: int, last: int) -> tuple[bytes, int, int]:
    """`_climb` over a path, without its calls: an auditor takes twenty of these steps for each of a million records."""
    begun = _NODE.copy
    for sibling in path:
        if last == 0:
            return b"", 0, 0
        digest = begun()
        if at & 1 or at == last:
            digest.update(sibling + seen)
            while at and not at & 1:
                at, last = at >> 1, last >> 1
        else:
            digest.update(seen + sibling)
        seen, at, last = digest.digest(), at >> 1, last >> 1
    return seen, at, last


_ascend_upper = functools.lru_cache(1_024)(
    _ascend
)  # the same steps for the same hashes; the path is part of what it is kept by


def verify_consistency(old: int, new: int, path: Sequence[bytes], old_root: RootHash, new_root: RootHash) -> None:
    """Hold a tree to being the older one with entries appended (RFC 9162, 2.1.4.2); code `bad_consistency_proof`."""
    refused = BadEvidence(f"no proof that size {old} is a prefix of size {new}", code="bad_consistency_proof")
    if not 0 <= old <= new <= MAX_SIZE or not _are_hashes(old_root, new_root, *path):
        raise refused
    if old in {0, new}:  # nothing to prove, so no path; the empty tree begins every other
        if path or old_root != (EMPTY_ROOT if old == 0 else new_root) or (new == 0 and new_root != EMPTY_ROOT):
            raise refused
        return
    at, last = old - 1, new - 1
    while at & 1:
        at, last = at >> 1, last >> 1
    nodes = list(path) if at else [old_root, *path]  # a whole subtree of the new tree stands for itself
    if not nodes:
        raise refused
    seen_old = seen_new = nodes[0]
    for sibling in nodes[1:]:
        if last == 0:
            raise refused
        if at & 1 or at == last:
            seen_old = hash_node(sibling, seen_old)
        seen_new, at, last = _climb(seen_new, sibling, at, last)
    if last != 0 or seen_old != old_root or seen_new != new_root:
        raise refused


def _climb(seen: bytes, sibling: bytes, at: int, last: int) -> tuple[bytes, int, int]:
    """One step of either verifier: the parent's hash, its place in its row, and the place of the row's last."""
    if at & 1 or at == last:
        seen = hash_node(sibling, seen)
        while at and not at & 1:  # rows where the node had no sibling
            at, last = at >> 1, last >> 1
    else:
        seen = hash_node(seen, sibling)
    return seen, at >> 1, last >> 1


def _are_hashes(*values: bytes) -> bool:
    return set(map(len, values)) == {HASH_BYTES}
