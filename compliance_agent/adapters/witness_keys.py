"""The keys of a witness, in its state directory: `witness.pem` (Ed25519, 0x04) and, if asked for, `witness-mldsa44.pem` (0x06).

Key and state are made together and belong together. An Ed25519 cosignature does not say the cosigner's name, so one key is for
one name (tlog-cosignature, "Ed25519 signed message"): the name stands in `name` and does not change. A key whose `marks` are
gone has cosigned things nobody remembers, and must not cosign again; `WitnessStore` refuses it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING

from compliance_agent.adapters.durable import create_file, make_directory, read_file
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, BadEvidence, ConfigError, NoInput
from compliance_agent.log.note import KeyType, Signature, VerifierKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

KEY_FILE = "witness.pem"
MLDSA44_FILE = "witness-mldsa44.pem"
_NAME_BYTES = 255  # what an ML-DSA-44 cosignature can say


class WitnessKeys:
    """A witness's keys and their lines under a checkpoint.

    Args:
        directory: of the state; made when absent, if there is a name.
        name: a URL without scheme, such as `witness.example/w1`; that of the directory when not given.
        ml_dsa: make the second key when it is not there. Once there it is always used.

    Raises:
        NoInput: nothing is there, and no name was given to make it.
        ConfigError: the name cannot be one or is not the directory's, or a key file cannot be used.
        StorageError: it cannot be made.
    """

    def __init__(self, directory: Path, name: str | None = None, *, ml_dsa: bool = False) -> None:
        self.name = _named(directory, name)
        self._signer = Ed25519Signer(directory / KEY_FILE)
        self._ed25519 = VerifierKey(self.name, KeyType.COSIGNATURE, self._signer.public_bytes)
        self._signers: list[tuple[VerifierKey, Callable[[bytes], bytes]]] = [(self._ed25519, self._signer.sign)]
        second = _mldsa44(directory / MLDSA44_FILE, make=ml_dsa)
        if second is not None:
            public = second.public_key().public_bytes_raw()
            self._signers.append((VerifierKey(self.name, KeyType.MLDSA44, public), second.sign))

    @property
    def keys(self) -> Collection[VerifierKey]:
        """The public keys, Ed25519 first."""
        return [key for key, _ in self._signers]

    def lines(self, text: str, timestamp: int) -> list[Signature]:
        """A cosignature by each key at this time (POSIX seconds, never 0)."""
        if timestamp <= 0:
            raise RuntimeError("a witness's cosignature needs a time")
        return [key.sign(text, sign, timestamp) for key, sign in self._signers]


def _named(directory: Path, name: str | None) -> str:
    """The name of this state, given at its first start. `marks` comes before the key, so that a key never stands without."""
    path = directory / "name"
    if name is not None and not os.path.lexists(path):
        _check_name(name)
        make_directory(directory)
        if not os.path.lexists(directory / KEY_FILE):
            create_file(directory / "marks", b"")
        create_file(path, f"{name}\n".encode())
    if not os.path.lexists(path):
        raise NoInput(f"{directory}: no witness was made there", hint="start it with --name, or give its --state-dir")
    held = read_file(path, limit_bytes=1_024).decode("utf-8", "replace").removesuffix("\n")
    if name is not None and name != held:
        raise ConfigError(
            f"--name: this state directory is of another name, {held!r}",
            code="bad_name",
            hint="a key is for one name; a new name needs a new state directory",
        )
    _check_name(held)
    return held


def _check_name(name: str) -> None:
    try:
        VerifierKey(name, KeyType.MLDSA44, bytes(1312))
    except (BadEvidence, UnicodeEncodeError) as error:
        raise ConfigError("--name: expected no spaces, plus signs or control characters", code="bad_name") from error
    if len(name.encode()) > _NAME_BYTES:
        raise ConfigError(f"--name: longer than {_NAME_BYTES} bytes", code="bad_name")


def _mldsa44(path: Path, *, make: bool) -> MLDSA44PrivateKey | None:
    if not make and not os.path.lexists(path):
        return None
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            NoEncryption,
            PrivateFormat,
            load_pem_private_key,
        )

        if not os.path.lexists(path):
            fresh = MLDSA44PrivateKey.generate()
            create_file(path, fresh.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key = load_pem_private_key(read_file(path, limit_bytes=16_384, secret=True), None)
    except (ImportError, UnsupportedAlgorithm) as error:
        raise ConfigError("--ml-dsa: this machine's OpenSSL has no ML-DSA-44", code="unsupported_algorithm") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path}: not an unencrypted private key in PEM", code="bad_key") from error
    except AgentError as error:
        raise ConfigError(str(error), hint=error.hint) from error
    if not isinstance(key, MLDSA44PrivateKey):
        raise ConfigError(f"{path}: not an ML-DSA-44 private key", code="bad_key")
    return key
