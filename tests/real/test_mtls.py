"""Mutual TLS for real: a server process's own protocol stack on a socket, OpenSSL on both sides, and the whole agent.

Certificates are looked at by OpenSSL with the real time, so the clock that is handed in begins in the past and moves towards it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from compliance_agent import client_certificate
from compliance_agent.agent import ComplianceAgent
from compliance_agent.config import AgentConfig
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.enrolment import enrol, parse_token, save
from compliance_agent.errors import Unavailable
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab.clock import FakeClock
from compliance_agent.server import runner, tls
from compliance_agent.server.app import create_app
from compliance_agent.server.opening import opened
from compliance_agent.server.records import HostCertificate
from compliance_agent.server.services.access import HostAccess
from compliance_agent.server.services.certificates import fingerprint_of
from compliance_agent.server.settings import ServerSettings
from compliance_agent.transport.http import HttpTransport
from compliance_agent.transport.protocol import headers
from tests.agent_scene import Detector, Healer
from tests.server.builder import FakeHost, checkin_body

pytestmark = pytest.mark.anyio
DAY = 86_400
LIFE = timedelta(days=90)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Time:
    """One time for the server and the agent; the log's own always advances."""

    def __init__(self, days_ago: int) -> None:
        self.agent = FakeClock(datetime.now(UTC) - timedelta(days=days_ago))
        self._looks = 0

    def __call__(self) -> datetime:
        return self.agent.now()

    def advancing(self) -> datetime:
        self._looks += 1
        return self.agent.now() + timedelta(microseconds=self._looks)


