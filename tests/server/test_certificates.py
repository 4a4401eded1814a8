"""Client certificates: nothing of a request but its key goes in (RELIABILITY 3.3 E9), and each counts for one host alone."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from nacl.signing import SigningKey

from compliance_agent.errors import Refusal
from compliance_agent.server import tls
from compliance_agent.server.api.edge import CLIENT_CERTIFICATE
from compliance_agent.server.records import Host
from compliance_agent.server.services import certificates
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.services.certificates import Certificates, checked
from compliance_agent.transport.protocol import certificate_message
from tests.server.builder import START, FakeHost, Server, b64, checkin_body, serving
from tests.server.test_rotation import rotate

pytestmark = pytest.mark.anyio
ROUTE = "/api/v1/certificates"
KEY = ec.generate_private_key(ec.SECP256R1())


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[Server]:
    """A server that wants client certificates; `shown` puts one into a request as TLS would."""
    async with serving(tmp_path / "data", tls=True, tls_client_certificates="required") as running:
        yield running


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def csr(key: Any = KEY, subject: x509.Name | None = None, *extensions: x509.ExtensionType) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject or x509.Name([]))
    for item in extensions:
        builder = builder.add_extension(item, critical=True)
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
    return builder.sign(key, digest).public_bytes(Encoding.DER)


async def asked(
    server: Server, host: FakeHost, request: bytes, *, by: SigningKey | None = None, **changes: Any
) -> httpx2.Response:
    body = {"protocol": 1, "public_key": b64(host.public)}
    nonce = (await server.post("/api/v1/enrol/challenge", body)).json()["nonce"]
    message = certificate_message(base64.b64decode(nonce), request)
    proof = (by or host.key).sign(message).signature
    whole = {"protocol": 1, "csr": b64(request), "nonce": nonce, "proof": b64(proof), **changes}
    return await server.post(ROUTE, whole, headers=host.headers)


async def given_one(server: Server, host: FakeHost, key: Any = KEY) -> x509.Certificate:
    reply = await asked(server, host, csr(key))
    assert reply.status_code == 200, reply.text
    return x509.load_pem_x509_certificate(reply.json()["certificate"].encode())


class Shown:
    """Puts a certificate into each request's scope, as `guard` does with the one that TLS has verified."""

    def __init__(self, server: Server) -> None:
        self.certificate: x509.Certificate | None = None
        transport = server.client._transport
        self._app = transport.app  # type: ignore[attr-defined]
        transport.app = self  # type: ignore[attr-defined]

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if self.certificate is not None:
            scope[CLIENT_CERTIFICATE] = self.certificate.public_bytes(Encoding.DER)
        await self._app(scope, receive, send)


def code(reply: httpx2.Response) -> tuple[int, str]:
    return reply.status_code, reply.json().get("code", "") if reply.status_code != 200 else ""


async def checkin(server: Server, host: FakeHost) -> tuple[int, str]:
    return code(await server.post("/api/v1/checkin", checkin_body(host), headers=host.headers))


async def test_what_is_issued_is_ours_but_for_the_key(strict: Server) -> None:
    host = await strict.enrolled()
    made = await given_one(strict, host)
    assert made.public_key() == KEY.public_key()
    assert made.subject == name(host.key_id)
    assert made.not_valid_after_utc - strict.clock.time == timedelta(days=90)
    assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    assert list(made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.CLIENT_AUTH
    ]
    authority = x509.load_pem_x509_certificate(
        (strict.services.settings.data_dir / "tls" / tls.CLIENTS_CA).read_bytes()
    )
    made.verify_directly_issued_by(authority)
    server_authority = x509.load_pem_x509_certificate(strict.services.ca_pem or b"")
    assert authority != server_authority and authority.public_key() != server_authority.public_key()


async def test_a_host_without_its_certificate_is_refused_wherever_it_calls(strict: Server) -> None:
    host, show = await strict.enrolled(), Shown(strict)
    assert await checkin(strict, host) == (403, "certificate_required")
    show.certificate = await given_one(strict, host)
    assert await checkin(strict, host) == (200, "")
    assert (await strict.deliver(host, host.next())).status_code == 200
    show.certificate = None
    for reply in (
        await strict.deliver(host, host.next()),
        await strict.post("/api/v1/receipts", {"protocol": 1, "bundles": ["0" * 36]}, headers=host.headers),
        await strict.client.get(f"/api/v1/baselines/{'0' * 64}", headers=host.headers),
        await rotate(strict, host, SigningKey.generate()),
    ):
        assert code(reply) == (403, "certificate_required")
    assert (await strict.client.get("/log/clinic-1/2026/checkpoint", headers=host.headers)).status_code == 404


async def test_a_certificate_counts_for_its_own_host_alone(strict: Server) -> None:
    one, other = await strict.enrolled("ws-1"), await strict.enrolled("ws-2", "clinic-2")
    show = Shown(strict)
    show.certificate = await given_one(strict, one)
    assert (await checkin(strict, one), await checkin(strict, other)) == ((200, ""), (403, "wrong_certificate"))
    foreign = other.next()
    reply = await strict.deliver(one, foreign)  # A's connection and API key, B's signature
    assert reply.status_code != 200 or reply.json()["stopped"] is not None
    assert await strict.services.store.for_sites({"clinic-2"}).bundle(foreign.document["bundle_id"]) is None
    assert code(await asked(strict, other, csr())) == (403, "wrong_certificate")


