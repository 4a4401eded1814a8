"""The client: what waits together travels together and in order; only a verified acknowledgement counts; the network is spared."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.config import AgentConfig
from compliance_agent.core.receipt import PinnedLog
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import AgentError, BadEvidence, BadReply, ConfigError, NoInput, ServerRefused, Unavailable
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.server import FakeServer, Fault
from compliance_agent.mcp_client import Credentials, MCPClient, load_credentials, read_bundle
from compliance_agent.transport.protocol import Acknowledged
from tests.uplink.scene import Beside

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Host:
    """One enrolled host with a chain of minimal bundles on disk."""

    root: Path
    clock: FakeClock = field(default_factory=FakeClock)
    server: FakeServer = field(default_factory=FakeServer)
    acks: list[Acknowledged] = field(default_factory=list)
    beside: Beside | None = None  # the uplink by which it reaches the server

    def __post_init__(self) -> None:
        self.config = AgentConfig(
            client_id="c", site_id="clinic-1", host_id="h", state_dir=self.root / "state", mcp_url="https://mcp.example"
        )
        self.signer = Ed25519Signer(self.config.signing_key_file)
        self.config = self.server.enrolled(self.config, self.signer)
        self._prev, self._seq = "0" * 64, 0

    def client(self, **settings: Any) -> MCPClient:
        return MCPClient(
            dataclasses.replace(self.config, **settings),
            self.signer.key_id,
            transport=self.server if self.beside is None else self.beside.transport(),
            clock=self.clock,
            rng=random.Random(1),
            on_ack=self.acks.append,
        )

    def bundles(self, count: int, padding: int = 0) -> list[Path]:
        """So many more bundles of the chain."""
        made = []
        for _ in range(count):
            self._seq += 1
            document = {
                "bundle_id": f"00000000-0000-4000-8000-{self._seq:012d}",
                "host": {"key_id": self.signer.key_id},
                "epoch": 0,
                "seq": self._seq,
                "prev": self._prev,
                "padding": "x" * padding,
            }
            body = canonical(document)
            self._prev = hashlib.sha256(body).hexdigest()
            path = self.root / f"{self._seq}" / "bundle.json"
            path.parent.mkdir()
            path.write_bytes(body)
            path.with_suffix(".sig").write_bytes(self.signer.sign(body))
            made.append(path)
        return made

    @property
    def uploads(self) -> int:
        return self.server.requests.count("/api/v1/evidence")


@pytest.fixture
def enrolled(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture(params=["direct", "uplink"])
async def host(enrolled: Host, request: pytest.FixtureRequest) -> AsyncIterator[Host]:
    """The same host, by its own way to the server, and by way of uplink."""
    made = enrolled
    if request.param == "direct":
        yield made
        return
    made.beside = Beside(made.server, made.config.mcp_api_key_file)
    made.config = dataclasses.replace(made.config, privileges="split")
    yield made
    await made.beside.close()


async def uploaded(client: MCPClient, paths: Sequence[Path]) -> list[Any]:
    """Every answer: True, or the error."""
    return await asyncio.gather(*(client.upload_evidence(path) for path in paths), return_exceptions=True)


async def test_one_bundle_is_acknowledged(host: Host) -> None:
    (path,) = host.bundles(1)
    assert await host.client().upload_evidence(path, path.with_suffix(".sig")) is True
    (ack,) = host.acks
    (named,) = json.loads(ack.ack[64:])["bundles"]
    assert named["bundle_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


async def test_what_waits_together_leaves_together_and_in_order(host: Host) -> None:
    assert await uploaded(host.client(), host.bundles(250)) == [True] * 250
    assert host.uploads == 3
    assert [held.seq for held in host.server.stored()] == list(range(1, 251))
    assert [ack.seq for ack in host.acks] == list(range(1, 251))


async def test_who_has_more_to_send_does_not_wait_for_receipts(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last batch of the line does."""
    said, right = list[str | None](), host.server.request

    async def noting(*words: Any, **options: Any) -> Any:
        said.append(options["headers"].get("prefer"))
        return await right(*words, **options)

    monkeypatch.setattr(host.server, "request", noting)
    assert await uploaded(host.client(), host.bundles(250)) == [True] * 250
    assert said == ["wait=0", "wait=0", None]


