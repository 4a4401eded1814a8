"""What signs checkpoints: `log.pem` (Ed25519) and, where the file is there, `log-mldsa44.pem`, whose cosignature outlives Ed25519.

One key pair serves every log of the server; its name in a log is that log's origin, so a verifier key stands for one log alone.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from compliance_agent.adapters.durable import create_file, read_file
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import KeyType, Note, VerifierKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

MLDSA44_FILE = "log-mldsa44.pem"


class LogKeys:
    """The log's keys in `directory`; the Ed25519 one is made, 0600, when it is absent.

    Raises:
        ConfigError: a key file cannot be used.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._signer = Ed25519Signer(directory / "log.pem")
        self.public_bytes = self._signer.public_bytes
        self._mldsa = _mldsa44(directory / MLDSA44_FILE)

    def verifier(self, origin: str) -> VerifierKey:
        """The key that a log's checkpoints verify under."""
        return VerifierKey(origin, KeyType.ED25519, self.public_bytes)

    def cosigner(self, origin: str) -> VerifierKey | None:
        """The second key, if there is one."""
        if self._mldsa is None:
            return None
        return VerifierKey(origin, KeyType.MLDSA44, self._mldsa.public_key().public_bytes_raw())

    def note(self, checkpoint: Checkpoint, now: datetime) -> bytes:
        """The signed checkpoint."""
        key, second = self.verifier(checkpoint.origin), self.cosigner(checkpoint.origin)
        lines = [key.sign(checkpoint.text, self._signer.sign)]
        if second is not None and self._mldsa is not None:
            lines.append(second.sign(checkpoint.text, self._mldsa.sign, int(now.timestamp())))
        return Note(checkpoint.text, tuple(lines)).encode()

    def show(self, site_id: str, year: int, origin: str) -> None:
        """Write the verifier keys of a log beside the key files, for people to hand on."""
        names: list[tuple[str, Callable[[str], VerifierKey | None]]] = [
            ("", self.verifier),
            (".mldsa44", self.cosigner),
        ]
        for suffix, made in names:
            key = made(origin)
            if key is not None:
                create_file(self._directory / f"{site_id}-{year}{suffix}.vkey", f"{key}\n".encode(), 0o644)


def make_mldsa44(path: Path) -> None:
    """Make a second log key where there is none yet."""
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    create_file(path, MLDSA44PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _mldsa44(path: Path) -> MLDSA44PrivateKey | None:
    if not path.exists():
        return None
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(read_file(path, limit_bytes=16_384, secret=True), None)
    except AgentError as error:
        raise ConfigError(str(error), hint=error.hint) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path}: not an unencrypted private key in PEM", code="bad_key") from error
    if not isinstance(key, MLDSA44PrivateKey):
        raise ConfigError(f"{path}: not an ML-DSA-44 private key", code="bad_key")
    return key
