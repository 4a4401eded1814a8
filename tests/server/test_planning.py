"""The planner's desk: what it proposes comes from records, what it drafts is one call of one person, and it is bounded."""

from __future__ import annotations

import asyncio
from datetime import date
from typing import Any

import pytest

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Dates, User
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import planning
from compliance_agent.server.services.planning import Bounds, Planner
from tests.server.builder import FakeHost, Server, on_sqlite
from tests.server.test_cures import FAILS, cure

pytestmark = pytest.mark.anyio
HOUR = 3_600


class Desk:
    """A planner with a person, over hosts that fail."""

    def __init__(self, server: Server, user: User, bounds: Bounds | None = None) -> None:
        self.server, self.user = server, user
        services = server.services
        self.planner = Planner(services.clock, services.orders, services.fleet, bounds=bounds or Bounds())

    @classmethod
    async def opened(cls, server: Server, role: str = "operator", bounds: Bounds | None = None) -> Desk:
        return cls(server, await server.services.users.add(f"jo-{role}", "correct horse battery", role=role), bounds)

    async def seen(self) -> dict[tuple[str, str], tuple[str, str | None]]:
        """Rule and order by host and check."""
        found = await self.planner.proposals(self.user, await self.server.services.users.reader(self.user))
        return {(item.finding.key_id, item.finding.check): (item.rule, item.kind) for item in found.proposals}

    async def ids(self) -> list[str]:
        found = await self.planner.proposals(self.user, await self.server.services.users.reader(self.user))
        return [item.proposal_id for item in found.proposals]

    async def draft(self, proposal_id: str | None = None, **options: Any) -> OrderRow:
        reader = await self.server.services.users.reader(self.user)
        return await self.planner.draft(self.user, reader, proposal_id or (await self.ids())[0], **options)

    async def refused(self, proposal_id: str | None = None, **options: Any) -> str:
        with pytest.raises(Refusal) as caught:
            await self.draft(proposal_id, **options)
        return caught.value.code

    async def orders(self) -> list[OrderRow]:
        return await self.server.services.store.for_sites(await self.server.services.store.all_sites()).orders()


async def failing(server: Server, host_id: str = "ws-01", site: str = "clinic-1", **more: Any) -> FakeHost:
    """A host that has checked in, and whose check fails since an hour."""
    host = await server.enrolled(host_id, site)
    await server.deliver(host, host.next(**{**FAILS, **more}))
    await server.checkin(host, checks={"time_sync": {"result": "fail", "reason": "daemon_down"}})
    return host


async def later(server: Server, *hosts: FakeHost, seconds: int = 300) -> None:
    """Time passes, and the hosts check in."""
    server.clock.move(seconds)
    for host in hosts:
        await server.checkin(host, checks={"time_sync": {"result": "fail", "reason": "daemon_down"}})


async def test_what_the_records_say_decides(server: Server) -> None:
    desk, host = await Desk.opened(server), await failing(server)
    place = (host.key_id, "time_sync")
    assert (await desk.seen())[place] == ("soon", None)
    await later(server, host, seconds=550)
    await later(server, host, seconds=550)
    assert (await desk.seen())[place] == ("cure", "remediate")
    await server.deliver(host, cure(host, "deferred", "approval_required"))
    assert (await desk.seen())[place] == ("approve", "approve")
    await server.deliver(host, cure(host, "deferred", "paused"))
    assert (await desk.seen())[place] == ("paused", None)
    server.clock.move(2 * HOUR)
    assert (await desk.seen())[place] == ("not_reached", None), "nothing is heard of it"
    await later(server, host)
    await server.deliver(host, host.next(result="pass", reason="as_expected"))
    assert await desk.seen() == {}


async def test_a_record_about_another_failure_decides_nothing(server: Server) -> None:
    desk, host = await Desk.opened(server), await failing(server)
    await server.deliver(host, cure(host, "deferred", "paused"), host.next(result="fail", reason="offset_too_large"))
    await later(server, host, seconds=500)
    await later(server, host, seconds=500)
    assert await desk.seen() == {(host.key_id, "time_sync"): ("cure", "remediate")}


async def test_a_draft_is_one_call_and_an_order_like_any_other(server: Server) -> None:
    desk, host = await Desk.opened(server), await failing(server)
    await server.deliver(host, cure(host, "deferred", "approval_required"))
    assert await desk.orders() == [], "looking drafts nothing"
    assert await desk.refused() == "target_needed"
    row = await desk.draft(target="steps-1", life_s=600)
    assert (row.kind, row.parameters, row.state) == ("approve", '{"check":"time_sync","target":"steps-1"}', "draft")
    assert (row.key_id, row.drafted_by, row.life_s) == (host.key_id, desk.user.name, 600)
    assert await desk.orders() == [row]
    assert row.envelope is None and row.payload is None
    reply = await server.checkin(host, order_nonce="12" * 16)
    assert reply.json()["orders"] == [], "a draft goes nowhere"


