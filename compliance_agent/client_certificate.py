"""This host's client certificate: asked for when the server wants one, renewed at two thirds of its life (docs/certificates.md).

    the server says that it wants one -> a TLS key, durable -> a signing request that the host's own key vouches for
        -> key and certificate in one file, replaced whole -> the next connection shows it

The TLS key is not the host's key: it may be lost or stolen with the part that speaks to the network, and the host stays who it is.
A renewal goes over a connection that shows the present certificate, and makes a new TLS key. Where the present one has ended or is
not taken any more, the connection shows none, and the request is for the same TLS key, which the server knows. The next key stands
beside the file until its certificate has come, so an answer that was lost costs nothing. Where `client_key_file` is set, both files
are somebody else's and nothing here touches them. Where `privileges` is split, key and file are uplink's: it makes the request, the
host's key vouches for it here, and the certificate goes back.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from compliance_agent.adapters.durable import make_directory, read_file, remove_file, write_file
from compliance_agent.config import AgentConfig
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import AgentError, BadReply, ConfigError, Unavailable
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


class Kept(Protocol):
    """Where the certificate and its key are: here, or with uplink."""

    async def present(self) -> tuple[bool, bytes]:
        """Whether there is a file, and the certificate (PEM) in it, when it can be used."""

    async def request(self, *, anew: bool) -> bytes:
        """A signing request (DER) for a new key, or for the present one."""

    async def take(self, pem: bytes) -> None:
        """Keep this certificate, and show it from now on."""

    async def show_none(self) -> None:
        """Show no certificate from now on."""


class KeptHere:
    """In a file of this process, for its own client."""

    def __init__(self, path: Path, client: Any) -> None:
        self._path, self._client = path, client

    async def present(self) -> tuple[bool, bytes]:
        from cryptography.hazmat.primitives.serialization import Encoding

        held = read(self._path)
        return self._path.exists(), held.certificate.public_bytes(Encoding.PEM) if held is not None else b""

    async def request(self, *, anew: bool) -> bytes:
        return made_request(self._path, anew=anew)

    async def take(self, pem: bytes) -> None:
        take(self._path, pem)
        self._client.use_certificate(self._path)

    async def show_none(self) -> None:
        self._client.use_certificate(None)


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

    def _kept(self, client: Any) -> Kept | None:
        """None where the files are somebody else's."""
        if self._config.client_key_file is not None:
            return None
        if self._config.privileges == "split":
            with_uplink: Kept | None = getattr(client, "certificate_of_uplink", None)
            return with_uplink
        return KeptHere(self._config.client_cert_file, client)

    async def keep(self) -> bool:
        """Ask for a certificate if it is time; whether there is a new one. Trouble is said once and waits for the next turn."""
        client = self._parts.mcp_client
        kept, trouble = self._kept(client), getattr(client, "certificate_trouble", None)
        if kept is None or not isinstance(trouble, str):
            return False
        try:
            there, pem = await kept.present()
        except Unavailable:
            return False  # nobody to ask, as delivery has said
        try:
            now, held = self._parts.clock.now(), certificate_in(pem) if pem else None
            if not (trouble or there) or (not trouble and held is not None and not due(held, now)):
                return False
            await self._renew(client, kept, held, shown=not trouble and held is not None and not ended(held, now))
        except AgentError as error:
            if self._said != error.code:
                log.error("certificate.renewal_failed", code=error.code, at=where(error))
            self._said = error.code
            return False
        self._said = ""
        return True

    async def _renew(self, client: Any, kept: Kept, held: x509.Certificate | None, *, shown: bool) -> None:
        if not shown:
            await kept.show_none()
        csr = await kept.request(anew=held is None or shown)
        pem = await client.certify(csr, self._parts.signer)
        ends_at = _certificate(pem).not_valid_after_utc
        await kept.take(pem)
        client.certificate_trouble = ""
        log.info("certificate.renewed", ends_at=ends_at.strftime("%Y-%m-%dT%H:%M:%SZ"))


def ended(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether it is of no use now."""
    return not certificate.not_valid_before_utc <= now < certificate.not_valid_after_utc


def due(certificate: x509.Certificate, now: datetime) -> bool:
    """Whether two thirds of its life are over."""
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return now >= begins + (ends - begins) * 2 / 3


def made_request(path: Path, *, anew: bool) -> bytes:
    """A signing request (DER) for the key that will be in this file, or for the one that is.

    Raises:
        StorageError: a new key could not be kept.
    """
    held = read(path)
    return _request(held.key if held is not None and not anew else _next_key(_coming(path)))


def take(path: Path, pem: bytes) -> None:
    """Put a certificate into the file, with the key that it is for.

    Raises:
        BadReply: it is none, or for another key.
        StorageError: it could not be kept.
    """
    certificate, coming, held = _certificate(pem), _coming(path), read(path)
    keys = [held.key] if held is not None else []
    if coming.exists():
        keys.insert(0, _next_key(coming))
    key = next((key for key in keys if key.public_key() == certificate.public_key()), None)
    if key is None:
        raise BadReply("reply to a certificate: it is for another key", code="bad_certificate")
    make_directory(path.parent)
    write_file(path, _pem(key) + pem)
    remove_file(coming)


def _coming(path: Path) -> Path:
    return path.with_name(f"{path.name}.next")


def certificate_in(pem: bytes) -> x509.Certificate | None:
    """The certificate of a PEM text, None where there is none that can be used."""
    try:
        return _certificate(pem)
    except BadReply:
        return None


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
