"""The body of a checkpoint: which log, how many entries, and the root over them (C2SP tlog-checkpoint, "Note text")."""

from __future__ import annotations

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import from_base64, from_decimal, to_base64
from compliance_agent.log.merkle import EMPTY_ROOT, HASH_BYTES, RootHash


@dataclass(frozen=True)
class Checkpoint:
    """A tree at one size. Extension lines are kept, as a signature covers them, and mean nothing here."""

    origin: str
    size: int
    root: RootHash
    extensions: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The note text."""
        return "\n".join([self.origin, str(self.size), to_base64(self.root), *self.extensions, ""])

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """The checkpoint of exactly this note text; code `bad_checkpoint`."""
        lines = text.removesuffix("\n").split("\n")
        if not text.endswith("\n") or len(lines) < 3 or not all(lines):
            raise BadEvidence("checkpoint is not of three or more lines, none of them empty", code="bad_checkpoint")
        size = from_decimal(lines[1], "checkpoint line 2 (tree size)", "bad_checkpoint")
        root = from_base64(lines[2], "checkpoint line 3 (root hash)", "bad_checkpoint")
        if len(root) != HASH_BYTES or (size == 0 and root != EMPTY_ROOT):
            raise BadEvidence("checkpoint line 3 is not the root hash of a tree of its size", code="bad_checkpoint")
        return cls(lines[0], size, RootHash(root), tuple(lines[3:]))
