"""What people see: verdicts as the evidence says them, never green for a host that has fallen silent."""

from __future__ import annotations

from datetime import timedelta

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.server.records import BundleQuery
from compliance_agent.server.services.fleet import Fleet, Silence
from tests.server.builder import START, Server

pytestmark = pytest.mark.anyio


async def fleet_of(server: Server) -> Fleet:
    return server.services.fleet(server.services.store.for_sites(await server.services.store.all_sites()))


async def shown(server: Server, key_id: str) -> dict[str, tuple[str, str]]:
    return {item.check: (item.result, item.reason) for item in await (await fleet_of(server)).checks(key_id)}


async def test_verdicts_follow_the_evidence(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    assert await shown(server, host.key_id) == {"time_sync": ("fail", "daemon_down")}
    healed = {"kind": "remediation", "result": "fail", "reason": "daemon_down", "outcome": "success"}
    await server.deliver(host, host.next(**healed, post_result="pass", post_reason="as_expected"))
    assert await shown(server, host.key_id) == {"time_sync": ("pass", "as_expected")}
    [check] = await (await fleet_of(server)).checks(host.key_id)
    assert check.remediation is not None and check.remediation.outcome == "success"


async def test_a_heartbeat_says_all_there_is(server: Server) -> None:
    """A check that the heartbeat no longer names is no longer looked at; `since` stays where the result began."""
    host = await server.enrolled()
    await server.deliver(host, host.next(check="firewall", hipaa_controls=[], pre_state={}), host.next())
    host.now += timedelta(seconds=60)
    server.clock.move(60)
    await server.deliver(host, host.heartbeat(time_sync="pass", backup="unknown"))
    found = {item.check: item for item in await (await fleet_of(server)).checks(host.key_id)}
    assert {check: item.result for check, item in found.items()} == {"time_sync": "pass", "backup": "unknown"}
    assert found["time_sync"].verdict.since == START
    assert found["time_sync"].verdict.seen_at == START + timedelta(seconds=60)


async def test_a_silent_host_is_never_green(server: Server) -> None:
    host, live = await server.enrolled(), await server.enrolled("ws-02")
    failing = {"check": "firewall", "hipaa_controls": [], "pre_state": {}, "result": "fail", "reason": "ports_missing"}
    await server.deliver(host, host.next(), host.next(**failing))
    await server.deliver(live, live.next())
    server.clock.move(601)
    await server.checkin(live)
    assert await shown(server, host.key_id) == {
        "time_sync": ("unknown", "silent"),
        "firewall": ("fail", "ports_missing"),
    }
    assert await shown(server, live.key_id) == {"time_sync": ("pass", "as_expected")}
    [site] = await (await fleet_of(server)).sites()
    assert (site.silent, site.counts["pass"], site.counts["unknown"]) == (1, 1, 1)
    assert site.oldest_unmet_at == START
    await server.checkin(host)
    assert (await shown(server, host.key_id))["time_sync"] == ("pass", "as_expected")


async def test_showing_what_a_silent_host_said_last_is_caught(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Silence, "silent", lambda _self, _host, _now: False)
    with pytest.raises(AssertionError):
        await test_a_silent_host_is_never_green(server)


async def test_a_verdict_that_nobody_repeats_goes_stale(server: Server) -> None:
    """A host that checks in and sends no heartbeat proves nothing about its checks."""
    host = await server.enrolled()
    await server.deliver(host, host.next())
    server.clock.move(12_000)
    await server.checkin(host)
    assert await shown(server, host.key_id) == {"time_sync": ("unknown", "stale")}
    host.now = server.clock()
    await server.deliver(host, host.heartbeat(time_sync="pass"))
    assert await shown(server, host.key_id) == {"time_sync": ("pass", "as_expected")}


async def test_a_clock_that_runs_ahead_makes_nothing_fresh(server: Server) -> None:
    host = await server.enrolled()
    host.now += timedelta(days=400)
    await server.deliver(host, host.heartbeat(time_sync="pass"))
    server.clock.move(12_000)
    await server.checkin(host)
    assert await shown(server, host.key_id) == {"time_sync": ("unknown", "stale")}


async def test_a_host_that_never_said_anything_is_unknown(server: Server) -> None:
    host = await server.enrolled()
    standing = await (await fleet_of(server)).host(host.key_id)
    assert standing.counts["unknown"] == 1 and standing.oldest_unmet_at == START
    server.clock.move(601)
    assert (await (await fleet_of(server)).host(host.key_id)).silent


async def test_a_bundle_is_verified_when_it_is_looked_at(server: Server) -> None:
    host = await server.enrolled()
    first, second = host.next(), host.next()
    await server.deliver(host, first, second)
    found = await (await fleet_of(server)).bundle(second.document["bundle_id"])
    assert found.valid and found.document == second.document and found.body == second.body
    assert found.previous is not None and found.previous.sha256 == first.sha256 and found.following is None
    names = ["signature", "canonical", "schema", "identity", "digest", "chain"]
    assert [point.name for point in found.points] == names


@pytest.mark.parametrize(
    ("statement", "points"),
    [
        ("UPDATE bundles SET body = $1 WHERE seq = 2", {"signature", "digest"}),
        ("UPDATE bundles SET sig = $2", {"signature"}),
        ("DELETE FROM bundles WHERE seq = 1", {"chain"}),
    ],
)
async def test_a_record_changed_behind_our_back_is_named(server: Server, statement: str, points: set[str]) -> None:
    host = await server.enrolled()
    first, second = host.next(), host.next()
    await server.deliver(host, first, second)
    values = (second.body.replace(b'"stratum":3', b'"stratum":4'), bytes(64))
    used = [value for place, value in enumerate(values, 1) if f"${place}" in statement]
    await server.by_hand(statement.replace("$2", "$1"), *used)
    found = await (await fleet_of(server)).bundle(second.document["bundle_id"])
    assert {point.name for point in found.points if not point.holds} == points
    assert not found.valid


async def test_evidence_comes_in_pages(server: Server) -> None:
    host = await server.enrolled()
    bundles = [host.next() for _ in range(5)]
    await server.deliver(host, *bundles)
    fleet, seen, before = await fleet_of(server), [], None
    while True:
        page = await fleet.evidence(BundleQuery(key_id=host.key_id, before=before, limit=2))
        seen += [item.seq for item in page.items]
        if (before := page.next) is None:
            break
    assert seen == [5, 4, 3, 2, 1]
    assert (await fleet.evidence(BundleQuery(result="fail"))).items == ()


async def test_what_is_not_there_is_a_404(server: Server) -> None:
    fleet = await fleet_of(server)
    for asked in (fleet.site("x"), fleet.host("x"), fleet.bundle("x"), fleet.evidence(BundleQuery(key_id="x"))):
        with pytest.raises(Refusal) as caught:
            await asked
        assert caught.value.status == 404


async def test_all_sites_counted_say_what_each_site_listed_says(server: Server) -> None:
    """The first page reads counts, the page of a site each verdict: silent, stale, revoked, mute and unmet ones alike."""
    names = ("fresh", "stale", "silent", "revoked", "mute")
    hosts = {name: await server.enrolled(name) for name in names}
    for name in ("stale", "silent", "revoked", "fresh"):
        host = hosts[name]
        await server.deliver(host, host.heartbeat(backup="pass", logging="not_applicable", firewall="exception"))
        await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    await server.services.enrolment.revoke("clinic-1", hosts["revoked"].key_id, actor="test")
    for hours in (5, 5):
        server.clock.move(hours * 3_600)
        for name in ("fresh", "stale"):
            hosts[name].now = server.clock()
        await server.deliver(hosts["fresh"], hosts["fresh"].heartbeat(time_sync="unknown", backup="pass"))
        await server.checkin(hosts["stale"])
    fleet = await fleet_of(server)
    [counted], listed = await fleet.sites(), await fleet.site("clinic-1")
    told = [(one.host.host_id, one.counts, one.silent, one.oldest_unmet_at) for one in counted.hosts]
    assert told == [(one.host.host_id, one.counts, one.silent, one.oldest_unmet_at) for one in listed.hosts]
    assert (counted.counts, counted.oldest_unmet_at) == (listed.counts, listed.oldest_unmet_at)
    assert {check.check for one in counted.hosts for check in one.checks} == {"time_sync"}, "what is met is counted"
    kinds = {check.reason for one in listed.hosts for check in one.checks}
    assert {"silent", "stale", "revoked"} <= kinds, "each kind is there"
