"""The auditor's side of receipts: is each bundle in its site's log, as the files beside it say?

A receipt is checked with the keys of the logs and nothing else: the leaf is this bundle's, the entry is in the tree, the checkpoint
is signed. All checkpoints that were met must then agree, those that bundles name as their host's last one included: two roots
for one size are a log that shows different people different trees.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import read_file
from compliance_agent.core.receipt import MAX_PROOF_BYTES, LoggedBundle, check_receipt, read_note
from compliance_agent.entries.interval import SECOND_US
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.chains import Row, Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.walk import LEAF, PROOF, Place, beside
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import VerifierKey
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.proof import Proof

SUFFIX = ".vkey"
MAX_LEAF_BYTES = 4_096
_NOTES_KEPT = 256  # checkpoints that verified; receipts that came together share one
_PAGE = 1_024


@dataclass
class Met:
    """What receipts showed: each checkpoint with the first bundle that has it and the times at which witnesses cosigned it (POSIX
    seconds), and how many receipts no key could check.
    """

    heads: dict[tuple[str, int, bytes], tuple[str, tuple[int, ...]]] = field(default_factory=dict)
    unchecked: int = 0


class Receipts:
    """Judges receipts by the logs an auditor trusts.

    Args:
        policy: whom to trust; without a log in it, receipts are counted and not checked.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy = policy
        self._verified: dict[bytes, Verified] = {}

    def check(
        self, place: Place, document: Mapping[str, Any], digest: str, signature: bytes, met: Met
    ) -> tuple[str, int] | None:
        """The log and index of this bundle by its receipt; None when there is none, or no log key to check it with.

        Raises:
            BadEvidence: it is wrong; `code` is one of `core.receipt.CODES`, `unreadable`, or `unknown_log`.
        """
        if LEAF not in place.there and PROOF not in place.there:
            return None
        leaf, proof = place.read(LEAF, MAX_LEAF_BYTES), place.read(PROOF, MAX_PROOF_BYTES)
        if leaf is None or proof is None:
            raise BadEvidence(f"{place.name}: leaf or receipt cannot be read", code="unreadable")
        if not self._policy.logs:
            met.unchecked += 1
            return None
        host = document["host"]["key_id"]
        logged = LoggedBundle(host, document["epoch"], document["seq"], document["prev"], digest, signature)
        index, head = check_receipt(logged, leaf, proof, self._checkpoint)
        if head.origin.split("/", 2)[1:2] != [document["site_id"]]:
            raise BadEvidence("receipt: of a log of another site", code="foreign_log")
        if (head.origin, head.size, head.root) not in met.heads:
            times = self._verified_note(Proof.parse(proof).checkpoint).witnesses.values()
            met.heads[head.origin, head.size, head.root] = (place.name, tuple(time for time in times if time))
        return head.origin, index

    def _checkpoint(self, note: bytes) -> Checkpoint:
        return self._verified_note(note).checkpoint

    def _verified_note(self, note: bytes) -> Verified:
        found = self._verified.get(note)
        if found is None:
            read_note(note)
            found = self._policy.verify(note)
            if len(self._verified) >= _NOTES_KEPT:
                self._verified.pop(next(iter(self._verified)))
            self._verified[note] = found
        return found


class Roots:
    """The root that a log showed for each size, by tags."""

    def __init__(self, tags: Tagger) -> None:
        self._tags = tags
        self._pages: dict[bytes, dict[int, array[int]]] = defaultdict(dict)
        self.shown: dict[bytes, list[tuple[int, int]]] = defaultdict(list)  # size and time, as `Timeline` takes them

    def merge(self, met: Met) -> Iterator[Problem]:
        """Take up checkpoints that verified; one that contradicts an earlier one is named."""
        for (origin, size, root), (where, times) in met.heads.items():
            log, tag = self._tags.short(origin), self._number(self._tags.short(root.hex()))
            self.shown[log] += [(size, time * SECOND_US) for time in times]
            if self._get(log, size) in {0, tag}:
                self._set(log, size, tag)
            else:
                yield Problem("log_forked", where, f"log {origin}: two roots at size {size}")

    def visit(self, row: Row) -> Iterator[Problem]:
        """A record whose own checkpoint is another than a receipt showed for that size."""
        if row.head_size >= 0 and self._get(row.head_log, row.head_size) not in {0, self._number(row.head_root)}:
            detail = "the checkpoint it names is another than the log showed elsewhere"
            yield Problem("log_forked", row.bundle_id, detail)

    def _get(self, log: bytes, size: int) -> int:
        page = self._pages[log].get(size // _PAGE)
        return 0 if page is None else page[size % _PAGE]

    def _set(self, log: bytes, size: int, tag: int) -> None:
        pages = self._pages[log]
        if size // _PAGE not in pages:
            pages[size // _PAGE] = array("Q", bytes(8 * _PAGE))
        pages[size // _PAGE][size % _PAGE] = tag

    @staticmethod
    def _number(tag: bytes) -> int:
        return int.from_bytes(tag, "big") | 1


def read_log_keys(given: Iterable[str]) -> list[VerifierKey]:
    """Log keys as an auditor gives them: each a vkey, or a file with one on each line.

    Raises:
        NoInput, NotPermitted: a file cannot be read.
        BadEvidence: not a verifier key.
    """
    keys = []
    for text in given:
        is_file = "+" not in text or Path(text).is_file()
        lines = read_file(Path(text), limit_bytes=65_536).decode("utf-8", "replace").split("\n") if is_file else [text]
        keys += [VerifierKey.parse(line) for line in lines if line]
    return keys


def log_keys_beside(paths: Iterable[Path], levels: int) -> list[VerifierKey]:
    """Log keys that stand with the evidence: `keys/*.vkey` in a path, above it up to so many levels, or below it."""
    return read_log_keys(str(path) for path in beside(paths, f"*{SUFFIX}", levels))
