"""Ed25519 over exact bytes: one signer for the host's own key, one strict verifier for everybody else's.

Both are libsodium's (PyNaCl). Verifying never goes through OpenSSL, which accepts a small-order public key for which one
signature is valid for every message: libsodium refuses small-order and non-canonical points and scalars. Signing could go through
either, which give the same bytes (RFC 8032 leaves no choice), and is done here by the one that is there already: `cryptography`
takes 7 MB more of a process. A key id is the SHA-256 of the raw 32-byte public key, lower-case hex.

The library is imported when first used. The two DER wrappers below are constants (RFC 8410, sections 4 and 7), so that reading a
key needs no ASN.1 library; other forms of the same key are given to `cryptography`.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NoReturn

from compliance_agent.adapters.durable import create_file, read_file
from compliance_agent.errors import BadEvidence, ConfigError, NoInput, NotPermitted
from compliance_agent.models import KeyId

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_ORDER = 2**252 + 27742317777372353535851937790883648493  # L, of the base point
_PKCS8_PREFIX = bytes.fromhex("302e020100300506032b657004220420")
_SPKI_PREFIX = bytes.fromhex("302a300506032b6570032100")
_PEM = re.compile(rb"-----BEGIN ([A-Z ]+)-----\s+([A-Za-z0-9+/=\s]+?)-----END \1-----\s*")


def key_id(public: bytes) -> KeyId:
    """SHA-256 of the raw 32-byte public key, lower-case hex."""
    return KeyId(hashlib.sha256(public).hexdigest())


def verify(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether `signature` is the strict Ed25519 signature of exactly `message` by the raw 32-byte key `public`."""
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    opened, refused = _strict()
    try:
        opened(signature + message, public)
    except refused:
        return False
    return True


def pae(payload_type: str, body: bytes) -> bytes:
    """The bytes that DSSE signs (protocol 1.0.2): type and body, each after its length."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(body), body)


def verify_chunks(public: bytes, signature: bytes, message: Callable[[], Iterable[bytes]]) -> bool:
    """As `verify`, for a message that is not held in memory.

    Ed25519 hashes R, the key and the message once, and then needs only the hash (RFC 8032, 5.1.7): the signature is right where
    S*B - h*A is R. `check_public_key` and libsodium refuse what `verify` refuses: points of small order, other spellings, S >= L.

    Args:
        public: the raw key.
        signature: 64 bytes.
        message: gives the pieces; called once.
    """
    from nacl import bindings
    from nacl.exceptions import CryptoError

    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    point, scalar = signature[:KEY_BYTES], signature[KEY_BYTES:]
    if int.from_bytes(scalar, "little") >= _ORDER:
        return False
    hashed = hashlib.sha512(point + public)
    for chunk in message():
        hashed.update(chunk)
    try:
        check_public_key(public)
        product = bindings.crypto_scalarmult_ed25519_noclamp(
            bindings.crypto_core_ed25519_scalar_reduce(hashed.digest()), public
        )
        left = bindings.crypto_scalarmult_ed25519_base_noclamp(scalar)
        return bindings.crypto_core_ed25519_is_valid_point(point) and bool(
            bindings.crypto_core_ed25519_sub(left, product) == point
        )
    except (BadEvidence, CryptoError):
        return False


@functools.cache
def _strict() -> tuple[Callable[[bytes, bytes], bytes], type[Exception]]:
    """Libsodium's check, and what it raises."""
    from nacl.bindings import crypto_sign_open
    from nacl.exceptions import BadSignatureError

    return crypto_sign_open, BadSignatureError


def check_public_key(public: bytes) -> None:
    """Refuse what is not a canonical Ed25519 point of full order, such as a key that "signs" every message.

    Raises:
        BadEvidence: code `weak_key`.
    """
    from nacl.bindings import crypto_core_ed25519_is_valid_point

    if len(public) != KEY_BYTES:
        raise BadEvidence(f"public key has {len(public)} bytes; expected {KEY_BYTES}", code="weak_key")
    if not crypto_core_ed25519_is_valid_point(public):
        raise BadEvidence("public key is of small order or not canonical", code="weak_key")


def key_words(key_id: str) -> str:
    """The first 80 bits of a key's id as words that two people can hold against each other over a telephone.

    They are proquints: each word is 16 bits, consonant and vowel in turn (arXiv:0901.4016).
    """
    return "-".join(_proquint(int(key_id[at : at + 4], 16)) for at in range(0, 20, 4))


def _proquint(bits: int) -> str:
    signs = ((12, 16), (10, 4), (6, 16), (4, 4), (0, 16))
    return "".join(("bdfghjklmnprstvz" if size == 16 else "aiou")[bits >> shift & size - 1] for shift, size in signs)


