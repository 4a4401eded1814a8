"""Two checkpoints of one log either fit or contradict each other, and tiles can neither hide nor invent a contradiction."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance_agent.core import receipt as core
from compliance_agent.core.receipt import (
    LoggedBundle,
    LogHead,
    PinnedLog,
    check_prefix,
    read_note,
    trusted_key,
    verify_note,
    verify_receipt,
)
from compliance_agent.errors import BadEvidence
from compliance_agent.lab.log import FakeLog, Lie
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from tests.log.builder import flips

BUNDLE = LoggedBundle("ab" * 32, 0, 7, "cd" * 32, "ef" * 32, b"s" * 64)


def log_of(size: int, first: bytes = b"first") -> FakeLog:
    log = FakeLog("clinic-1")
    log.append(first)
    for number in range(2, size):
        log.append(b"entry %d" % number)
    return log


LOGS = {name: log_of(600, name) for name in (b"first", b"other")}


def head(log: FakeLog, size: int) -> LogHead:
    return verify_note(log.note(size), [log.vkey])


def code(older: LogHead, newer: LogHead, log: FakeLog) -> str:
    def read(level: int, index: int, width: int) -> bytes:
        tile = log.file(Tile(level, index, width).path)
        assert tile is not None, "a tile of another width than the larger tree has"
        return tile

    try:
        check_prefix(older, newer, read)
    except BadEvidence as error:
        return error.code
    return ""


@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(1, 600), st.integers(1, 600)).map(sorted))
def test_every_smaller_size_begins_every_larger_one(sizes: list[int]) -> None:
    log = LOGS[b"first"]
    assert code(head(log, sizes[0]), head(log, sizes[1]), log) == ""


@settings(max_examples=150, deadline=None)
@given(st.tuples(st.integers(2, 600), st.integers(2, 600)).map(sorted))
def test_another_history_is_always_proven(sizes: list[int]) -> None:
    ours, theirs = LOGS[b"first"], LOGS[b"other"]
    assert code(head(ours, sizes[0]), head(theirs, sizes[1]), theirs) == "log_forked"


@pytest.mark.parametrize("size", [255, 256, 257, 511, 512, 513])
@pytest.mark.parametrize("old", [1, 2, 128, 255, 256, 257])
def test_tile_edges(old: int, size: int) -> None:
    log, other = LOGS[b"first"], LOGS[b"other"]
    older, larger = sorted((old, size))
    assert code(head(log, older), head(log, larger), log) == ""
    if older > 1:
        assert code(head(log, older), head(other, larger), other) == "log_forked"


def test_bad_tiles_neither_hide_nor_invent_a_fork() -> None:
    """Whatever one flipped bit of a tile does, an honest log is never accused, and a fork is never taken for growth."""
    log, other = log_of(9), log_of(9, b"other")
    for served, expected in ((log, {"", "bad_tile"}), (other, {"log_forked", "bad_tile"})):
        good = dict(served._tiles)
        path = "tile/0/000.p/9"
        for _, damaged in flips(good[path], 5):
            served._tiles = {**good, path: damaged}
            assert code(head(log, 6), head(served, 9), served) in expected
        served._tiles = good


def test_planted_consistency_that_trusts_tiles_accuses_an_honest_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault that the test above must catch: the path is not shown to lead to the signed root."""
    monkeypatch.setattr(core, "verify_consistency", lambda *_: None)
    with pytest.raises(AssertionError):
        test_bad_tiles_neither_hide_nor_invent_a_fork()


def test_the_empty_tree_begins_every_other() -> None:
    log = LOGS[b"first"]
    assert code(head(log, 0), head(log, 5), log) == ""


# One receipt


def issued(bundle: LoggedBundle = BUNDLE, lie: Lie = Lie.NOTHING) -> tuple[FakeLog, bytes, bytes]:
    log = log_of(5)
    log.lie = lie
    log.add("bundle", bundle.leaf)
    found = log.receipt("bundle")
    assert found is not None
    return log, base64.b64decode(found["leaf"]), base64.b64decode(found["proof"])


def test_a_true_receipt() -> None:
    log, leaf, proof = issued()
    key = trusted_key(proof, PinnedLog(log.public), "clinic-1")
    found = verify_receipt(BUNDLE, leaf, proof, [key])
    assert (found.origin, found.size, found.server) == ("fake/clinic-1/2026", 6, "fake")
    assert json.loads(leaf)["seq"] == 7


