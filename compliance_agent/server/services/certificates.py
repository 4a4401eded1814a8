"""Client certificates of hosts: one more wall in front of what a host is, which is its key (docs/certificates.md).

A host makes a second key for TLS, asks for a certificate with a signing request (CSR), and shows with its own key, for a nonce of
now, that it wants just this one. Nothing of the request but its public key goes into the certificate: name, life, purpose and
constraints are ours. A certificate counts while it stands in the database for the host that calls; the first one needs none, and
later ones the one before, or the same TLS key. Who has lost both asks an operator (`server hosts recertify`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

import structlog
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Host, HostCertificate, Store, Transaction
from compliance_agent.server.services.secrets import hashed
from compliance_agent.server.services.verification import Verify

CONTEXT = b"compliance-agent/certificate/v1\n"
LIFE = timedelta(days=90)
MAX_CSR_BYTES = 2_048
MOST_HELD = 8  # of one host; the oldest goes
PublicKey = ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
_CURVES = (ec.SECP256R1, ec.SECP384R1)

log = structlog.get_logger()


class Authority(Protocol):
    """`server.tls.ClientAuthority`."""

    def issue(self, public: PublicKey, key_id: str, now: datetime, life: timedelta) -> x509.Certificate:
        """A certificate for a host's TLS key."""
        ...


@dataclass(frozen=True)
class Request:
    """What a host sends: a signing request (DER), the nonce it was given, and its own key's signature over both."""

    csr: bytes
    nonce: bytes
    proof: bytes


class Certificates:
    """The desk for client certificates; without an authority it is closed."""

    def __init__(self, store: Store, clock: Clock, authority: Authority | None, *, verify: Verify) -> None:
        self._store = store
        self._clock = clock
        self._authority = authority
        self._verify = verify

    async def issue(self, caller: Host, request: Request, *, presented: bool) -> bytes:
        """A certificate (PEM) for the key in the request. `presented`: the host has shown one that counts in this connection.

        Raises:
            Refusal: see the codes; nothing was changed.
        """
        if self._authority is None:
            raise Refusal("this server asks for no client certificates", code="no_certificates", status=404)
        public = checked(request.csr, caller)
        message = CONTEXT + request.nonce + hashlib.sha256(request.csr).digest()
        if not self._verify(caller.public_key, request.proof, message):
            raise Refusal("proof: not of this request by this host's key", code="bad_proof", status=403)
        now, spki = self._clock(), _spki(public)
        made = self._authority.issue(public, caller.key_id, now, LIFE)
        row = HostCertificate(
            hashlib.sha256(made.public_bytes(Encoding.DER)).hexdigest(),
            caller.site_id,
            caller.key_id,
            spki,
            now,
            made.not_valid_after_utc,
        )

        async def work(tx: Transaction) -> None:
            host = (await tx.hosts({caller.site_id}, {caller.key_id})).get(caller.key_id)
            if host is None or host.revoked_at is not None:
                raise Refusal("this host is revoked", code="host_revoked", status=403)
            if host.contested_at is not None:
                raise Refusal("more than one machine seems to hold this key", code="host_contested", status=409)
            if not await tx.take_nonce(hashed(request.nonce), host.key_id, now):
                raise Refusal("nonce: unknown, used or expired; ask for a new challenge", code="bad_nonce", status=403)
            held = await tx.certificates(host.site_id, host.key_id)
            if held and not presented and spki not in {item.spki for item in held}:
                raise Refusal(
                    "certificate: show the present one, or ask for one for its TLS key",
                    code="certificate_required",
                    status=403,
                )
            await tx.add_certificate(row, at_most=MOST_HELD)
            await tx.audit(now, f"host:{host.key_id}", "host.certified", site_id=host.site_id, subject=row.fingerprint)

        await self._store.write(work, {caller.site_id})
        log.info("host.certified", key_id=caller.key_id, site_id=caller.site_id)
        return made.public_bytes(Encoding.PEM)

    async def recertify(self, site_id: str, key_id: str, *, actor: str) -> None:
        """No certificate of this host counts any more; its next one is as its first."""
        now = self._clock()

        async def work(tx: Transaction) -> None:
            await tx.drop_certificates(site_id, key_id)
            await tx.audit(now, actor, "host.recertified", site_id=site_id, subject=key_id)

        await self._store.write(work, {site_id})


def fingerprint_of(certificate: bytes) -> str:
    """What a certificate (DER) is known by."""
    return hashlib.sha256(certificate).hexdigest()


def checked(csr: bytes, host: Host) -> PublicKey:
    """The public key of a signing request that asks for nothing but a certificate of this host.

    Raises:
        Refusal: `bad_csr`, `weak_key`, `csr_other_name`, `csr_extensions`, `csr_signature`.
    """
    if len(csr) > MAX_CSR_BYTES:
        raise Refusal(f"csr: longer than {MAX_CSR_BYTES} bytes", code="bad_csr", status=422)
    try:
        found = x509.load_der_x509_csr(csr)
        public, subject = found.public_key(), [(item.oid, item.value) for item in found.subject]
        asks, signed = len(found.attributes) > 0, found.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.InvalidVersion) as error:
        raise Refusal("csr: not a signing request that can be used", code="bad_csr", status=422) from error
    good_curve = isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, _CURVES)
    if not isinstance(public, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and not good_curve
    ):
        raise Refusal("csr: expected a key on P-256, P-384 or Ed25519", code="weak_key", status=422)
    if subject not in ([], [(NameOID.COMMON_NAME, host.key_id)]):
        raise Refusal("csr: names another subject than this host's key", code="csr_other_name", status=422)
    if asks:
        raise Refusal("csr: asks for extensions; it gets none", code="csr_extensions", status=422)
    if not signed:
        raise Refusal("csr: not signed by its own key", code="csr_signature", status=422)
    if isinstance(public, ed25519.Ed25519PublicKey) and public.public_bytes_raw() == host.public_key:
        raise Refusal("csr: the key that signs evidence does not belong into TLS", code="weak_key", status=422)
    return public


def _spki(public: PublicKey) -> str:
    return hashlib.sha256(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
