"""Timestamped cosignatures: the messages that are signed, and ML-DSA-44 (C2SP tlog-cosignature).

Either says: at this time (POSIX seconds) this was the largest consistent tree of this origin that the cosigner had seen.
"""

from __future__ import annotations

from compliance_agent.errors import BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import MAX_SIZE


def ed25519_message(text: str, timestamp: int) -> bytes:
    """What type 0x04 signs ("Ed25519 signed message"): all of the checkpoint's text, but not the cosigner's name."""
    Checkpoint.parse(text)
    _u64(timestamp)
    return f"cosignature/v1\ntime {timestamp}\n{text}".encode()


def mldsa44_message(cosigner: str, text: str, timestamp: int) -> bytes:
    """What type 0x06 signs ("ML-DSA-44 signed message"): the cosigner's name and the tree, but no extension lines."""
    seen = Checkpoint.parse(text)
    names = [_u8_prefixed(name) for name in (cosigner, seen.origin)]
    return b"".join([b"subtree/v1\n\0", names[0], _u64(timestamp), names[1], _u64(0), _u64(seen.size), seen.root])


def mldsa44_verifies(public: bytes, signature: bytes, message: bytes) -> bool:
    """Whether the signature is right; code `unsupported_algorithm` where `cryptography` cannot tell."""
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

        MLDSA44PublicKey.from_public_bytes(public).verify(signature, message)
    except (ImportError, UnsupportedAlgorithm) as error:
        raise BadEvidence("this machine cannot verify ML-DSA-44 signatures", code="unsupported_algorithm") from error
    except (InvalidSignature, ValueError):
        return False
    return True


def _u64(number: int) -> bytes:
    if not 0 <= number <= MAX_SIZE:
        raise BadEvidence("time or size of a cosignature is outside 0..2^63-1", code="bad_signature")
    return number.to_bytes(8, "big")


def _u8_prefixed(name: str) -> bytes:
    raw = name.encode()
    if not 0 < len(raw) < 256:
        raise BadEvidence("name of a cosigner or log is not of 1 to 255 bytes", code="bad_signature")
    return bytes([len(raw)]) + raw