def test_every_flipped_bit_is_refused() -> None:
    log, leaf, proof = issued()
    for _, damaged in flips(proof, 3):
        with pytest.raises(BadEvidence):
            verify_receipt(BUNDLE, leaf, damaged, [log.vkey])
    for _, damaged in flips(leaf, 3):
        with pytest.raises(BadEvidence, match="entry"):
            verify_receipt(BUNDLE, damaged, proof, [log.vkey])


@pytest.mark.parametrize(
    "other",
    [
        LoggedBundle("00" * 32, 0, 7, "cd" * 32, "ef" * 32, b"s" * 64),
        LoggedBundle("ab" * 32, 1, 7, "cd" * 32, "ef" * 32, b"s" * 64),
        LoggedBundle("ab" * 32, 0, 8, "cd" * 32, "ef" * 32, b"s" * 64),
        LoggedBundle("ab" * 32, 0, 7, "00" * 32, "ef" * 32, b"s" * 64),
        LoggedBundle("ab" * 32, 0, 7, "cd" * 32, "00" * 32, b"s" * 64),
        LoggedBundle("ab" * 32, 0, 7, "cd" * 32, "ef" * 32, b"t" * 64),
    ],
)
def test_the_entry_of_another_bundle_is_refused_in_each_of_its_fields(other: LoggedBundle) -> None:
    log, leaf, proof = issued(other)
    with pytest.raises(BadEvidence) as refused:
        verify_receipt(BUNDLE, leaf, proof, [log.vkey])
    assert refused.value.code == "wrong_leaf"


@pytest.mark.parametrize(
    "origin",
    ["fake/clinic-2/2026", "fake/clinic-1/26", "fake/clinic-1", "fake/clinic-1/2026/x", "/clinic-1/2026", "fake/clinic-1/20261"],
)  # fmt: skip
def test_a_log_that_is_not_of_this_site_is_refused(origin: str) -> None:
    log, _, proof = issued()
    receipt = Proof.parse(proof)
    seen = read_note(receipt.checkpoint)
    text = Checkpoint(origin, seen.size, seen.root).text
    key = VerifierKey(origin, KeyType.ED25519, log.public)
    forged = Note(text, (key.sign(text, lambda message: bytes(log._key.sign(message).signature)),)).encode()
    with pytest.raises(BadEvidence) as refused:
        trusted_key(Proof(receipt.index, receipt.path, forged).encode(), PinnedLog(log.public), "clinic-1")
    assert refused.value.code == "foreign_log"


def test_a_second_server_name_is_refused() -> None:
    """One key could sign two trees under two names, and no two notes of them would contradict each other."""
    log, _, proof = issued()
    assert trusted_key(proof, PinnedLog(log.public, "fake"), "clinic-1").name == log.origin
    with pytest.raises(BadEvidence, match="origin"):
        trusted_key(proof, PinnedLog(log.public, "another"), "clinic-1")


def test_notes_and_receipts_are_bounded() -> None:
    log, leaf, proof = issued()
    receipt = Proof.parse(proof)
    lines = "".join(f"— w{number} {'A' * 200}\n" for number in range(40)).encode()
    for longer in (proof + b"x" * core.MAX_PROOF_BYTES, Proof(5, receipt.path, receipt.checkpoint + lines).encode()):
        with pytest.raises(BadEvidence) as refused:
            verify_receipt(BUNDLE, leaf, longer, [log.vkey])
        assert refused.value.code == "bad_receipt"


def test_tiles_are_read_at_the_widths_of_the_larger_tree() -> None:
    """A partial tile may be gone once a wider one is published, so only those of the larger tree are asked for."""
    log = LOGS[b"first"]
    asked: list[tuple[int, int, int]] = []

    def read(level: int, index: int, width: int) -> bytes:
        asked.append((level, index, width))
        assert width == min(256, (599 >> 8 * level) - index * 256)
        return log._tiles[Tile(level, index, width).path][: width * HASH_BYTES]

    check_prefix(head(log, 300), head(log, 599), read)
    assert 0 < len(set(asked)) <= 8
