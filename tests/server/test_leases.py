"""Leases over the API: a site's board is durable, a canary is believed by its evidence alone, and old tokens are worth nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core.leases import Board
from compliance_agent.errors import Refusal
from compliance_agent.server.store.transaction import BoundTransaction
from tests.server.builder import FakeHost, Server, serving

pytestmark = pytest.mark.anyio
TARGET = "ab" * 32


async def ask(server: Server, host: FakeHost, act: str = "take", **changes: Any) -> dict[str, Any]:
    body = {"protocol": 1, "act": act, "check": "time_sync", "target": TARGET, "life_s": 600, "fence": None, **changes}
    reply = await server.post("/api/v1/leases", body, headers=host.headers)
    assert reply.status_code == 200, reply.text
    answer: dict[str, Any] = reply.json()
    return answer


def cure(host: FakeHost, outcome: str = "success", **changes: Any) -> Any:
    after = {"post_result": "pass", "post_reason": "as_expected"} if outcome == "success" else {}
    fields = {
        "check": "time_sync",
        "kind": "remediation",
        "result": "fail",
        "reason": "daemon_down",
        "outcome": outcome,
        "pre_state": {},
    }
    return host.next(**{**fields, **after, **changes})


async def clinic(server: Server, count: int = 3) -> list[FakeHost]:
    return [await server.enrolled(f"ws-{number}") for number in range(count)]


async def test_one_host_at_a_time_and_the_canary_first_by_its_evidence(server: Server) -> None:
    first, second, third = await clinic(server)
    assert await ask(server, first) == {"fence": 1, "for_s": 600, "reason": ""}
    assert await ask(server, second) == {"fence": None, "for_s": 0, "reason": "canary_unproven"}
    assert await ask(server, first, "release", fence=1) == {"fence": None, "for_s": 0, "reason": ""}
    assert (await ask(server, second))["reason"] == "canary_unproven", "its word alone is not believed"
    assert (await server.deliver(first, cure(first))).status_code == 200
    assert (await ask(server, second))["fence"] == 2
    assert (await ask(server, third))["reason"] == "lease_busy"


@pytest.mark.parametrize("outcome", ["failed", "reverted"])
async def test_a_canary_that_failed_stops_the_others(server: Server, outcome: str) -> None:
    first, second, _ = await clinic(server)
    await ask(server, first)
    assert (await server.deliver(first, cure(first, outcome))).status_code == 200
    await ask(server, first, "release", fence=1)
    assert await ask(server, second) == {"fence": None, "for_s": 86_400, "reason": "canary_failed"}


async def test_evidence_of_before_the_lease_and_of_what_was_held_back_proves_nothing(server: Server) -> None:
    first, second, _ = await clinic(server)
    await server.deliver(first, cure(first))
    server.clock.move(5)
    await ask(server, first)
    await ask(server, first, "release", fence=1)
    await server.deliver(first, cure(first, "deferred", error="outside_window", post_result=None, post_reason=None))
    assert (await ask(server, second))["reason"] == "canary_unproven"


async def test_a_server_that_believes_the_release_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def believed(*_: object) -> str:
        return "success"

    monkeypatch.setattr(BoundTransaction, "cured", believed)
    with pytest.raises(AssertionError):
        await test_one_host_at_a_time_and_the_canary_first_by_its_evidence(server)


async def test_the_board_survives_the_server_and_an_expired_lease_passes_on(tmp_path: Path) -> None:
    async with serving(tmp_path / "data") as server:
        first, second, _ = await clinic(server)
        await ask(server, first)
        await server.deliver(first, cure(first))
        clock = server.clock
    async with serving(tmp_path / "data", clock=clock) as server:
        assert (await ask(server, second))["reason"] == "lease_busy"
        clock.move(599)
        assert (await ask(server, first))["fence"] == 1, "a renewal keeps its token"
        clock.move(600)
        assert (await ask(server, second))["fence"] == 2
        assert (await ask(server, first, "release", fence=1))["reason"] == "lease_lost"
        assert (await ask(server, first))["reason"] == "lease_busy"
        assert (await ask(server, second, "release", fence=2))["reason"] == ""


async def test_fifty_that_ask_at_once_get_as_many_leases_as_there_are_places(server: Server) -> None:
    hosts = await clinic(server, 20)
    await ask(server, hosts[0])
    await server.deliver(hosts[0], cure(hosts[0]))
    await ask(server, hosts[0], "release", fence=1)
    await server.services.leases.set_rules("clinic-1", hosts_at_once=3, canary="", actor="test")
    answers = await asyncio.gather(*(ask(server, host) for host in hosts))
    assert sorted(answer["fence"] for answer in answers if answer["fence"]) == [2, 3, 4]


async def test_a_contested_key_gets_no_lease_and_may_give_one_back(server: Server) -> None:
    first, _, _ = await clinic(server)
    await ask(server, first)
    bundle = first.next()
    await server.deliver(first, bundle)
    await server.deliver(first, first.sign(first.document(seq=bundle.document["seq"], prev="0" * 64)))
    body = {"protocol": 1, "act": "take", "check": "patching", "target": TARGET, "life_s": 600, "fence": None}
    reply = await server.post("/api/v1/leases", body, headers=first.headers)
    assert (reply.status_code, reply.json()["code"]) == (409, "host_contested")
    assert (await ask(server, first, "release", fence=1))["reason"] == ""


async def test_an_operator_lets_a_failed_cure_be_tried_again(server: Server) -> None:
    await test_a_canary_that_failed_stops_the_others(server, "failed")
    with pytest.raises(Refusal, match="no cure of backup"):
        await server.services.leases.retry("clinic-1", "backup", actor="test")
    await server.services.leases.retry("clinic-1", "time_sync", actor="test")
    board = await server.services.leases.board("clinic-1")
    assert board.waves == () and board.fence == 1, "tokens go on"


async def test_rules_are_of_a_site_that_is_known(server: Server) -> None:
    await server.enrolled()
    with pytest.raises(Refusal, match="not known"):
        await server.services.leases.set_rules("clinic-9", hosts_at_once=1, canary="", actor="test")
    await server.services.leases.set_rules("clinic-1", hosts_at_once=2, canary="ws-07", actor="test")
    board = await server.services.leases.board("clinic-1")
    assert (board.hosts_at_once, board.canary) == (2, "ws-07")
    assert await server.services.leases.board("clinic-9") == Board()


@pytest.mark.parametrize(
    "changes", [{"target": "x"}, {"life_s": 0}, {"act": "keep"}, {"fence": -1}, {"check": "A b"}, {"more": 1}]
)
async def test_what_is_no_request_is_refused(server: Server, changes: dict[str, Any]) -> None:
    host = await server.enrolled()
    body = {
        "protocol": 1,
        "act": "take",
        "check": "patching",
        "target": TARGET,
        "life_s": 600,
        "fence": None,
        **changes,
    }
    assert (await server.post("/api/v1/leases", body, headers=host.headers)).status_code == 422
