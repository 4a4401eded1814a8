"""A tree by its right edge, to append to, and by its tiles, to prove from (C2SP tlog-tiles; RFC 9162, section 2.1).

    edge, tiles = Edge().grow(hash_leaf(entry) for entry in entries)
    path = TileTree(edge.size, read).inclusion(7)  # verify_inclusion(leaf, 7, edge.size, path, edge.root())

Tiles are not trusted: only their length is checked here. Hold what is computed from them against a verified checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.merkle import EMPTY_ROOT, HASH_BYTES, LeafHash, RootHash, hash_node, parents, root_of
from compliance_agent.log.tiles import FULL, TILE_BYTES, Tile

TileReader = Callable[[int, int, int], bytes]  # (level, index, width) -> the tile, or the full tile that replaced it
_ROWS_KEPT = 512  # tiles whose inner rows stay in memory, some 16 KB each


@dataclass(frozen=True)
class Edge:
    """All that appending needs: the size, and for each level the hashes of its unfinished tile (none: b"")."""

    size: int = 0
    levels: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        due = [(self.size >> 8 * level) % FULL * HASH_BYTES for level in range((self.size.bit_length() + 7) // 8)]
        if [len(row) for row in self.levels] != due:
            raise BadEvidence(f"edge of tree size {self.size} does not hold its unfinished tiles", code="bad_edge")

    def root(self) -> RootHash:
        """MTH of the tree. What a level leaves over is the last, smaller subtree of the level above."""
        row = b""
        for level in self.levels:
            row = root_of(level + row) if level or row else b""
        return RootHash(row) if row else EMPTY_ROOT

    def grow(self, leaves: Iterable[LeafHash]) -> tuple[Edge, list[tuple[Tile, bytes]]]:
        """The edge after appending, and the tiles to write: those `tiles.written` names, without the entry bundles."""
        new = b"".join(leaves)
        size, tiles, levels = self.size + len(new) // HASH_BYTES, list[tuple[Tile, bytes]](), list[bytes]()
        while new or len(levels) < len(self.levels):
            level = len(levels)
            row = (self.levels[level] if level < len(self.levels) else b"") + new
            first, whole = self.size >> 8 * (level + 1), len(row) // TILE_BYTES
            finished = [row[at * TILE_BYTES : (at + 1) * TILE_BYTES] for at in range(whole)]
            tiles += [(Tile(level, first + at), tile) for at, tile in enumerate(finished)]
            rest = row[whole * TILE_BYTES :]
            if new and rest:
                tiles.append((Tile(level, first + whole, len(rest) // HASH_BYTES), rest))
            levels.append(rest)
            new = b"".join(map(root_of, finished))
        return Edge(size, tuple(levels)), tiles


class TileTree:
    """The tree of `size` entries as its tiles show it, the last of them kept; code `bad_tile` for one of another length."""

    def __init__(self, size: int, read: TileReader) -> None:
        self.size = size
        self._read = read
        self._rows: dict[tuple[int, int], list[bytes]] = {}
        self._above: dict[int, list[bytes]] = {}  # by number of an entry's tile: what its entries' paths share

    def root(self) -> RootHash:
        """MTH of the whole tree."""
        return RootHash(self._hash(0, self.size)) if self.size else EMPTY_ROOT

    def leaf(self, index: int) -> LeafHash:
        """The hash of one entry."""
        self._expect(0 <= index < self.size, f"entry {index}")
        return LeafHash(self._perfect(index, 0))

    def inclusion(self, index: int) -> list[bytes]:
        """PATH(index, D) of RFC 9162, 2.1.3.1: from the leaf's sibling up."""
        self._expect(0 <= index < self.size, f"entry {index}")
        tile, at = divmod(index, FULL)
        first, stop = index - at, min(index - at + FULL, self.size)
        if tile not in self._above:
            self._above[tile] = self._descend(index, 0, self.size, FULL)[0]
        if stop - first < FULL:
            return self._descend(index, first, stop)[0] + self._above[tile]
        rows = self._rows.get((0, tile)) or self._load(0, tile)
        siblings = [((at >> up) ^ 1) * HASH_BYTES for up in range(len(rows))]
        return [row[place : place + HASH_BYTES] for row, place in zip(rows, siblings, strict=True)] + self._above[tile]

    def consistency(self, old: int) -> list[bytes]:
        """PROOF(old, D) of RFC 9162, 2.1.4.1; empty for the empty tree and for this very size."""
        self._expect(0 <= old <= self.size, f"size {old}")
        if old in {0, self.size}:
            return []
        path, start, stop = self._descend(old - 1, 0, self.size, end=old)
        return [self._hash(start, stop), *path] if start else path

    def _expect(self, within: bool, what: str) -> None:
        if not within:
            raise BadEvidence(f"{what} is outside the tree of size {self.size}", code="outside_tree")

    def _descend(self, index: int, start: int, stop: int, width: int = 1, end: int = 0) -> tuple[list[bytes], int, int]:
        """The way down from a range that RFC 6962 splits off: the siblings, from the lowest up, and the range that is reached.

        It is the one around `index` of at most `width` entries, or the first on the way that stops at `end`.
        """
        path = list[bytes]()
        while stop - start > width and stop != end:
            middle = start + (1 << (stop - start - 1).bit_length() - 1)
            if index < middle:
                path.append(self._hash(middle, stop))
                stop = middle
            else:
                path.append(self._hash(start, middle))
                start = middle
        return path[::-1], start, stop

    def _hash(self, start: int, stop: int) -> bytes:
        """MTH(D[start:stop]) for a range that RFC 6962 splits off: its largest whole subtree, and the rest."""
        height = (stop - start).bit_length() - 1
        left, middle = self._perfect(start >> height, height), start + (1 << height)
        return left if middle == stop else hash_node(left, self._hash(middle, stop))

    def _perfect(self, index: int, height: int) -> bytes:
        """The hash of the whole subtree number `index` among those of 2^height entries, from the tile that holds it."""
        level, up = divmod(height, 8)
        tile, at = divmod(index, FULL >> up)
        rows = self._rows.get((level, tile)) or self._load(level, tile)
        return rows[up][at * HASH_BYTES : (at + 1) * HASH_BYTES]

    def _load(self, level: int, index: int) -> list[bytes]:
        width = min(FULL, (self.size >> 8 * level) - index * FULL)
        tile = self._read(level, index, width)
        if len(tile) not in {width * HASH_BYTES, TILE_BYTES}:
            raise BadEvidence(f"{Tile(level, index, width).path} has {len(tile)} bytes", code="bad_tile")
        rows = [tile[: width * HASH_BYTES]]
        for _ in range(7):
            rows.append(parents(rows[-1]))
        if len(self._rows) >= _ROWS_KEPT:
            self._rows.pop(next(iter(self._rows)))
        self._rows[level, index] = rows
        return rows
