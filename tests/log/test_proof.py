"""Receipts: what proves offline that an entry is in a log, and every way to damage one."""

from __future__ import annotations

import base64
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log import note as note_module
from compliance_agent.log import proof as proof_module
from compliance_agent.log.merkle import LeafHash, hash_leaf
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from tests.log.builder import LOG, LOG_PQ, POLICY, WITNESSES, MemoryLog, flips

LOG_300 = MemoryLog(300)
INDEX = 257
RECEIPT = LOG_300.receipt(INDEX)
LEAF = hash_leaf(LOG_300.entries[INDEX])


def test_the_layout_of_the_specification() -> None:
    lines = RECEIPT.encode().decode().split("\n")
    assert lines[:2] == ["c2sp.org/tlog-proof@v1", "index 257"]
    assert [base64.b64decode(line) for line in lines[2 : 2 + len(RECEIPT.path)]] == list(RECEIPT.path)
    assert lines[2 + len(RECEIPT.path)] == ""
    assert "\n".join(lines[3 + len(RECEIPT.path) :]).encode() == RECEIPT.checkpoint
    assert Proof.parse(RECEIPT.encode()) == RECEIPT
    extra = replace(RECEIPT, extra=b"context")
    assert extra.encode().startswith(b"c2sp.org/tlog-proof@v1\nextra Y29udGV4dA==\nindex 257\n")
    assert Proof.parse(extra.encode()) == extra


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.binary(min_size=32, max_size=32), max_size=63),
    st.binary(),
    st.binary(max_size=20),
)
def test_round_trip(index: int, path: list[bytes], checkpoint: bytes, extra: bytes) -> None:
    proof = Proof(index, tuple(path), checkpoint, extra)
    assert Proof.parse(proof.encode()) == proof


def test_the_longest_path_there_can_be() -> None:
    """A tree of up to 2^63 - 1 entries has at most 63 hashes on a path."""
    longest = Proof(0, (bytes(32),) * 63, b"")
    assert Proof.parse(longest.encode()) == longest
    with pytest.raises(BadEvidence):
        Proof.parse(Proof(0, (bytes(32),) * 64, b"").encode())


def test_a_receipt_proves_its_entry() -> None:
    verified = RECEIPT.verify(LEAF, POLICY)
    assert verified.checkpoint.size == 300 and verified.quorum_met
    only = MemoryLog(1)
    assert only.receipt(0).path == ()
    assert Proof.parse(only.receipt(0).encode()).verify(hash_leaf(only.entries[0]), POLICY)


@pytest.mark.parametrize(
    ("receipt", "leaf", "code"),
    [
        (RECEIPT, hash_leaf(b"another entry"), "bad_inclusion_proof"),
        (replace(RECEIPT, index=256), LEAF, "bad_inclusion_proof"),
        (replace(RECEIPT, index=300), LEAF, "bad_inclusion_proof"),
        (replace(RECEIPT, path=RECEIPT.path[:-1]), LEAF, "bad_inclusion_proof"),
        (replace(RECEIPT, path=RECEIPT.path[::-1]), LEAF, "bad_inclusion_proof"),
        (replace(RECEIPT, checkpoint=MemoryLog(301).checkpoint()), LEAF, "bad_inclusion_proof"),
        (replace(RECEIPT, checkpoint=LOG_300.checkpoint(*WITNESSES)), LEAF, "unknown_log"),
        (replace(RECEIPT, checkpoint=LOG_300.checkpoint(LOG)), LEAF, "no_quorum"),
        (replace(RECEIPT, checkpoint=LOG_300.checkpoint(LOG_PQ, WITNESSES[2])), LEAF, "no_quorum"),
        (replace(RECEIPT, checkpoint=b""), LEAF, "bad_note"),
    ],
)
def test_what_is_not_proven_is_refused(receipt: Proof, leaf: LeafHash, code: str) -> None:
    with pytest.raises(BadEvidence) as refused:
        receipt.verify(leaf, POLICY)
    assert refused.value.code == code


