"""Where a bundle belongs in its key's chain: the one rule for "next", "known", "fork" and "gap". Pure.

A chain counts `seq` from 1 in each epoch, and each bundle names the SHA-256 of the one before it, across epochs too. A new
epoch may begin at any time (the host lost its database, or was set back to a snapshot) but only on top of what we hold.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from compliance_agent.server.records import NO_DIGEST, Head


class Placed(Enum):
    """What to do with a bundle."""

    NEXT = "next"  # store it
    KNOWN = "known"  # held already, byte for byte: acknowledge it again
    FORK = "fork"  # another history under the same key: keep it aside, alarm, refuse
    GAP = "seq_gap"  # not the one that is expected: refuse and say which is


@dataclass(frozen=True)
class Link:
    """What of a bundle decides its place."""

    epoch: int
    seq: int
    prev: str
    sha256: str


def expected(head: Head | None) -> dict[str, int | str]:
    """The place the server wants filled next, as it goes into a reply."""
    if head is None:
        return {"epoch": 0, "seq": 1, "prev": NO_DIGEST}
    return {"epoch": head.epoch, "seq": head.seq + 1, "prev": head.digest}


def place(link: Link, head: Head | None, held: str | None) -> Placed:
    """Decide.

    Args:
        link: the bundle that came.
        head: the newest bundle we hold of this key.
        held: SHA-256 of what we hold at the bundle's own place, None when nothing stands there.
    """
    if held is not None:
        return Placed.KNOWN if held == link.sha256 else Placed.FORK
    if head is None:
        return Placed.NEXT if link.seq == 1 and link.prev == NO_DIGEST else Placed.GAP
    if (link.epoch, link.seq) <= (head.epoch, head.seq):
        return Placed.FORK  # an epoch that ended goes on after all: two machines, or a restored snapshot, share the key
    follows = link.seq == head.seq + 1 if link.epoch == head.epoch else link.seq == 1
    return Placed.NEXT if follows and link.prev == head.digest else Placed.GAP
