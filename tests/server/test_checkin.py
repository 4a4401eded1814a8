"""Check-in: a host lives, and hears where its chain stands here."""

from __future__ import annotations

from pathlib import Path

import pytest

from compliance_agent.server.backup import back_up
from tests.server.builder import Server, on_sqlite, stamp
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
