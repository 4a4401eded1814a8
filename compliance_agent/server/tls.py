"""TLS without anyone's help: a private certificate authority made on this machine, and a server certificate from it.

Hosts do not trust it by default: the enrolment token holds the SHA-256 of the authority's certificate, as kubeadm and k3s do. The
server certificate is made anew when it nears its end or the names change; the authority stays.
"""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from compliance_agent.adapters.durable import make_directory, read_file, write_file
from compliance_agent.errors import ConfigError

CA_LIFE = timedelta(days=3_650)
LIFE = timedelta(days=90)
RENEW_BEFORE = timedelta(days=30)
_LIMIT = 65_536
CLIENTS_CA, CLIENTS_CA_KEY = "clients-ca.pem", "clients-ca-key.pem"
ClientKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey


@dataclass(frozen=True)
class Identity:
    """Where the server's certificate and key stand, and the authority that hosts pin."""

    certificate: Path
    key: Path
    ca_pem: bytes
    ca_sha256: str


def identity(directory: Path, names: Collection[str], now: datetime) -> Identity:
    """The server's TLS identity in `directory`, made or renewed as needed.

    Raises:
        ConfigError: what stands there cannot be used.
        StorageError: it cannot be written.
    """
    make_directory(directory)
    ca_key, ca = _authority(directory / "ca-key.pem", directory / "ca.pem", "compliance-agent private authority", now)
    leaf_key_file, leaf_file = directory / "server-key.pem", directory / "server.pem"
    if not (leaf_file.exists() and leaf_key_file.exists() and _fits(leaf_file, ca, names, now)):
        leaf_key = ec.generate_private_key(ec.SECP256R1())
        write_file(leaf_key_file, _private_pem(leaf_key))
        write_file(leaf_file, _leaf(leaf_key, ca_key, ca, names, now).public_bytes(Encoding.PEM), 0o644)
    fingerprint = hashlib.sha256(ca.public_bytes(Encoding.DER)).hexdigest()
    return Identity(leaf_file, leaf_key_file, ca.public_bytes(Encoding.PEM), fingerprint)


def known_authority(directory: Path) -> str | None:
    """SHA-256 (DER, hex) of the authority that stands in `directory`, None when there is none."""
    path = directory / "ca.pem"
    if not path.exists():
        return None
    certificate = x509.load_pem_x509_certificate(read_file(path, limit_bytes=_LIMIT, trusted=True))
    return hashlib.sha256(certificate.public_bytes(Encoding.DER)).hexdigest()


def context(found: Identity, clients_ca: Path | None = None) -> ssl.SSLContext:
    """A server context for TLS 1.3 and nothing older.

    With `clients_ca` a client may show a certificate, and one that is shown must be good: people's browsers have none, so who must
    have one is decided for each request (`HostAccess`).
    """
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(found.certificate, found.key)
    if clients_ca is not None:
        made.load_verify_locations(clients_ca)
        made.verify_mode = ssl.CERT_OPTIONAL
        made.num_tickets = 0  # a resumed session would not look at the certificate's end again
    return made


class ClientAuthority:
    """The authority of hosts' client certificates, in `directory`; made when it is not there. It signs no server's.

    Raises:
        ConfigError: what stands there cannot be used.
        StorageError: it cannot be written.
    """

    def __init__(self, directory: Path, now: datetime) -> None:
        make_directory(directory)
        key_file, name = directory / CLIENTS_CA_KEY, "compliance-agent client authority"
        self._key, self._certificate = _authority(key_file, directory / CLIENTS_CA, name, now)

    def issue(self, public: ClientKey, key_id: str, now: datetime, life: timedelta) -> x509.Certificate:
        """A certificate with which the host of this key id may open connections."""
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, key_id)])
        usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
        return (
            _builder(name, self._certificate.subject, public, now, life)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .sign(self._key, hashes.SHA256())
        )


def _authority(
    key_file: Path, file: Path, called: str, now: datetime
) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """The authority that stands there; a new one when there is none."""
    if not file.exists():
        key, certificate = _new_authority(called, now)
        write_file(key_file, _private_pem(key))
        write_file(file, certificate.public_bytes(Encoding.PEM), 0o644)
    return _load(key_file, file)


def _new_authority(called: str, now: datetime) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, called)])
    usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
    certificate = (
        _builder(name, name, key.public_key(), now, CA_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return key, certificate


def _leaf(
    key: ec.EllipticCurvePrivateKey,
    ca_key: ec.EllipticCurvePrivateKey,
    ca: x509.Certificate,
    names: Collection[str],
    now: datetime,
) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "compliance-agent server")])
    usage = x509.KeyUsage(True, False, False, False, False, False, False, False, False)
    return (
        _builder(subject, ca.subject, key.public_key(), now, LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general(name) for name in sorted(names)]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ClientKey, now: datetime, life: timedelta
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # hosts' clocks differ
        .not_valid_after(now + life)
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _load(key_file: Path, file: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    try:
        key = load_pem_private_key(read_file(key_file, limit_bytes=_LIMIT, secret=True), None)
        certificate = x509.load_pem_x509_certificate(read_file(file, limit_bytes=_LIMIT, trusted=True))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"tls: {file} or {key_file} is not a PEM file that can be used") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(f"tls: {key_file} is not the key of {file}")
    return key, certificate


def _fits(file: Path, ca: x509.Certificate, names: Collection[str], now: datetime) -> bool:
    try:
        certificate = x509.load_pem_x509_certificate(read_file(file, limit_bytes=_LIMIT, trusted=True))
        certificate.verify_directly_issued_by(ca)
        held = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except Exception:  # whatever is wrong with it, a new one is made
        return False
    return set(held) == {_general(name) for name in names} and certificate.not_valid_after_utc - now > RENEW_BEFORE


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
