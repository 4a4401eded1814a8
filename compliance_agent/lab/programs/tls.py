"""A TLS service of a clinic host, as openssl 3.0's client sees it, with a certificate of its own making."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from compliance_agent.lab.host import Call, FakeHost, said
from compliance_agent.ports import Ran

UNIT = "nginx.service"
CERTIFICATE, KEY = "/etc/ssl/certs/clinic.pem", "/etc/ssl/private/clinic.key"
ORDER = ("tls1", "tls1_1", "tls1_2", "tls1_3")


@dataclass
class Service:
    """What the service shows.

    Attributes:
        pem: the certificate that it read last.
        name: whom it is for.
        days: from now until it ends.
        trusted: its chain leads to a known authority.
        oldest: oldest version of TLS that it takes.
    """

    pem: str = ""
    name: str = "localhost"
    days: float = 60.5
    trusted: bool = True
    oldest: str = "tls1_2"
    ports: set[int] = field(default_factory=lambda: {443})


def provide(host: FakeHost) -> None:
    """Have a web service with a certificate for two more months."""
    host.service(UNIT)
    host.put("/etc/ssl/certs/ca-certificates.crt", "-----BEGIN CERTIFICATE-----\n")
    host.put(KEY, "-----BEGIN PRIVATE KEY-----\n", mode=0o640)
    host.install("openssl")
    renew(host, days=60.5)


def renew(host: FakeHost, *, days: float, read: bool = True) -> None:
    """Put a certificate that ends so many days from now in its file; with `read` the service shows it, too."""
    key = Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"tls {host.seed}".encode()).digest())
    service = host.part(Service)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, service.name)])
    ends = host.now().replace(microsecond=0) + timedelta(days=days)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 4711 + host.seed, ends - timedelta(days=90), ends)
    pem = builder.sign(key, None).public_bytes(Encoding.PEM).decode("ascii")
    host.put(CERTIFICATE, pem)
    if read:
        service.pem, service.days = pem, days


def openssl(call: Call) -> Ran:
    """`openssl s_client -connect 127.0.0.1:PORT -servername NAME [-verify_hostname NAME] [-CAfile FILE] [-tls1_X ...]`."""
    words, host = call.argv, call.host
    if words[1:2] != ("s_client",):
        return said("", 1, err=f"Invalid command '{words[1]}'\n")
    service, port = host.part(Service), int(words[words.index("-connect") + 1].rpartition(":")[2])
    if not host.is_active(UNIT) or port not in service.ports:
        return said("", 1, err="error:8000006F:system library:BIO_connect:Connection refused\nconnect:errno=111\n")
    asked = next((word[1:] for word in words if word[1:] in ORDER), "tls1_3")
    if ORDER.index(asked) < ORDER.index(service.oldest):
        nothing = "CONNECTED(00000003)\n---\nno peer certificate available\n---\nNew, (NONE), Cipher is (NONE)\n---\n"
        return said(nothing, 1, err="error:0A00042E:tlsv1 alert protocol version:SSL alert number 70\n")
    code = _code(call, service)
    version = {"tls1": "TLSv1.0", "tls1_1": "TLSv1.1", "tls1_2": "TLSv1.2", "tls1_3": "TLSv1.3"}[asked]
    return said(
        f"CONNECTED(00000003)\n---\nCertificate chain\n---\nServer certificate\n{service.pem}subject=CN = {service.name}\n"
        f"---\nNew, {version}, Cipher is TLS_AES_256_GCM_SHA384\nVerify return code: {code} (words)\n---\n"
    )


def _code(call: Call, service: Service) -> int:
    if not service.trusted:
        return 20
    leaf = x509.load_pem_x509_certificate(service.pem.encode("ascii"))
    if not leaf.not_valid_before_utc <= call.host.now() < leaf.not_valid_after_utc:
        return 10
    wanted = call.argv[call.argv.index("-verify_hostname") + 1] if "-verify_hostname" in call.argv else service.name
    return 0 if wanted == service.name else 62


PROGRAMS = {"openssl": openssl}