async def test_batches_keep_to_count_and_size(host: Host) -> None:
    await uploaded(host.client(upload_batch_size=7), host.bundles(20))
    assert host.uploads == 3
    await uploaded(host.client(), host.bundles(30, padding=60_000))
    assert host.uploads == 3 + 3, "at most 700,000 bytes of bundles in one request"


async def test_calls_that_come_while_one_is_under_way_follow_it(host: Host) -> None:
    client, paths = host.client(), host.bundles(9)
    first = asyncio.ensure_future(uploaded(client, paths[:3]))
    await asyncio.sleep(0)
    second = asyncio.ensure_future(uploaded(client, paths[3:]))
    assert await first + await second == [True] * 9
    assert [held.seq for held in host.server.stored()] == list(range(1, 10))


async def test_after_the_first_refusal_nothing_more_is_tried(host: Host) -> None:
    paths = host.bundles(250)
    paths[120].with_suffix(".sig").write_bytes(b"x" * 64)
    answers = await uploaded(host.client(), paths)
    assert answers[:120] == [True] * 120
    assert all(isinstance(answer, ServerRefused) and answer.code == "bad_signature" for answer in answers[120:])
    assert host.uploads == 2
    assert len(host.server.stored()) == 120


async def test_the_position_the_server_wants_is_handed_on(host: Host) -> None:
    client, paths = host.client(), host.bundles(5)
    (answer,) = await uploaded(client, [paths[3]])
    assert isinstance(answer, ServerRefused)
    assert (answer.code, answer.expected) == ("seq_gap", (0, 1))


@pytest.mark.parametrize(
    "fault",
    [
        Fault.ACK_OTHER,
        Fault.ACK_SWAPPED,
        Fault.ACK_FORGED,
        Fault.ACK_CUT,
        Fault.ACK_SHORT,
        Fault.ACK_NOT_STORED,
        Fault.GARBAGE,
    ],
)
async def test_no_lie_about_an_acknowledgement_is_believed(host: Host, fault: Fault) -> None:
    client, paths = host.client(), host.bundles(3)
    host.server.faults.append(fault)
    assert all(isinstance(answer, BadReply) for answer in await uploaded(client, paths))
    assert host.acks == []
    assert await uploaded(client, paths) == [True] * 3, "it was stored all the same, and is acknowledged honestly now"


async def test_a_replayed_acknowledgement_is_not_believed(host: Host) -> None:
    client, paths = host.client(), host.bundles(2)
    await uploaded(client, paths[:1])
    host.server.faults.append(Fault.ACK_REPLAYED)
    (answer,) = await uploaded(client, paths[1:])
    assert isinstance(answer, BadReply)


async def test_a_lost_reply_is_made_good_by_sending_again(host: Host) -> None:
    client, paths = host.client(), host.bundles(3)
    host.server.faults.append(Fault.LOSE_REPLY)
    assert all(isinstance(answer, Unavailable) for answer in await uploaded(client, paths))
    assert await uploaded(client, paths) == [True] * 3
    assert len(host.server.stored()) == 3


async def test_retry_after_is_kept_by_everything(host: Host) -> None:
    client, paths = host.client(), host.bundles(1)
    host.server.faults.append(Fault.refuse(503, retry_after_s=120))
    (answer,) = await uploaded(client, paths)
    assert answer.retry_after_s == 120
    for _ in range(3):
        host.clock.advance(30)
        (answer,) = await uploaded(client, paths)
        assert isinstance(answer, Unavailable) and answer.code == "retry_after"
        with pytest.raises(Unavailable):
            await client.check_in(head=(0, 0, "0" * 64), pending=1, baseline=("", ""), checks={})
    assert len(host.server.requests) == 1
    host.clock.advance(31)
    assert await uploaded(client, paths) == [True]


