"""`compliance-agent keys`, as a person runs it: this host's keys, a whole site's from its log, and a new key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from compliance_agent.crypto import Ed25519Signer
from compliance_agent.entries.leaf import key_leaf
from tests.agent_scene import Scene
from tests.cli.command import configured, run
from tests.evidence.world import LOG, ORIGIN, RECORDS, World
from tests.server.builder import FakeHost


def put(root: Path, world: World) -> Path:
    for path, content in world.served().items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_the_hosts_own_keys_before_and_after_a_rotation(tmp_path: Path) -> None:
    scene = Scene(tmp_path)

    async def rotated() -> str:
        agent = scene.agent()
        old: str = agent.signer.key_id
        bundle = await agent.evidence_generator.create_evidence("", None, kind="heartbeat", counts={"pending": 0})
        await agent.evidence_generator.store_evidence(bundle)
        await agent.delivery.turn()
        assert (await agent.key_rotation.rotate()).code == "rotated"
        await agent.close()
        return old

    old = asyncio.run(rotated())
    new = Ed25519Signer(scene.config.signing_key_file).key_id
    ended = run("keys", "list", "--json", "--config", configured(tmp_path))
    shown = [(key["key_id"], key["until"] is None) for key in json.loads(ended.out)["keys"]]
    assert ended.status == 0
    assert shown == [(old, False), (new, True)]
    table = run("keys", "list", "--config", configured(tmp_path))
    assert table.out.index(old) < table.out.index(new)


def test_a_host_that_never_signed_has_none(tmp_path: Path) -> None:
    refused = run("keys", "list", "--config", configured(tmp_path))
    assert refused.status == 66
    assert "no agent has run here yet" in refused.err


def test_every_key_of_a_site_is_told_from_its_log(tmp_path: Path) -> None:
    world = World.live()
    spare = FakeHost("ws-02")
    world.entries.append(key_leaf("enrol", spare.key_id, spare.public, "2026-11-22T09:00:00Z"))
    root = put(tmp_path / "log", world)
    ended = run("keys", "list", "--json", "--log", root, "--log-key", str(LOG.key))
    keys = {key["key_id"]: key for key in json.loads(ended.out)["keys"]}
    assert ended.status == 0, ended.err
    assert set(keys) == {world.host.key_id, spare.key_id}
    mine, other = keys[world.host.key_id], keys[spare.key_id]
    assert (mine["origin"], mine["event"], mine["index"], mine["records"]) == (ORIGIN, "enrol", 1, RECORDS)
    assert (other["index"], other["at"], other["records"]) == (len(world.entries) - 1, "2026-11-22T09:00:00Z", 0)


def test_a_log_that_does_not_verify_is_no_source_of_keys(tmp_path: Path) -> None:
    root = put(tmp_path / "log", World.live())
    (entries,) = (path for path in root.rglob("tile/entries/**/*") if path.is_file())
    damaged = bytearray(entries.read_bytes())
    damaged[40] ^= 1
    entries.write_bytes(damaged)
    ended = run("keys", "list", "--log", root, "--log-key", str(LOG.key))
    assert ended.status == 65
    assert ended.err


def test_a_log_without_its_key_shows_nothing(tmp_path: Path) -> None:
    refused = run("keys", "list", "--log", tmp_path)
    assert refused.status == 2
    assert "--log-key" in refused.err


def test_a_host_without_a_server_cannot_rotate(tmp_path: Path) -> None:
    refused = run("keys", "rotate", "--config", configured(tmp_path))
    assert refused.status == 69
    assert "keys: " in refused.line
