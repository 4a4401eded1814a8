"""How a site's log grows: entries in, the next tree and the files that show it out. Pure: the sequencer commits and writes.

tree, first, files = Tree.opened("clinic-1", "msp/clinic-1/2026", None, now)
tree, files = tree.grown([leaf, leaf], now)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from compliance_agent.entries.leaf import shard_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES, hash_leaf
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, encode_entries
from compliance_agent.log.tree import Edge, TileReader
from compliance_agent.server.records import Shard

Files = list[tuple[Tile, bytes]]


@dataclass(frozen=True)
class Tree:
    """A log as its sequencer holds it; `tail` is the entries of the bundle that is not full yet."""

    shard: Shard
    edge: Edge
    tail: tuple[bytes, ...] = ()

    @property
    def checkpoint(self) -> Checkpoint:
        """What there is to sign."""
        return Checkpoint(self.shard.origin, self.shard.size, self.edge.root())

    @classmethod
    def opened(cls, site_id: str, origin: str, previous: bytes | None, now: datetime) -> tuple[Tree, bytes, Files]:
        """A new year's log with its first entry, which binds the last checkpoint of the year before."""
        empty = Shard(site_id, now.year, origin, 0, Edge().root(), b"", now)
        first = shard_leaf(origin, previous, now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        tree, files = cls(empty, Edge()).grown([first], now)
        return tree, first, files

    def grown(self, leaves: Sequence[bytes], now: datetime) -> tuple[Tree, Files]:
        """The tree with these entries appended, and every file that it adds."""
        edge, tiles = self.edge.grow(map(hash_leaf, leaves))
        bundles, tail = _entry_bundles(self.shard.size, [*self.tail, *leaves])
        shard = replace(self.shard, size=edge.size, root=edge.root(), edge=b"".join(edge.levels), sequenced_at=now)
        return Tree(shard, edge, tuple(tail)), [*bundles, *tiles]


def _entry_bundles(size: int, entries: list[bytes]) -> tuple[Files, list[bytes]]:
    """The entry bundles from the unfinished one of `size` on, and the entries of the one that is then unfinished."""
    files: Files = []
    for at in range(0, len(entries), FULL):
        part = entries[at : at + FULL]
        files.append((Tile(ENTRIES, size // FULL + at // FULL, len(part)), encode_entries(part)))
    return files, entries[len(entries) // FULL * FULL :]


def edge_of(size: int, joined: bytes) -> Edge:
    """The edge whose levels are joined in a row of the database; code `bad_edge`."""
    levels, at = list[bytes](), 0
    for level in range((size.bit_length() + 7) // 8):
        end = at + (size >> 8 * level) % FULL * HASH_BYTES
        levels.append(joined[at:end])
        at = end
    if at != len(joined):
        raise BadEvidence(f"edge of tree size {size} is of another length", code="bad_edge")
    return Edge(size, tuple(levels))


def edge_from_tiles(size: int, read: TileReader) -> Edge:
    """The edge as the tiles of a tree show it; they are not trusted, so hold its root against a signed one."""
    levels = list[bytes]()
    for level in range((size.bit_length() + 7) // 8):
        index, width = divmod(size >> 8 * level, FULL)
        levels.append(read(level, index, width)[: width * HASH_BYTES] if width else b"")
    return Edge(size, tuple(levels))