def test_a_missing_quorum_can_be_shown_instead() -> None:
    """Visible, never silent: the caller asks for it and reads `quorum_met`."""
    receipt = replace(RECEIPT, checkpoint=LOG_300.checkpoint(LOG, WITNESSES[1]))
    verified = receipt.verify(LEAF, POLICY, require_quorum=False)
    assert (verified.quorum_met, list(verified.witnesses)) == (False, ["w2"])


GOOD = RECEIPT.encode().decode()
HASH = GOOD.split("\n")[2]


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            "\n\n",
            "c2sp.org/tlog-proof@v1\n\n" + RECEIPT.checkpoint.decode(),
            GOOD.split("\n\n")[0],
            GOOD.split("\n\n")[0] + "\n",
        ),
        *(
            GOOD.replace("@v1", "@v2"),
            GOOD[1:],
            "\n" + GOOD,
            GOOD.replace("\n", "\r\n"),
            GOOD.replace("index 257\n", ""),
        ),
        *(GOOD.replace("257", number) for number in ("0257", "-1", "+257", "2 57", "257 ", "x", "", str(2**63))),
        *(
            GOOD.replace("index", word)
            for word in ("Index", "index ", "", "extra YQ==\nextra YQ==\nindex", "extra \nindex")
        ),
        *(GOOD.replace("index", word) for word in ("extra YR==\nindex", "extra ?\nindex", "more x\nindex")),
        *(GOOD.replace(HASH, hash_) for hash_ in ("AAAA", HASH[:-1], HASH + " ", "é", "\n".join([HASH] * 60))),
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(BadEvidence, match="receipt") as refused:
        Proof.parse(text.encode())
    assert refused.value.code == "bad_receipt"


def survivors(raw: bytes, policy: Policy = POLICY, step: int = 1) -> list[int]:
    """The bits of a receipt that can be flipped without a refusal."""
    alive = []
    for bit, damaged in flips(raw, step):
        try:
            Proof.parse(damaged).verify(LEAF, policy)
        except BadEvidence:
            continue
        alive.append(bit)
    return alive


def test_any_flipped_bit_of_a_receipt_is_refused() -> None:
    """With the log's signature and exactly the witnesses that the quorum needs, no bit is spare."""
    assert survivors(RECEIPT.encode()) == []
    for _, damaged in flips(LEAF):
        with pytest.raises(BadEvidence):
            RECEIPT.verify(LeafHash(damaged), POLICY)


def test_a_flip_in_a_spare_line_only_loses_that_line() -> None:
    """A third witness is not needed: damage to its name makes a stranger of it, and the same tree stays proven."""
    receipt = replace(RECEIPT, checkpoint=LOG_300.checkpoint(LOG, *WITNESSES))
    whole = receipt.verify(LEAF, POLICY)
    damaged = dict(flips(receipt.encode()))
    for bit in survivors(receipt.encode(), step=5):
        left = Proof.parse(damaged[bit]).verify(LEAF, POLICY)
        assert left.checkpoint == whole.checkpoint
        assert len(left.witnesses) == 2


@pytest.mark.parametrize("skipped", ["inclusion", "log", "witnesses", "quorum", "base64"])
def test_a_verifier_that_skips_a_step_is_caught(skipped: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted faults: the flips above, and the list of what is not proven, find each of them."""
    raw, verify = RECEIPT.encode(), note_module.VerifierKey.verify
    if skipped == "inclusion":
        monkeypatch.setattr(proof_module, "verify_inclusion", lambda *_: None)
    if skipped in {"log", "witnesses"}:
        spared = LOG.key.type if skipped == "log" else WITNESSES[0].key.type
        monkeypatch.setattr(
            note_module.VerifierKey, "verify", lambda key, *body: 1 if key.type == spared else verify(key, *body)
        )
    if skipped == "quorum":
        monkeypatch.setattr(Policy, "is_met_by", lambda policy, witnesses: True)
    if skipped == "base64":
        monkeypatch.setattr(proof_module, "from_base64", loose_base64)
    assert survivors(raw, step=3)


def loose_base64(text: str, where: str, _: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError as error:
        raise BadEvidence(where) from error
