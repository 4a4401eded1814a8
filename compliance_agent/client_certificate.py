"""This host's client certificate: asked for when the server wants one, renewed at two thirds of its life (docs/certificates.md).

    the server says that it wants one -> a TLS key, durable -> a signing request that the host's own key vouches for
        -> key and certificate in one file, replaced whole -> the next connection shows it

The TLS key is not the host's key: it may be lost or stolen with the part that speaks to the network, and the host stays who it is.
A renewal goes over a connection that shows the present certificate, and makes a new TLS key. Where the present one has ended or is
not taken any more, the connection shows none, and the request is for the same TLS key, which the server knows. The next key stands
beside the file until its certificate has come, so an answer that was lost costs nothing. Where `client_key_file` is set, both files
are somebody else's and nothing here touches them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from compliance_agent.adapters.durable import make_directory, read_file, remove_file, write_file
from compliance_agent.config import AgentConfig
from compliance_agent.errors import AgentError, BadReply, ConfigError
from compliance_agent.logs import where
from compliance_agent.ports import Clock

if TYPE_CHECKING:  # they cost memory that a host without a certificate need not have
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey

log = structlog.get_logger()
MAX_BYTES = 16_384


class Parts(Protocol):
    """What it needs of the agent, read anew each time."""

    signer: Any
    mcp_client: Any
    clock: Clock


@dataclass(frozen=True)
class Held:
    """A TLS key and its certificate."""

    key: EllipticCurvePrivateKey
    certificate: x509.Certificate

    def ended(self, now: datetime) -> bool:
        """Whether it is of no use now."""
        return not self.certificate.not_valid_before_utc <= now < self.certificate.not_valid_after_utc

    def due(self, now: datetime) -> bool:
        """Whether two thirds of its life are over."""
        begins, ends = self.certificate.not_valid_before_utc, self.certificate.not_valid_after_utc
        return now >= begins + (ends - begins) * 2 / 3


class ClientCertificate:
    """The certificate of one host.

    Args:
        parts: the agent.
        config: where it stands.
    """

    def __init__(self, parts: Parts, config: AgentConfig) -> None:
        self._parts = parts
        self._config = config
        self._said = ""

    @property
    def path(self) -> Path | None:
        """The file that is kept here; None where it is somebody else's."""
        own = self._config.client_key_file is None and self._config.privileges == "single"
        return self._config.client_cert_file if own else None

    async def keep(self) -> bool:
        """Ask for a certificate if it is time; whether there is a new one. Trouble is said once and waits for the next turn."""
        client = self._parts.mcp_client
        trouble = getattr(client, "certificate_trouble", None)
        if self.path is None or not isinstance(trouble, str) or not (trouble or self.path.exists()):
            return False
        try:
            held, now = read(self.path), self._parts.clock.now()
            if not trouble and held is not None and not held.due(now):
                return False
            await self._renew(client, self.path, held, shown=not trouble and held is not None and not held.ended(now))
        except AgentError as error:
            if self._said != error.code:
                log.error("certificate.renewal_failed", code=error.code, at=where(error))
            self._said = error.code
            return False
        self._said = ""
        return True

    async def _renew(self, client: Any, path: Path, held: Held | None, *, shown: bool) -> None:
        coming = path.with_name(f"{path.name}.next")
        if not shown:
            client.use_certificate(None)
        key = held.key if held is not None and not shown else _next_key(coming)
        pem = await client.certify(_request(key), self._parts.signer)
        certificate = _certificate(pem)
        if certificate.public_key() != key.public_key():
            raise BadReply("reply to a certificate: it is for another key", code="bad_certificate")
        make_directory(path.parent)
        write_file(path, _pem(key) + pem)
        remove_file(coming)
        client.use_certificate(path)
        log.info("certificate.renewed", ends_at=certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"))


def read(path: Path) -> Held | None:
    """What stands in the file; None when it is absent, or cannot be used, so that it is asked for anew."""
    if not path.exists():
        return None
    try:
        raw = read_file(path, limit_bytes=MAX_BYTES, secret=True)
        held = Held(_key(raw), _certificate(raw))
    except (BadReply, ConfigError):
        return None
    return held if held.key.public_key() == held.certificate.public_key() else None


def _next_key(path: Path) -> EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    if path.exists():
        try:
            return _key(read_file(path, limit_bytes=MAX_BYTES, secret=True))
        except ConfigError:
            remove_file(path)  # nothing was ever given for it that is worth anything
    key = ec.generate_private_key(ec.SECP256R1())
    make_directory(path.parent)
    write_file(path, _pem(key))
    return key


def _key(raw: bytes) -> EllipticCurvePrivateKey:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(raw, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError("client_cert_file: no key that can be used") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise ConfigError("client_cert_file: expected a key on an elliptic curve")
    return key


def _certificate(raw: bytes) -> x509.Certificate:
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(raw)
    except ValueError as error:
        raise BadReply("certificate: not one that can be used", code="bad_certificate") from error


def _request(key: EllipticCurvePrivateKey) -> bytes:
    """A signing request that asks for nothing but a certificate; who it is for, the host's own key says."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import Encoding

    made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(key, hashes.SHA256())
    return made.public_bytes(Encoding.DER)


def _pem(key: EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
