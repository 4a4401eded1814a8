"""What one host and one site may ask for: a refusal says when to come again, and costs the others nothing."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import Refusal
from compliance_agent.server.services import limits
from compliance_agent.server.services.limits import Buckets
from tests.server.builder import Server, acknowledged, serving

pytestmark = pytest.mark.anyio


@dataclass
class Ticks:
    time: float = 0.0

    def __call__(self) -> float:
        return self.time


async def limited(server: Server) -> Ticks:
    """The server's limits by a clock that moves when told."""
    ticks = Ticks()
    server.services.limits.clock = ticks
    return ticks


def refused(reply: Any, name: str) -> int:
    assert (reply.status_code, reply.json()["code"]) == (429, "too_many"), reply.text
    assert reply.headers["content-type"] == "application/problem+json"
    assert name in reply.json()["detail"]
    return int(reply.headers["retry-after"])


async def test_a_host_that_asks_too_often_is_told_when_to_come_again(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", host_requests_per_min=6) as server:
        ticks = await limited(server)
        loud, quiet = await server.enrolled(), await server.enrolled("ws-02")
        for _ in range(6):
            assert (await server.checkin(loud)).status_code == 200
        wait = refused(await server.checkin(loud), "host_requests")
        assert wait == 10
        assert (await server.checkin(quiet)).status_code == 200
        ticks.time += wait - 0.5
        assert refused(await server.checkin(loud), "host_requests") == 1
        ticks.time += 0.5
        assert (await server.checkin(loud)).status_code == 200
        text = (await server.client.get("/metrics")).text
        assert 'compliance_server_limited_total{limit="host_requests"} 2.0' in text


async def test_every_route_of_a_host_is_charged(tmp_path: Path) -> None:
    async with serving(tmp_path / "data", host_requests_per_min=1) as server:
        await limited(server)
        host = await server.enrolled()
        assert (await server.checkin(host)).status_code == 200
        for method, path in (
            ("POST", "/api/v1/evidence"),
            ("POST", "/api/v1/checkin"),
            ("POST", "/api/v1/receipts"),
            ("POST", "/api/v1/keys/rotate"),
            ("GET", "/log/clinic-1/2026/checkpoint"),
        ):
            refused(await server.client.request(method, path, content=b"{}", headers=host.headers), "host_requests")


@pytest.mark.parametrize(
    ("setting", "name", "shared"),
    [
        ("host_bundles_per_min", "host_bundles", False),
        ("site_bundles_per_min", "site_bundles", True),
        ("host_bundles_per_day", "host_bundles_a_day", False),
        ("site_bundles_per_day", "site_bundles_a_day", True),
    ],
)
async def test_bundles_are_limited_before_they_are_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: str, name: str, shared: bool
) -> None:
    settings: dict[str, Any] = {setting: 10}
    async with serving(tmp_path / "data", **settings) as server:
        ticks = await limited(server)
        host, neighbour = await server.enrolled(), await server.enrolled("ws-02")
        other = await server.enrolled("ws-03", "clinic-2")
        sent = [host.next() for _ in range(7)]
        acknowledged(await server.deliver(host, *sent), host, sent)
        more = [host.next() for _ in range(4)]

        def never(*_arguments: object) -> bool:
            raise AssertionError("verified")

        with monkeypatch.context() as planted:
            planted.setattr(type(server.services.ingest), "_checked", never)
            wait = refused(await server.deliver(host, *more), name)
        for one, fine in ((other, True), (neighbour, not shared)):
            bundles = [one.next() for _ in range(4)]
            reply = await server.deliver(one, *bundles)
            assert reply.status_code == 200 if fine else refused(reply, name)
        ticks.time += wait
        assert (await server.deliver(host, *more)).status_code == 200


async def test_a_batch_larger_than_a_whole_limit_is_taken_by_one_who_was_quiet(tmp_path: Path) -> None:
    """Else it could never be delivered."""
    async with serving(tmp_path / "data", host_bundles_per_min=3) as server:
        ticks = await limited(server)
        host = await server.enrolled()
        sent = [host.next() for _ in range(5)]
        assert (await server.deliver(host, *sent)).status_code == 200
        assert refused(await server.deliver(host, host.next()), "host_bundles") == 60
        ticks.time += 60
        assert (await server.deliver(host, host.next(seq=6, prev=sent[-1].sha256))).status_code == 200


async def test_no_limit_is_no_limit(tmp_path: Path) -> None:
    none: dict[str, Any] = dict.fromkeys(
        (
            "host_requests_per_min",
            "host_bundles_per_min",
            "site_bundles_per_min",
            "host_bundles_per_day",
            "site_bundles_per_day",
        ),
        0,
    )
    async with serving(tmp_path / "data", **none) as server:
        await limited(server)
        host = await server.enrolled()
        for _ in range(50):
            assert (await server.deliver(host, host.next())).status_code == 200


async def test_a_host_has_few_batches_in_the_servers_memory(server: Server) -> None:
    host = await server.enrolled()
    caller = await server.services.access.caller(host.headers["authorization"])
    desk = server.services.limits
    with contextlib.ExitStack() as held:
        for _ in range(limits.MOST_IN_FLIGHT - 1):
            held.enter_context(desk.in_flight(caller))
        with desk.in_flight(caller):
            assert refused(await server.deliver(host, host.next()), "batches") == 1
        assert (await server.deliver(host, host.next(seq=1, prev="0" * 64))).status_code == 200
    assert desk._in_flight == {}


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 20)), max_size=60))
def test_no_more_passes_than_a_bucket_and_its_pace(asked: list[tuple[float, int]]) -> None:
    buckets, now, passed = Buckets("x", 30, 60), 0.0, 0
    for pause, count in asked:
        now += pause
        wait = buckets.wait_s("a", count, now)
        if wait == 0.0:
            buckets.take("a", count, now)
            passed += count
        else:
            assert buckets.wait_s("a", count, now + wait + 1e-6) == 0.0
        assert passed <= 30 + now / 2 + 1e-6


def test_buckets_that_are_full_again_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MOST_BUCKETS", 100)
    buckets = Buckets("x", 60, 60)
    for number in range(1_000):
        buckets.take(f"host-{number}", 1, float(number))
    assert len(buckets._buckets) <= 101


def test_a_clock_that_goes_back_gives_nothing() -> None:
    buckets = Buckets("x", 60, 60)
    buckets.take("a", 60, 100.0)
    assert buckets.wait_s("a", 1, 50.0) > 0
    with pytest.raises(Refusal):
        desk = limits.Quotas.__new__(limits.Quotas)
        desk.clock = lambda: 50.0
        desk._charge(((buckets, "a"),), 1)
