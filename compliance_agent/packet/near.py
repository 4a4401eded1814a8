"""Receipts of entries that are near each other, under one checkpoint: what they share is proven once. Pure.

    receipts = Near(note, checkpoint)
    index = receipts.index(raw, leaf)   # as Proof.parse and verify_inclusion find it, or BadEvidence

From the node over 256 entries on, receipts of these entries go the same way to the root, and spell it the same. Where one of them
was proven, the next needs to reach that node, and to end in the same bytes.
"""

from __future__ import annotations

import re
from binascii import a2b_base64

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import begun_node, hash_leaf, verify_inclusion
from compliance_agent.log.proof import Proof

HEIGHT = 8
KEPT = 64  # nodes
# As a log writes the steps below that node, of which base64 has one spelling.
_BELOW = re.compile(
    rb"c2sp\.org/tlog-proof@v1\nindex (0|[1-9][0-9]{0,17})\n((?:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\n){%d})" % HEIGHT
)


class Near:
    """Judges receipts.

    Args:
        note, checkpoint: that all of them have to be under.
    """

    def __init__(self, note: bytes, checkpoint: Checkpoint) -> None:
        self._note, self._checkpoint = note, checkpoint
        self._proven: dict[int, tuple[bytes, bytes]] = {}  # by number: the node, and how a receipt goes on from it

    def index(self, raw: bytes, entry: bytes) -> int:
        """The entry's index, which this receipt proves.

        Raises:
            BadEvidence: codes `bad_receipt`, `wrong_checkpoint`, `bad_inclusion_proof`.
        """
        below = _BELOW.match(raw)
        if below is None:
            return self._read(raw, entry).index
        index, ends = int(below[1]), below.end()
        number = index >> HEIGHT
        node, rest = self._proven.get(number, (b"", b""))
        if node and raw[ends:] == rest and _node_over(entry, index, below[2]) == node:
            return index
        self._read(raw, entry)
        if index | (1 << HEIGHT) - 1 < self._checkpoint.size:  # else entries are missing under that node
            if len(self._proven) >= KEPT:
                del self._proven[next(iter(self._proven))]
            self._proven[number] = (_node_over(entry, index, below[2]), raw[ends:])
        return index

    def _read(self, raw: bytes, entry: bytes) -> Proof:
        proof, log = Proof.parse(raw), self._checkpoint
        if proof.checkpoint != self._note:
            raise BadEvidence("receipt is under another checkpoint than log/checkpoint", code="wrong_checkpoint")
        verify_inclusion(hash_leaf(entry), proof.index, log.size, proof.path, log.root)
        return proof


def _node_over(entry: bytes, index: int, lines: bytes) -> bytes:
    """The node that these steps lead to, where no entry is missing under it; `hash_node` without its calls."""
    seen: bytes = hash_leaf(entry)
    for line in lines.split():
        digest = begun_node()
        digest.update(a2b_base64(line) + seen if index & 1 else seen + a2b_base64(line))
        seen, index = digest.digest(), index >> 1
    return seen
