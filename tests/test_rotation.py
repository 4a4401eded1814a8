"""A host's key gives way to a new one: at every stop exactly one key signs, and the old one is kept until it is safe to lose."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import key_files
from compliance_agent.adapters.key_files import former_path, next_path
from compliance_agent.agent import ComplianceAgent
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import StorageError
from compliance_agent.evidence.former import FormerKey, FormerKeys
from compliance_agent.lab.server import Fault
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def key_of(scene: Scene) -> str:
    return Ed25519Signer(scene.config.signing_key_file).key_id


def agent_again(scene: Scene) -> ComplianceAgent:
    """A restart, with the key that the files give."""
    key_files_settled(scene)
    scene.signer = Ed25519Signer(scene.config.signing_key_file)
    return scene.agent()


def key_files_settled(scene: Scene) -> None:
    """What the agent's own constructor does first."""
    connection = sqlite3.connect(scene.config.database_path)
    row = connection.execute("SELECT key_id FROM chain").fetchone()
    connection.close()
    key_files.settle(scene.config.signing_key_file, row[0] if row else None)


async def unconfirmed(agent: ComplianceAgent) -> list[FormerKey]:
    return await FormerKeys(agent._database).unconfirmed()


async def iterate(agent: ComplianceAgent, times: int = 1) -> None:
    agent.running = True
    for _ in range(times):
        await agent._run_iteration()


async def record(agent: ComplianceAgent) -> None:
    """One bundle more, delivered where there is a way."""
    bundle = await agent.evidence_generator.create_evidence("", None, kind="heartbeat", counts={"pending": 0})
    await agent.evidence_generator.store_evidence(bundle)
    await agent.delivery.turn()


def documents(scene: Scene) -> list[dict[str, Any]]:
    found = [json.loads(path.read_bytes()) for path in scene.config.evidence_dir.glob("*/*/*/*/bundle.json")]
    return sorted(found, key=lambda document: (document["epoch"], document["seq"]))


async def test_the_new_key_signs_after_the_old_ones_last_record(scene: Scene) -> None:
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    await record(agent)
    rotated = await agent.key_rotation.rotate()
    assert rotated.code == "rotated"
    assert rotated.key_id == key_of(scene) != old
    await record(agent)
    await agent.close()
    first, *_, last_old, new = documents(scene)
    assert (first["host"]["key_id"], last_old["host"]["key_id"], new["host"]["key_id"]) == (old, old, rotated.key_id)
    assert (new["epoch"], new["seq"]) == (last_old["epoch"] + 1, 1)
    held = scene.server.stored(rotated.key_id)
    assert new["prev"] == held[-2].sha256
    assert [item.document["bundle_id"] for item in held] == [document["bundle_id"] for document in documents(scene)]
    assert not former_path(scene.config.signing_key_file).exists(), "the server knows: the old key is gone"
    assert not next_path(scene.config.signing_key_file).exists()
    stats = await agent_again(scene).offline_queue.get_stats()
    assert stats["damaged"] == 0, "what the former key has signed is still this host's own"


async def test_what_is_not_delivered_goes_first(scene: Scene) -> None:
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    scene.server.down = True
    await record(agent)
    assert (await agent.key_rotation.rotate()).code == "not_delivered"
    assert key_of(scene) == old
    scene.server.down = False
    await agent.delivery.process_queue()
    assert (await agent.key_rotation.rotate()).code == "rotated"
    await agent.close()


async def test_before_the_first_record_there_is_nothing_to_bind(scene: Scene) -> None:
    agent = scene.agent()
    assert (await agent.key_rotation.rotate()).code == "nothing_recorded"
    await record(agent)
    assert (await agent.key_rotation.rotate()).code == "rotated"
    assert (await agent.key_rotation.rotate()).code == "nothing_recorded", "nor straight after the last rotation"
    await agent.close()


@pytest.mark.parametrize(
    "fault", [Fault.LOSE_REQUEST, Fault.LOSE_REPLY, Fault.GARBAGE, Fault.ACK_FORGED, Fault.refuse(503)]
)
async def test_until_the_server_has_signed_that_it_knows_the_old_key_stays_and_nothing_is_lost(
    scene: Scene, fault: Fault
) -> None:
    agent, path = scene.agent(), scene.config.signing_key_file
    await record(agent)
    scene.server.faults.append(fault)
    rotated = await agent.key_rotation.rotate()
    assert rotated.code == "rotated", "here it is done, whatever the server has heard"
    assert former_path(path).exists()
    assert len(await unconfirmed(agent)) == 1
    assert (await agent.key_rotation.rotate()).code == "not_confirmed"
    await agent.close()
    agent = agent_again(scene)
    scene.clock.advance(3_600)
    await record(agent)
    assert await unconfirmed(agent) == []
    assert not former_path(path).exists()
    assert scene.server.stored(rotated.key_id)[-1].document["host"]["key_id"] == rotated.key_id
    assert (await agent.offline_queue.get_stats())["pending"] == 0
    await agent.close()


