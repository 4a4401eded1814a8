"""Growing a tree and proving from its tiles, held to RFC 6962 written down recursively."""

from __future__ import annotations

import hashlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log import tree as tree_module
from compliance_agent.log.merkle import EMPTY_ROOT, hash_leaf, verify_consistency, verify_inclusion
from compliance_agent.log.tiles import Tile, written
from compliance_agent.log.tree import Edge, TileTree
from tests.log.builder import MemoryLog, flips, root
from tests.log.reference import Reference

SIZES = [0, 1, 2, 255, 256, 257, 65_535, 65_536, 65_537]
LARGE = MemoryLog(65_537)
REFERENCE = Reference(LARGE.entries)


def some(size: int) -> list[int]:
    """Edges and random numbers below a size."""
    chance = random.Random(size)
    numbers = [0, 1, 254, 255, 256, 65_535, size - 1, *(chance.randrange(size or 1) for _ in range(25))]
    return sorted({number for number in numbers if 0 <= number < size})


def test_every_tile_is_what_its_definition_says() -> None:
    """Hash i of tile n of level l is MTH(D[(n*256+i)*256^l : (n*256+i+1)*256^l])."""
    for tile in written(0, 65_537):
        if tile.level >= 0:
            span = 256**tile.level
            starts = range(tile.index * 256 * span, (tile.index * 256 + tile.width) * span, span)
            assert LARGE.tiles[tile] == b"".join(REFERENCE.mth(start, start + span) for start in starts)


@pytest.mark.parametrize("size", SIZES)
def test_proofs_from_tiles_at_the_edges(size: int) -> None:
    """Root, inclusion and consistency of an older size, read from the tiles of the later log, are the recursive ones."""
    grown = MemoryLog(size)
    assert set(grown.tiles) == {tile for tile in written(0, size) if tile.level >= 0}
    seen = TileTree(size, grown.read)
    assert seen.root() == grown.edge.root() == REFERENCE.root(size)
    for index in some(size):
        assert seen.leaf(index) == hash_leaf(grown.entries[index])
        assert seen.inclusion(index) == REFERENCE.path(index, size)
        verify_inclusion(seen.leaf(index), index, size, seen.inclusion(index), seen.root())
    for old in some(size + 1):
        path = seen.consistency(old)
        assert path == (REFERENCE.proof(old, size) if 0 < old < size else [])
        verify_consistency(old, size, path, root(REFERENCE.root(old)), seen.root())
    assert all(tile.width == min(256, (size >> 8 * tile.level) - 256 * tile.index) for tile in grown.reads)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 700), max_size=6), st.data())
def test_growth_in_any_batches_is_the_same_tree(batches: list[int], data: st.DataObject) -> None:
    """However entries arrive: the same edge, tiles as `written` names them, and true proofs."""
    log = MemoryLog()
    for count in batches:
        before, known = log.edge.size, set(log.tiles)
        log.append(count)
        assert set(log.tiles) - known == {tile for tile in written(before, log.edge.size) if tile.level >= 0}
    size = sum(batches)
    assert log.edge == MemoryLog(size).edge
    assert log.edge.root() == REFERENCE.root(size)
    if size:
        index, old = data.draw(st.integers(0, size - 1)), data.draw(st.integers(0, size))
        verify_inclusion(hash_leaf(log.entries[index]), index, size, log.tree().inclusion(index), log.edge.root())
        verify_consistency(old, size, log.tree().consistency(old), root(REFERENCE.root(old)), log.edge.root())


def test_an_older_tree_reads_full_tiles_where_partial_ones_are_gone() -> None:
    """A partial tile may be deleted once the full one exists; the full one is cut to the older width."""
    log = MemoryLog(300)
    log.append(300)
    del log.tiles[Tile(0, 1, 44)]
    assert log.tree(300).root() == REFERENCE.root(300)
    assert log.tree(300).inclusion(299) == REFERENCE.path(299, 300)


def test_proofs_of_a_batch_read_each_tile_once() -> None:
    """Minting receipts for a batch costs the reads of one."""
    log = MemoryLog(70_000)
    tree, log.reads = log.tree(), []
    for index in range(69_900, 70_000):
        tree.inclusion(index)
    assert [tile.path for tile in sorted(log.reads)] == ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last tiles are kept, and forgetting one changes no proof."""
    monkeypatch.setattr(tree_module, "_ROWS_KEPT", 2)
    tree = LARGE.tree()
    for index in (0, 65_536, 300, 0, 40_000):
        assert tree.inclusion(index) == REFERENCE.path(index, 65_537)
        assert len(tree._rows) <= 2


@pytest.mark.parametrize("length", [0, 31, 32, 43 * 32, 45 * 32, 8191, 8193])
def test_a_tile_of_another_length_is_refused(length: int) -> None:
    """Longer, shorter, or not a whole number of hashes."""
    with pytest.raises(BadEvidence, match=r"tile/0/001\.p/44") as refused:
        TileTree(300, lambda level, index, width: bytes(length) if index else bytes(8192)).inclusion(299)
    assert refused.value.code == "bad_tile"


def test_what_is_outside_the_tree_is_refused() -> None:
    tree = MemoryLog(5).tree()
    for ask in (
        lambda: tree.inclusion(5),
        lambda: tree.inclusion(-1),
        lambda: tree.leaf(5),
        lambda: tree.consistency(6),
    ):
        with pytest.raises(BadEvidence) as refused:
            ask()
        assert refused.value.code == "outside_tree"


def test_any_flipped_bit_of_a_tile_is_noticed() -> None:
    """A damaged hash proves nothing any more, neither of its own entries nor, at the edge, of the root."""
    log = MemoryLog(300)
    true_root = log.edge.root()
    for tile, entry in (
        (Tile(0, 0), lambda at: at),
        (Tile(0, 1, 44), lambda at: 256 + at),
        (Tile(1, 0, 1), lambda _: 299),
    ):
        for bit, damaged in flips(log.tiles[tile], step=37):
            tree = TileTree(300, lambda *name, t=tile, d=damaged: d if Tile(*name) == t else log.tiles[Tile(*name)])
            index = entry(bit // 256)
            with pytest.raises(BadEvidence):
                verify_inclusion(tree.leaf(index), index, 300, tree.inclusion(index), true_root)
            assert tile == Tile(0, 0) or tree.root() != true_root


def test_an_edge_that_does_not_fit_its_size_is_refused() -> None:
    """As when a row of a database was cut, or belongs to another size."""
    good = MemoryLog(257).edge
    assert Edge(257, good.levels) == good
    for size, levels in (
        (256, good.levels),
        (257, good.levels[:1]),
        (257, (*good.levels, b"")),
        (257, (bytes(31), bytes(32))),
    ):
        with pytest.raises(BadEvidence) as refused:
            Edge(size, levels)
        assert refused.value.code == "bad_edge"


def test_the_empty_edge() -> None:
    assert Edge().root() == TileTree(0, LARGE.read).root() == EMPTY_ROOT
    assert Edge().grow([]) == (Edge(), [])


@pytest.mark.parametrize("fault", ["partial hashed upward", "nodes as leaves"])
def test_a_planted_fault_in_growing_is_caught(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition of tiles and the recursive root see a tree that is built wrongly."""
    if fault == "nodes as leaves":
        monkeypatch.setattr(tree_module, "root_of", lambda row: hashlib.sha256(row).digest())
    else:
        monkeypatch.setattr(tree_module, "parents", lambda row: row[: len(row) // 2])
    with pytest.raises((AssertionError, BadEvidence)):
        test_proofs_from_tiles_at_the_edges(257)