@pytest.mark.parametrize("fault", [Fault.LOSE_REQUEST, Fault.GARBAGE, Fault.refuse(500), Fault.refuse(429, "too_many")])
async def test_a_server_that_fails_again_and_again_is_left_alone(host: Host, fault: Fault) -> None:
    client, paths = host.client(), host.bundles(1)
    host.server.faults.extend([fault] * 1_000)
    for _ in range(600):  # an hour of tries, one every six seconds
        await uploaded(client, paths)
        host.clock.advance(6)
    assert len(host.server.requests) < 30
    host.server.faults.clear()
    host.clock.advance(901)
    assert await uploaded(client, paths) == [True], "one probe, and all is well again"


async def test_a_bundle_that_is_refused_does_not_open_the_breaker(host: Host) -> None:
    client, paths = host.client(), host.bundles(2)
    for _ in range(20):
        (answer,) = await uploaded(client, paths[1:])
        assert isinstance(answer, ServerRefused)
    assert await uploaded(client, paths) == [True, True]


async def test_check_in_learns_what_the_server_holds(host: Host) -> None:
    client = host.client()
    report: dict[str, Any] = {"head": (0, 0, "0" * 64), "pending": 0, "baseline": ("1", "b" * 64), "checks": {}}
    assert (await client.check_in(**report)).known is None
    host.server.min_interval_s = 77
    await uploaded(client, host.bundles(2))
    assert client.min_interval_s == 77
    known = (await client.check_in(**report)).known
    assert known is not None and known[:2] == (0, 2)


async def test_health_never_raises(host: Host) -> None:
    client = host.client()
    assert await client.health_check() is True
    host.server.ready = False
    assert await client.health_check() is False
    host.server.down = True
    assert await client.health_check() is False


async def test_closing_gives_every_caller_an_answer(host: Host) -> None:
    client, paths = host.client(), host.bundles(3)
    host.server.faults.append(Fault.HANG)
    waiting = asyncio.ensure_future(uploaded(client, paths))
    await asyncio.sleep(0.01)
    await client.close()
    answers = await asyncio.wait_for(waiting, timeout=2)
    assert all(isinstance(answer, Unavailable) and answer.code == "stopped" for answer in answers)
    assert await uploaded(client, paths) == [True] * 3, "the client can be used again"


async def test_a_caller_that_leaves_takes_nobody_with_it(host: Host) -> None:
    client, paths = host.client(), host.bundles(3)
    tasks = [asyncio.ensure_future(client.upload_evidence(path)) for path in paths]
    await asyncio.sleep(0)
    tasks[1].cancel()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert answers[0] is True and answers[2] is True and isinstance(answers[1], asyncio.CancelledError)
    assert len(host.server.stored()) == 3


# --- files ---------------------------------------------------------------------------------------


async def test_a_host_that_is_not_enrolled_waits(host: Host) -> None:
    assert host.config.mcp_api_key_file is not None
    key = host.config.mcp_api_key_file.read_bytes()
    host.config.mcp_api_key_file.unlink()
    client, paths = host.client(), host.bundles(1)
    (answer,) = await uploaded(client, paths)
    assert isinstance(answer, Unavailable) and answer.code == "not_enrolled" and "enrol" in answer.line
    assert host.server.requests == []
    host.config.mcp_api_key_file.write_bytes(key)
    host.config.mcp_api_key_file.chmod(0o600)
    assert await uploaded(client, paths) == [True], "enrolment needs no restart"


async def test_a_new_key_is_read_after_the_old_one_was_refused(host: Host) -> None:
    client, paths = host.client(), host.bundles(2)
    assert await uploaded(client, paths[:1]) == [True]
    chain = host.server.chains[host.signer.key_id]
    chain.api_key = "cak-new"
    assert isinstance((await uploaded(client, paths[1:]))[0], ServerRefused)
    assert host.config.mcp_api_key_file is not None
    host.config.mcp_api_key_file.write_text("cak-new\n")
    assert await uploaded(client, paths[1:]) == [True]