async def test_a_refusal_is_said_and_keeps_the_former_key(scene: Scene, capsys: pytest.CaptureFixture[str]) -> None:
    agent = scene.agent()
    await record(agent)
    for _ in range(3):
        scene.server.faults.append(Fault.refuse(409, "wrong_head"))
    await agent.key_rotation.rotate()
    await agent.key_rotation.tell()
    assert former_path(scene.config.signing_key_file).exists()
    assert capsys.readouterr().out.count("key.rotation_refused") == 1
    await agent.close()


STOPS: dict[str, Callable[[pytest.MonkeyPatch, ComplianceAgent], None]] = {}


def stop(name: str) -> Callable[[Callable[[pytest.MonkeyPatch, ComplianceAgent], None]], None]:
    def register(plant: Callable[[pytest.MonkeyPatch, ComplianceAgent], None]) -> None:
        STOPS[name] = plant

    return register


class Stopped(BaseException):
    """The process ends here."""


def dying(*_: Any, **__: Any) -> Any:
    raise Stopped


@stop("before the transaction")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    from compliance_agent.evidence.store import EvidenceStore

    monkeypatch.setattr(EvidenceStore, "rotate", dying)


@stop("after the transaction")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    monkeypatch.setattr(key_files, "settle", dying)


@stop("between the two renames")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    moves = key_files._move

    def once(path: Path, to: Path) -> None:
        moves(path, to)
        raise Stopped

    monkeypatch.setattr(key_files, "_move", once)


@stop("before the server is told")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    monkeypatch.setattr(agent.key_rotation, "tell", dying)


@stop("after the server has heard")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    rotate_key = agent.mcp_client.rotate_key

    async def heard(*sent: bytes) -> None:
        await rotate_key(*sent)
        raise Stopped

    monkeypatch.setattr(agent.mcp_client, "rotate_key", heard)


@stop("before the former key is removed")
def _(monkeypatch: pytest.MonkeyPatch, agent: ComplianceAgent) -> None:
    monkeypatch.setattr(key_files, "forget_former", dying)


@pytest.mark.parametrize("name", STOPS)
async def test_a_stop_at_any_point_leaves_one_key_and_an_unbroken_chain(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    with monkeypatch.context() as planted:
        STOPS[name](planted, agent)
        with pytest.raises(Stopped):
            await agent.key_rotation.rotate()
    await agent.close()
    agent = agent_again(scene)
    await record(agent)
    if name == "before the transaction":
        assert key_of(scene) == old
        assert (await agent.key_rotation.rotate()).code == "rotated", "the key that was made is used now"
        await record(agent)
    assert key_of(scene) != old
    assert await agent.key_rotation.tell()
    found = documents(scene)
    assert len({document["host"]["key_id"] for document in found}) == 2
    assert [item.document["bundle_id"] for item in scene.server.stored(key_of(scene))] == [
        item["bundle_id"] for item in found
    ]
    assert not former_path(scene.config.signing_key_file).exists()
    assert not next_path(scene.config.signing_key_file).exists()
    await agent.close()


async def test_a_full_disk_at_the_transaction_changes_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    store = await agent.evidence_generator.open()

    def full(_: Any) -> None:
        raise StorageError("no space", code="storage_full")

    with monkeypatch.context() as planted:
        planted.setattr(store.database, "write", full)
        with pytest.raises(StorageError):
            await agent.key_rotation.rotate()
    await record(agent)
    assert documents(scene)[-1]["host"]["key_id"] == old
    await agent.close()


async def test_it_gives_way_by_itself_after_so_many_days(tmp_path: Path) -> None:
    scene = Scene(tmp_path, settings={"key_rotation_days": 30})
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    await iterate(agent)
    scene.clock.advance(29 * 86_400)
    await iterate(agent)
    assert key_of(scene) == old
    scene.clock.advance(86_400)
    await iterate(agent)
    second = key_of(scene)
    assert second != old
    await record(agent)
    await iterate(agent)
    assert key_of(scene) == second, "and the days are counted anew"
    await agent.close()


async def test_a_persons_wish_is_met_by_the_running_agent(scene: Scene) -> None:
    agent, old = scene.agent(), scene.signer.key_id
    await record(agent)
    agent.key_rotation.request_file.touch()
    await iterate(agent)
    assert key_of(scene) != old
    assert not agent.key_rotation.request_file.exists()
    await agent.close()