@dataclasses.dataclass
class Running:
    """A server that wants client certificates, on a socket, in a thread with its own loop."""

    settings: ServerSettings
    time: Time
    url: str

    @property
    def tls_dir(self) -> Path:
        return self.settings.data_dir / "tls"

    async def enrolled(self, root: Path, host_id: str) -> AgentConfig:
        """A host's configuration, after the enrolment that people do with the command."""
        async with opened(self.settings, self.time) as services:
            text, _, _ = await services.enrolment.new_token(
                "clinic-1", "msp", timedelta(hours=1), ca_sha256=tls.known_authority(self.tls_dir), actor="test"
            )
        keys = root / host_id / "keys"
        config = AgentConfig(
            client_id="msp", site_id="clinic-1", host_id=host_id, state_dir=root / host_id, mcp_url=self.url,
            mcp_ca_file=self.tls_dir / "ca.pem", mcp_api_key_file=keys / "api-key", mcp_server_key_file=keys / "server-key",
            baseline_path=root / "baseline.yaml",
        )  # fmt: skip
        transport = HttpTransport(self.url, ca_file=config.mcp_ca_file)
        enrolled = await enrol(transport, Ed25519Signer(config.signing_key_file), parse_token(text), host_id)
        await transport.close()
        save(enrolled, keys / "api-key", keys / "server-key")
        return config

    async def held(self, config: AgentConfig) -> int:
        """How far the chain of a host reaches here."""
        async with opened(self.settings, self.time) as services:
            found = await services.store.for_sites({"clinic-1"}).host(Ed25519Signer(config.signing_key_file).key_id)
        return found.head.seq if found is not None and found.head is not None else 0


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Running]:
    time = Time(days_ago=70)
    settings = ServerSettings(
        data_dir=tmp_path / "server", tls=True, tls_client_certificates="required", log_interval_ms=50
    )
    listener = runner._listen("127.0.0.1", 0)
    app = create_app(settings, clock=time, log_clock=time.advancing)
    server = uvicorn.Server(runner._config(settings, app))
    thread = threading.Thread(target=lambda: server.run(sockets=[listener]))
    thread.start()
    try:
        for _ in range(600):
            if server.started or not thread.is_alive():
                break
            threading.Event().wait(0.05)
        assert server.started
        yield Running(settings, time, f"https://localhost:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(20)
        listener.close()
    assert not thread.is_alive()


def agent_of(config: AgentConfig, clock: FakeClock) -> ComplianceAgent:
    """The whole agent; what its checks see and its cures do is the scene's."""
    detector = Detector(clock)
    return ComplianceAgent(config, drift_detector=detector, healing_engine=Healer(detector), clock=clock)


async def test_an_agent_gets_its_certificate_delivers_with_it_and_renews_it(running: Running, tmp_path: Path) -> None:
    config, clock = await running.enrolled(tmp_path, "ws-1"), running.time.agent
    agent = agent_of(config, clock)
    file = config.client_cert_file
    try:
        await agent._run_iteration()
        assert agent.mcp_client.certificate_trouble == "" and file.stat().st_mode & 0o777 == 0o600
        first = client_certificate.read(file)
        assert first is not None and await running.held(config) == 0, "without one nothing was taken"
        clock.advance(300)  # what was refused is tried again after a while
        await cycle(agent, clock)
        delivered = await running.held(config)
        assert delivered > 0
        clock.advance(59 * DAY)
        await cycle(agent, clock)
        same = client_certificate.read(file)
        assert same is not None and same.certificate == first.certificate, "two thirds of its life are not over"
        clock.advance(2 * DAY)
        await cycle(agent, clock)
        second = client_certificate.read(file)
        assert second is not None and second.certificate.serial_number != first.certificate.serial_number
        assert second.key.public_key() != first.key.public_key(), (
            "a new TLS key, so the server wanted to see the present one"
        )
        assert second.certificate.not_valid_after_utc > first.certificate.not_valid_after_utc
        assert not file.with_name(f"{file.name}.next").exists()
        agent.drift_detector.drift("time_sync")
        await cycle(agent, clock)
        assert await running.held(config) > delivered
    finally:
        await agent.close()
    again = agent_of(config, clock)  # a restart shows the one on disk
    try:
        again.drift_detector.drift("logging")
        before = await running.held(config)
        await cycle(again, clock)
        assert await running.held(config) > before and again.mcp_client.certificate_trouble == ""
    finally:
        await again.close()


async def cycle(agent: ComplianceAgent, clock: FakeClock) -> None:
    """An iteration, and what it left to delivery."""
    await agent._run_iteration()
    await agent._heartbeat_if_due()
    await agent.delivery.turn()
    task = agent.delivery._task
    if task is not None:
        await asyncio.wait({task}, timeout=20)
    clock.advance(60)


# --- certificates that count for nothing ----------------------------------------------------------


def pem_of(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> Path:
    raw = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + certificate.public_bytes(Encoding.PEM)
    path.write_bytes(raw)
    path.chmod(0o600)
    return path


@dataclasses.dataclass
class Caller:
    """A host that calls with whatever certificate it is told to show."""

    running: Running
    config: AgentConfig

    @property
    def signer(self) -> Ed25519Signer:
        return Ed25519Signer(self.config.signing_key_file)

    async def checkin(self, shown: Path | None) -> str:
        """`200`, the status and code of a refusal, or the code of a connection that TLS has refused."""
        assert self.config.mcp_api_key_file is not None
        host = FakeHost(api_key=self.config.mcp_api_key_file.read_text().strip())
        body = {**checkin_body(host), "key_id": self.signer.key_id}
        return await self.post("/api/v1/checkin", body, shown, host.api_key)

    async def post(self, path: str, body: Any, shown: Path | None, api_key: str | None) -> str:
        transport = HttpTransport(self.running.url, ca_file=self.config.mcp_ca_file)
        if shown is not None:
            transport.use_client_certificate(shown)
        try:
            reply = await transport.request("POST", path, headers=headers(api_key), body=canonical(body))
        except Unavailable as error:
            return error.code
        finally:
            await transport.close()
        return "200" if reply.status == 200 else f"{reply.status} {reply.body.decode()}"


async def holding(caller: Caller, path: Path, *, now: datetime | None = None) -> Path:
    """A certificate that the server has given (its row is there), from its own authority, as of `now`."""
    key, running = ec.generate_private_key(ec.SECP256R1()), caller.running
    at = now or running.time()
    made = tls.ClientAuthority(running.tls_dir, at).issue(key.public_key(), caller.signer.key_id, at, LIFE)
    row = HostCertificate(
        fingerprint_of(made.public_bytes(Encoding.DER)), "clinic-1", caller.signer.key_id, "0" * 64, at, at + LIFE
    )
    async with opened(running.settings, running.time) as services:
        await services.store.write(lambda tx: tx.add_certificate(row, at_most=8))
    return pem_of(path, key, made)


REFUSED_BY_TLS = {
    "certificate_refused",
    "cut",
}  # TLS 1.3 tells it after the handshake, and the connection may be gone first


async def test_only_a_good_certificate_of_the_host_that_calls_gets_through(running: Running, tmp_path: Path) -> None:
    one, other = [Caller(running, await running.enrolled(tmp_path, name)) for name in ("ws-1", "ws-2")]
    good = await holding(one, tmp_path / "good.pem")
    assert await one.checkin(good) == "200"
    assert "certificate_required" in await one.checkin(None)
    assert "wrong_certificate" in await other.checkin(good)
    expired = await holding(one, tmp_path / "expired.pem", now=datetime.now(UTC) - timedelta(days=91))
    early = await holding(one, tmp_path / "early.pem", now=datetime.now(UTC) + timedelta(days=2))
    foreign, key = tls.ClientAuthority(tmp_path / "foreign", running.time()), ec.generate_private_key(ec.SECP256R1())
    signed = foreign.issue(key.public_key(), one.signer.key_id, running.time(), LIFE)
    servers = x509.load_pem_x509_certificate((running.tls_dir / "server.pem").read_bytes())
    servers_key = tls._load(running.tls_dir / "server-key.pem", running.tls_dir / "server.pem")[0]
    for what, file in {
        "expired": expired,
        "not yet valid": early,
        "another authority's": pem_of(tmp_path / "foreign.pem", key, signed),
        "the server's own": pem_of(tmp_path / "server.pem", servers_key, servers),
    }.items():
        assert await one.checkin(file) in REFUSED_BY_TLS, what
    assert await one.checkin(good) == "200"
    async with opened(running.settings, running.time) as services:
        await services.enrolment.revoke("clinic-1", one.signer.key_id, actor="test")
    assert "host_revoked" in await one.checkin(good)


async def test_people_and_enrolment_need_none(running: Running, tmp_path: Path) -> None:
    transport = HttpTransport(running.url, ca_file=running.tls_dir / "ca.pem")
    for path in ("/healthz", "/login", "/ca.pem"):
        assert (await transport.request("GET", path)).status == 200
    await transport.close()


@pytest.mark.parametrize("fault", ["nobody asks whose", "TLS does not look", "none is required"])
async def test_planted_a_server_with_a_hole_in_the_wall_is_caught(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    import ssl

    if fault == "TLS does not look":
        real = tls.context

        def unlooking(found: Any, clients_ca: Path | None = None) -> ssl.SSLContext:
            made = real(found, clients_ca)
            made.verify_mode = ssl.CERT_NONE
            return made

        monkeypatch.setattr(tls, "context", unlooking)
    else:
        whose = HostAccess.caller

        async def trusting(
            self: HostAccess, authorization: str | None, certificate: bytes | None = None, **more: Any
        ) -> Any:
            if fault == "none is required":
                more["may_lack_certificate"] = True
            return await whose(self, authorization, None if fault == "nobody asks whose" else certificate, **more)

        monkeypatch.setattr(HostAccess, "caller", trusting)
    running = request.getfixturevalue("running")
    with pytest.raises(AssertionError):
        await test_only_a_good_certificate_of_the_host_that_calls_gets_through(running, tmp_path)
