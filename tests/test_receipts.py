"""No lie of a log is believed, each is named, and what contradicts itself leaves proof that others can check."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import receipts as receipts_module
from compliance_agent.adapters.log_store import LogStore
from compliance_agent.agent import ComplianceAgent
from compliance_agent.core import receipt as core
from compliance_agent.errors import StorageFull
from compliance_agent.evidence.verify import check_bytes, verify_paths
from compliance_agent.lab.log import FakeLog, Lie
from compliance_agent.lab.server import FakeServer, Fault
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.models import BundleKind
from compliance_agent.transport.protocol import OfferedReceipt
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


def log_of(scene: Scene) -> FakeLog:
    assert scene.server.log is not None
    return scene.server.log


async def record(scene: Scene, agent: ComplianceAgent, count: int = 1) -> None:
    """So many heartbeats, recorded, and given one turn of delivery."""
    for number in range(count):
        await agent.recording.create(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )
    await turn(scene, agent)


async def turn(scene: Scene, agent: ComplianceAgent) -> None:
    scene.clock.advance(60)
    await agent.delivery.turn()
    await scene.delivered(agent)


def rows(agent: ComplianceAgent, statement: str) -> list[Any]:
    return agent._database.read(lambda connection: connection.execute(statement).fetchall())


def receipted(agent: ComplianceAgent) -> int:
    return int(rows(agent, "SELECT count(*) FROM receipts")[0][0])


def heads(agent: ComplianceAgent) -> list[Any]:
    return rows(agent, "SELECT origin, size, root, code FROM log_heads")


async def log_health(agent: ComplianceAgent) -> dict[str, Any]:
    found = (await agent.health_check())["offline_queue"]["log"]
    assert isinstance(found, dict)
    return found


# What is true


async def test_every_bundle_gets_a_receipt_that_anyone_can_check(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 5)
    log = log_of(scene)
    policy = Policy((log.vkey,), {}, {}, "none", {})
    found = sorted(scene.config.evidence_dir.rglob("bundle.tlog-proof"))
    assert len(found) == receipted(agent) == 5
    for path in found:
        leaf = path.with_name("leaf.json").read_bytes()
        assert leaf in log.entries
        Proof.parse(path.read_bytes()).verify(hash_leaf(leaf), policy)
        said, bundle = json.loads(leaf), json.loads(path.with_name("bundle.json").read_bytes())
        assert (said["epoch"], said["seq"], said["prev"]) == (bundle["epoch"], bundle["seq"], bundle["prev"])
        assert base64.b64decode(said["sig"]) == path.with_name("bundle.sig").read_bytes()
    assert (await log_health(agent))["state"] == "followed"
    assert (await log_health(agent))["unlogged"] == 0


async def test_the_next_bundle_names_the_checkpoint_that_was_verified(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 3)
    [(origin, size, root, _)] = heads(agent)
    assert origin == log_of(scene).origin
    await record(scene, agent)
    before, last = scene.documents()[0], scene.documents()[-1]
    assert before["log_head"] is None
    assert last["log_head"] == {"origin": origin, "size": size, "root": root, "witnessed_at": None}
    signed = Checkpoint.parse(Note.parse(log_of(scene).note(size)).text)
    assert signed.root.hex() == root


async def test_the_stored_checkpoint_only_moves_forward(scene: Scene) -> None:
    """A receipt under an older, consistent checkpoint is good, and does not take the head back."""
    agent = scene.agent()
    log = log_of(scene)
    await record(scene, agent, 2)
    log.lie = Lie.NO_RECEIPT
    await record(scene, agent)
    bundle_id = scene.documents()[-1]["bundle_id"]
    log.lie = Lie.NOTHING
    older = log.receipt(bundle_id)
    for _ in range(300):
        log.append(b"of another host")
    await record(scene, agent)
    [(_, size, _, _)] = heads(agent)
    assert size == log.size and older is not None
    rows_before = receipted(agent)
    agent._database.write(lambda connection: connection.execute("DELETE FROM receipts"))
    client = agent.mcp_client
    offered = OfferedReceipt(bundle_id, base64.b64decode(older["leaf"]), base64.b64decode(older["proof"]))
    assert await agent.receipts.take(client, [offered]) == 1
    assert [item[1] for item in heads(agent)] == [size]
    await turn(scene, agent)
    assert receipted(agent) == rows_before


@pytest.mark.parametrize("sizes", [(1, 2), (255, 2), (256, 1), (257, 300), (300, 700)])
async def test_growth_is_proven_over_tile_edges(scene: Scene, sizes: tuple[int, int]) -> None:
    agent = scene.agent()
    for count in sizes:
        for _ in range(count):
            log_of(scene).append(b"of another host")
        await record(scene, agent)
    assert receipted(agent) == len(sizes)
    assert heads(agent)[0][1] == log_of(scene).size


async def test_receipts_and_heads_survive_a_restart(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 3)
    known = heads(agent)
    agent = await scene.restart()
    assert heads(agent) == known and receipted(agent) == 3
    log_of(scene).fork()
    await record(scene, agent)
    assert receipted(agent) == 3, "believed a fork after a restart"


async def test_a_crash_between_acknowledgement_and_receipt(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Acknowledged and marked, then gone before the receipt was stored: it is asked for after the start."""
    agent = scene.agent()

    async def killed(*_: Any) -> int:
        raise RuntimeError("killed here")

    monkeypatch.setattr(agent.receipts, "take", killed)
    monkeypatch.setattr(agent.receipts, "collect", killed)
    await record(scene, agent, 3)
    assert receipted(agent) == 0
    agent = await scene.restart()
    sent = scene.server.requests.count("/api/v1/evidence")
    await turn(scene, agent)
    assert receipted(agent) == 3
    assert scene.server.requests.count("/api/v1/evidence") == sent, "a bundle was sent again for its receipt"


