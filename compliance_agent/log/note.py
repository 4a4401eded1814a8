"""Signed notes and verifier keys (C2SP signed-note): a text, and lines of who signed it.

Lines of unknown keys are ignored, so that keys can rotate and witnesses can be added; a line of a known key that does not
verify refuses the note. Ed25519 is verified by `crypto.verify`, never by OpenSSL.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable
from dataclasses import field
from enum import IntEnum

from compliance_agent.crypto import check_public_key, verify
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.cosignature import ed25519_message, mldsa44_message, mldsa44_verifies
from compliance_agent.log.fields import from_base64, to_base64

MAX_NOTE_BYTES = 1_000_000
MAX_SIGNATURES = 100  # "at least up to 16"
_NAME = re.compile(r"[^\s+\x00-\x1f\ud800-\udfff]+")


class KeyType(IntEnum):
    """The signature types that are known here; every other is a line to ignore."""

    ED25519 = 0x01
    COSIGNATURE = 0x04
    MLDSA44 = 0x06


_KEY_BYTES = {KeyType.ED25519: 32, KeyType.COSIGNATURE: 32, KeyType.MLDSA44: 1312}


@dataclass(frozen=True)
class VerifierKey:
    """A public key with its name ("Verifier keys"); `str` gives the vkey. Weak keys are refused, code `weak_key`."""

    name: str
    type: KeyType
    public: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or len(self.public) != _KEY_BYTES[self.type]:
            raise BadEvidence("verifier key: its name or the length of its key is wrong", code="bad_vkey")
        if self.type != KeyType.MLDSA44:
            check_public_key(self.public)

    @property
    def id(self) -> bytes:
        """The four bytes that, with the name, tell which key signed."""
        return hashlib.sha256(self.name.encode() + bytes([0x0A, self.type]) + self.public).digest()[:4]

    def __str__(self) -> str:
        return f"{self.name}+{self.id.hex()}+{to_base64(bytes([self.type]) + self.public)}"

    @classmethod
    def parse(cls, vkey: str) -> VerifierKey:
        """The key of exactly this vkey; code `bad_vkey`, also for a type that is not in KeyType."""
        name, _, encoded = vkey.partition("+")
        material = from_base64(encoded[9:], "verifier key's third part", "bad_vkey")
        if material[0] not in _KEY_BYTES:
            raise BadEvidence(f"verifier key is of type {material[0]:#04x}, unknown here", code="bad_vkey")
        key = cls(name, KeyType(material[0]), material[1:])
        if str(key) != vkey:
            raise BadEvidence("verifier key does not have the key id it names", code="bad_vkey")
        return key

    def verify(self, text: str, signature: bytes) -> int | None:
        """The time of a cosignature, None for a plain signature; code `bad_signature`."""
        plain = self.type == KeyType.ED25519
        timestamp, raw = (None, signature) if plain else (int.from_bytes(signature[:8], "big"), signature[8:])
        right = mldsa44_verifies if self.type == KeyType.MLDSA44 else verify
        if not right(self.public, raw, self._message(text, timestamp)):
            raise BadEvidence(f"signature of {self.name} does not verify", code="bad_signature")
        return timestamp

    def sign(self, text: str, sign: Callable[[bytes], bytes], timestamp: int | None = None) -> Signature:
        """This key's line under a text, made by its private half; a cosignature needs a time, in POSIX seconds."""
        prefix = b"" if timestamp is None else timestamp.to_bytes(8, "big")
        return Signature(self.name, self.id, prefix + sign(self._message(text, timestamp)))

    def _message(self, text: str, timestamp: int | None) -> bytes:
        if (timestamp is None) != (self.type == KeyType.ED25519):
            raise RuntimeError("a cosignature needs a time, and a plain signature has none")
        if timestamp is None:
            return text.encode()
        if self.type == KeyType.COSIGNATURE:
            return ed25519_message(text, timestamp)
        return mldsa44_message(self.name, text, timestamp)


@dataclass(frozen=True)
class Signature:
    """One signature line; `str` gives it without its newline."""

    name: str
    key_id: bytes
    signature: bytes = field(repr=False)

    def __str__(self) -> str:
        return f"— {self.name} {to_base64(self.key_id + self.signature)}"

    @classmethod
    def parse(cls, line: str, where: str = "signature line") -> Signature:
        """The signature of exactly this line; code `bad_note`."""
        _, name, encoded = [*line.split(" "), "", ""][:3]
        raw = from_base64(encoded, where, "bad_note")
        if line != f"— {name} {encoded}" or not _NAME.fullmatch(name) or len(raw) < 5:
            raise BadEvidence(f"{where} is not an em dash, a name and a signature", code="bad_note")
        return cls(name, raw[:4], raw[4:])


@dataclass(frozen=True)
class Note:
    """A text that ends in a newline, and its signatures; nothing in it is true before `verify`."""

    text: str
    signatures: tuple[Signature, ...]

    def encode(self) -> bytes:
        """The note as it is published."""
        return "\n".join([self.text, *map(str, self.signatures), ""]).encode()

    @classmethod
    def parse(cls, raw: bytes) -> Note:
        """The note of exactly these bytes ("Format"); code `bad_note`."""
        try:
            whole = raw.decode() if len(raw) <= MAX_NOTE_BYTES else ""
        except UnicodeDecodeError as error:
            raise BadEvidence(f"note is not UTF-8 at byte {error.start}", code="bad_note") from error
        text, blank, lines = whole.rpartition("\n\n")
        if not blank or not lines.endswith("\n") or re.search(r"[\x00-\x09\x0b-\x1f]", whole):
            raise BadEvidence("note is not plain text, an empty line and whole signature lines", code="bad_note")
        if lines.count("\n") > MAX_SIGNATURES:
            raise BadEvidence(f"note has more than {MAX_SIGNATURES} signature lines", code="bad_note")
        numbered = enumerate(lines.removesuffix("\n").split("\n"), 1)
        return cls(text + "\n", tuple(Signature.parse(line, f"signature line {at}") for at, line in numbered))

    def verify(self, keys: Iterable[VerifierKey]) -> list[tuple[VerifierKey, int | None]]:
        """Who among `keys` signed, and when; codes `bad_signature`, and `no_known_signature` when nobody did."""
        known = {(key.name, key.id): key for key in keys}
        found = [(known.get((line.name, line.key_id)), line.signature) for line in self.signatures]
        verified = [(key, key.verify(self.text, signature)) for key, signature in found if key]
        if not verified:
            raise BadEvidence("note is signed by no known key", code="no_known_signature")
        return verified