async def test_a_revoked_host_with_a_good_certificate_is_refused(strict: Server) -> None:
    host, show = await strict.enrolled(), Shown(strict)
    show.certificate = await given_one(strict, host)
    assert await checkin(strict, host) == (200, "")
    await strict.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    assert await checkin(strict, host) == (403, "host_revoked")
    assert code(await asked(strict, host, csr())) == (403, "host_revoked")


@pytest.mark.parametrize("fault", ["required", "whose"])
async def test_planted_a_wall_that_lets_through_is_caught(
    strict: Server, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    async def anybodys(self: Any, fingerprint: str) -> str:
        return str((await self.for_sites({"clinic-2"}).hosts())[0].key_id)

    if fault == "required":
        monkeypatch.setattr(strict.services.access, "_certificates", False)
        test: Callable[[Server], Any] = test_a_host_without_its_certificate_is_refused_wherever_it_calls
    else:
        monkeypatch.setattr(type(strict.services.store), "key_of_certificate", anybodys)
        test = test_a_certificate_counts_for_its_own_host_alone
    with pytest.raises(AssertionError):
        await test(strict)


async def test_the_next_one_needs_the_present_one_or_the_same_tls_key(strict: Server) -> None:
    host, show = await strict.enrolled(), Shown(strict)
    first = await given_one(strict, host)
    newer = ec.generate_private_key(ec.SECP384R1())
    assert code(await asked(strict, host, csr(newer))) == (403, "certificate_required")
    again = await given_one(strict, host)  # an answer that was lost
    show.certificate = again
    second = await given_one(strict, host, newer)
    for show.certificate in (first, again, second):
        assert await checkin(strict, host) == (200, ""), "until it ends, each of them counts"
    show.certificate = None
    await strict.services.certificates.recertify("clinic-1", host.key_id, actor="test")
    show.certificate = second
    assert await checkin(strict, host) == (403, "wrong_certificate")
    show.certificate = None
    await given_one(strict, host, ec.generate_private_key(ec.SECP256R1()))


async def test_a_key_that_gives_way_keeps_its_certificate(strict: Server) -> None:
    host, show, new = await strict.enrolled(), Shown(strict), SigningKey.generate()
    show.certificate = await given_one(strict, host)
    await strict.deliver(host, host.next())
    assert (await rotate(strict, host, new)).status_code == 200
    host.key = new
    assert await checkin(strict, host) == (200, "")


async def test_the_desk_keeps_eight_of_a_host_on_both_databases(server: Server, tmp_path: Path) -> None:
    """The newest ones, of this host alone; and a server that asks for none issues none."""
    host, other = await server.enrolled("ws-1"), await server.enrolled("ws-2")
    assert code(await asked(server, host, csr())) == (404, "no_certificates")
    store, clock = server.services.store, server.clock
    desk = Certificates(store, clock, tls.ClientAuthority(tmp_path / "ca", START), verify=lambda *_: True)
    rows = {item.key_id: item for item in await store.for_sites({"clinic-1"}).hosts()}
    made = []
    for number in range(10):
        clock.move(1)
        for one in (host, other) if number == 0 else (host,):
            nonce = await server.services.enrolment.challenge(one.public)
            pem = await desk.issue(rows[one.key_id], certificates.Request(csr(), nonce, bytes(64)), presented=False)
            made.append((one, x509.load_pem_x509_certificate(pem).fingerprint(hashes.SHA256()).hex()))
    held = [await store.key_of_certificate(fingerprint) for _, fingerprint in made]
    mine = [key for (one, _), key in zip(made, held, strict=True) if one is host]
    assert mine == [None, None, *[host.key_id] * 8] and held[1] == other.key_id
    await desk.recertify("clinic-1", host.key_id, actor="test")
    assert {await store.key_of_certificate(fingerprint) for _, fingerprint in made} == {None, other.key_id}


# --- E9 -------------------------------------------------------------------------------------------


def weak_rsa(directory: Path) -> bytes:
    """A request with 512 bits of RSA, which our own library would not even make."""
    out = directory / "weak.der"
    words: list[str | Path] = [
        "openssl",
        "req",
        "-new",
        "-newkey",
        "rsa:512",
        "-nodes",
        "-keyout",
        directory / "weak.pem",
    ]
    subprocess.run([*words, "-subj", "/", "-outform", "DER", "-out", out], check=True, capture_output=True, timeout=30)
    return out.read_bytes()


def resigned(request: bytes) -> bytes:
    """The same request with one bit of its signature changed."""
    return request[:-1] + bytes([request[-1] ^ 1])


HOSTILE: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "another host's name": (lambda _: csr(KEY, name("ab" * 32)), "csr_other_name"),
    "two names": (
        lambda _: csr(KEY, x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a")] * 2)),
        "csr_other_name",
    ),
    "a name of another kind": (
        lambda _: csr(KEY, x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "msp")])),
        "csr_other_name",
    ),
    "RSA of 512 bits": (weak_rsa, "weak_key"),
    "RSA of 2048 bits": (lambda _: csr(rsa.generate_private_key(65_537, 2_048)), "weak_key"),
    "secp256k1": (lambda _: csr(ec.generate_private_key(ec.SECP256K1())), "weak_key"),
    "P-224": (lambda _: csr(ec.generate_private_key(ec.SECP224R1())), "weak_key"),
    "P-521": (lambda _: csr(ec.generate_private_key(ec.SECP521R1())), "weak_key"),
    "brainpool": (lambda _: csr(ec.generate_private_key(ec.BrainpoolP256R1())), "weak_key"),
    "Ed448": (lambda _: csr(ed448.Ed448PrivateKey.generate()), "weak_key"),
    "wants to be an authority": (
        lambda _: csr(KEY, None, x509.BasicConstraints(ca=True, path_length=None)),
        "csr_extensions",
    ),
    "wants to be a server": (
        lambda _: csr(KEY, None, x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])),
        "csr_extensions",
    ),
    "wants another name": (
        lambda _: csr(KEY, None, x509.SubjectAlternativeName([x509.DNSName("mcp.example.com")])),
        "csr_extensions",
    ),
    "wrong signature": (lambda _: resigned(csr()), "csr_signature"),
    "trailing bytes": (lambda _: csr() + b"\0", "bad_csr"),
    "cut off": (lambda _: csr()[:-1], "bad_csr"),
    "not DER": (lambda _: b"-----BEGIN CERTIFICATE REQUEST-----", "bad_csr"),
    "2 KB too long": (lambda _: csr() + bytes(2_048), "bad_csr"),
}