async def test_a_receipt_that_was_not_copied_is_copied_later(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 2)
    agent._database.write(lambda connection: connection.execute("UPDATE receipts SET settled = 0"))
    for path in scene.config.evidence_dir.rglob("leaf.json"):
        path.unlink()
    agent = await scene.restart()
    await turn(scene, agent)
    assert len(list(scene.config.evidence_dir.rglob("leaf.json"))) == 2


async def test_late_receipts_come_in_batches_within_one_turn(scene: Scene) -> None:
    agent = scene.agent()
    log_of(scene).lie = Lie.LATE
    scene.server.down = True
    await record(scene, agent, 250)
    scene.server.down = False
    scene.clock.advance(3_700)
    await turn(scene, agent)
    assert receipted(agent) == 250
    assert scene.server.requests.count("/api/v1/receipts") == 3


async def test_receipts_that_are_never_given_do_not_hold_up_later_ones(scene: Scene) -> None:
    agent = scene.agent()
    log = log_of(scene)
    log.lie = Lie.NO_RECEIPT
    await record(scene, agent, 120)
    lost = {item["bundle_id"] for item in scene.documents()}
    log._places = {name: index for name, index in log._places.items() if name not in lost}
    log.lie = Lie.LATE
    await record(scene, agent, 2)
    for _ in range(2):
        await turn(scene, agent)
    assert receipted(agent) == 2
    health = await log_health(agent)
    assert health["unlogged"] == 120 and health["oldest_unlogged_age_s"] > 60


