"""Check-in: a host lives, and hears where its chain stands here."""

from __future__ import annotations

import pytest

from tests.server.builder import Server, stamp

pytestmark = pytest.mark.anyio


async def test_a_host_hears_what_is_held(server: Server) -> None:
    host = await server.enrolled()
    reply = (await server.checkin(host)).json()
    assert reply == {"server_time": stamp(server.clock()), "known": None, "min_interval_s": 1, "orders": []}
    bundle = host.next()
    await server.deliver(host, bundle)
    known = (await server.checkin(host, pending=7)).json()["known"]
    assert known == {"epoch": 0, "seq": 1, "digest": bundle.sha256}
    found = await server.services.store.for_sites({"clinic-1"}).host(host.key_id)
    assert found is not None
    assert (found.pending, found.agent_version, found.baseline_version) == (7, "0.1.0", "2026.11.1")
    assert found.last_seen_at == server.clock()


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