@pytest.mark.parametrize("which", HOSTILE)
async def test_e9_a_hostile_request_is_refused_and_changes_nothing(strict: Server, tmp_path: Path, which: str) -> None:
    make, wanted = HOSTILE[which]
    host = await strict.enrolled()
    reply = await asked(strict, host, make(tmp_path))
    assert code(reply) == (422, wanted)
    assert reply.headers["content-type"] == "application/problem+json"
    await given_one(strict, host)  # it holds none: the first one is still free to have


async def test_e9_a_subject_of_100_kilobytes_is_refused_unread(strict: Server) -> None:
    host = await strict.enrolled()
    long = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "x" * 64)] * 1_600
    request = csr(KEY, x509.Name(long))
    assert len(request) > 100_000
    assert code(await asked(strict, host, request)) == (422, "bad_request")


async def test_e9_a_proof_is_for_one_request_one_nonce_and_one_host(strict: Server) -> None:
    host, other = await strict.enrolled("ws-1"), await strict.enrolled("ws-2")
    assert code(await asked(strict, host, csr(), by=other.key)) == (403, "bad_proof")
    assert code(await asked(strict, host, csr(), csr=b64(csr(ec.generate_private_key(ec.SECP256R1()))))) == (
        403,
        "bad_proof",
    )
    assert code(await asked(strict, host, csr(), nonce=b64(bytes(32)))) == (403, "bad_proof")
    made_up = bytes(32)
    proof = host.key.sign(certificate_message(made_up, csr()))  # a right proof, for a nonce that nobody gave
    reply = await strict.post(
        ROUTE,
        {"protocol": 1, "csr": b64(csr()), "nonce": b64(made_up), "proof": b64(proof.signature)},
        headers=host.headers,
    )
    assert code(reply) in {(403, "bad_proof"), (403, "bad_nonce")}
    own = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(host.key))
    assert code(await asked(strict, host, csr(own))) == (422, "weak_key")


HOST = Host("ab" * 32, "clinic-1", "msp", "ws-1", bytes(32), START)
GOOD = csr(KEY, name(HOST.key_id))


@given(st.integers(0, len(GOOD) * 8 - 1))
def test_e9_no_bit_of_a_good_request_can_be_changed(bit: int) -> None:
    changed = bytearray(GOOD)
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Refusal):
        checked(bytes(changed), HOST)


@given(st.binary(max_size=2_100))
def test_e9_bytes_of_any_kind_are_refused(raw: bytes) -> None:
    with pytest.raises(Refusal):
        checked(raw, HOST)


def test_e9_a_desk_that_does_not_look_at_signatures_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    class Blind:
        def __init__(self, found: Any) -> None:
            self._found = found

        def __getattr__(self, name: str) -> Any:
            return True if name == "is_signature_valid" else getattr(self._found, name)

    assert checked(GOOD, HOST) == KEY.public_key()
    real = x509.load_der_x509_csr
    monkeypatch.setattr(x509, "load_der_x509_csr", lambda raw: Blind(real(raw)))
    with pytest.raises(pytest.fail.Exception):
        test_e9_no_bit_of_a_good_request_can_be_changed()


def test_no_certificate_is_asked_for_unless_the_setting_says_so() -> None:
    assert HostAccess(None, lambda: START, None)._certificates is False  # type: ignore[arg-type]