async def test_a_server_without_a_log(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.server = FakeServer(logged=False)
    (scene.config.state_dir / "keys" / "log-key").unlink()
    scene.config = scene.server.enrolled(scene.config, scene.signer)
    agent = scene.agent()
    await record(scene, agent, 2)
    assert (await log_health(agent))["state"] == "no_log"
    assert not [path for path in scene.server.requests if "receipts" in path or "log" in path]
    assert (await agent.offline_queue.get_stats())["uploaded"] == 2
    await scene.close()


async def test_a_new_year_is_a_new_log(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 3)
    scene.server.log = FakeLog("clinic-1", year=2027)
    await record(scene, agent, 2)
    await record(scene, agent)
    assert [(origin, code) for origin, _, _, code in heads(agent)] == [
        ("fake/clinic-1/2026", None),
        ("fake/clinic-1/2027", None),
    ]
    assert receipted(agent) == 6
    assert scene.documents()[-1]["log_head"]["origin"] == "fake/clinic-1/2027"
    assert (await log_health(agent))["origin"] == "fake/clinic-1/2027"


async def test_a_server_under_a_new_name_is_believed_after_enrolment(scene: Scene) -> None:
    """The name is pinned with the key; a renamed server begins other logs, and each host is enrolled anew for them."""
    agent = scene.agent()
    await record(scene, agent, 2)
    scene.server.log = FakeLog("clinic-1", server="renamed")
    await record(scene, agent)
    assert receipted(agent) == 2 and (await log_health(agent))["last_refused"] == "foreign_log"
    scene.server.name = "renamed"
    scene.config = scene.server.enrolled(scene.config, scene.signer)
    agent = await scene.restart()
    await record(scene, agent)
    assert receipted(agent) == 4
    await record(scene, agent)
    assert scene.documents()[-1]["log_head"]["origin"] == "renamed/clinic-1/2026"


async def test_a_fork_within_one_batch(scene: Scene) -> None:
    """What was proven before it in the same batch stands, on the note that is ours in the incident."""
    agent = scene.agent()
    log = log_of(scene)
    log.lie = Lie.NO_RECEIPT
    await record(scene, agent, 4)
    log.lie = Lie.NOTHING
    ids = [item["bundle_id"] for item in scene.documents()]
    offered = [log.receipt(bundle_id) for bundle_id in ids[:2]]
    log.fork()
    offered += [log.receipt(bundle_id) for bundle_id in ids[2:]]
    given = [
        OfferedReceipt(item["bundle_id"], base64.b64decode(item["leaf"]), base64.b64decode(item["proof"]))
        for item in offered
        if item is not None
    ]
    assert await agent.receipts.take(agent.mcp_client, given) == 2
    assert receipted(agent) == 2
    await contradicted(scene, agent, "log_forked", same_size=True)


# What is not

NAMED = {
    Lie.NO_RECEIPT: None,
    Lie.GARBAGE: "bad_receipt",
    Lie.OTHER_NAME: "bad_receipt",
    Lie.WRONG_LEAF: "wrong_leaf",
    Lie.WRONG_INDEX: "bad_inclusion_proof",
    Lie.OLD_CHECKPOINT: "bad_inclusion_proof",
    Lie.WRONG_KEY: "no_known_signature",
    Lie.FORGED_LINE: "bad_signature",
    Lie.OTHER_SITE: "foreign_log",
    Lie.OTHER_SERVER: "foreign_log",
    Lie.EXTENDED: "bad_receipt",
    Lie.TRUNCATED_TILE: "bad_tile",
    Lie.FLIPPED_TILE: "bad_tile",
    Lie.NO_TILE: "no_tile",
}


@pytest.mark.parametrize("lie", NAMED)
async def test_every_lie_is_named_and_believed_nowhere(scene: Scene, lie: Lie) -> None:
    """Nothing is kept of it, nothing of delivery is lost, and once it ends everything is made up for."""
    agent = scene.agent()
    await record(scene, agent, 2)
    known = heads(agent)
    log_of(scene).lie = lie
    await record(scene, agent, 3)
    assert receipted(agent) == 2 and heads(agent) == known
    health = await log_health(agent)
    assert health["last_refused"] == NAMED[lie] and health["unlogged"] == 3
    assert [item["seq"] for item in scene.documents()] == [1, 2, 3, 4, 5], "a receipt touched delivery"
    assert [item["kind"] for item in scene.documents()] == ["heartbeat"] * 5, "no proof of a lie, so no incident"
    log_of(scene).lie = Lie.NOTHING
    if lie is Lie.WRONG_LEAF:
        return  # it never logged the bundles, and can only ever say so
    await turn(scene, agent)
    assert receipted(agent) == 5
    assert (await log_health(agent))["last_refused"] is None


@pytest.mark.parametrize(
    "lie", [Lie.GARBAGE, Lie.WRONG_KEY, Lie.WRONG_LEAF, Lie.WRONG_INDEX, Lie.OTHER_SITE, Lie.OLD_CHECKPOINT]
)
async def test_the_first_receipt_is_held_to_as_much_as_later_ones(scene: Scene, lie: Lie) -> None:
    agent = scene.agent()
    log_of(scene).lie = lie
    await record(scene, agent)
    assert receipted(agent) == 0 and heads(agent) == []
    assert (await log_health(agent))["last_refused"] == NAMED[lie]


async def contradicted(scene: Scene, agent: ComplianceAgent, code: str, *, same_size: bool = False) -> None:
    """The log contradicted itself: one incident holds both notes and verifies; recording and delivery go on."""
    known = heads(agent)[0]
    await turn(scene, agent)
    incidents = [held for held in scene.server.stored() if held.document["kind"] == "incident"]
    assert len(incidents) == 1
    [path] = [path for path in scene.config.evidence_dir.rglob("bundle.json") if incidents[0].body == path.read_bytes()]
    keys: dict[str, bytes] = {scene.signer.key_id: scene.signer.public_bytes}
    document = check_bytes(incidents[0].body, path.with_name("bundle.sig").read_bytes(), keys)
    assert (document["reason"], document["incident"]["code"]) == (code, code)
    policy = Policy((log_of(scene).vkey,), {}, {}, "none", {})
    notes = [base64.b64decode(document["incident"][name]) for name in ("ours", "theirs")]
    ours, theirs = (policy.verify(note).checkpoint for note in notes)
    assert (ours.origin, ours.size, ours.root.hex()) == known[:3]
    assert theirs.root != ours.root and (not same_size or theirs.size == ours.size)
    before = receipted(agent)
    await record(scene, agent, 2)
    assert receipted(agent) == before, "a log that lied was believed again"
    assert heads(agent) == [(*known[:3], code)]
    health = await log_health(agent)
    assert health["state"] == code and health["unlogged"] >= 2
    assert scene.documents()[-1]["log_head"]["root"] == known[2], "evidence stays on the branch that was verified"
    assert (await agent.offline_queue.get_stats())["pending"] == 0
    agent = await scene.restart()
    await record(scene, agent)
    kinds = [item["kind"] for item in scene.documents()]
    assert kinds.count("incident") == 1
    assert (await log_health(agent))["state"] == code
    assert verify_paths([scene.config.evidence_dir], keys).ok


@pytest.mark.parametrize("before", [3, 4, 300])
async def test_a_forked_log(scene: Scene, before: int) -> None:
    agent = scene.agent()
    for _ in range(before):
        log_of(scene).append(b"of another host")
    await record(scene, agent, 2)
    log_of(scene).fork()
    await record(scene, agent)
    await contradicted(scene, agent, "log_forked")


async def test_two_roots_at_one_size(scene: Scene) -> None:
    agent = scene.agent()
    await record(scene, agent, 2)
    log_of(scene).fork()
    agent._database.write(lambda connection: connection.execute("DELETE FROM receipts WHERE bundle = 2"))
    await turn(scene, agent)
    await contradicted(scene, agent, "log_forked")


@pytest.mark.parametrize(("count", "more"), [(3, 0), (2, 0), (3, 5)])
@pytest.mark.parametrize("restarted", [False, True])
async def test_a_log_that_was_rolled_back(scene: Scene, count: int, more: int, restarted: bool) -> None:
    """Smaller than what it signed, it cannot show that tree any more; grown past it, it is simply another one.

    Where the tiles of the tree that was verified are still at hand, even the smaller one is proven to be another.
    """
    agent = scene.agent()
    await record(scene, agent, 6)
    if restarted:
        agent = await scene.restart()
    log_of(scene).roll_back(count)
    for _ in range(more):
        log_of(scene).append(b"of another host")
    await record(scene, agent)
    await contradicted(scene, agent, "log_forked" if more or not restarted else "log_rolled_back")


async def test_a_receipt_of_a_smaller_tree_that_cannot_be_compared_is_no_proof_of_a_lie(scene: Scene) -> None:
    """The tiles are gone for now, but the log still says it is as large as it was: not believed, and no incident."""
    agent = scene.agent()
    log = log_of(scene)
    log.lie = Lie.NO_RECEIPT
    await record(scene, agent)
    bundle_id = scene.documents()[0]["bundle_id"]
    log.lie = Lie.NOTHING
    older = log.receipt(bundle_id)
    assert older is not None
    await record(scene, agent, 3)
    agent._database.write(lambda connection: connection.execute("DELETE FROM receipts"))
    log.lie = Lie.TRUNCATED_TILE
    offered = OfferedReceipt(bundle_id, base64.b64decode(older["leaf"]), base64.b64decode(older["proof"]))
    agent.receipts._tiles.clear()
    assert await agent.receipts.take(agent.mcp_client, [offered]) == 0
    assert agent.receipts.last_refused == "bad_tile"
    assert [item[3] for item in heads(agent)] == [None]


async def test_an_incident_is_recorded_after_a_crash_before_it_was(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = scene.agent()
    await record(scene, agent, 2)
    log_of(scene).fork()

    async def killed() -> list[dict[str, Any]]:
        raise RuntimeError("killed here")

    monkeypatch.setattr(agent.receipts, "incidents", killed)
    await record(scene, agent)
    assert heads(agent)[0][3] == "log_forked"
    agent = await scene.restart()
    await contradicted(scene, agent, "log_forked")


@pytest.mark.parametrize("fault", [Fault.refuse(503), Fault.LOSE_REQUEST, Fault.GARBAGE, Fault.refuse(404)])
async def test_the_network_between_tiles_is_no_lie(scene: Scene, fault: Fault) -> None:
    agent = scene.agent()
    log_of(scene).lie = Lie.LATE
    await record(scene, agent)
    await record(scene, agent)
    log_of(scene).append(b"of another host")
    agent._database.write(lambda connection: connection.execute("DELETE FROM receipts"))
    scene.server.faults.extend([Fault.NONE, fault, fault, fault, fault])
    await turn(scene, agent)
    scene.server.faults.clear()
    assert all(item[3] is None for item in heads(agent))
    for _ in range(4):
        scene.clock.advance(3_700)
        await turn(scene, agent)
    assert receipted(agent) == 2


async def test_a_full_disk_costs_no_delivery_and_no_receipt_for_good(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = scene.agent()

    def full(*_: Any) -> None:
        raise StorageFull("no room")

    with monkeypatch.context() as disk:
        disk.setattr(LogStore, "keep", full)
        await record(scene, agent, 2)
        assert receipted(agent) == 0 and (await log_health(agent))["last_refused"] == "storage_full"
        assert (await agent.offline_queue.get_stats())["uploaded"] == 2
    await turn(scene, agent)
    assert receipted(agent) == 2


async def test_a_log_key_that_cannot_be_used_stops_no_delivery(scene: Scene) -> None:
    (scene.config.state_dir / "keys" / "log-key").write_text("not a key")
    agent = scene.agent()
    await record(scene, agent, 2)
    assert (await agent.offline_queue.get_stats())["uploaded"] == 2
    assert receipted(agent) == 0
    assert (await agent.health_check())["offline_queue"]["log"] == "error: bad_config"


# Planted faults: the suite above must fail on a verifier that leaves something out


async def lies_believed(scene: Scene, lie: Lie | None) -> int:
    agent = scene.agent()
    await record(scene, agent, 2)
    if lie is None:
        log_of(scene).fork()
    else:
        log_of(scene).lie = lie
    await record(scene, agent)
    return receipted(agent) - 2


async def test_planted_a_verifier_without_consistency(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipts_module, "check_prefix", lambda older, newer, read: None)
    assert await lies_believed(scene, None) == 1


async def test_planted_a_verifier_without_the_comparison_of_leaves(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def careless(bundle: Any, leaf: bytes, proof: bytes, logs: Any, witnesses: Any = None) -> core.LogHead:
        receipt = Proof.parse(proof)
        receipt.verify(hash_leaf(leaf), Policy(tuple(logs), {}, {}, "none", {}))
        return core.read_note(receipt.checkpoint)

    monkeypatch.setattr(receipts_module, "verify_receipt", careless)
    assert await lies_believed(scene, Lie.WRONG_LEAF) == 1


async def test_planted_a_store_that_forgets_its_head(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LogStore, "followed", lambda self: {})
    assert await lies_believed(scene, None) == 1
