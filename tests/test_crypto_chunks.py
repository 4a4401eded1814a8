"""A message in pieces is judged as the whole one is, for right signatures, wrong ones, and keys that sign everything."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from compliance_agent.crypto import _ORDER, verify, verify_chunks

KEY = Ed25519PrivateKey.from_private_bytes(b"k" * 32)
PUBLIC = KEY.public_key().public_bytes_raw()
SMALL = [
    b"\1" + bytes(31), bytes(32), bytes(31) + b"\x80", b"\xec" + b"\xff" * 30 + b"\x7f", b"\xee" + b"\xff" * 30 + b"\x7f",
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
]  # fmt: skip


def both(public: bytes, signature: bytes, message: bytes) -> bool:
    whole = verify(public, signature, message)
    for size in (1, 7, 10_000):
        pieces = [message[at : at + size] for at in range(0, len(message), size)]
        assert verify_chunks(public, signature, lambda pieces=pieces: pieces) == whole  # type: ignore[misc]
    return whole


def test_right_signatures() -> None:
    for length in (0, 1, 31, 64, 500):
        message = random.Random(length).randbytes(length)
        assert both(PUBLIC, KEY.sign(message), message)


def test_every_flipped_bit_is_refused() -> None:
    message = b"one line\nanother line\n"
    signature = KEY.sign(message)
    for at in range(512):
        flipped = bytearray(signature)
        flipped[at // 8] ^= 1 << at % 8
        assert not both(PUBLIC, bytes(flipped), message), at
    for at in range(256):
        other = bytearray(PUBLIC)
        other[at // 8] ^= 1 << at % 8
        assert not both(bytes(other), signature, message), at
    assert not both(PUBLIC, signature, message + b"\n")
    assert not both(PUBLIC, signature[:63], message)
    assert not both(PUBLIC[:31], signature, message)


@pytest.mark.parametrize("weak", SMALL, ids=lambda raw: raw.hex()[:8])
def test_keys_that_sign_everything_and_points_of_small_order(weak: bytes) -> None:
    assert not both(weak, weak + bytes(32), b"anything")
    assert not both(weak, KEY.sign(b"anything"), b"anything")
    assert not both(PUBLIC, weak + KEY.sign(b"anything")[32:], b"anything")
    assert not both(PUBLIC, weak + bytes(32), b"anything")


def test_a_second_spelling_of_s_is_refused() -> None:
    signature = KEY.sign(b"x")
    larger = int.from_bytes(signature[32:], "little") + _ORDER
    assert not both(PUBLIC, signature[:32] + larger.to_bytes(32, "little"), b"x")
