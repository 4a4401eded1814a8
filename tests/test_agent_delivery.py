"""Delivery over a server with faults: everything recorded arrives, once and in order, and nothing is forgotten on a lie."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import delivery
from compliance_agent.agent import ComplianceAgent
from compliance_agent.crypto import verify
from compliance_agent.lab.server import FakeServer, Fault
from compliance_agent.models import BundleKind
from compliance_agent.transport.protocol import CheckinReply
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    await made.close()


async def record(agent: ComplianceAgent, count: int) -> None:
    """So many heartbeats, recorded and in line."""
    for number in range(count):
        await agent.recording.create(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )


async def drain(scene: Scene, agent: ComplianceAgent, turns: int = 40) -> None:
    """Turns with an hour between them, until nothing waits."""
    for _ in range(turns):
        await agent.delivery.turn()
        await scene.delivered(agent)
        if (await agent.offline_queue.get_stats())["pending"] == 0:
            return
        scene.clock.advance(3_700)
    raise AssertionError("stuck: something still waits after every fault has ended")


def places(server: FakeServer) -> list[tuple[int, int]]:
    return [(held.epoch, held.seq) for held in server.stored()]


async def test_500_bundles_of_an_outage_arrive_once_each_in_order(scene: Scene) -> None:
    agent = scene.agent()
    scene.server.down = True
    await record(agent, 500)
    await agent.delivery.turn()
    await scene.delivered(agent)
    assert scene.server.stored() == []
    scene.server.down = False
    await drain(scene, agent)
    assert places(scene.server) == [(0, seq) for seq in range(1, 501)]
    assert [item["counts"]["pending"] for item in scene.documents()] == list(range(500))
    assert (await agent.offline_queue.get_stats())["uploaded"] == 500
    requests = scene.server.requests.count("/api/v1/evidence")
    assert requests <= 8, f"{requests} requests for 500 bundles"


FAULTS = {
    "request lost": Fault.LOSE_REQUEST,
    "reply lost after storing": Fault.LOSE_REPLY,
    "arrives twice": Fault.DUPLICATE,
    "acknowledges another bundle": Fault.ACK_OTHER,
    "acknowledges with another key": Fault.ACK_FORGED,
    "acknowledges with a cut document": Fault.ACK_CUT,
    "leaves the last bundle out": Fault.ACK_SHORT,
    "replays old acknowledgements": Fault.ACK_REPLAYED,
    "acknowledges nothing": Fault.ACK_NOT_STORED,
    "garbage": Fault.GARBAGE,
    "500": Fault.refuse(500),
    "503 with Retry-After": Fault.refuse(503, retry_after_s=30),
    "429 with Retry-After": Fault.refuse(429, "too_many", retry_after_s=900),
    "401": Fault.refuse(401, "not_authenticated"),
    "413": Fault.refuse(413, "too_large"),
    "404": Fault.refuse(404, "not_found"),
    "422": Fault.refuse(422, "bad_schema"),
}


@pytest.mark.parametrize("name", FAULTS)
async def test_nothing_is_lost_or_stored_twice_by_any_fault(scene: Scene, name: str) -> None:
    """The same fault again and again, on check-ins and uploads alike; then it ends."""
    agent = scene.agent()
    await scene.cycle(agent)
    before = agent.stats["evidence_uploaded"]
    scene.server.faults.extend([FAULTS[name]] * 6)
    await record(agent, 7)
    for _ in range(3):
        await agent.delivery.turn()
        await scene.delivered(agent)
        scene.clock.advance(3_700)
    scene.server.faults.clear()
    await drain(scene, agent)
    assert places(scene.server) == [(0, seq) for seq in range(1, before + 8)]
    assert agent.stats["evidence_uploaded"] == before + 7


async def test_what_has_no_files_is_delivered_all_the_same(scene: Scene) -> None:
    """A full disk: the rows are there, their directories cannot be made. Once they can, they are."""
    agent = scene.agent()
    evidence = scene.config.evidence_dir
    evidence.write_text("in the way")
    await record(agent, 3)
    await drain(scene, agent)
    assert places(scene.server) == [(0, 1), (0, 2), (0, 3)]
    evidence.unlink()
    await record(agent, 1)
    assert len(list(evidence.rglob("bundle.json"))) == 4, "no restart is needed for that"


async def test_an_acknowledgement_is_kept_as_proof(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    query = "SELECT e.epoch, e.seq, e.sha256, acks.ack FROM evidence e JOIN acks ON acks.sha256 = e.ack ORDER BY e.seq"
    rows = agent._database.read(lambda connection: connection.execute(query).fetchall())
    assert [seq for _, seq, _, _ in rows] == list(range(1, agent.stats["evidence_uploaded"] + 1))
    for epoch, seq, digest, ack in rows:
        assert verify(scene.server.public, ack[:64], ack[64:])
        named = {"bundle_sha256": digest, "epoch": epoch, "seq": seq, "status": "stored"}
        assert named in json.loads(ack[64:])["bundles"]
    assert len({ack for *_, ack in rows}) < len(rows), "what left together is acknowledged together"


async def test_retry_after_is_kept(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    scene.server.faults.append(Fault.refuse(503, retry_after_s=600))
    await record(agent, 1)
    await agent.delivery.turn()
    count = len(scene.server.requests)
    for _ in range(5):
        scene.clock.advance(100)
        await agent.delivery.turn()
        assert len(scene.server.requests) == count, "asked again before the server allowed it"
    scene.clock.advance(200)
    await drain(scene, agent)


async def test_a_refusal_counts_against_the_bundle_that_was_refused_alone(scene: Scene) -> None:
    agent = scene.agent()
    scene.server.down = True
    await record(agent, 5)
    scene.server.down = False
    scene.server.faults.extend([Fault.NONE, Fault.refuse(422, "bad_schema")])
    await agent.delivery.turn()
    await scene.delivered(agent)
    counts = agent._database.read(
        lambda connection: connection.execute("SELECT retry_count, last_error FROM evidence ORDER BY seq").fetchall()
    )
    assert counts == [(1, "bad_schema"), *[(0, None)] * 4]
    await drain(scene, agent)


async def test_a_server_that_was_set_back_gets_what_it_lost_again(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent, 3)
    await record(agent, 5)
    await drain(scene, agent)
    held = len(scene.server.stored())
    del scene.server.stored()[2:]
    await record(agent, 1)
    await drain(scene, agent)
    assert places(scene.server) == [(0, seq) for seq in range(1, held + 2)]


async def set_back(scene: Scene, offline: int) -> tuple[ComplianceAgent, list[dict[str, Any]]]:
    """Restore the host's disk to a copy made before its last bundles; it then records `offline` more before it calls."""
    agent = scene.agent()
    await scene.cycle(agent)
    await scene.close()
    scene.live = None
    copy = scene.root / "copy"
    shutil.copytree(scene.config.state_dir, copy)
    agent = scene.agent()
    await record(agent, 4)
    await drain(scene, agent)
    await scene.close()
    shutil.rmtree(scene.config.state_dir)
    shutil.copytree(copy, scene.config.state_dir)
    before = list(scene.documents())
    agent = scene.agent()
    await record(agent, offline)
    return agent, before


