"""What a witness answers to `add-checkpoint`, pure (C2SP tlog-witness v1.0.0, "add-checkpoint").

    submission = admit(body, logs)              # 400, 404, 403: nothing about this witness's state is needed
    check(submission, latest, own, now)         # 409, 422, 503: to be asked and acted upon in one atomic step
    note = submission.with_lines(cosignatures)  # what is stored, then served

A cosignature says: at this time this was the largest consistent tree of this origin that I had seen. So none is given for a
tree that is smaller or not shown to be consistent, nor at a time before the last one said; and none once it is clear that what
is remembered here is older than what this witness has said already.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import MAX_SIZE, from_base64, from_decimal
from compliance_agent.log.merkle import EMPTY_ROOT, HASH_BYTES, RootHash, verify_consistency
from compliance_agent.log.note import Note, Signature, VerifierKey

MAX_BODY_BYTES = 65_536
MAX_HASHES = 63  # "The client MUST NOT send more than 63 consistency proof lines"

CODES = {
    "bad_request": "the body is not an old size, hashes, an empty line and a checkpoint",
    "old_beyond_size": "the old size is larger than the checkpoint's",
    "unknown_origin": "this witness was not told to witness a log of this origin",
    "bad_signature": "no key of this origin known here signed the checkpoint, or a signature of one does not verify",
    "unsupported_algorithm": "this machine cannot verify the signature of the log",
    "stale": "the old size is not the size of the latest checkpoint cosigned here",
    "bad_consistency_proof": "the checkpoint is not shown to begin with the latest one cosigned here",
    "other_root": "a checkpoint of this size with another root was cosigned here before",
    "clock_behind": "the clock of this witness is before the time of its latest cosignature, or before 1970",
    "rolled_back": "what this witness remembers of the log is older than what it has cosigned",
    "storage_failed": "the checkpoint could not be stored, so nothing was cosigned",
}


@dataclass(frozen=True)
class Seen:
    """The largest tree cosigned for an origin, and the time that was said (POSIX seconds)."""

    size: int
    root: RootHash
    at: int

    def contradicts(self, other: Seen) -> bool:
        """Whether `other`, cosigned by the same witness, cannot have come before this one."""
        return other.size > self.size or (other.size == self.size and other.root != self.root)


NOTHING = Seen(0, EMPTY_ROOT, 0)


@dataclass(frozen=True)
class Submission:
    """A request whose checkpoint a known log signed; `signed` are that log's lines alone."""

    old: int
    proof: tuple[bytes, ...]
    checkpoint: Checkpoint
    note: Note
    signed: tuple[Signature, ...]

    def with_lines(self, cosignatures: Iterable[Signature]) -> bytes:
        """The note with the log's verified lines and these, and no line of anybody else."""
        return Note(self.note.text, (*self.signed, *cosignatures)).encode()


def origin_hash(origin: str) -> str:
    """Under this name a witness serves its latest checkpoint of an origin."""
    return hashlib.sha256(origin.encode()).hexdigest()


def admit(raw: bytes, logs: Mapping[str, Collection[VerifierKey]]) -> Submission:
    """A request that deserves a look at what was cosigned before.

    Args:
        raw: the body.
        logs: for each origin the keys that may sign it.

    Raises:
        Refusal: 400, 404 or 403, with one of CODES; 503 where the signature cannot be verified by this machine.
    """
    old, proof, note, checkpoint = _parse(raw)
    keys = logs.get(checkpoint.origin)
    if not keys:
        raise refusal(404, "unknown_origin")
    try:
        note.verify(keys)
    except BadEvidence as error:
        if error.code == "unsupported_algorithm":
            raise refusal(503, "unsupported_algorithm") from error
        raise refusal(403, "bad_signature") from error
    if old > checkpoint.size:
        raise refusal(400, "old_beyond_size")
    known = {(key.name, key.id) for key in keys}
    signed = tuple(line for line in note.signatures if (line.name, line.key_id) in known)
    return Submission(old, proof, checkpoint, note, signed)


def check(submission: Submission, latest: Seen, own: Collection[VerifierKey], now: int) -> None:
    """Whether the checkpoint may be cosigned at `now`, after `latest` (NOTHING before the first).

    Raises:
        Refusal: 409 (`expected["size"]` is the latest size), 422 or 503, with one of CODES.
    """
    before = cosigned(submission, own)
    if before is not None and latest.contradicts(before):
        raise refusal(503, "rolled_back")
    if submission.old != latest.size:
        raise refusal(409, "stale", size=latest.size)
    seen = submission.checkpoint
    try:
        verify_consistency(latest.size, seen.size, submission.proof, latest.root, seen.root)
    except BadEvidence as error:
        same_size = seen.size == latest.size and seen.root != latest.root
        raise refusal(422, "other_root" if same_size else "bad_consistency_proof") from error
    if not 0 < now <= MAX_SIZE or now < latest.at:
        raise refusal(503, "clock_behind")


def cosigned(submission: Submission, own: Collection[VerifierKey]) -> Seen | None:
    """What this witness itself said of the submitted checkpoint before, by a line of its own under it."""
    keys = {(key.name, key.id): key for key in own}
    times = []
    for line in submission.note.signatures:
        key = keys.get((line.name, line.key_id))
        if key is not None and (at := _time_of(key, submission.note.text, line)) is not None:
            times.append(at)
    return Seen(submission.checkpoint.size, submission.checkpoint.root, max(times)) if times else None


def refusal(status: int, code: str, *, size: int | None = None) -> Refusal:
    """The answer no, in the words of CODES."""
    return Refusal(CODES[code], code=code, status=status, expected=None if size is None else {"size": size})


def _time_of(key: VerifierKey, text: str, line: Signature) -> int | None:
    try:
        return key.verify(text, line.signature)
    except BadEvidence:  # anybody can write a line with our name under a note
        return None


def _parse(raw: bytes) -> tuple[int, tuple[bytes, ...], Note, Checkpoint]:
    head, blank, rest = raw.partition(b"\n\n")
    try:
        if not blank or len(raw) > MAX_BODY_BYTES or not head.startswith(b"old "):
            raise BadEvidence("request does not begin with an old size")
        first, *lines = head.decode("ascii", "replace").split("\n")
        if len(lines) > MAX_HASHES:
            raise BadEvidence(f"request has more than {MAX_HASHES} hashes")
        old = from_decimal(first[4:], "old size", "bad_request")
        proof = tuple(from_base64(line, "hash of the consistency proof", "bad_request") for line in lines)
        if any(len(node) != HASH_BYTES for node in proof):
            raise BadEvidence(f"a hash of the consistency proof is not of {HASH_BYTES} bytes")
        note = Note.parse(rest)
        return old, proof, note, _checkpoint(note.text)
    except BadEvidence as error:
        raise refusal(400, "bad_request") from error


def _checkpoint(text: str) -> Checkpoint:
    """As `Checkpoint.parse`, but an empty tree with a wrong root is left to be refused as inconsistent (422, not 400)."""
    lines = text.split("\n")
    if len(lines) > 3 and lines[1] == "0":
        root = from_base64(lines[2], "root hash", "bad_checkpoint")
        if len(root) == HASH_BYTES:
            lines[2] = Checkpoint("", 0, EMPTY_ROOT).text.split("\n")[2]
            well_formed = Checkpoint.parse("\n".join(lines))
            return Checkpoint(well_formed.origin, 0, RootHash(root), well_formed.extensions)
    return Checkpoint.parse(text)
