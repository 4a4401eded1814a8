"""What people approved becomes a rule when a person says so: with counts from records, at one site, and it makes drafts alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from compliance_agent.entries.act import digest_of
from compliance_agent.errors import Refusal
from compliance_agent.runbook import Runbook, shipped
from compliance_agent.server.records.planning import Worked
from compliance_agent.server.services.promoting import Promoting, is_proven
from tests.order_keys import ANNA
from tests.server.builder import FakeHost, Server, on_sqlite
from tests.server.test_acts import acts
from tests.server.test_cures import cure, healed
from tests.server.test_orders import Office
from tests.server.test_planning import Desk, failing, later

pytestmark = pytest.mark.anyio
PLACE = ("clinic-1", "time_sync", "daemon_down")


class Chamber(Desk):
    """A desk with its rules."""

    @property
    def promoting(self) -> Promoting:
        return self.with_books(shipped())

    def with_books(self, books: Mapping[str, Runbook]) -> Promoting:
        services = self.server.services
        self.planner._runbooks = lambda: books
        return Promoting(services.store, services.clock, self.planner, books)

    async def promote(self, place: tuple[str, str, str] = PLACE) -> Any:
        return await self.promoting.promote(self.user, await self.server.services.users.reader(self.user), place)

    async def demote(self, place: tuple[str, str, str] = PLACE) -> Any:
        return await self.promoting.demote(self.user, await self.server.services.users.reader(self.user), place)

    async def drafted(self, books: Mapping[str, Runbook] | None = None) -> list[tuple[bool, str]]:
        reader = await self.server.services.users.reader(self.user)
        found = await self.with_books(books or shipped()).draft_promoted(self.user, reader)
        return [(item.order is not None, item.code) for item in found]


async def no(act: Any) -> str:
    with pytest.raises(Refusal) as caught:
        await act
    return caught.value.code


async def ordered(server: Server, host: FakeHost, outcome: str = "success") -> None:
    """An order to cure goes its whole way, and the host says how it ended."""
    office = await Office.opened(server)
    office.host = host
    await office.checkin()
    order_id = await office.approved("remediate", check="time_sync")
    await office.sign(order_id, ANNA)
    [raw] = await office.checkin()
    await office.answer(raw, outcome)


async def proven(server: Server) -> Chamber:
    """A finding that people ordered a cure for, which held three times."""
    host = await failing(server, "ws-00")
    await server.deliver(host, cure(host, "failed", "step_failed"), *(healed(host) for _ in range(3)))
    await ordered(server, host)
    await server.deliver(host, host.next(result="pass", reason="as_expected"))
    user = await server.services.users.add("ada", "correct horse battery", role="operator")
    return Chamber(server, user)


async def test_counts_are_of_what_hosts_recorded(server: Server) -> None:
    chamber, reader = await proven(server), server.services.store.for_sites({"clinic-1"})
    assert await reader.worked(*PLACE) == Worked(ordered=1, applied=4, passed=3, undone=0)
    rule = await chamber.promote()
    assert (rule.runbook, rule.ordered, rule.applied, rule.passed, rule.undone) == ("time-sync", 1, 4, 3, 0)
    assert await reader.plan_rules() == [rule] and await no(chamber.promote()) == "promoted_already"
    host = await server.enrolled("ws-11")
    reverted = cure(host, "reverted", "check_fail")
    held_back = cure(host, "deferred", "paused")
    elsewhere = host.next(kind="remediation", result="fail", reason="offset_too_large", outcome="success")
    await server.deliver(host, reverted, held_back, elsewhere)
    assert await reader.worked(*PLACE) == Worked(ordered=1, applied=5, passed=3, undone=1)
    assert await server.services.store.for_sites({"clinic-2"}).worked(*PLACE) == Worked()


@on_sqlite
async def test_promoting_and_demoting_are_acts_in_the_log_of_that_site_alone(server: Server) -> None:
    chamber = await proven(server)
    await server.enrolled("ws-09", "clinic-2")
    rule = await chamber.promote()
    await chamber.demote()
    found = await acts(server)
    mine = [(item["act"], item["subject"]) for item in found["clinic-1"] if item["act"].startswith("rule_")]
    names = ("check", "reason", "runbook", "runbook_sha256", "ordered", "applied", "passed", "undone")
    digest = digest_of({name: getattr(rule, name) for name in names})
    assert mine == [("rule_promoted", digest), ("rule_demoted", digest)]
    assert [item for item in found["clinic-2"] if item["act"].startswith("rule_")] == []
    assert await no(chamber.demote()) == "no_such_rule"


async def test_a_rule_drafts_its_proposals_in_one_call_and_nothing_more(server: Server) -> None:
    chamber = await proven(server)
    await chamber.promote()
    hosts = [await failing(server, f"ws-1{number}") for number in (1, 2)]
    other = await failing(server, "ws-08", reason="offset_too_large")
    for one in hosts:
        await server.deliver(one, cure(one, "failed", "step_failed"))
    for _ in range(4):
        await later(server, *hosts, other)
    before = len(await chamber.orders())
    assert len(await chamber.ids()) == 3
    assert await chamber.drafted() == [(True, ""), (True, "")]
    made = (await chamber.orders())[: len(await chamber.orders()) - before]
    assert {(row.key_id, row.state, row.drafted_by) for row in made} == {(one.key_id, "draft", "ada") for one in hosts}
    assert await chamber.drafted() == [(False, "plan_open"), (False, "plan_open")]
    for one in hosts:
        assert (await server.checkin(one, order_nonce="12" * 16)).json()["orders"] == [], "nobody approved one"


@on_sqlite
async def test_without_a_rule_or_with_another_text_of_the_runbook_nothing_is_drafted(server: Server) -> None:
    chamber = await proven(server)
    host = await failing(server, "ws-11")
    await server.deliver(host, cure(host, "failed", "step_failed"))
    assert await chamber.drafted() == []
    await chamber.promote()
    changed = {**shipped(), "time-sync": replace(shipped()["time-sync"], sha256="0" * 64)}
    assert await chamber.drafted(changed) == []
    await chamber.demote()
    assert await chamber.drafted() == []
    await chamber.promote()
    assert await chamber.drafted() == [(True, "")]


@on_sqlite
async def test_what_did_not_work_or_nobody_ordered_is_not_promoted(server: Server) -> None:
    host = await failing(server, "ws-10")
    await server.deliver(host, healed(host))
    user = await server.services.users.add("ada", "correct horse battery", role="operator")
    chamber = Chamber(server, user)
    assert await no(chamber.promote()) == "not_proven", "nobody ordered it"
    await server.deliver(host, host.next(result="fail", reason="daemon_down"))
    await ordered(server, host, outcome="failed")
    assert await no(chamber.promote()) == "not_proven", "it was ordered, and failed"
    assert await no(chamber.promote(("clinic-1", "time_sync", "daemon_missing"))) == "no_cure"
    assert await no(chamber.promote(("clinic-2", "time_sync", "daemon_down"))) == "no_such_site"
    assert await no(chamber.demote(("clinic-2", "time_sync", "daemon_down"))) == "no_such_rule"
    viewer = Chamber(server, await server.services.users.add("vic", "correct horse battery", role="viewer"))
    for act in (viewer.promote(), viewer.demote(), viewer.drafted()):
        assert await no(act) == "not_allowed"


@pytest.mark.parametrize(
    ("worked", "proof"),
    [(Worked(1, 1, 1, 0), True), (Worked(0, 9, 9, 0), False), (Worked(1, 2, 1, 1), False), (Worked(3, 3, 2, 1), True),
     (Worked(5, 0, 0, 0), False), (Worked(1, 10, 4, 0), False)],
)  # fmt: skip
def test_what_counts_as_proven(worked: Worked, proof: bool) -> None:
    assert is_proven(worked) is proof
