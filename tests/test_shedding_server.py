"""A real server's backup lets a real agent go of what it holds; set back to that backup, nothing is missing anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from nacl.signing import SigningKey

from compliance_agent.adapters.durable import write_file
from compliance_agent.agent import ComplianceAgent
from compliance_agent.evidence.logged import read_log_keys
from compliance_agent.evidence.verify import Report, verify_paths
from compliance_agent.mcp_client import MCPClient
from compliance_agent.ports import HttpReply
from compliance_agent.server.backup import back_up
from compliance_agent.server.restore import restore
from tests.agent_scene import Scene
from tests.server.builder import FakeHost, Hands, Server, serving
from tests.server.test_fsck import problems
from tests.server.test_readopt import readopted
from tests.server.test_sequencer import settled
from tests.test_receipts import record, rows

pytestmark = pytest.mark.anyio
COUNT, DAYS = 130, 30
STAY = 100  # shedding.KEEP_LAST


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@dataclass
class Wire:
    """The agent's transport, straight into the server of this process."""

    server: Server

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        reply = await self.server.client.request(method, path, headers=dict(headers or {}), content=body)
        return HttpReply(
            reply.status_code, {name.lower(): value for name, value in reply.headers.items()}, reply.content
        )

    async def close(self) -> None:
        return None


async def enrolled(scene: Scene, server: Server) -> None:
    """The scene's key is a host of the real server, with its credentials where the configuration names them."""
    private = load_pem_private_key(scene.config.signing_key_file.read_bytes(), None)
    assert isinstance(private, Ed25519PrivateKey)
    host = FakeHost("srv-1", key=SigningKey(private.private_bytes_raw()))
    reply = await server.try_enrol(host, await server.token(client="msp-1"))
    assert reply.status_code == 201, reply.text
    services, keys = server.services, scene.config.state_dir / "keys"
    write_file(keys / "api-key", reply.json()["api_key"].encode())
    write_file(keys / "server-key", services.ack_public_key.hex().encode())
    write_file(keys / "log-key", f"{services.log_keys.public_bytes.hex()}\n{services.settings.name}\n".encode())


def connected(scene: Scene, server: Server) -> ComplianceAgent:
    agent = scene.agent()
    agent.mcp_client = MCPClient(
        scene.config,
        scene.signer.key_id,
        transport=Wire(server),
        clock=scene.clock,
        on_ack=agent.delivery.keep_ack,
    )
    return agent


async def said(scene: Scene, server: Server, agent: ComplianceAgent, count: int) -> None:
    """So many records, and turns until each has its receipt."""
    await record(scene, agent, count)
    for _ in range(10):
        await settled(server)
        scene.clock.advance(60)
        await agent.delivery.turn()
        await scene.delivered(agent)
        if rows(agent, "SELECT count(*) FROM evidence") == rows(agent, "SELECT count(*) FROM receipts"):
            return
    raise AssertionError("not every record has its receipt")


def verified(scene: Scene, data: Path) -> Report:
    keys: dict[str, bytes] = {scene.signer.key_id: scene.signer.public_bytes}
    log_keys = read_log_keys(map(str, (data / "keys").glob("*.vkey")))
    return verify_paths([scene.config.evidence_dir], keys, log_keys=log_keys)


async def test_what_a_backup_holds_may_go_and_comes_back_with_it(tmp_path: Path) -> None:
    data, out = tmp_path / "server", tmp_path / "backup"
    scene = Scene(tmp_path / "host", settings={"keep_days": DAYS})
    hands = Hands(scene.clock.now())
    async with serving(data, clock=hands) as server:
        await enrolled(scene, server)
        agent = connected(scene, server)
        await said(scene, server, agent, COUNT)
        for clock in (hands.move, scene.clock.advance):
            clock(timedelta(days=DAYS + 1).total_seconds())
        await said(scene, server, agent, 1)
        assert rows(agent, "SELECT min(seq) FROM evidence") == [(1,)]  # old, receipted, and in no backup: it stays
        await back_up(server.services, out)
        await said(scene, server, agent, 5)
        gone = rows(agent, "SELECT min(seq) FROM evidence")[0][0] - 1
        assert gone == COUNT + 6 - STAY
        assert (verified(scene, data).problems, verified(scene, data).chains[0].shed) == ([], (0, gone))
    restore(out, data, force=True)
    await readopted(data)
    async with serving(data, clock=Hands(scene.clock.now() + timedelta(days=1))) as server:
        agent = await scene.restart()
        await agent.close()
        agent = connected(scene, server)
        await said(scene, server, agent, 1)
        held = await server.services.store.for_sites({"clinic-1"}).kept("clinic-1", ("", 0), 10_000)
        assert sorted((item.epoch, item.seq) for item in held) == [(0, seq) for seq in range(1, COUNT + 8)]
        assert rows(agent, "SELECT min(seq) FROM evidence") == [
            (gone + 1,)
        ]  # its word is smaller now: nothing more goes
        assert {json.loads(item.body)["kind"] for item in held} == {"heartbeat"}
        assert verified(scene, data).problems == []
    await scene.close()
    assert await problems(data) == []
