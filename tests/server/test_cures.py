"""What waits for a person and what healed itself: no more, no less, and of the reader's sites alone."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import cures as service
from compliance_agent.server.services.cures import Cures, cures
from compliance_agent.server.services.fleet import Fleet
from compliance_agent.web.morning import NEEDS, waiting_lines
from tests.server.builder import START, FakeHost, Server

pytestmark = pytest.mark.anyio
FAILS = {"result": "fail", "reason": "daemon_down"}


def cure(host: FakeHost, outcome: str, error: str | None = None, **more: Any) -> Any:
    return host.next(kind="remediation", **FAILS, outcome=outcome, error=error, **more)


def healed(host: FakeHost) -> Any:
    return cure(host, "success", post_result="pass", post_reason="as_expected")


async def seen(server: Server, *sites: str) -> Cures:
    reader = server.services.store.for_sites(sites or await server.services.store.all_sites())
    fleet: Fleet = server.services.fleet(reader)
    return await cures(reader, await fleet.sites(), server.clock())


async def test_a_plan_waits_until_its_check_passes_or_something_newer_holds_it(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(**FAILS), cure(host, "deferred", "approval_required"))
    [plan] = (await seen(server)).waiting
    assert (plan.key_id, plan.seq) == (host.key_id, 2)
    await server.deliver(host, cure(host, "deferred", "outside_window"))
    assert (await seen(server)).waiting == (), "it waits for the window now"
    await server.deliver(host, cure(host, "deferred", "approval_required"))
    assert [item.seq for item in (await seen(server)).waiting] == [4]
    await server.deliver(host, host.next(result="pass", reason="as_expected"))
    assert (await seen(server)).waiting == (), "somebody put it right by hand"


async def test_a_plan_that_waits_for_weeks_is_not_forgotten_and_a_cure_is(server: Server) -> None:
    patient, quick = await server.enrolled(), await server.enrolled("ws-02")
    await server.deliver(patient, patient.next(**FAILS), cure(patient, "deferred", "approval_required"))
    await server.deliver(quick, healed(quick))
    found = await seen(server)
    assert [item.key_id for item in found.healed] == [quick.key_id] and len(found.waiting) == 1
    server.clock.move(21 * 86_400)
    found = await seen(server)
    assert found.healed == () and [item.key_id for item in found.waiting] == [patient.key_id]


async def test_a_plan_is_found_behind_any_number_of_other_cures(server: Server) -> None:
    """More than a list of records has; and that more wait than are shown is said."""
    patient, busy = await server.enrolled(), await server.enrolled("ws-02")
    await server.deliver(patient, patient.next(**FAILS), cure(patient, "deferred", "approval_required"))
    for _ in range(3):
        await server.deliver(busy, *(healed(busy) for _ in range(service.MOST // 2)))
    found = await seen(server)
    assert ([item.key_id for item in found.waiting], found.more) == ([patient.key_id], False)


async def test_that_more_wait_than_are_shown_is_said(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await server.enrolled()
    await server.deliver(host, host.next(**FAILS), cure(host, "deferred", "approval_required"))
    assert not (await seen(server)).more
    monkeypatch.setattr(service, "MOST", 1)
    assert (await seen(server)).more


async def test_another_site_is_not_there(server: Server) -> None:
    host = await server.enrolled()
    await server.deliver(host, healed(host), host.next(**FAILS), cure(host, "deferred", "approval_required"))
    found = await seen(server, "elsewhere")
    assert (found.hosts, found.healed, found.waiting, found.more) == ({}, (), (), False)


async def test_orders_wait_for_who_approves_and_who_signs(server: Server) -> None:
    """The store leaves out those that wait for a host, and nothing waits for a host that is revoked."""
    host = await server.enrolled()
    site = (await seen(server)).hosts[host.key_id].site_id
    states = ("draft", "approved", "signed", "delivered", "answered", "cancelled")

    async def work(tx: Any) -> None:
        for place, state in enumerate(states):
            at = START - timedelta(minutes=place)
            await tx.add_order(OrderRow(f"o{place}", site, host.key_id, "pause", "{}", 3_600, "jo", at, state))

    await server.services.store.write(work)
    reader = server.services.store.for_sites([site])
    orders = await reader.orders(states=tuple(NEEDS))
    assert [row.state for row in orders] == ["draft", "approved"]
    found = await seen(server)
    lines = waiting_lines(found, orders, server.clock())
    assert [(line.what, line.needs) for line in lines] == [
        ("Order: Pause", NEEDS["approved"]),
        ("Order: Pause", NEEDS["draft"]),
    ]
    assert waiting_lines(Cures({}, (), (), False), orders, server.clock()) == []
    assert await server.services.store.for_sites(["elsewhere"]).orders(states=tuple(NEEDS)) == []
