"""The client certificate where uplink holds its key: made there, vouched for here, and the key never leaves."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from compliance_agent.client_certificate import ClientCertificate, read
from compliance_agent.config import AgentConfig
from compliance_agent.errors import Unavailable
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.server import FakeServer
from compliance_agent.server.tls import ClientAuthority
from compliance_agent.uplink.certificate import OwnCertificate
from compliance_agent.uplink.link import CertificateOfUplink, UplinkTransport
from tests.test_client_certificate import DAY, Scene, Server
from tests.uplink.scene import Beside

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Way:
    """What the connection to the server shows."""

    def __init__(self) -> None:
        self.shown: list[Path | None] = []

    def use_client_certificate(self, path: Path | None) -> None:
        self.shown.append(path)


@dataclasses.dataclass
class Told(Server):
    """The server, by way of uplink: it sees a certificate when uplink's connection shows one."""

    certificate_of_uplink: CertificateOfUplink | None = None


@dataclasses.dataclass
class Split:
    """A run and an uplink, each with its own directory."""

    scene: Scene
    server: Told
    way: Way
    transport: UplinkTransport

    @property
    def file(self) -> Path:
        return self.scene.config.client_cert_file


@pytest.fixture
async def split(tmp_path: Path) -> AsyncIterator[Split]:
    clock, way = FakeClock(), Way()
    config = AgentConfig(
        client_id="msp", site_id="clinic-1", host_id="srv-1", privileges="split",
        state_dir=tmp_path / "state", uplink_dir=tmp_path / "uplink",
    )  # fmt: skip
    beside = Beside(FakeServer(), None)
    beside.doors.certificate = OwnCertificate(config.client_cert_file, way)  # type: ignore[arg-type]
    transport = beside.transport()
    server = Told(ClientAuthority(tmp_path / "ca", clock.now()), clock, certificate_of_uplink=transport.certificate)
    yield Split(Scene(config, clock, server), server, way, transport)
    await beside.close()


async def test_it_is_made_renewed_and_shown_by_uplink_and_its_key_stays_there(split: Split) -> None:
    scene, kept = split.scene, split.scene.kept
    assert not await kept.keep(), "nobody wants one"
    split.server.certificate_trouble = "certificate_required"
    assert await kept.keep()
    first = read(split.file)
    assert first is not None and split.file == scene.config.uplink_dir / "client.pem"
    assert split.way.shown == [None, split.file]
    there, seen = await split.transport.certificate.present()
    assert there and seen == first.certificate.public_bytes(Encoding.PEM)
    split.server.shows = split.file  # the next connection shows it
    assert not await kept.keep()
    scene.clock.advance(61 * DAY)
    assert await kept.keep()
    second = read(split.file)
    assert second is not None and second.key.public_key() != first.key.public_key()
    assert {path.name for path in split.file.parent.iterdir()} == {"client.pem"}
    assert not scene.config.state_dir.exists(), "nothing of it is in the agent's own directory"


async def test_an_answer_that_was_lost_is_asked_for_again_with_the_same_key(split: Split) -> None:
    split.server.certificate_trouble, split.server.lost = "certificate_required", 1
    assert not await split.scene.kept.keep()
    assert await ClientCertificate(split.scene, split.scene.config).keep()
    one, two = (key.public_numbers() for key in split.server.keys)
    assert one == two


async def test_a_certificate_for_another_key_is_not_kept(split: Split) -> None:
    split.server.certificate_trouble, split.server.other_key = "certificate_required", True
    assert not await split.scene.kept.keep()
    assert not split.file.exists()
    with pytest.raises(Unavailable):
        await split.transport.certificate.take(b"no certificate")


async def test_what_comes_over_the_frames_holds_no_key(split: Split) -> None:
    split.server.certificate_trouble = "certificate_required"
    assert await split.scene.kept.keep()
    own = OwnCertificate(split.file, split.way)  # type: ignore[arg-type]
    there, pem = await own.present()
    assert there and b"PRIVATE" in split.file.read_bytes() and b"PRIVATE" not in pem
    assert x509.load_pem_x509_certificate(pem).public_bytes(Encoding.PEM) == pem
    for damage in (b"", b"-----END CERTIFICATE----- -----BEGIN CERTIFICATE-----", split.file.read_bytes()[:200]):
        split.file.write_bytes(damage)
        assert await own.present() == (True, b"")


async def test_nobody_to_ask_is_no_trouble_of_the_certificate(tmp_path: Path, split: Split) -> None:
    split.server.certificate_of_uplink = None
    assert not await split.scene.kept.keep()
