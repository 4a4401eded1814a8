"""Trees and the verifiers of their proofs, against RFC 6962 written down recursively, pymerkle and sigstore."""

from __future__ import annotations

import random
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pymerkle  # type: ignore[import-untyped]  # it has no types
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sigstore._internal.merkle import verify_merkle_inclusion

from compliance_agent.errors import BadEvidence
from compliance_agent.log import merkle
from compliance_agent.log.merkle import (
    EMPTY_ROOT,
    LeafHash,
    hash_leaf,
    hash_node,
    root_of,
    verify_consistency,
    verify_inclusion,
)
from tests.log.builder import root
from tests.log.reference import Reference

EDGES = [1, 2, 255, 256, 257, 65_535, 65_536, 65_537]
ENTRIES = [b"entry %d" % number for number in range(65_537)]
REFERENCE = Reference(ENTRIES)
SMALL = 70


def leaf(index: int) -> LeafHash:
    return hash_leaf(ENTRIES[index])


def some(size: int) -> list[int]:
    """Indexes of a tree: its ends, the edges within it and a few by chance."""
    chance = random.Random(size)
    near = {edge + by for edge in (0, *EDGES, size) for by in (-1, 0, 1)}
    return sorted({index for index in near if 0 <= index < size} | {chance.randrange(size) for _ in range(20)})


def test_the_empty_tree_and_the_vectors_of_rfc_6962() -> None:
    """The hashes that certificate transparency's own tests give for these entries."""
    assert EMPTY_ROOT.hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855" == root_of(b"").hex()
    assert hash_leaf(b"").hex() == "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
    leaves = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657")]
    leaves.append(bytes(range(0x60, 0x70)))
    whole = root_of(b"".join(map(hash_leaf, leaves)))
    assert whole.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@pytest.mark.parametrize("size", [0, *EDGES])
def test_roots_at_the_edges(size: int) -> None:
    """The row by row root is the recursive one, and pymerkle's."""
    ours = root_of(b"".join(leaf(index) for index in range(size)))
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    tree.append_entries(ENTRIES[:size])
    assert ours == REFERENCE.root(size) == tree.get_root()


def test_every_small_inclusion_proof() -> None:
    """Each place in each small tree verifies, and under no other place, size or leaf."""
    for size in range(1, SMALL):
        for index in range(size):
            path, whole = REFERENCE.path(index, size), root(root(REFERENCE.root(size)))
            verify_inclusion(leaf(index), index, size, path, whole)
            for wrong in ({"leaf": leaf(index + 1)}, {"index": index + 1}, {"index": -1}, {"path": [*path, whole]}):
                given_ = {"leaf": leaf(index), "index": index, "size": size, "path": path, "root": whole, **wrong}
                with pytest.raises(BadEvidence) as refused:
                    verify_inclusion(**given_)  # type: ignore[arg-type]
                assert refused.value.code == "bad_inclusion_proof"


@pytest.mark.parametrize("size", EDGES)
def test_inclusion_against_pymerkle_and_sigstore(size: int) -> None:
    """Their proofs verify with ours; the same proof verifies with theirs."""
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    tree.append_entries(ENTRIES[:size])
    for index in some(size):
        theirs = tree.prove_inclusion(index + 1)
        path = list(theirs.path[1:])  # the first is the leaf itself
        assert path == REFERENCE.path(index, size)
        verify_inclusion(leaf(index), index, size, path, root(tree.get_root()))
        pymerkle.verify_inclusion(leaf(index), tree.get_root(), theirs)
        verify_with_sigstore(index, size, path)


def verify_with_sigstore(index: int, size: int, path: list[bytes]) -> None:
    proof = SimpleNamespace(log_index=index, tree_size=size, hashes=path, root_hash=root(REFERENCE.root(size)))
    entry = SimpleNamespace(_inner=SimpleNamespace(inclusion_proof=proof, canonicalized_body=ENTRIES[index]))
    verify_merkle_inclusion(cast(Any, entry))


def test_every_small_consistency_proof() -> None:
    """Each prefix of each small tree verifies, and no other does."""
    for new in range(1, SMALL):
        for old in range(1, new):
            path, old_root, new_root = REFERENCE.proof(old, new), root(REFERENCE.root(old)), root(REFERENCE.root(new))
            verify_consistency(old, new, path, old_root, new_root)
            for other in ([*path, new_root], path[:-1], path[1:], path[::-1] if len(set(path)) > 1 else []):
                refuse_consistency(old, new, other, old_root, new_root)
            refuse_consistency(old, new, path, new_root, new_root)
            refuse_consistency(old, new, path, old_root, old_root)
            refuse_consistency(old + 1, new, path, old_root, new_root)
            refuse_consistency(old - 1, new, path, old_root, new_root)


@pytest.mark.parametrize("new", EDGES)
def test_consistency_at_the_edges(new: int) -> None:
    """From every edge and some sizes by chance."""
    for old in (size for size in some(new) if size):
        path = REFERENCE.proof(old, new)
        verify_consistency(old, new, path, root(REFERENCE.root(old)), root(REFERENCE.root(new)))
        damaged = [*path[:-1], bytes(32)]
        refuse_consistency(old, new, damaged, REFERENCE.root(old), REFERENCE.root(new))