def public_pem(public: bytes) -> str:
    """A raw 32-byte public key as the PEM (SubjectPublicKeyInfo) that `openssl pkeyutl -pubin` reads."""
    return _to_pem("PUBLIC KEY", _SPKI_PREFIX + public)


def read_public_pem(text: bytes) -> bytes:
    """The raw 32-byte key of a PEM public key.

    Raises:
        BadEvidence: not the PEM of an Ed25519 public key, or a weak key.
    """
    label, der = _from_pem(text)
    if label != "PUBLIC KEY" or not der.startswith(_SPKI_PREFIX) or len(der) != len(_SPKI_PREFIX) + KEY_BYTES:
        raise BadEvidence("not a PEM file of an Ed25519 public key", code="bad_key")
    public = der[len(_SPKI_PREFIX) :]
    check_public_key(public)
    return public


def _to_pem(label: str, der: bytes) -> str:
    return f"-----BEGIN {label}-----\n{base64.b64encode(der).decode()}\n-----END {label}-----\n"


def _from_pem(text: bytes) -> tuple[str, bytes]:
    found = _PEM.fullmatch(text.strip())
    if found is None:
        return "", b""
    try:
        return found[1].decode(), base64.b64decode(b"".join(found[2].split()), validate=True)
    except binascii.Error:
        return "", b""


def public_of(path: Path) -> bytes:
    """The raw public half of a private key that may be another user's: for root, who needs to know a host's name and signs nothing.

    Raises:
        ConfigError: it is no Ed25519 private key.
        NoInput, NotPermitted: it cannot be read.
    """
    return _pair(_read_seed(read_file(path, limit_bytes=16_384), path))[0]


class Ed25519Signer:
    """The host's evidence key. The secret appears in no `repr`, cannot be pickled, and leaves the file only to sign.

    Args:
        path: PKCS#8 PEM or 32 raw bytes, mode 0600. Absent: a fresh key is made there, durable before it is used.

    Raises:
        ConfigError: the file cannot be read, is open to others, or is not an Ed25519 private key.
        StorageError: a fresh key could not be made durable.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        try:
            content = _read_or_make(self.path)
        except (NoInput, NotPermitted) as error:
            raise ConfigError(f"signing_key_file: {error}", hint=error.hint) from error
        self.public_bytes, self._secret = _pair(_read_seed(content, self.path))
        self.key_id = key_id(self.public_bytes)

    def sign(self, message: bytes | memoryview) -> bytes:
        """The 64-byte signature of exactly these bytes."""
        from nacl.bindings import crypto_sign

        return bytes(crypto_sign(bytes(message), self._secret)[:SIGNATURE_BYTES])

    def public_pem(self) -> str:
        """The public key as PEM, for `openssl` and auditors."""
        return public_pem(self.public_bytes)

    def __repr__(self) -> str:
        return f"Ed25519Signer(key_id={self.key_id})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not to be pickled or copied")


def _pair(seed: bytes) -> tuple[bytes, bytes]:
    """The public key of a seed, and what libsodium signs with: both of them together."""
    from nacl.bindings import crypto_sign_seed_keypair

    public, secret = crypto_sign_seed_keypair(seed)
    return bytes(public), bytes(secret)


def _read_or_make(path: Path) -> bytes:
    try:
        return read_file(path, limit_bytes=16_384, secret=True)
    except NoInput:
        from nacl.bindings import crypto_sign_keypair

        seed = crypto_sign_keypair()[1][:KEY_BYTES]
        if not create_file(path, _to_pem("PRIVATE KEY", _PKCS8_PREFIX + seed).encode()):
            raise  # something is there, and it is not a key file
        return read_file(path, limit_bytes=16_384, secret=True)


def _read_seed(content: bytes, path: Path) -> bytes:
    """The 32 bytes of which everything else of the key is made."""
    if len(content) == KEY_BYTES:
        return content
    label, der = _from_pem(content)
    if label == "PRIVATE KEY" and der.startswith(_PKCS8_PREFIX) and len(der) == len(_PKCS8_PREFIX) + KEY_BYTES:
        return der[len(_PKCS8_PREFIX) :]
    if content.lstrip().startswith(b"-----BEGIN"):
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        with contextlib.suppress(ValueError, TypeError, UnsupportedAlgorithm):
            key = load_pem_private_key(content, None)
            if isinstance(key, Ed25519PrivateKey):
                return key.private_bytes_raw()
    raise ConfigError(
        f"signing_key_file: {path} is not an unencrypted Ed25519 private key (PKCS#8 PEM or 32 raw bytes)",
        code="bad_key",
        hint="move it away and a new key is made at the next start; the host must then be enrolled again",
    )
