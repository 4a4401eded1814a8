"""A whole tree in memory against RFC 6962 written down, pymerkle, sigstore and our own tiles, at random sizes and at the edges."""

from __future__ import annotations

import hashlib
import random
from types import SimpleNamespace
from typing import Any, cast

import pymerkle  # type: ignore[import-untyped]  # it has no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sigstore._internal.merkle import verify_merkle_inclusion

from compliance_agent.evidence.forest import Forest
from compliance_agent.log.merkle import EMPTY_ROOT, hash_leaf, verify_inclusion
from compliance_agent.log.tiles import Tile, written
from compliance_agent.log.tree import TileTree
from tests.log.builder import MemoryLog
from tests.log.reference import Reference

EDGES = [255, 256, 257, 65_535, 65_536, 65_537]
LARGE = MemoryLog(65_537)
LEAVES = b"".join(map(hash_leaf, LARGE.entries))
FOREST = Forest(LEAVES)
REFERENCE = Reference(LARGE.entries)
PYMERKLE = pymerkle.InmemoryTree(algorithm="sha256")
for entry in LARGE.entries:
    PYMERKLE.append_entry(entry)


@pytest.mark.parametrize("size", [0, 1, 2, 3, *EDGES])
def test_roots_at_the_edges(size: int) -> None:
    """Of the whole tree, of the larger one's prefix, of tiles, of the recursion, and of pymerkle: one root."""
    whole = Forest(LEAVES[: 32 * size])
    expected = REFERENCE.root(size)
    assert whole.root(size) == FOREST.root(size) == LARGE.tree(size).root() == expected
    if size:
        assert PYMERKLE.get_root(size) == expected
    assert {tile: whole.tile(tile) for tile in written(0, size) if tile.level >= 0} == MemoryLog(size).tiles


@pytest.mark.parametrize("size", EDGES)
def test_inclusion_from_tiles_at_the_edges_is_what_others_verify(size: int) -> None:
    """Our path, computed from tiles, verified by sigstore's code; pymerkle's path is the same hashes."""
    chance = random.Random(size)
    tree = TileTree(size, lambda level, index, width: LARGE.read(level, index, width)[: 32 * width])
    for index in sorted({0, 1, 254, 255, 256, 65_535, size - 1, chance.randrange(size)}):
        if index >= size:
            continue
        path = tree.inclusion(index)
        verify_inclusion(hash_leaf(LARGE.entries[index]), index, size, path, FOREST.root(size))
        proof = SimpleNamespace(
            inclusion_proof=SimpleNamespace(
                log_index=index, tree_size=size, root_hash=FOREST.root(size), hashes=list(path), checkpoint=None
            ),
            canonicalized_body=LARGE.entries[index],
        )
        inner = SimpleNamespace(_inner=proof, canonicalized_body=LARGE.entries[index])
        verify_merkle_inclusion(cast(Any, inner))
        theirs = PYMERKLE.prove_inclusion(index + 1, size)
        assert [hash_ for hash_ in theirs.path[1:]] == path


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 700), st.data())
def test_random_sizes(size: int, data: st.DataObject) -> None:
    forest = Forest(LEAVES[: 32 * size])
    older = data.draw(st.integers(0, size))
    assert forest.root(older) == REFERENCE.root(older)
    if older:
        assert forest.root(older) == PYMERKLE.get_root(older)
        assert forest.leaf(older - 1) == hash_leaf(LARGE.entries[older - 1])
    assert forest.leaf(size) == b""


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([1, 2, 255, 256, 257, 512, 513, 700]), st.data())
def test_what_leans_on_its_tiles_gives_the_same_roots(size: int, data: st.DataObject) -> None:
    forest, asked = Forest(LEAVES[: 32 * size]), list[int]()

    def read(tile: Tile) -> bytes:
        asked.append(tile.index)
        return LEAVES[32 * 256 * tile.index : 32 * (256 * tile.index + tile.width)]

    forest.lean_on(read)
    for older in (*data.draw(st.lists(st.integers(0, size), max_size=9)), size):
        assert forest.root(older) == REFERENCE.root(older)
    assert forest.size == size and len(asked) == len(set(asked)) <= 3


def test_beyond_the_tree_there_is_no_root() -> None:
    assert Forest(b"").root(0) == EMPTY_ROOT == hashlib.sha256(b"").digest()
    with pytest.raises(ValueError, match="outside"):
        Forest(LEAVES[:64]).root(3)
