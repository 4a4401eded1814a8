"""What is said of a checkpoint as it is served: whose it is, and who has seen it. Each comparison is a line with a code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.policy import Policy


class State(StrEnum):
    """How one comparison ended."""

    VERIFIED = "verified"
    WRONG = "wrong"
    UNTOLD = "could not tell"


@dataclass(frozen=True)
class Line:
    """One comparison. `figures` are what was found, for people: a digest, an index, a tree size."""

    name: str
    state: State
    code: str
    figures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Witness:
    """One witness of the policy: `cosigned` with the time it says, `absent`, or `wrong` when its line does not verify."""

    name: str
    code: str
    at: datetime | None = None


def witnessed(note: bytes, policy: Policy | None) -> tuple[Line, tuple[Witness, ...]]:
    """Who of the policy cosigned a checkpoint. Nobody, too few and no policy are all said."""
    if policy is None:
        return Line("witnesses", State.UNTOLD, "no_policy"), ()
    try:
        parsed = Note.parse(note)
    except BadEvidence:
        return Line("witnesses", State.WRONG, "bad_checkpoint"), ()
    found = tuple(_witness(name, key, parsed) for name, key in policy.witnesses.items())
    seen = {one.name for one in found if one.code == "cosigned"}
    figures = {"cosigned": f"{len(seen)} of {len(found)}"}
    if any(one.code == "wrong" for one in found):
        return Line("witnesses", State.WRONG, "bad_cosignature", figures), found
    if policy.quorum == "none":
        return Line("witnesses", State.UNTOLD, "no_quorum_asked", figures), found
    if not policy.is_met_by(seen):
        return Line("witnesses", State.UNTOLD, "unwitnessed", figures), found
    return Line("witnesses", State.VERIFIED, "quorum_met", figures), found


def _witness(name: str, key: VerifierKey, note: Note) -> Witness:
    lines = [line for line in note.signatures if (line.name, line.key_id) == (key.name, key.id)]
    if not lines:
        return Witness(name, "absent")
    try:
        times = [key.verify(note.text, line.signature) for line in lines]
        return Witness(name, "cosigned", datetime.fromtimestamp(max(at or 0 for at in times), UTC))
    except (BadEvidence, ValueError, OverflowError, OSError):
        return Witness(name, "wrong")


def signed_checkpoint(note: bytes, key: VerifierKey) -> tuple[Line, Checkpoint | None]:
    """A served checkpoint under its log's key; None when it cannot even be read."""
    try:
        parsed = Note.parse(note)
        checkpoint = Checkpoint.parse(parsed.text)
    except BadEvidence:
        return Line("checkpoint", State.WRONG, "bad_checkpoint"), None
    figures = {"origin": checkpoint.origin, "key": str(key)}
    if checkpoint.origin != key.name:
        return Line("checkpoint", State.WRONG, "other_log", figures), checkpoint
    try:
        parsed.verify([key])
    except BadEvidence as error:
        return Line("checkpoint", State.WRONG, error.code, figures), checkpoint
    return Line("checkpoint", State.VERIFIED, "log_signed", figures), checkpoint