def test_a_path_that_climbs_over_the_root_is_refused() -> None:
    """Hashes beyond the root of a tree of the stated size would let a root stand for another size."""
    beyond = bytes(32)
    with pytest.raises(BadEvidence):
        verify_inclusion(leaf(1), 0, 1, [leaf(0)], root(REFERENCE.root(2)))
    old_root, new_root = hash_node(beyond, REFERENCE.root(3)), hash_node(beyond, REFERENCE.root(4))
    refuse_consistency(3, 4, [*REFERENCE.proof(3, 4), beyond], old_root, new_root)


def test_a_byte_moved_from_one_hash_to_the_next_is_refused() -> None:
    """Joined they are the same bytes with the same parent; only whole hashes count."""
    first, second, whole = leaf(0), leaf(1), root(REFERENCE.root(2))
    with pytest.raises(BadEvidence):
        verify_inclusion(LeafHash(first[:31]), 0, 2, [first[31:] + second], whole)
    refuse_consistency(1, 2, [first[31:] + second], first[:31], whole)


def refuse_consistency(old: int, new: int, path: list[bytes], old_root: bytes, new_root: bytes) -> None:
    with pytest.raises(BadEvidence) as refused:
        verify_consistency(old, new, path, root(old_root), root(new_root))
    assert refused.value.code == "bad_consistency_proof"


def test_consistency_where_there_is_nothing_to_prove() -> None:
    """Equal sizes need equal roots; the empty tree begins every tree, with its own root and without a path."""
    one, two = root(REFERENCE.root(1)), root(REFERENCE.root(2))
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    verify_consistency(0, 2, [], EMPTY_ROOT, two)
    verify_consistency(2, 2, [], two, two)
    refuse_consistency(0, 2, [], one, two)
    refuse_consistency(0, 2, [two], EMPTY_ROOT, two)
    refuse_consistency(0, 0, [], one, one)
    refuse_consistency(2, 2, [], one, two)
    refuse_consistency(2, 2, [two], two, two)
    refuse_consistency(2, 1, [], two, one)
    refuse_consistency(1, 2, [], one, two)
    refuse_consistency(3, 4, [], one, two)
    refuse_consistency(-1, 2, [], one, two)
    refuse_consistency(1, 2**63, [one], one, two)
    refuse_consistency(1, 2, [leaf(1)[:31]], one, two)


@given(st.data())
def test_any_flipped_bit_of_a_proof_is_refused(data: st.DataObject) -> None:
    """In a hash of the path, in the root or in the leaf."""
    new = data.draw(st.integers(2, 600))
    old = data.draw(st.integers(1, new - 1))
    index = data.draw(st.integers(0, new - 1))
    inclusion = [leaf(index), REFERENCE.root(new), *REFERENCE.path(index, new)]
    consistency = [REFERENCE.root(old), REFERENCE.root(new), *REFERENCE.proof(old, new)]
    for hashes in (inclusion, consistency):
        which = data.draw(st.integers(0, len(hashes) - 1))
        bit = data.draw(st.integers(0, 255))
        hashes[which] = (int.from_bytes(hashes[which], "big") ^ 1 << bit).to_bytes(32, "big")
    with pytest.raises(BadEvidence):
        verify_inclusion(LeafHash(inclusion[0]), index, new, inclusion[2:], root(inclusion[1]))
    refuse_consistency(old, new, consistency[2:], consistency[0], consistency[1])


def test_the_part_that_entries_share_is_looked_at_for_each() -> None:
    """What was climbed once stands for the same hashes alone: another hash, place or size is climbed again, and refused."""
    size = 1_500
    for index in (700, 701, 702):
        path = REFERENCE.path(index, size)
        verify_inclusion(leaf(index), index, size, path, root(REFERENCE.root(size)))
        for at in range(len(path)):
            wrong = [*path[:at], bytes(32), *path[at + 1 :]]
            with pytest.raises(BadEvidence):
                verify_inclusion(leaf(index), index, size, wrong, root(REFERENCE.root(size)))
        for other in (path[:-1], [*path, bytes(32)], path[:8]):
            with pytest.raises(BadEvidence):
                verify_inclusion(leaf(index), index, size, other, root(REFERENCE.root(size)))
        for place, whole in ((index + 256, size), (index, 700), (index, 3_000)):
            with pytest.raises(BadEvidence):
                verify_inclusion(leaf(index), place, whole, path, root(REFERENCE.root(size)))


@pytest.mark.parametrize("step", ["last hash", "left and right", "climb"])
def test_a_verifier_that_skips_a_step_is_caught(step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: each breaks the comparison over small trees above."""
    climb = merkle._climb
    broken: dict[str, Callable[..., tuple[bytes, int, int]]] = {
        "last hash": lambda seen, sibling, at, last: (
            *climb(seen, sibling, at, last)[:2],
            0 if last < 2 else last >> 1,
        ),
        "left and right": lambda seen, sibling, at, last: (hash_node(seen, sibling), at >> 1, last >> 1),
        "climb": lambda seen, sibling, at, last: (climb(seen, sibling, at, last)[0], at >> 1, last >> 1),
    }

    def ascend(seen: bytes, path: list[bytes], at: int, last: int) -> tuple[bytes, int, int]:
        for sibling in path:
            if last == 0:
                return b"", 0, 0
            seen, at, last = broken[step](seen, sibling, at, last)
        return seen, at, last

    monkeypatch.setattr(merkle, "_climb", broken[step])
    monkeypatch.setattr(merkle, "_ascend", ascend)
    with pytest.raises((BadEvidence, pytest.fail.Exception)):
        test_every_small_inclusion_proof()
    with pytest.raises((BadEvidence, pytest.fail.Exception)):
        test_every_small_consistency_proof()
