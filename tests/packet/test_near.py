"""Receipts that share what was proven once are judged as each is by itself, whatever was done to them."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, verify_inclusion
from compliance_agent.log.note import Note
from compliance_agent.log.proof import Proof
from compliance_agent.packet import near
from compliance_agent.packet.near import Near
from tests.log.builder import MemoryLog

LOG = MemoryLog(600)  # two whole nodes of 256 entries, and a part of one
NOTE = LOG.receipt(0).checkpoint
CHECKPOINT = Checkpoint.parse(Note.parse(NOTE).text)


def slowly(raw: bytes, entry: bytes) -> int | str:
    """Each by itself: its index, or what is wrong."""
    try:
        proof = Proof.parse(raw)
        if proof.checkpoint != NOTE:
            return "wrong_checkpoint"
        verify_inclusion(hash_leaf(entry), proof.index, CHECKPOINT.size, proof.path, CHECKPOINT.root)
    except BadEvidence as error:
        return error.code
    return proof.index


def quickly(receipts: Near, raw: bytes, entry: bytes) -> int | str:
    try:
        return receipts.index(raw, entry)
    except BadEvidence as error:
        return error.code


def knowing() -> Near:
    """One that has proven a receipt under each node."""
    receipts = Near(NOTE, CHECKPOINT)
    for index in (3, 300, 555):
        assert receipts.index(LOG.receipt(index).encode(), LOG.entries[index]) == index
    return receipts


def test_every_receipt_gives_its_index() -> None:
    receipts = Near(NOTE, CHECKPOINT)
    order = list(range(600))
    random.Random(1).shuffle(order)
    assert [receipts.index(LOG.receipt(at).encode(), LOG.entries[at]) for at in order] == order


def test_what_was_proven_once_is_not_climbed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else all of this is for nothing. Where entries are missing under a node, each is climbed by itself."""
    receipts, climbed = knowing(), list[int]()
    monkeypatch.setattr(near, "verify_inclusion", lambda leaf, index, *rest: climbed.append(index))
    for index in (0, 200, 256, 511, 512, 599):
        receipts.index(LOG.receipt(index).encode(), LOG.entries[index])
    assert climbed == [512, 599]


@pytest.mark.parametrize("index", [4, 301, 556])
def test_every_byte_with_other_ones(index: int) -> None:
    receipts, raw, entry, rng = knowing(), LOG.receipt(index).encode(), LOG.entries[index], random.Random(index)
    assert quickly(receipts, raw, entry) == slowly(raw, entry) == index
    for at in range(len(raw)):
        for other in (b"", b"\n", b"A", b"0", bytes([raw[at] ^ 1]), bytes([rng.randrange(256)])):
            changed = raw[:at] + other + raw[at + 1 :]
            assert quickly(receipts, changed, entry) == slowly(changed, entry), changed
    assert quickly(receipts, raw, entry + b" ") == slowly(raw, entry + b" ") == "bad_inclusion_proof"


def test_a_path_that_is_not_the_entrys_own() -> None:
    """Of its neighbour, of the same place under another node, with two steps changed for each other, and one step too many."""
    receipts, entry, mine = knowing(), LOG.entries[4], LOG.receipt(4)
    for other in (5, 68, 260):
        theirs = LOG.receipt(other)
        for proof in (theirs, replace(theirs, index=4), replace(mine, index=other)):
            raw = proof.encode()
            assert quickly(receipts, raw, entry) == slowly(raw, entry) == "bad_inclusion_proof"
    for at in range(len(mine.path) - 1):
        path = (*mine.path[:at], mine.path[at + 1], mine.path[at], *mine.path[at + 2 :])
        raw = replace(mine, path=path).encode()
        assert quickly(receipts, raw, entry) == slowly(raw, entry) == "bad_inclusion_proof"
    for path in (mine.path[1:], mine.path[:-1], (*mine.path, mine.path[0]), (mine.path[0], *mine.path)):
        raw = replace(mine, path=path).encode()
        assert quickly(receipts, raw, entry) == slowly(raw, entry) == "bad_inclusion_proof"


def test_another_checkpoint_is_named() -> None:
    receipts, other = knowing(), MemoryLog(601).receipt(4)
    assert quickly(receipts, other.encode(), LOG.entries[4]) == "wrong_checkpoint"


def test_few_nodes_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near, "KEPT", 1)
    receipts = knowing()
    assert list(receipts._proven) == [1]
    assert receipts.index(LOG.receipt(7).encode(), LOG.entries[7]) == 7 and list(receipts._proven) == [0]


@pytest.mark.parametrize("damage", ["below", "above", "entry"])
def test_planted_a_part_that_is_not_looked_at_is_found(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps below the node, what follows from it, and the entry: each is what refuses."""
    receipts, mine, entry, node = knowing(), LOG.receipt(4), LOG.entries[4], Near(NOTE, CHECKPOINT)
    path = list(mine.path)
    if damage != "entry":
        path[0 if damage == "below" else -1] = bytes(32)
    raw, entry = replace(mine, path=tuple(path)).encode(), entry if damage != "entry" else b"another"
    assert quickly(receipts, raw, entry) == "bad_inclusion_proof"
    if damage == "above":
        receipts._proven[0] = (receipts._proven[0][0], raw[near._BELOW.match(raw).end() :])  # type: ignore[union-attr]
    else:
        node.index(LOG.receipt(3).encode(), LOG.entries[3])
        monkeypatch.setattr(near, "_node_over", lambda *_: node._proven[0][0])
    assert quickly(receipts, raw, entry) == 4
