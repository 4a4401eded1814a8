"""A whole tree in memory, made from its leaves: the hash of every complete subtree, so that any root, path or tile is at hand.

64 bytes for each leaf. What is served by somebody else is held against it; nothing in it comes from a tile, until all tiles were
found to be right: then it may lean on those at hand, and is small.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from compliance_agent.log.merkle import EMPTY_ROOT, HASH_BYTES, LeafHash, RootHash, hash_node, parents
from compliance_agent.log.tiles import FULL, Tile

_INNER = 8  # rows within a tile of level 0
_KEPT = 64  # tiles


class Forest:
    """The tree over these leaf hashes, joined together."""

    def __init__(self, leaves: bytes = b"") -> None:
        self._rows = [bytearray()]
        self._size = 0  # where it leans on tiles
        self._inner: Callable[[int], list[bytes]] | None = None
        self.grow(leaves)

    @property
    def size(self) -> int:
        """How many leaves."""
        return self._size or len(self._rows[0]) // HASH_BYTES

    def grow(self, leaves: bytes) -> None:
        """Append leaf hashes, and every complete subtree that they finish."""
        self._rows[0] += leaves
        for height, row in enumerate(self._rows):
            done = 2 * len(self._rows[height + 1]) if height + 1 < len(self._rows) else 0
            finished = bytes(row[done : len(row) & ~63])
            if not finished:
                return
            if height + 1 == len(self._rows):
                self._rows.append(bytearray())
            self._rows[height + 1] += parents(finished)

    def leaf(self, index: int) -> LeafHash:
        """The hash of one entry; empty for one that is not there."""
        return LeafHash(self._node(0, index))

    def root(self, size: int) -> RootHash:
        """MTH of the first `size` entries (RFC 6962, 2.1): the complete subtrees side by side, joined from the right."""
        if not 0 <= size <= self.size:
            raise ValueError(f"size {size} is outside the tree of size {self.size}")
        seen = b""
        for height in range(size.bit_length()):
            if size >> height & 1:
                node = self._node(height, (size >> height) - 1)
                seen = hash_node(node, seen) if seen else node
        return RootHash(seen) if seen else EMPTY_ROOT

    def tile(self, tile: Tile) -> bytes:
        """The hashes that a tile of this tree holds."""
        start = tile.index * FULL * HASH_BYTES
        height = 8 * tile.level
        return bytes(self._rows[height][start : start + tile.width * HASH_BYTES]) if height < len(self._rows) else b""

    def lean_on(self, read: Callable[[Tile], bytes]) -> None:
        """Let go of what the tiles of level 0 say, all of which were found to be of this tree; `read` gives one again."""
        size = self.size

        def rows(index: int) -> list[bytes]:
            row = read(Tile(0, index, min(FULL, size - index * FULL)))
            found = [row]
            while len(found) < _INNER:
                found.append(parents(found[-1][: len(found[-1]) & ~63]))
            return found

        self._size, self._inner = size, functools.lru_cache(_KEPT)(rows)
        for row in self._rows[:_INNER]:
            row.clear()

    def _node(self, height: int, index: int) -> bytes:
        if self._inner is not None and height < _INNER:
            tile, index = divmod(index, FULL >> height)
            return self._inner(tile)[height][index * HASH_BYTES : (index + 1) * HASH_BYTES]
        return bytes(self._rows[height][index * HASH_BYTES : (index + 1) * HASH_BYTES])
