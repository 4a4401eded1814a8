"""What cosigners sign, byte for byte, and who verifies it."""

from __future__ import annotations

import sys

import nacl.signing
import pytest
from cryptography.hazmat.primitives.asymmetric import mldsa

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.cosignature import ed25519_message, mldsa44_message
from compliance_agent.log.note import KeyType, Note, Signature
from tests.log.builder import LOG_PQ, ORIGIN, WITNESSES, root, signer

TEXT = "example.com/behind-the-sofa\n20852163\nCsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
TIME = 1_679_315_147


def test_the_ed25519_message_of_the_specification() -> None:
    assert ed25519_message(TEXT, TIME) == f"cosignature/v1\ntime 1679315147\n{TEXT}".encode()
    assert ed25519_message(TEXT + "extension\n", TIME).endswith(b"\nextension\n")


def test_the_mldsa44_message_by_hand() -> None:
    """struct cosigned_message; extension lines are not in it."""
    expected = (
        bytes.fromhex("737562747265652f76310a00")  # subtree/v1\n\0
        + bytes([7])
        + b"cosig.x"
        + bytes.fromhex("00000000641850cb")
        + bytes([27])
        + b"example.com/behind-the-sofa"
        + bytes(8)
        + bytes.fromhex("00000000013e2dc3")
        + bytes.fromhex("0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62")
    )
    assert mldsa44_message("cosig.x", TEXT, TIME) == mldsa44_message("cosig.x", TEXT + "extension\n", TIME) == expected


def test_sizes_and_independent_verifiers() -> None:
    """72 and 2,428 bytes; PyNaCl and `cryptography` agree on what was signed."""
    witness = WITNESSES[0]
    line = witness.line(TEXT, TIME)
    assert len(line.signature) == 72 and line.signature[:8] == TIME.to_bytes(8, "big")
    nacl.signing.VerifyKey(witness.key.public).verify(ed25519_message(TEXT, TIME), line.signature[8:])
    quantum = LOG_PQ.line(TEXT, TIME)
    assert len(quantum.signature) == 2428 and len(str(quantum)) > 3200
    public = mldsa.MLDSA44PublicKey.from_public_bytes(LOG_PQ.key.public)
    public.verify(quantum.signature[8:], mldsa44_message(ORIGIN, TEXT, TIME))


@pytest.mark.parametrize("type_", [KeyType.COSIGNATURE, KeyType.MLDSA44])
def test_time_text_and_name_are_signed(type_: KeyType) -> None:
    """Another time, root, size or (0x06) cosigner name does not verify; nor does a text that is no checkpoint."""
    one = signer("cosig.x", type_)
    line = one.line(TEXT, TIME)
    assert one.key.verify(TEXT, line.signature) == TIME
    later = (TIME + 1).to_bytes(8, "big") + line.signature[8:]
    for text, signature in (
        (TEXT, later),
        (TEXT.replace("163", "164"), line.signature),
        (TEXT.replace("sofa", "bath"), line.signature),
        (TEXT.replace("Cs", "Ct"), line.signature),
        (TEXT, line.signature[:-1]),
        (TEXT, line.signature + b"\0"),
        (TEXT, b""),
    ):
        with pytest.raises(BadEvidence) as refused:
            one.key.verify(text, signature)
        assert refused.value.code == "bad_signature"
    with pytest.raises(BadEvidence) as refused:
        one.key.verify("no checkpoint\n", line.signature)
    assert refused.value.code == "bad_checkpoint"


def test_a_time_beyond_the_format_is_refused() -> None:
    """It MUST NOT exceed 2^63 - 1, even where the signature is right."""
    for one in (WITNESSES[0], LOG_PQ):
        assert one.key.verify(TEXT, one.line(TEXT, 2**63 - 1).signature) == 2**63 - 1
        blob = (2**63).to_bytes(8, "big") + one.line(TEXT, 0).signature[8:]
        with pytest.raises(BadEvidence):
            one.key.verify(TEXT, blob)
        with pytest.raises(BadEvidence):
            one.line(TEXT, 2**63)


def test_names_longer_than_the_format_are_refused() -> None:
    text = Checkpoint("o" * 256, 1, root(bytes(32))).text
    for cosigner, body in (("c", text), ("c" * 256, TEXT), ("", TEXT)):
        with pytest.raises(BadEvidence, match="1 to 255 bytes"):
            mldsa44_message(cosigner, body, 0)
    assert mldsa44_message("é" * 127, TEXT, 0)[12] == 254


def test_where_mldsa_is_missing_nothing_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `cryptography` without it cannot tell, which is a refusal of its own, never a pass."""
    note = Note(TEXT, (LOG_PQ.line(TEXT),))
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives.asymmetric.mldsa", None)
    with pytest.raises(BadEvidence) as refused:
        note.verify([LOG_PQ.key])
    assert refused.value.code == "unsupported_algorithm"


def test_a_cosigner_name_is_bound_by_its_key_id_only_for_ed25519() -> None:
    """Why an operator needs a key for each name: type 0x04 signs no name, so the same key under another verifies."""
    one, other = signer("one.x", KeyType.COSIGNATURE, seed="same"), signer("two.x", KeyType.COSIGNATURE, seed="same")
    moved = Signature(other.key.name, other.key.id, one.line(TEXT, TIME).signature)
    assert Note(TEXT, (moved,)).verify([other.key]) == [(other.key, TIME)]
    one, other = signer("one.x", KeyType.MLDSA44, seed="same"), signer("two.x", KeyType.MLDSA44, seed="same")
    moved = Signature(other.key.name, other.key.id, one.line(TEXT, TIME).signature)
    with pytest.raises(BadEvidence):
        Note(TEXT, (moved,)).verify([other.key])
