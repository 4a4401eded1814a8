"""Which of its own records a host may let go of, and the mark that says so afterwards. Pure.

A record may go when all of this holds, and held for every record before it in the chain:

1. it is this host's own, sound, and acknowledged;
2. its receipt verifies once more, under the pinned key, in a log that never contradicted itself;
3. its index lies below what the server says a backup holds of that very log, and the server holds a record at least as new;
4. it is older than `keep_days`, by its own time and by when it was acknowledged;
5. it is no incident. Those stay for good, and what is around them may go.

The first record for which one of them does not hold ends it: what goes is always the beginning of the chain. The mark is that of
the last record that went: its entry and its receipt. Who has the log's key can tell that the log holds that record.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Collection, Iterable, Mapping
from datetime import datetime
from typing import Any

from compliance_agent.core.receipt import LoggedBundle, PinnedLog, trusted_key, verify_receipt
from compliance_agent.dataclass import dataclass
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, verify_inclusion
from compliance_agent.log.proof import Proof
from compliance_agent.models import BundleKind

SCHEMA = "compliance-agent/shed/v1"
MAX_MARK_BYTES = 65_536
NO_PREV = "0" * 64
Place = tuple[int, int]  # epoch, seq


@dataclass(frozen=True)
class Candidate:
    """A record as it stands in this host's own rows.

    Attributes:
        sound: its bytes and signature are still those that were recorded, and the server's acknowledgement was verified.
        leaf, proof: its receipt, empty when it has none.
    """

    id: int
    bundle: LoggedBundle
    kind: str
    created_at: datetime
    acknowledged_at: datetime | None
    sound: bool
    leaf: bytes = b""
    proof: bytes = b""

    @property
    def place(self) -> Place:
        """Where it stands in the chain."""
        return self.bundle.epoch, self.bundle.seq


@dataclass(frozen=True)
class Mark:
    """The last record that was let go, with the receipt that proves it; `count` is how many went, by the host's word."""

    key_id: str
    epoch: int
    seq: int
    sha256: str
    count: int
    leaf: bytes
    proof: bytes

    @property
    def place(self) -> Place:
        """Where that record stood."""
        return self.epoch, self.seq

    def encode(self) -> bytes:
        """The file `shed.json`."""
        return canonical(
            {
                "schema": SCHEMA,
                "key_id": self.key_id,
                "epoch": self.epoch,
                "seq": self.seq,
                "bundle_sha256": self.sha256,
                "count": self.count,
                "leaf": base64.b64encode(self.leaf).decode("ascii"),
                "proof": base64.b64encode(self.proof).decode("ascii"),
            }
        )

    @classmethod
    def parse(cls, raw: bytes) -> Mark:
        """The mark as it stands in a file, of which nothing is believed yet; code `bad_shed`."""
        try:
            match read_json(raw, limit_bytes=MAX_MARK_BYTES):
                case {
                    "schema": schema,
                    "key_id": str(key_id),
                    "epoch": int(epoch),
                    "seq": int(seq),
                    "bundle_sha256": str(sha256),
                    "count": int(count),
                    "leaf": str(leaf),
                    "proof": str(proof),
                } if schema == SCHEMA:
                    both = [base64.b64decode(text, validate=True) for text in (leaf, proof)]
                    return cls(key_id, epoch, seq, sha256, count, *both)
        except (DocumentError, binascii.Error, ValueError) as error:
            raise BadEvidence("shed.json: not a mark", code="bad_shed") from error
        raise BadEvidence("shed.json: not a mark", code="bad_shed")

    def check(self, verified: Callable[[bytes], Checkpoint]) -> None:
        """Hold it against a log.

        Args:
            verified: gives the checkpoint of a signed note, under keys that are believed.

        Raises:
            BadEvidence: `bad_shed`, or what `verified` raises.
        """
        receipt = Proof.parse(self.proof)
        seen = verified(receipt.checkpoint)
        verify_inclusion(hash_leaf(self.leaf), receipt.index, seen.size, receipt.path, seen.root)
        entry: dict[str, Any] = json.loads(self.leaf)  # what the log holds is JSON of the server's own making
        said = (entry.get("kind"), entry.get("key"), entry.get("epoch"), entry.get("seq"), entry.get("bundle_sha256"))
        if said != ("bundle", self.key_id, self.epoch, self.seq, self.sha256):
            raise BadEvidence("shed.json: its entry is of another record", code="bad_shed")


@dataclass(frozen=True)
class Terms:
    """What letting go is measured against.

    Attributes:
        durable: by origin, entries that a backup of the server holds, as the server says.
        known: place of the newest record that the server says it holds.
        distrusted: origins of logs that contradicted themselves.
        before: what is younger stays.
    """

    pinned: PinnedLog
    site_id: str
    durable: Mapping[str, int]
    known: Place | None
    distrusted: Collection[str]
    before: datetime


def may_go(chain: Iterable[Candidate], mark: Mark | None, terms: Terms) -> list[Candidate]:
    """The records that may go, of the beginning of `chain`, which is the chain from after the mark on."""
    last = (mark.place, mark.sha256) if mark is not None else None
    found = []
    for item in chain:
        if not _follows(last, item):
            break
        if item.kind != BundleKind.INCIDENT:
            if not _is_covered(item, terms):
                break
            found.append(item)
        last = (item.place, item.bundle.sha256)
    return found


def _follows(last: tuple[Place, str] | None, item: Candidate) -> bool:
    if last is None:
        return item.bundle.seq == 1 and item.bundle.prev == NO_PREV
    return item.bundle.prev == last[1] and is_next(last[0], item.place)


def is_next(before: Place, place: Place) -> bool:
    """Whether nothing can stand between the two: the next number, or the first of a later epoch."""
    return place == (before[0], before[1] + 1) or (place[0] > before[0] and place[1] == 1)


def _is_covered(item: Candidate, terms: Terms) -> bool:
    if not item.sound or item.acknowledged_at is None or not item.proof:
        return False
    if max(item.created_at, item.acknowledged_at) >= terms.before:
        return False
    if terms.known is None or item.place > terms.known:
        return False
    try:
        key = trusted_key(item.proof, terms.pinned, terms.site_id)
        head = verify_receipt(item.bundle, item.leaf, item.proof, [key], terms.pinned.witnesses)
    except BadEvidence:
        return False
    if head.origin in terms.distrusted or (terms.pinned.required and head.witnessed_at is None):
        return False
    return Proof.parse(item.proof).index < terms.durable.get(head.origin, 0)


def mark_after(gone: list[Candidate], mark: Mark | None) -> Mark:
    """The mark once these went too."""
    last = gone[-1]
    count = (mark.count if mark is not None else 0) + len(gone)
    bundle = last.bundle
    return Mark(bundle.key_id, bundle.epoch, bundle.seq, bundle.sha256, count, last.leaf, last.proof)
