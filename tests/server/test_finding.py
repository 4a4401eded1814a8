"""Records found by day, host, check and id: the same ones whichever way the database goes to them, on both databases."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.server.records import BundleQuery, Dates
from tests.server.builder import START, FakeHost, Server, stamp

pytestmark = pytest.mark.anyio
BEAT: dict[str, Any] = {"kind": "heartbeat", "check": None, "result": None, "reason": None, "severity": None, "hipaa_controls": [],
        "pre_state": {}, "states": {"time_sync": {"result": "pass", "reason": "as_expected"}}}  # fmt: skip


@pytest.fixture
async def two(server: Server) -> list[FakeHost]:
    """Two hosts of one site; a drift each day, and a heartbeat."""
    hosts = [await server.enrolled("ws-01"), await server.enrolled("ws-02")]
    for host in hosts:
        for days in range(4):
            at = stamp(START + timedelta(days=days))
            times = {"created_at": at, "timestamp_start": at, "timestamp_end": at}
            await server.deliver(host, host.next(result="fail", reason="offset_too_large", **times))
            await server.deliver(host, host.next(**BEAT, **times))
    return hosts


@pytest.mark.parametrize("most", [0, 10_000])
async def test_found_by_an_index_or_not_is_the_same(
    server: Server, two: list[FakeHost], monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("compliance_agent.server.store.reader.MOST_SITE_DAYS", most)
    reader = server.services.store.for_sites({"clinic-1"})
    day = START.date()
    one, all_days = Dates(day, day), Dates(day - timedelta(days=9), day + timedelta(days=9))

    async def count(**asked: object) -> int:
        return len(await reader.bundles(BundleQuery(**asked)))  # type: ignore[arg-type]

    assert [await count(days=one), await count(days=all_days), await count()] == [4, 16, 16]
    assert [await count(check="time_sync", days=one), await count(checks=("time_sync", "backup"))] == [2, 8]
    assert [await count(kind="heartbeat", days=one), await count(label="ws-02", result="fail")] == [2, 4]
    assert [await count(label="ws-02", days=one), await count(checks=())] == [2, 0]
    newest = await reader.bundles(BundleQuery(check="time_sync", limit=3))
    rest = await reader.bundles(BundleQuery(check="time_sync", before=newest[-1].number))
    numbers = [item.number for item in [*newest, *rest]]
    assert numbers == sorted(numbers, reverse=True) and len(numbers) == 8


async def test_what_was_said_is_counted_by_day(server: Server, two: list[FakeHost]) -> None:
    reader = server.services.store.for_sites({"clinic-1"})
    day = START.date()
    said = await reader.said(Dates(day, day + timedelta(days=1)))
    assert {(one.key_id, one.day, one.kind, one.times) for one in said} == {
        (host.key_id, (day + timedelta(days=days)).isoformat(), kind, 1)
        for host in two
        for days in (0, 1)
        for kind in ("drift", "heartbeat")
    }
    beats = [one.last for one in said if one.kind == "heartbeat"]
    bodies = await reader.bodies(beats)
    assert bodies.keys() == set(beats) and all(b'"heartbeat"' in body for body in bodies.values())
    assert await server.services.store.for_sites({"clinic-2"}).bodies(beats) == {}
    assert await server.services.store.for_sites({"clinic-2"}).hosts_of([two[0].key_id]) == {}
    assert (await reader.hosts_of([two[0].key_id])).keys() == {two[0].key_id}
