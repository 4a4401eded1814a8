"""transmission beyond its cases: a real openssl on both sides, chains that fail elsewhere than in the leaf, keys behind links."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.checks import registry
from compliance_agent.checks.transmission import Parameters
from compliance_agent.core import tls as words
from compliance_agent.errors import CannotTell
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.lab.programs import tls
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from tests.checks.contract import seen_by

CHECK = registry()["transmission"]
NAME = "clinic.example"
GOOD: dict[str, Any] = {"endpoints": ("localhost:443",), "certificates": ("/c",), "keys": ("/k",)}


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await seen_by(CHECK, host, **parameters)


class Authority:
    """A certificate authority of the test's own, in a directory, with leaves and intermediates of any dates."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.now = datetime.now(UTC)
        self.root = self.make("Root", None, days=300, authority=True)
        (directory / "ca.pem").write_bytes(self.pem(self.root[1]))

    def make(
        self, name: str, issuer: tuple[Any, Any] | None, *, days: float, authority: bool = False
    ) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signer, by = (key, subject) if issuer is None else (issuer[0], issuer[1].subject)
        ends = self.now + timedelta(days=days)
        serial = x509.random_serial_number()
        builder = x509.CertificateBuilder(by, subject, key.public_key(), serial, ends - timedelta(days=400), ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        if not authority:
            builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        return key, builder.sign(signer, hashes.SHA256())

    @staticmethod
    def pem(certificate: x509.Certificate) -> bytes:
        return certificate.public_bytes(Encoding.PEM)

    def put(self, leaf: tuple[Any, x509.Certificate], *chain: x509.Certificate) -> None:
        """Write what the service is to show, and its key."""
        key = leaf[0].private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (self.directory / "key.pem").write_bytes(key)
        (self.directory / "key.pem").chmod(0o600)
        (self.directory / "leaf.pem").write_bytes(self.pem(leaf[1]))
        (self.directory / "chain.pem").write_bytes(b"".join(map(self.pem, chain)))


@contextmanager
def serving(authority: Authority, *options: str) -> Iterator[int]:
    """A real `openssl s_server` on loopback."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    at = authority.directory
    argv = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-quiet", "-cert", str(at / "leaf.pem")]
    argv += ["-key", str(at / "key.pem"), *options]
    if (at / "chain.pem").stat().st_size:
        argv += ["-cert_chain", str(at / "chain.pem")]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _until_it_listens(port)
            yield port
        finally:
            server.kill()


def _until_it_listens(port: int) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            assert time.monotonic() < deadline, "openssl s_server did not come up"
            time.sleep(0.02)  # another process's start cannot be awaited otherwise
        else:
            return


async def judged(
    authority: Authority, port: int, name: str = NAME, host: RealHost | None = None, **parameters: Any
) -> tuple[str, Any]:
    at = authority.directory
    baseline = Parameters(
        endpoints=(f"{name}:{port}",),
        certificates=(str(at / "leaf.pem"),),
        keys=(str(at / "key.pem"),),
        ca_file=str(at / "ca.pem"),
        **parameters,
    )
    seen = await CHECK.observe(host or RealHost(), baseline)
    return CHECK.judge(baseline, seen).reason, seen


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    made = Authority(tmp_path)
    made.put(made.make(NAME, made.root, days=60.5))
    return made


async def test_a_real_service_in_order_passes(authority: Authority) -> None:
    with serving(authority) as port:
        reason, seen = await judged(authority, port)
    assert (reason, seen.days_left, seen.file_days_left) == ("as_expected", 60, 60)


async def test_what_is_in_order_needs_no_program_and_a_fault_without_it_is_unknown(authority: Authority) -> None:
    bare = RealHost(directories=())
    with serving(authority) as port:
        assert (await judged(authority, port, host=bare))[0] == "as_expected"
        with pytest.raises(CannotTell, match="openssl"):
            await judged(authority, port, "other.example", host=bare)


async def test_a_real_service_that_takes_old_versions(authority: Authority) -> None:
    with serving(authority, "-min_protocol", "TLSv1", "-cipher", "ALL:@SECLEVEL=0") as port:
        assert (await judged(authority, port))[0] == "old_tls"


async def test_only_the_newest_version_may_be_asked_for(authority: Authority) -> None:
    with serving(authority) as port:
        assert (await judged(authority, port, min_tls="1.3"))[0] == "old_tls"
    with serving(authority, "-min_protocol", "TLSv1.3") as port:
        assert (await judged(authority, port, min_tls="1.3"))[0] == "as_expected"


async def test_a_real_service_with_another_name(authority: Authority) -> None:
    with serving(authority) as port:
        assert (await judged(authority, port, "other.example"))[0] == "wrong_name"


async def test_a_real_service_of_an_unknown_authority(authority: Authority) -> None:
    authority.put(authority.make(NAME, None, days=60.5))
    with serving(authority) as port:
        assert (await judged(authority, port))[0] == "untrusted"


@pytest.mark.parametrize(("days", "reason"), [(-1.5, "out_of_date"), (5.5, "ends_soon"), (14.5, "as_expected")])
async def test_dates_of_a_real_service(authority: Authority, days: float, reason: str) -> None:
    authority.put(authority.make(NAME, authority.root, days=days))
    with serving(authority) as port:
        assert (await judged(authority, port))[0] == reason


async def test_a_chain_that_ended_above_a_good_certificate_is_not_trusted(authority: Authority) -> None:
    """openssl says "expired" (10) here too; the certificate itself is in date, so that must not pass."""
    middle = authority.make("Middle", authority.root, days=-2, authority=True)
    authority.put(authority.make(NAME, middle, days=60.5), middle[1])
    with serving(authority) as port:
        assert (await judged(authority, port))[0] == "untrusted"


async def test_a_chain_with_an_authority_between_is_followed(authority: Authority) -> None:
    middle = authority.make("Middle", authority.root, days=200, authority=True)
    authority.put(authority.make(NAME, middle, days=60.5), middle[1])
    with serving(authority) as port:
        assert (await judged(authority, port))[0] == "as_expected"


async def test_nobody_at_the_port_is_unknown(authority: Authority) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        reason, seen = await judged(authority, closed.getsockname()[1])  # bound, and nobody listens
    assert (reason, seen.days_left) == ("unreached", None)


async def test_something_else_at_the_port_is_unknown(authority: Authority) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        listening.settimeout(10)
        port = listening.getsockname()[1]

        def hangs_up() -> None:
            for _ in ("in the agent's process", "by openssl"):
                connection, _ = listening.accept()
                connection.recv(64)
                connection.close()

        thread = threading.Thread(target=hangs_up)
        thread.start()
        with pytest.raises(CannotTell):
            await judged(authority, port)
        thread.join(10)


async def test_a_renewed_file_that_was_never_read_is_seen_at_the_endpoint() -> None:
    host = healthy_host()
    tls.renew(host, days=5.5)
    tls.renew(host, days=80.5, read=False)
    seen = await look(host)
    assert (seen.reason, seen.pre_state["days_left"], seen.pre_state["file_days_left"]) == ("ends_soon", 5, 80)


async def test_a_file_that_ends_before_it_is_ever_shown() -> None:
    host = healthy_host()
    tls.renew(host, days=5.5, read=False)
    assert (await look(host)).reason == "file_ends_soon"


@pytest.mark.parametrize(
    ("mode", "open_"), [(0o600, False), (0o640, False), (0o400, False), (0o644, True), (0o660, True), (0o604, True)]
)
async def test_modes_of_keys(mode: int, open_: bool) -> None:
    host = healthy_host()
    host.files[tls.KEY].mode = mode
    assert ((await look(host)).reason == "key_open") == open_


async def test_a_key_behind_a_link_is_judged_and_left_alone() -> None:
    host = healthy_host()
    host.put("/etc/archive/key1.pem", "-----BEGIN PRIVATE KEY-----\n", mode=0o640)
    host.place(tls.KEY, Node("symlink", mode=0o777, target="/etc/archive/key1.pem"))
    assert (await look(host)).result is Result.PASS
    host.files["/etc/archive/key1.pem"].mode = 0o644
    seen = await look(host)
    assert (seen.reason, seen.plan) == ("linked_key_open", None)


@pytest.mark.parametrize("spoil", [lambda host: host.put(tls.KEY, ""), lambda host: host.delete(tls.CERTIFICATE)])
async def test_a_file_that_is_not_there_is_unknown(spoil: Callable[[FakeHost], None]) -> None:
    host = healthy_host()
    spoil(host)
    assert (await look(host)).result is Result.UNKNOWN


REFUSAL = b"New, (NONE), Cipher is (NONE)\n"


@pytest.mark.parametrize(
    ("ran", "old"),
    [
        (Ran(0, b"New, TLSv1.0, Cipher is X\n", b""), True),
        (Ran(1, REFUSAL, b"error:tlsv1 alert protocol version:SSL alert number 70\n"), False),
        (Ran(1, REFUSAL, b"write:errno=104\n"), False),
    ],
)
def test_answers_about_old_versions(ran: Ran, old: bool) -> None:
    assert words.takes_old(ran) is old


@pytest.mark.parametrize(
    "ran",
    [
        Ran(1, REFUSAL, b"error:no protocols available\n"),
        Ran(1, b"", b"SSL alert number 70\n"),
        Ran(137, REFUSAL, b"SSL alert number 70\n"),
        Ran(1, b"", b"Unknown option: -tls1_1\n"),
    ],
)
def test_a_client_that_cannot_ask_is_no_refusal(ran: Ran) -> None:
    """An openssl that was built without TLS 1.1 would else call every service fine."""
    with pytest.raises(CannotTell):
        words.takes_old(ran)


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoints": ()},
        {"certificates": ()},
        {"keys": ()},
        {"endpoints": ("443",)},
        {"endpoints": ("10.0.0.1:443:x",)},
        {"endpoints": ("localhost:0",)},
        {"keys": ("key.pem",)},
        {"min_days": 0},
        {"min_tls": "1.1"},
    ],
)
def test_parameters_that_would_check_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Parameters(**{**GOOD, **wrong})
