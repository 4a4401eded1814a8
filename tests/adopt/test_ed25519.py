"""The root side's own Ed25519 says what libsodium says, of right signatures and of every kind of wrong one."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compliance_agent import crypto
from compliance_agent.adopt import ed25519
from compliance_agent.adopt.ed25519 import BASE, ORDER, ZERO, P, Point, _same, _sum, _times, is_key
from compliance_agent.errors import BadEvidence

SECRET = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = SECRET.public_key().public_bytes_raw()
MESSAGE = b"adopt version 7"
GOOD = SECRET.sign(MESSAGE)

# RFC 8032, 7.1: public key, message, signature.
RFC_8032 = {
    "1": (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b",
    ),
    "2": (
        "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        "72",
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
    ),
    "3": (
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac"
        "18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
    ),
    "SHA(abc)": (
        "ec172b93ad5e563bf4932c70e1245034c35467ef2efd4d64ebf819683467e2bf",
        "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a"
        "2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
        "dc2a4459e7369633a52b1bf277839a00201009a3efbf3ecb69bea2186c26b589"
        "09351fc9ac90b3ecfdfbc7c66431e0303dca179c138ac17ad9bef1177331a704",
    ),
}


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """What ours says; libsodium must say the same."""
    ours = ed25519.verify(public, signature, message)
    assert ours == crypto.verify(public, signature, message)
    return ours


def listed(public: bytes) -> bool:
    """Whether ours lets a list name this key; libsodium must do the same."""
    try:
        crypto.check_public_key(public)
    except BadEvidence:
        assert not is_key(public)
        return False
    assert is_key(public)
    return True


def spelt(point: Point) -> bytes:
    inverse = pow(point[2], -1, P)
    x, y = point[0] * inverse % P, point[1] * inverse % P
    return (y | (x & 1) << 255).to_bytes(32, "little")


def torsion() -> list[Point]:
    """The eight points of small order."""
    for y in range(2, 100):
        found = ed25519._point(y.to_bytes(32, "little"))
        if found is not None and not _same(_times(4 * ORDER, found), ZERO):
            return [_times(count * ORDER, found) for count in range(8)]
    raise AssertionError("none found")


SMALL = torsion()


@pytest.mark.parametrize("name", RFC_8032)
def test_the_vectors_of_rfc_8032(name: str) -> None:
    public, message, signature = map(bytes.fromhex, RFC_8032[name])
    assert len(public) == 32 and listed(public)
    assert verify(public, signature, message)
    assert not verify(public, signature, message + b"\0")
    assert not verify(PUBLIC, signature, message)


def test_flipped_bits_are_refused() -> None:
    for bit in range(0, 512, 3):
        flipped = bytearray(GOOD)
        flipped[bit // 8] ^= 1 << bit % 8
        assert not verify(PUBLIC, bytes(flipped), MESSAGE), bit
    for bit in range(0, 256, 5):
        other = bytearray(PUBLIC)
        other[bit // 8] ^= 1 << bit % 8
        assert not verify(bytes(other), GOOD, MESSAGE), bit


@pytest.mark.parametrize("times", [1, 2, 7, 15])
def test_a_scalar_that_is_not_below_the_order_is_refused(times: int) -> None:
    """S + L fits the equation as S does: a second signature of the same bytes."""
    scalar = int.from_bytes(GOOD[32:], "little") + times * ORDER
    assert not verify(PUBLIC, GOOD[:32] + scalar.to_bytes(32, "little"), MESSAGE)


@pytest.mark.parametrize("scalar", [0, 1, ORDER - 1, ORDER, ORDER + 1, 2**253, 2**255 - 1, 2**256 - 1])
def test_scalars_at_the_edges(scalar: int) -> None:
    assert not verify(PUBLIC, GOOD[:32] + scalar.to_bytes(32, "little"), MESSAGE)


@pytest.mark.parametrize("order", range(8))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_points_of_small_order_sign_nothing(order: int, sign: int) -> None:
    """With such a key, R = key and S = 0 "sign" every message, or one of eight; also with the sign that x = 0 has not."""
    number = int.from_bytes(spelt(SMALL[order]), "little")
    for small in (number.to_bytes(32, "little"), (number ^ sign).to_bytes(32, "little")):
        assert not listed(small)
        for message in (b"", b"1", b"22", b"333"):
            assert not verify(small, small + bytes(32), message)
            assert not verify(small, GOOD, message)
            assert not verify(PUBLIC, small + GOOD[32:], message)


@pytest.mark.parametrize("more", range(19))
@pytest.mark.parametrize("sign", [0, 1 << 255])
def test_another_spelling_of_a_point_is_refused(more: int, sign: int) -> None:
    """y and y + P are the same number; only 0 to 18 fit twice into 255 bits."""
    raw = (P + more | sign).to_bytes(32, "little")
    assert not listed(raw)
    assert not verify(raw, GOOD, MESSAGE)
    assert not verify(PUBLIC, raw + GOOD[32:], MESSAGE)
    listed((more | sign).to_bytes(32, "little"))


@pytest.mark.parametrize("of_key", range(8))
def test_a_part_of_small_order_is_weighed_as_libsodium_does(of_key: int) -> None:
    """Some of these signatures fit, the same ones for both; and no list may name such a key."""
    secret, nonce, said = 0x1F3C5 << 200, 0xA7B9 << 190, set()
    public = spelt(_sum(_times(secret, BASE), SMALL[of_key]))
    assert listed(public) == (of_key == 0)
    for of_r in range(8):
        point = spelt(_sum(_times(nonce, BASE), SMALL[of_r]))
        for message in (b"%d" % number for number in range(6)):
            hashed = int.from_bytes(hashlib.sha512(point + public + message).digest(), "little") % ORDER
            signature = point + ((nonce + hashed * secret) % ORDER).to_bytes(32, "little")
            said.add(verify(public, signature, message))
    assert said == {True, False}


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 65, 96])
def test_other_lengths_are_refused(length: int) -> None:
    raw = (GOOD + PUBLIC)[:length]
    assert not verify(PUBLIC, raw, MESSAGE)
    assert length == 32 or not verify(raw, GOOD, MESSAGE)
    assert length == 32 or not is_key(raw)


@settings(deadline=None)  # a loaded machine is no fault of the curve
@given(secret=st.binary(min_size=32, max_size=32), message=st.binary(max_size=200), other=st.binary(max_size=200))
def test_what_is_signed_verifies_and_nothing_else_does(secret: bytes, message: bytes, other: bytes) -> None:
    key = Ed25519PrivateKey.from_private_bytes(secret)
    public, signature = key.public_key().public_bytes_raw(), key.sign(message)
    assert listed(public) and verify(public, signature, message)
    assert verify(public, signature, other) == (message == other)


@given(public=st.binary(min_size=32, max_size=32), signature=st.binary(min_size=64, max_size=64))
@example(public=PUBLIC, signature=GOOD)
@example(public=bytes(32), signature=bytes(64))
def test_any_bytes_are_judged_as_libsodium_judges_them(public: bytes, signature: bytes) -> None:
    listed(public)
    verify(public, signature, MESSAGE)
    verify(PUBLIC, signature, MESSAGE)
    verify(public, GOOD, MESSAGE)
