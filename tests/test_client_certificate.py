"""The agent's client certificate: asked for when it is wanted, whole on disk, and never a reason to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from compliance_agent import client_certificate
from compliance_agent.client_certificate import ClientCertificate, Held, due, ended, read
from compliance_agent.config import AgentConfig
from compliance_agent.errors import ServerRefused, Unavailable
from compliance_agent.lab.clock import FakeClock
from compliance_agent.server.tls import ClientAuthority

pytestmark = pytest.mark.anyio
DAY = 86_400


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Server:
    """What `MCPClient` is to it: gives certificates by the server's rule, or trouble."""

    authority: ClientAuthority
    clock: FakeClock
    certificate_trouble: str = ""
    shows: Path | None = None
    keys: list[Any] = field(default_factory=list)  # that certificates were given for
    lost: int = 0  # answers that get lost after they took effect
    error: Exception | None = None
    other_key: bool = False

    async def certify(self, csr: bytes, signer: Any) -> bytes:
        if self.error is not None:
            raise self.error
        key: Any = x509.load_der_x509_csr(csr).public_key()
        known = self.shows is not None or not self.keys or key in self.keys
        if not known:
            raise ServerRefused("no", code="certificate_required", status=403)
        self.keys.append(key)
        if self.lost:
            self.lost -= 1
            raise Unavailable("cut", code="cut")
        given = ec.generate_private_key(ec.SECP256R1()).public_key() if self.other_key else key
        made = self.authority.issue(given, "ab" * 32, self.clock.now(), timedelta(days=90))
        return made.public_bytes(Encoding.PEM)

    def use_certificate(self, path: Path | None) -> None:
        self.shows = path
        if path is not None:
            self.certificate_trouble = ""


@dataclass
class Scene:
    """The parts of an agent that it needs."""

    config: AgentConfig
    clock: Any
    mcp_client: Any
    signer: Any = None

    def __post_init__(self) -> None:
        self.kept = ClientCertificate(self, self.config)

    @property
    def path(self) -> Path:
        return self.config.client_cert_file

    @property
    def held(self) -> Held:
        found = read(self.path)
        assert found is not None
        return found


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    clock = FakeClock()
    config = AgentConfig(client_id="msp", site_id="clinic-1", host_id="srv-1", state_dir=tmp_path / "state")
    server = Server(ClientAuthority(tmp_path / "ca", clock.now()), clock)
    return Scene(config, clock, server)


async def test_none_is_asked_for_where_none_is_wanted(scene: Scene) -> None:
    assert not await scene.kept.keep()
    assert scene.mcp_client.keys == [] and not scene.path.parent.exists()


async def test_it_is_asked_for_when_the_server_says_so_and_renewed_in_time(scene: Scene) -> None:
    scene.mcp_client.certificate_trouble = "certificate_required"
    assert await scene.kept.keep()
    first = scene.held
    assert scene.mcp_client.shows == scene.path and scene.path.stat().st_mode & 0o777 == 0o600
    assert not await scene.kept.keep()
    scene.clock.advance(59 * DAY)
    assert not await scene.kept.keep()
    scene.clock.advance(2 * DAY)
    assert await scene.kept.keep()
    assert scene.held.key.public_key() != first.key.public_key()
    assert {item.name for item in scene.path.parent.iterdir()} == {"client.pem"}


@pytest.mark.parametrize("lost", [1, 3])
async def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(scene: Scene, lost: int) -> None:
    scene.mcp_client.certificate_trouble, scene.mcp_client.lost = "certificate_required", lost
    for _ in range(lost):
        assert not await scene.kept.keep()
        scene.kept = ClientCertificate(scene, scene.config)  # and the agent was started anew
        assert read(scene.path) is None
    assert await scene.kept.keep()
    assert len(set(map(client_pem, scene.mcp_client.keys))) == 1 and scene.mcp_client.certificate_trouble == ""


async def test_planted_a_key_that_is_made_anew_each_time_is_caught(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_certificate, "_next_key", lambda _: ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(AssertionError):
        await test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(scene, 1)


def client_pem(key: Any) -> bytes:
    from cryptography.hazmat.primitives.serialization import PublicFormat

    return bytes(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


@pytest.mark.parametrize("how", ["ended", "wrong_certificate", "certificate_refused", "certificate_required"])
async def test_one_that_counts_no_more_is_not_shown_and_its_key_is_kept(scene: Scene, how: str) -> None:
    scene.mcp_client.certificate_trouble = "certificate_required"
    await scene.kept.keep()
    before = scene.held
    if how == "ended":
        scene.clock.advance(120 * DAY)
    else:
        scene.mcp_client.certificate_trouble = how
    shown: list[Path | None] = []
    use = scene.mcp_client.use_certificate

    def noting(path: Path | None) -> None:
        shown.append(path)
        use(path)

    scene.mcp_client.use_certificate = noting
    assert await scene.kept.keep()
    assert shown == [None, scene.path]
    assert scene.held.key.public_key() == before.key.public_key()
    assert scene.held.certificate.serial_number != before.certificate.serial_number


async def test_a_damaged_file_is_made_anew_and_one_for_another_key_is_not_kept(scene: Scene) -> None:
    scene.mcp_client.certificate_trouble, scene.mcp_client.other_key = "certificate_required", True
    assert not await scene.kept.keep()
    assert not scene.path.exists()
    scene.mcp_client.other_key = False
    assert await scene.kept.keep()
    whole = scene.path.read_bytes()
    for damage in (b"", whole[:300], b"\xff" * 100, whole.replace(b"CERTIFICATE", b"CERTIFICATF")):
        scene.path.write_bytes(damage)
        assert read(scene.path) is None
        scene.mcp_client.keys.clear()  # an operator let the host begin anew (`hosts recertify`)
        assert await scene.kept.keep()
        assert scene.held.certificate


async def test_trouble_is_said_once_and_tried_again(scene: Scene) -> None:
    scene.mcp_client.certificate_trouble = "certificate_required"
    scene.mcp_client.error = ServerRefused("no", code="host_waiting", status=403)
    with structlog.testing.capture_logs() as logged:
        for _ in range(3):
            assert not await scene.kept.keep()
        scene.mcp_client.error = None
        assert await scene.kept.keep()
    said = [(item["event"], item.get("code")) for item in logged]
    assert said == [("certificate.renewal_failed", "host_waiting"), ("certificate.renewed", None)]


async def test_files_of_somebody_else_are_left_alone(scene: Scene, tmp_path: Path) -> None:
    config = AgentConfig(
        client_id="msp", site_id="clinic-1", host_id="srv-1", state_dir=tmp_path / "state",
        client_cert_file=tmp_path / "cert.pem", client_key_file=tmp_path / "key.pem",
    )  # fmt: skip
    kept = ClientCertificate(scene, config)
    scene.mcp_client.certificate_trouble = "certificate_required"
    assert not await kept.keep()
    assert scene.mcp_client.keys == [] and not (tmp_path / "cert.pem").exists()


def test_two_thirds_of_a_life(scene: Scene) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    begins = datetime.fromisoformat("2026-01-01T01:00:00+00:00")
    made = scene.mcp_client.authority.issue(key.public_key(), "ab" * 32, begins, timedelta(days=90))
    whole = timedelta(days=90, hours=1)  # from 00:00, an hour before, as clocks differ
    start = begins - timedelta(hours=1)
    assert not due(made, start + whole * 2 / 3 - timedelta(seconds=1)) and due(made, start + whole * 2 / 3)
    assert ended(made, start - timedelta(seconds=1)) and not ended(made, start) and ended(made, start + whole)
