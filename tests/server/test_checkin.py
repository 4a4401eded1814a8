"""Check-in: a host lives, and hears where its chain stands here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compliance_agent.crypto import verify
from compliance_agent.errors import BadReply
from compliance_agent.ports import HttpReply
from compliance_agent.server.backup import back_up
from compliance_agent.transport.protocol import NONCE, REPLY_SIGNATURE, check_signed, reply_message
from tests.server.builder import Server, checkin_body, on_sqlite, stamp
from tests.server.test_sequencer import settled

pytestmark = pytest.mark.anyio


async def test_a_host_hears_what_is_held(server: Server) -> None:
    host = await server.enrolled()
    reply = (await server.checkin(host)).json()
    assert reply == {
        "server_time": stamp(server.clock()),
        "known": None,
        "min_interval_s": 1,
        "orders": [],
        "order_trust": [],
        "durable": [],
    }
    bundle = host.next()
    await server.deliver(host, bundle)
    known = (await server.checkin(host, pending=7)).json()["known"]
    assert known == {"epoch": 0, "seq": 1, "digest": bundle.sha256}
    found = await server.services.store.for_sites({"clinic-1"}).host(host.key_id)
    assert found is not None
    assert (found.pending, found.agent_version, found.baseline_version) == (7, "0.1.0", "2026.11.1")
    assert found.last_seen_at == server.clock()


@on_sqlite
async def test_a_host_hears_what_a_backup_holds_of_its_own_sites_log(server: Server, tmp_path: Path) -> None:
    """Only after a backup, only of its site, and not what came since."""
    host, other = await server.enrolled(), await server.enrolled("ws-01", "clinic-2")
    await server.deliver(host, host.next(), host.next())
    await settled(server)
    await back_up(server.services, tmp_path / "backup")
    await server.deliver(host, host.next())
    await settled(server)
    durable = {"clinic-1": 4, "clinic-2": 2}
    for caller in (host, other):
        said = (await server.checkin(caller)).json()["durable"]
        assert said == [{"origin": f"compliance-server/{caller.site_id}/2026", "size": durable[caller.site_id]}]


async def test_a_host_speaks_for_itself_alone(server: Server) -> None:
    host, other = await server.enrolled(), await server.enrolled("ws-02")
    reply = await server.checkin(host, key_id=other.key_id)
    assert (reply.status_code, reply.json()["code"]) == (403, "wrong_host")
    found = await server.services.store.for_sites({"clinic-1"}).host(other.key_id)
    assert found is not None and found.last_seen_at is None


async def test_a_head_below_ours_is_an_alarm(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """A host that was set back to a snapshot must be seen, not silently resynchronised."""
    host = await server.enrolled()
    await server.deliver(host, host.next(), host.next())
    await server.checkin(host)
    assert "host.set_back" not in capsys.readouterr().out
    await server.checkin(host, head={"epoch": 0, "seq": 1, "digest": "1" * 64})
    assert "host.set_back" in capsys.readouterr().out


async def test_what_a_host_only_claims_changes_no_verdict(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    await server.checkin(host, checks={"time_sync": {"result": "pass", "reason": "as_expected"}})
    [verdict] = await server.services.store.for_sites({"clinic-1"}).verdicts(host.key_id)
    assert verdict.result == "fail"


@pytest.mark.parametrize("path", ["/api/v1/checkin", "/api/v1/leases"])
async def test_what_decides_something_is_signed_for_who_sends_a_nonce(server: Server, path: str) -> None:
    """With the pinned key, over this very question and this very answer; and for nobody else, at no cost."""
    host = await server.enrolled()
    lease = {"protocol": 1, "act": "take", "check": "time_sync", "target": "ab" * 32, "life_s": 600, "fence": None}
    body = json.dumps(lease if path.endswith("leases") else checkin_body(host)).encode()
    plain = await server.client.post(path, content=body, headers=host.headers)
    assert (plain.status_code, plain.headers.get(REPLY_SIGNATURE)) == (200, None)
    for nonce in ("", "ab" * 15, "AB" * 16, "ab" * 17):
        reply = await server.client.post(path, content=body, headers={**host.headers, NONCE: nonce})
        assert reply.headers.get(REPLY_SIGNATURE) is None, nonce
    nonce = "0a" * 16
    reply = await server.client.post(path, content=body, headers={**host.headers, NONCE: nonce})
    key, said = server.services.ack_public_key, HttpReply(200, dict(reply.headers), reply.content)
    check_signed(said, reply_message(path, nonce, body, reply.content), key, verify)
    for other in (
        reply_message(path, "0b" * 16, body, reply.content),
        reply_message(path, nonce, body + b" ", reply.content),
        reply_message(path, nonce, body, reply.content + b" "),
        reply_message("/api/v1/receipts", nonce, body, reply.content),
    ):
        with pytest.raises(BadReply, match="signed word"):
            check_signed(said, other, key, verify)
