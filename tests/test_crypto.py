"""Keys and signatures: ours work with openssl, theirs are verified strictly, the secret shows nowhere."""

from __future__ import annotations

import base64
import copy
import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent import crypto
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import BadEvidence, ConfigError

SMALL_ORDER = bytes([1]) + bytes(31)
FOR_ANY_MESSAGE = bytes([1]) + bytes(63)
ORDER = 2**252 + 27742317777372353535851937790883648493


@pytest.fixture
def signer(tmp_path: Path) -> Ed25519Signer:
    return Ed25519Signer(tmp_path / "keys" / "signing-key.pem")


def test_a_fresh_key_is_private_and_stays(signer: Ed25519Signer) -> None:
    """The key made at the first start is the key of every later start."""
    assert stat.S_IMODE(signer.path.stat().st_mode) == 0o600
    again = Ed25519Signer(signer.path)
    assert again.public_bytes == signer.public_bytes
    assert sorted(path.name for path in signer.path.parent.iterdir()) == ["signing-key.pem"]


def test_signs_and_verifies(signer: Ed25519Signer) -> None:
    signature = signer.sign(b"bundle")
    assert len(signature) == 64
    assert crypto.verify(signer.public_bytes, signature, b"bundle")
    assert not crypto.verify(signer.public_bytes, signature, b"bundle ")
    assert not crypto.verify(signer.public_bytes, signature[:-1], b"bundle")
    assert not crypto.verify(signer.public_bytes[:-1], signature, b"bundle")


@given(bit=st.integers(0, 511))
def test_one_flipped_bit_is_refused(bit: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "flip.raw"
    if not path.exists():
        path.write_bytes(bytes(range(32)))
        path.chmod(0o600)
    signer = Ed25519Signer(path)
    signature = bytearray(signer.sign(b"x"))
    signature[bit // 8] ^= 1 << bit % 8
    assert not crypto.verify(signer.public_bytes, bytes(signature), b"x")


def test_the_small_order_key_that_openssl_accepts_is_refused() -> None:
    """For this key one signature is valid for every message, says OpenSSL: the planted fault for our verifier."""
    Ed25519PublicKey.from_public_bytes(SMALL_ORDER).verify(FOR_ANY_MESSAGE, b"anything at all")
    assert not crypto.verify(SMALL_ORDER, FOR_ANY_MESSAGE, b"anything at all")
    with pytest.raises(BadEvidence, match="small order") as caught:
        crypto.check_public_key(SMALL_ORDER)
    assert caught.value.code == "weak_key"


@pytest.mark.parametrize(
    "public",
    [
        bytes(32),
        bytes([0xFF]) * 32,
        (2**255 - 19).to_bytes(32, "little"),
        (2**255 - 18).to_bytes(32, "little"),
        b"",
        b"k" * 31,
    ],
)
def test_keys_that_are_no_canonical_point_are_refused(public: bytes) -> None:
    with pytest.raises(BadEvidence):
        crypto.check_public_key(public)


def test_a_signature_with_a_scalar_beyond_the_order_is_refused(signer: Ed25519Signer) -> None:
    """S + L verifies in lax implementations: a second valid signature for the same bytes."""
    signature = signer.sign(b"x")
    scalar = int.from_bytes(signature[32:], "little") + ORDER
    assert not crypto.verify(signer.public_bytes, signature[:32] + scalar.to_bytes(32, "little"), b"x")


@pytest.mark.parametrize("size", [0, 1, 2048, 70_000])
def test_openssl_would_sign_the_same(tmp_path: Path, size: int) -> None:
    """RFC 8032 leaves no choice, so a host's chain is the same whichever of the two signs."""
    path, message = tmp_path / "key", os.urandom(size)
    path.write_bytes(seed := os.urandom(32))
    path.chmod(0o600)
    signer, other = Ed25519Signer(path), Ed25519PrivateKey.from_private_bytes(seed)
    assert signer.public_bytes == other.public_key().public_bytes_raw()
    assert signer.sign(message) == signer.sign(memoryview(message)) == other.sign(message)


def test_a_host_that_signs_loads_no_second_library(tmp_path: Path) -> None:
    code = (
        "import sys; from compliance_agent.crypto import Ed25519Signer, verify\n"
        "for _ in range(2): signer = Ed25519Signer(sys.argv[1])\n"  # made, then read
        "assert verify(signer.public_bytes, signer.sign(b'x'), b'x')\n"
        "print(*(name for name in sys.modules if name.split('.')[0] == 'cryptography'))"
    )
    words = (sys.executable, "-c", code, str(tmp_path / "key.pem"))
    assert subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout == "\n"


def test_public_pem_round_trip_and_openssl_agrees(signer: Ed25519Signer, tmp_path: Path) -> None:
    """The command an auditor runs succeeds on our bytes and fails on others."""
    key, message, signature = tmp_path / "k.pub.pem", tmp_path / "bundle.json", tmp_path / "bundle.sig"
    key.write_text(signer.public_pem())
    assert crypto.read_public_pem(key.read_bytes()) == signer.public_bytes
    signature.write_bytes(signer.sign(b"{}"))
    for text, status in ((b"{}", 0), (b"{ }", 1)):
        message.write_bytes(text)
        command: list[str | Path] = [
            "openssl",
            "pkeyutl",
            "-verify",
            "-pubin",
            "-inkey",
            key,
            "-rawin",
            "-in",
            message,
            "-sigfile",
            signature,
        ]
        assert subprocess.run(command, capture_output=True, check=False).returncode == status
    read = subprocess.run(["openssl", "pkey", "-in", signer.path, "-pubout"], capture_output=True, check=True).stdout
    assert crypto.read_public_pem(read) == signer.public_bytes


def test_a_weak_key_in_pem_is_refused() -> None:
    with pytest.raises(BadEvidence):
        crypto.read_public_pem(crypto.public_pem(SMALL_ORDER).encode())


@pytest.mark.parametrize(
    "text", [b"", b"-----BEGIN PUBLIC KEY-----\n!!\n-----END PUBLIC KEY-----", b"\xff\xfe", b"x" * 100]
)
def test_what_is_no_pem_is_refused(text: bytes) -> None:
    with pytest.raises(BadEvidence) as caught:
        crypto.read_public_pem(text)
    assert caught.value.code == "bad_key"


def rsa_pem() -> bytes:
    key = generate_private_key(65537, 2048)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@pytest.mark.parametrize(
    "content",
    [b"", b"short", bytes(31), bytes(33), b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", rsa_pem()],
)
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="signing_key_file"):
        Ed25519Signer(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("kind", ["open to others", "directory", "dangling link", "too large"])
def test_a_key_file_of_the_wrong_kind_is_refused(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    if kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.write_bytes(bytes(32 if kind == "open to others" else 20_000))
        path.chmod(0o644 if kind == "open to others" else 0o600)
    with pytest.raises(ConfigError, match="signing_key_file"):
        Ed25519Signer(path)


def test_the_secret_shows_nowhere(tmp_path: Path) -> None:
    seed = bytes(range(32))
    path = tmp_path / "key"
    path.write_bytes(seed)
    path.chmod(0o600)
    signer = Ed25519Signer(path)
    shown = f"{signer!r} {signer} {signer.public_pem()}"
    for form in (seed.hex(), base64.b64encode(seed).decode(), str(seed)):
        assert form not in shown
    for copier in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            copier(signer)