@on_sqlite
async def test_what_cannot_be_drafted_is_refused_with_its_reason(server: Server) -> None:
    desk, host = await Desk.opened(server), await failing(server)
    assert await desk.refused() == "nothing_to_order"
    await server.deliver(host, cure(host, "failed", "step_failed"))
    [known] = await desk.ids()
    assert await desk.refused(known, target="x") == "no_target"
    assert await desk.refused("0" * 16) == "no_such_proposal"
    assert await desk.refused(known, life_s=86_401) == "order_too_long"
    viewer = await Desk.opened(server, role="viewer")
    assert await viewer.ids() == [known]
    assert await viewer.refused(known) == "not_allowed"
    await server.deliver(host, cure(host, "deferred", "paused"))
    assert await desk.refused(known) == "no_such_proposal", "its facts have changed"
    assert await desk.orders() == []


async def test_one_order_at_a_time_for_a_host_and_runbook_and_then_a_pause(server: Server) -> None:
    desk = await Desk.opened(server)
    host, other = await failing(server), await failing(server, "ws-02")
    for one in (host, other):
        await server.deliver(one, cure(one, "failed", "step_failed"))
    first, second = await desk.ids()
    row = await desk.draft(first)
    assert await desk.refused(first) == "plan_open"
    assert (await desk.draft(second)).key_id != row.key_id, "another host is another matter"
    await server.services.orders.cancel(desk.user, await server.services.users.reader(desk.user), row.order_id)
    assert await desk.refused(first) == "plan_cooldown"
    for _ in range(3):
        await later(server, host, other)
    assert (await desk.draft(first)).order_id != row.order_id


@on_sqlite
@pytest.mark.parametrize("bounds", [Bounds(site_per_hour=2), Bounds(person_per_hour=2)], ids=["site", "person"])
async def test_no_more_than_so_many_an_hour(server: Server, bounds: Bounds) -> None:
    desk = await Desk.opened(server, bounds=bounds)
    hosts = [await failing(server, f"ws-0{number}") for number in range(3)]
    for one in hosts:
        await server.deliver(one, cure(one, "failed", "step_failed"))
    ids = await desk.ids()
    assert len([await desk.draft(item) for item in ids[:2]]) == 2
    assert await desk.refused(ids[2]) == "plan_too_many"
    for _ in range(12):
        await later(server, *hosts)
    assert await desk.draft(ids[2])


@pytest.mark.parametrize("planted", [False, True], ids=["as it is", "checked outside"])
async def test_calls_at_the_same_time_do_not_pass_together(
    server: Server, monkeypatch: pytest.MonkeyPatch, planted: bool
) -> None:
    """With the check outside of the transaction that writes, all of them would see that there is room."""
    desk, host = await Desk.opened(server), await failing(server)
    await server.deliver(host, cure(host, "failed", "step_failed"))
    [known] = await desk.ids()
    if planted:
        real = server.services.orders.draft

        async def careless(user: User, reader: Any, wanted: Any, bounded: Any = None) -> OrderRow:
            return await real(user, reader, wanted)

        monkeypatch.setattr(server.services.orders, "draft", careless)
    results = await asyncio.gather(*(desk.draft(known) for _ in range(8)), return_exceptions=True)
    drafted = [item for item in results if isinstance(item, OrderRow)]
    assert len(drafted) == len(await desk.orders()) == (8 if planted else 1)
    if not planted:
        assert {item.code for item in results if isinstance(item, Refusal)} == {"plan_open"}


async def test_a_tenant_sees_and_drafts_its_own_alone(server: Server) -> None:
    """Another's proposal is answered as one that does not exist, word for word."""
    mine, theirs = await failing(server), await failing(server, "ws-09", "clinic-2")
    for one in (mine, theirs):
        await server.deliver(one, cure(one, "failed", "step_failed"))
    add = server.services.users.add
    jo = Desk(server, await add("jo", "correct horse battery", role="operator", sites=frozenset({"clinic-1"})))
    kim = Desk(server, await add("kim", "correct horse battery", role="operator", sites=frozenset({"clinic-2"})))
    assert {key for key, _ in await jo.seen()} == {mine.key_id}
    [other] = await kim.ids()
    said = []
    for proposal_id in (other, "0" * 16):
        with pytest.raises(Refusal) as caught:
            await jo.draft(proposal_id)
        said.append(str(caught.value))
    assert said[0] == said[1] and await jo.orders() == []


@on_sqlite
async def test_of_days_that_are_over_nothing_is_proposed(server: Server) -> None:
    host = await failing(server)
    await server.deliver(host, cure(host, "failed", "step_failed"))
    dates = Dates(date(2026, 1, 1), date(2027, 1, 1))
    auditor = await server.services.users.add(
        "aud", "correct horse battery", role="auditor", sites=frozenset({"clinic-1"}), dates=dates
    )
    assert await Desk(server, auditor).ids() == []


@on_sqlite
async def test_what_does_not_fit_into_one_answer_is_said_and_can_be_drafted(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = await Desk.opened(server)
    for number in range(3):
        host = await failing(server, f"ws-0{number}")
        await server.deliver(host, cure(host, "failed", "step_failed"))
    ids = await desk.ids()
    monkeypatch.setattr(planning, "MOST", 2)
    found = await desk.planner.computed(server.services.store.for_sites({"clinic-1"}))
    assert (len(found.proposals), found.more) == (2, True)
    assert await desk.draft(ids[2])