@pytest.mark.parametrize(
    ("field_name", "content", "mode"),
    [
        ("mcp_api_key_file", b"key", 0o644),
        ("mcp_api_key_file", b"key", 0o660),
        ("mcp_api_key_file", b"", 0o600),
        ("mcp_api_key_file", b"two words", 0o600),
        ("mcp_api_key_file", b"a\nX-Evil: 1", 0o600),
        ("mcp_api_key_file", b"\xff\xfe", 0o600),
        ("mcp_api_key_file", b"x" * 5_000, 0o600),
        ("mcp_server_key_file", b"ab" * 32, 0o666),
        ("mcp_server_key_file", b"ab" * 31, 0o600),
        ("mcp_server_key_file", b"zz" * 32, 0o600),
        ("mcp_server_key_file", b"", 0o600),
    ],
)
def test_a_credential_that_is_none_or_open_to_others_is_refused(
    enrolled: Host, field_name: str, content: bytes, mode: int
) -> None:
    path: Path = getattr(enrolled.config, field_name)
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError) as refused:
        load_credentials(enrolled.config)
    assert refused.value.line.startswith(field_name)
    assert "key" not in content.decode("latin-1") or "key\n" not in refused.value.line


def test_a_log_key_that_is_none_is_refused_and_delivery_does_not_need_it(enrolled: Host) -> None:
    path = enrolled.config.mcp_log_key_file
    assert path is not None and path.parent == enrolled.config.mcp_server_key_file.parent  # type: ignore[union-attr]
    client = enrolled.client()
    assert enrolled.server.log is not None and client.pinned_log() == PinnedLog(enrolled.server.log.public, "fake")
    key = enrolled.server.log.public.hex().encode()
    for content in (b"", b"ab" * 31, b"zz" * 32, b"01" + b"00" * 31, key + b"\na b", key + b"\na\nb", key + b"\n../up"):
        path.write_bytes(content)
        client.forget_credentials()
        with pytest.raises(ConfigError) as refused:
            client.pinned_log()
        assert refused.value.line.startswith("mcp_log_key_file")
        load_credentials(enrolled.config)
    path.write_bytes(key)
    assert client.pinned_log() == PinnedLog(enrolled.server.log.public)
    path.unlink()
    client.forget_credentials()
    assert client.pinned_log() is None


async def test_receipts_and_files_of_the_log(host: Host) -> None:
    client, log = host.client(), host.server.log
    assert log is not None
    assert await uploaded(client, host.bundles(3)) == [True] * 3
    assert all(ack.receipt is not None for ack in host.acks)
    ids = [ack.bundle_id for ack in host.acks]
    found = await client.fetch_receipts([*ids, "of another host"])
    assert [item is not None for item in found] == [True, True, True, False]
    assert await client.log_file(log.origin, "checkpoint") == log.note()
    with pytest.raises(ServerRefused) as refused:
        await client.log_file(log.origin, "tile/0/009")
    assert refused.value.status == 404
    assert client.breaker.allow(host.clock.monotonic()), "a missing tile is no failure of the server"


def test_credentials_do_not_show_themselves() -> None:
    assert "cak" not in repr(Credentials("cak-secret", b"k" * 32)) + str(Credentials("cak-secret", b"k" * 32))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"{}", b'{"bundle_id":1,"epoch":0,"seq":1}', b'{"bundle_id":"x","epoch":true,"seq":1}',
     b'{"bundle_id":"x","epoch":0,"seq":"1"}', b'{"bundle_id":"x","epoch":0}', b"[" * 60_000],
)  # fmt: skip
def test_a_file_that_is_no_bundle_is_not_sent(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "bundle.json"
    path.write_bytes(body)
    path.with_suffix(".sig").write_bytes(b"s" * 64)
    with pytest.raises(BadEvidence):
        read_bundle(path)


def test_a_bundle_without_its_files_is_named(tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        read_bundle(tmp_path / "bundle.json")
    path = tmp_path / "bundle.json"
    path.write_bytes(b'{"bundle_id":"x","epoch":0,"seq":1}')
    for signature in (b"", b"s" * 63, b"s" * 65):
        path.with_suffix(".sig").write_bytes(signature)
        with pytest.raises(AgentError):
            read_bundle(path)
