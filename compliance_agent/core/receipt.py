"""What a receipt has to show before it is believed, pure: this bundle, in a log of this site, that only ever grew.

    key = trusted_key(proof, pinned, site_id)         # the year is read, server and key are pinned
    head = verify_receipt(bundle, leaf, proof, [key])
    check_prefix(older, newer, read)                  # of two checkpoints the smaller begins the larger

Tiles come from the server that is being checked, so they are never believed alone: the consistency path of a fork is first shown
to lead to the signed root of the larger tree. Only then do two notes contradict each other, whoever made the tiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime
from typing import NamedTuple

from compliance_agent.dataclass import dataclass
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.facts import LARGEST_INT
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES, RootHash, hash_leaf, verify_consistency, verify_inclusion
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import FULL
from compliance_agent.log.tree import TileReader, TileTree

ORIGIN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}/[A-Za-z0-9][A-Za-z0-9._-]{0,62}/[0-9]{4}"  # server, site and year
MAX_NOTE_BYTES = 6_144  # its base64 fits 8 KiB, so that any note that is believed also fits an incident
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 4_096
NO_WITNESSES = Policy((), {}, {}, "none", {})
_ORIGIN = re.compile(ORIGIN)

CODES = {
    "bad_receipt": "the receipt is not a tlog-proof with a checkpoint of agreed form",
    "wrong_leaf": "the entry is not the one this bundle has in a log",
    "foreign_log": "the log's origin is not of this site and the server known here",
    "no_known_signature": "the checkpoint is not signed with the log key that is trusted here",
    "bad_signature": "the log's signature of the checkpoint does not verify",
    "bad_inclusion_proof": "the entry is not in the tree of the checkpoint",
    "unwitnessed": "the checkpoint has no quorum of the witnesses that are trusted here, and the configuration requires one",
    "log_forked": "two signed checkpoints of one log contradict each other",
    "log_rolled_back": "the log is smaller than one it signed before, and cannot show that one any more",
    "log_not_believed": "this log contradicted itself before",
    "bad_tile": "the log's tiles do not make the tree it signed",
    "no_tile": "the log does not serve a tile of the tree it signed",
}


@dataclass(frozen=True)
class PinnedLog:
    """Whose logs are believed.

    Attributes:
        key: their raw Ed25519 key, as enrolment said.
        server: the server's name, None where enrolment said none.
        witnesses: whose cosignatures count, and how many make a quorum; None where no witness is trusted here.
        required: a checkpoint without the quorum is refused, not only said to be unwitnessed.
    """

    key: bytes
    server: str | None = None
    witnesses: Policy | None = None
    required: bool = False


class LoggedBundle(NamedTuple):
    """What a log holds of one bundle; `sha256` and `prev` in hex, `signature` raw."""

    key_id: str
    epoch: int
    seq: int
    prev: str
    sha256: str
    signature: bytes

    @property
    def leaf(self) -> bytes:
        """The entry."""
        return bundle_leaf(self.key_id, self.epoch, self.seq, self.prev, self.sha256, self.signature)


@dataclass(frozen=True)
class LogHead:
    """A checkpoint whose signature verified, with the note it came in, and when a quorum of witnesses had cosigned it."""

    origin: str
    size: int
    root: RootHash
    note: bytes
    witnessed_at: datetime | None = None

    @property
    def server(self) -> str:
        """The first part of the origin."""
        return self.origin.split("/")[0]


@dataclass(frozen=True)
class Followed:
    """A log as a host knows it.

    Attributes:
        head: its last verified checkpoint.
        code: why it is not believed any more, None while it is.
        theirs: the signed note that contradicts `head`.
        incident: id of the bundle that says so.
    """

    head: LogHead
    code: str | None = None
    theirs: bytes | None = None
    incident: str | None = None


@dataclass(frozen=True)
class Proven:
    """A verified receipt of the evidence row `id`, whose bytes have this SHA-256."""

    id: int
    sha256: str
    leaf: bytes
    proof: bytes


@dataclass(frozen=True)
class Standing:
    """How many acknowledged bundles have a receipt, how many do not, and since when the oldest of those."""

    receipted: int
    unlogged: int
    oldest_unlogged: datetime | None


def trusted_key(proof: bytes, pinned: PinnedLog, site_id: str) -> VerifierKey:
    """The pinned key under the name that the receipt's own checkpoint claims, if that may be a log of this site.

    Args:
        proof: the receipt, of which nothing is believed yet.
        pinned: the log key, and the name of the server whose logs these may be. One key could sign two trees under two
            names without contradicting itself, so the name is held fixed as well.
        site_id: of this host.

    Raises:
        BadEvidence: `bad_receipt` or `foreign_log`.
    """
    origin = read_note(Proof.parse(proof).checkpoint).origin
    named = origin.split("/") if _ORIGIN.fullmatch(origin) else ["", "", ""]
    if named[1] != site_id or pinned.server not in {None, named[0]}:
        raise BadEvidence(f"receipt: {CODES['foreign_log']}", code="foreign_log")
    return VerifierKey(origin, KeyType.ED25519, pinned.key)


def verify_receipt(
    bundle: LoggedBundle, leaf: bytes, proof: bytes, logs: Collection[VerifierKey], witnesses: Policy | None = None
) -> LogHead:
    """Prove that exactly this bundle is in a log that one of `logs` signed; the checkpoint that shows it.

    Args:
        bundle: what the log should hold.
        leaf: the entry.
        proof: the receipt.
        logs: keys that are believed.
        witnesses: whose lines under the checkpoint count; a wrong line of one is refused like one of the log.

    Raises:
        BadEvidence: one of CODES, or `unknown_log`.
    """
    check_receipt(bundle, leaf, proof, lambda note: _checked(note, logs, witnesses)[1].checkpoint)
    return verify_note(Proof.parse(proof).checkpoint, logs, witnesses)


def _checked(note: bytes, logs: Collection[VerifierKey], witnesses: Policy | None) -> tuple[Policy, Verified]:
    read_note(note)
    policy = replace(witnesses or NO_WITNESSES, logs=tuple(logs))
    return policy, policy.verify(note)


def check_receipt(
    bundle: LoggedBundle, leaf: bytes, proof: bytes, verified: Callable[[bytes], Checkpoint]
) -> tuple[int, Checkpoint]:
    """As `verify_receipt`; the index, and the checkpoint that `verified` made of the note in the receipt.

    Raises:
        BadEvidence: one of CODES, or what `verified` raises.
    """
    if len(proof) > MAX_PROOF_BYTES:
        raise BadEvidence(f"receipt is longer than {MAX_PROOF_BYTES} bytes", code="bad_receipt")
    receipt = Proof.parse(proof)
    if leaf != bundle.leaf:
        raise BadEvidence(f"receipt: {CODES['wrong_leaf']}", code="wrong_leaf")
    seen = verified(receipt.checkpoint)
    verify_inclusion(hash_leaf(leaf), receipt.index, seen.size, receipt.path, seen.root)
    return receipt.index, seen


def verify_note(raw: bytes, logs: Collection[VerifierKey], witnesses: Policy | None = None) -> LogHead:
    """A checkpoint that one of `logs` signed, and when a quorum of `witnesses` had cosigned it.

    Raises:
        BadEvidence: one of CODES, or `unknown_log`.
    """
    policy, seen = _checked(raw, logs, witnesses)
    at = policy.met_at(seen.witnesses)
    return replace(read_note(raw), witnessed_at=None if at is None else _moment(at))


def _moment(seconds: int) -> datetime:
    try:
        return datetime.fromtimestamp(seconds, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise BadEvidence("receipt: a cosignature says a time that is none", code="bad_receipt") from error


def read_note(raw: bytes) -> LogHead:
    """What a checkpoint says, unverified. It has no extension lines, which nothing here would hold to anything.

    Raises:
        BadEvidence: it is no checkpoint of agreed form.
    """
    found = Checkpoint.parse(Note.parse(raw).text)
    if found.extensions or found.size > LARGEST_INT or len(raw) > MAX_NOTE_BYTES:
        raise BadEvidence(f"receipt: {CODES['bad_receipt']}", code="bad_receipt")
    return LogHead(found.origin, found.size, found.root, raw)


def check_prefix(older: LogHead, newer: LogHead, read: TileReader) -> None:
    """Hold two checkpoints of one log against each other; `older` is the smaller tree.

    Args:
        older: verified.
        newer: verified.
        read: gives tiles of `newer` at its own widths.

    Raises:
        BadEvidence: `log_forked` when the two contradict each other for certain, `bad_tile` when the tiles show neither.
    """
    if older.size == newer.size and older.root != newer.root:
        raise BadEvidence(f"log {newer.origin}: two roots at size {newer.size}", code="log_forked")
    if older.size in {0, newer.size}:
        return

    def begun(level: int, index: int, width: int) -> bytes:
        return read(level, index, min(FULL, (newer.size >> 8 * level) - index * FULL))[: width * HASH_BYTES]

    path = TileTree(newer.size, read).consistency(older.size)
    root = TileTree(older.size, begun).root()
    try:
        verify_consistency(older.size, newer.size, path, root, newer.root)
    except BadEvidence as error:
        raise BadEvidence(f"log {newer.origin}: {CODES['bad_tile']}", code="bad_tile") from error
    if root != older.root:
        raise BadEvidence(f"log {newer.origin}: size {older.size} does not begin size {newer.size}", code="log_forked")
