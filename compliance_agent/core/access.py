"""Who may ask what over the admin socket, by what the kernel says of the other end: members of the agent's group may read, root and
the agent's own user may change.
"""

from __future__ import annotations

from collections.abc import Collection

from compliance_agent.dataclass import dataclass

ROOT = 0


@dataclass(frozen=True)
class Asker:
    """Who is at the other end."""

    uid: int
    gids: Collection[int]


@dataclass(frozen=True)
class Owner:
    """Whose socket it is: user and group of the agent's process."""

    uid: int
    gid: int


def may(asker: Asker, owner: Owner, *, changes: bool) -> bool:
    """Whether it may ask for something that changes, or only looks."""
    if asker.uid in {ROOT, owner.uid}:
        return True
    return not changes and owner.gid in asker.gids