@pytest.mark.parametrize("offline", [0, 1, 3, 4, 9])
async def test_a_host_that_was_set_back_goes_on_in_a_new_epoch(scene: Scene, offline: int) -> None:
    """Its old numbers are taken at the server; what it recorded under them meanwhile gets new places and arrives."""
    agent, before = await set_back(scene, offline)
    await drain(scene, agent)
    await scene.cycle(agent, 70)
    await drain(scene, agent)
    documents = scene.documents()
    assert list(documents[: len(before)]) == before
    assert {item["epoch"] for item in documents[len(before) :]} == {1}
    assert len([item for item in documents if item["kind"] == "incident" and item["reason"] == "server_ahead"]) == 1
    counts = [item["counts"] for item in documents[len(before) :]]
    assert sorted(count["pending"] for count in counts if set(count) == {"pending"}) == list(range(offline))
    assert len({item["bundle_id"] for item in documents}) == len(documents)


async def test_a_server_that_lies_about_its_head_cannot_fill_the_chain_with_epochs(scene: Scene) -> None:
    agent = scene.agent()
    await scene.cycle(agent)
    client = agent.mcp_client
    assert client is not None
    number = 0

    async def lie(**_: Any) -> CheckinReply:
        nonlocal number
        number += 1
        return CheckinReply((number + 5, 1, f"{number:064x}"), 1, "2026-11-22T12:00:00Z")

    honest, client.check_in = client.check_in, lie
    await scene.cycle(agent, 59)
    assert (await agent.evidence_generator.head())[0] == 7
    client.check_in = honest
    scene.clock.advance(3_700)
    await record(agent, 3)
    await drain(scene, agent)
    pending = agent._database.read(
        lambda connection: connection.execute("SELECT count(*) FROM evidence WHERE state != 'uploaded'").fetchone()
    )
    assert pending == (0,), "an honest server must get everything in the end"


async def test_a_server_in_trouble_holds_up_one_turn_and_not_those_that_follow(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where uplink is down and the service manager holds its socket: nobody refuses, and nobody answers."""
    agent = scene.agent()
    scene.server.down = True
    await agent.delivery.turn()
    assert agent.delivery.trouble
    monkeypatch.setattr(delivery, "TROUBLED_S", 0.02)
    silent = asyncio.Event()

    async def hangs(_: object) -> bool:
        return bool(await silent.wait())

    monkeypatch.setattr(agent.delivery, "_round", hangs)
    async with asyncio.timeout(1):
        await agent.delivery.turn()
    assert not silent.is_set()
    silent.set()
    await scene.delivered(agent)


async def test_a_check_in_says_what_stands(scene: Scene) -> None:
    agent = scene.agent()
    scene.detector.drift("time_sync")
    scene.healer.held["time_sync"] = "paused"
    await scene.cycle(agent, 2)
    said = scene.server.check_ins[-1]
    assert said["checks"]["time_sync"]["result"] == "fail"
    assert said["head"]["seq"] == len(scene.documents()) and said["pending"] == 0
    assert said["baseline"]["sha256"] == scene.detector.baseline.sha256
