"""A hostile model at the end of a program's connection: whatever it calls, nothing changes that people have not approved.

What changes a host is an order that is signed; what could become one is an order that is approved. Each attack is tried over the
Model Context Protocol as the SDK's client sends it, with the token of a proposer, which is as far as a program is let. The endpoint
itself (tokens, names, quotas, labels of hosts) is the matter of test_mcp_hostile.py; here it is what becomes of orders.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from mcp import Client

from compliance_agent.errors import Refusal
from compliance_agent.server.services.calls import CallDesk
from compliance_agent.server.services.orders import OrderDesk
from compliance_agent.server.services.planning import Planner
from compliance_agent.server.services.tools import TOOLS
from tests.server.builder import FakeHost, Server, serving
from tests.server.mcp_clients import ON, connected, lines, said, token_of
from tests.server.test_cures import cure
from tests.server.test_planning import failing

pytestmark = pytest.mark.anyio
AT_ONCE = 60


class Attack:
    """A server with two tenants, each with a host whose cure failed, and a hostile model that speaks for one of them."""

    def __init__(self, server: Server, token: str, mine: FakeHost, theirs: FakeHost) -> None:
        self.server, self.token, self.mine, self.theirs = server, token, mine, theirs

    @property
    def store(self) -> Any:
        return self.server.services.store

    async def decided(self) -> list[tuple[str, str]]:
        """Everything that is beyond a draft: states and marks of all orders at all sites."""
        rows = await self.server.by_hand("SELECT order_id, state FROM orders WHERE state <> 'draft' ORDER BY 1")
        marks = await self.server.by_hand("SELECT order_id, what FROM order_marks ORDER BY 1, 2")
        return [(str(one), str(two)) for one, two in [*rows, *marks]]

    async def drafts(self) -> list[tuple[str, str]]:
        """Site and parameters of every draft."""
        found = await self.server.by_hand("SELECT site_id, parameters FROM orders ORDER BY drafted_at, order_id")
        return [(str(site), str(parameters)) for site, parameters in found]

    async def forwarded(self) -> list[Any]:
        """What the hosts are given at their next check-in."""
        given = []
        for host in (self.mine, self.theirs):
            given += (await self.server.checkin(host, order_nonce="12" * 16)).json()["orders"]
        return given

    async def nothing_decided(self) -> None:
        assert await self.decided() == [] and await self.forwarded() == []

    async def proposal_of(self, sites: frozenset[str]) -> str:
        """The id of a proposal there, as the other tenant's own person would see it."""
        found = await self.server.services.planner().computed(self.store.for_sites(sites))
        return found.proposals[0].proposal_id


@pytest.fixture
async def attack(tmp_path: Path) -> AsyncIterator[Attack]:
    async with serving(tmp_path / "data", **ON) as server:
        mine, theirs = await failing(server), await failing(server, "ws-09", "clinic-2")
        for host in (mine, theirs):
            await server.deliver(host, cure(host, "failed", "step_failed"))
        token = await token_of(server, "program", role="proposer", sites=frozenset({"clinic-1"}))
        yield Attack(server, token, mine, theirs)


@pytest.fixture
async def model(attack: Attack) -> AsyncIterator[Client]:
    async with connected(attack.server.app, attack.token) as client:
        yield client


INJECTED = [
    "; rm -rf /", "$(reboot)", "--yes", "../../etc/passwd", "a\nb", "steps-1\u202e", "\x00", "{{7*7}}", "' OR 1=1 --", "%s%n",
    "x" * 97, "x" * 60_000, "", " ", "\uff41", 1, True, None, ["steps-1"], {"target": "steps-1"}, -1, 2**63,
]  # fmt: skip


async def test_injected_and_oversized_arguments_draft_nothing(attack: Attack, model: Client) -> None:
    """Into each argument of each tool, and under names that no tool has."""
    proposal = await attack.proposal_of(frozenset({"clinic-1"}))
    for value in INJECTED:
        for arguments in (
            {"proposal": value}, {"proposal": proposal, "target": value}, {"proposal": proposal, "kind": value},
            {"proposal": proposal, "approved": True, "x": value},
        ):  # fmt: skip
            answer = await said(model, "draft_order", **arguments)
            assert answer["error"]["code"] in {"bad_argument", "no_target", "no_such_proposal"}, arguments
    for tool in TOOLS.values():
        for argument in tool.arguments:
            for value in ("; rm -rf /", "x" * 60_000, {"a": 1}):
                assert (await said(model, tool.name, **{argument.name: value}))["error"]["code"] == "bad_argument"
    assert await attack.drafts() == []
    await attack.nothing_decided()
    assert "rm -rf" not in json.dumps(await lines(attack.server)), "no record repeats what was said"


async def test_no_call_goes_beyond_a_draft(attack: Attack, model: Client) -> None:
    row = await _draft_of(attack, model)
    for name in (
        "approve_order",
        "sign_order",
        "prepare_order",
        "run_command",
        "promote_rule",
        "__import__",
        "draft_order ",
    ):
        answer = await said(model, name, order=row)
        assert answer["error"]["code"] == "unknown_tool"
    assert len(await attack.drafts()) == 1
    await attack.nothing_decided()


async def test_anothers_ids_are_as_unknown_ones(attack: Attack, model: Client) -> None:
    """Proposals, hosts, sites and orders of the other tenant: the very same answers as for what does not exist."""
    kim = await attack.server.services.users.add("kim", "correct horse battery", role="operator")
    reader = attack.store.for_sites({"clinic-2"})
    theirs = await attack.proposal_of(frozenset({"clinic-2"}))
    order = await attack.server.services.planner().draft(kim, reader, theirs)
    before = await attack.drafts()
    for tool, argument, known, unknown in (
        ("draft_order", "proposal", theirs, "0" * 16),
        ("show_order", "order", order.order_id, "0" * 32),
        ("show_host", "host", attack.theirs.key_id, "0" * 64),
        ("list_proposals", "site", "clinic-2", "clinic-0"),
        ("list_orders", "site", "clinic-2", "clinic-0"),
    ):
        answers = [await said(model, tool, **{argument: value}) for value in (known, unknown)]
        assert answers[0] == answers[1] and "error" in answers[0], tool
    assert await attack.drafts() == before
    await attack.nothing_decided()


async def test_an_approval_is_of_one_order_and_cannot_be_carried_over(attack: Attack, model: Client) -> None:
    """A person approves what was drafted; the same proposal drafted again, later, is another order and approved by nobody."""
    first = await _draft_of(attack, model)
    person = await attack.server.services.users.add("jo", "correct horse battery", role="operator")
    reader, desk = attack.store.for_sites({"clinic-1"}), attack.server.services.orders
    await desk.approve(person, reader, first)
    approved = await attack.decided()
    assert (await said(model, "draft_order", proposal=await attack.proposal_of(frozenset({"clinic-1"}))))["error"][
        "code"
    ] == "plan_open"
    await desk.cancel(person, reader, first)
    for _ in range(4):
        attack.server.clock.move(300)
        await attack.server.checkin(attack.mine, checks={})
    second = await _draft_of(attack, model)
    marks = await attack.server.by_hand("SELECT order_id FROM order_marks")
    assert second != first and [one for (one,) in marks] == [first] and approved
    found = await desk.find(reader, second)
    assert (found.state, found.envelope, found.payload) == ("draft", None, None)
    for signers in (["0" * 64], []):
        with pytest.raises(Refusal):
            await desk.prepare(person, reader, second, signers)
    assert await attack.forwarded() == []


async def test_calls_at_the_same_time_make_one_draft(attack: Attack) -> None:
    """The desk under the endpoint, which lets so many through (`test_ten_thousand_calls_are_sixty`), as fast as it goes."""
    desk = CallDesk(attack.server.services)
    caller = await desk.caller(attack.token)
    assert caller is not None
    proposal = await attack.proposal_of(frozenset({"clinic-1"}))
    calls: list[tuple[str, dict[str, Any]]] = [
        ("draft_order", {"proposal": proposal}),
        ("draft_order", {"proposal": proposal, "kind": "check"}),
        ("draft_order", {"proposal": "0" * 16}),
        ("approve_order", {}),
    ]
    found = await asyncio.gather(*(desk.call(caller, *calls[number % 4]) for number in range(AT_ONCE)))
    assert sum(not item.refused for item in found) == 1 == len(await attack.drafts())
    await attack.nothing_decided()


async def _draft_of(attack: Attack, model: Client) -> str:
    answer = await said(model, "draft_order", proposal=await attack.proposal_of(frozenset({"clinic-1"})))
    return str(answer["data"]["order"])


async def test_planted_a_desk_without_bounds_and_one_that_approves_are_caught(
    attack: Attack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The attacks above have teeth: with these faults they find what they look for."""
    real = OrderDesk.draft

    async def eager(self: OrderDesk, user: Any, reader: Any, wanted: Any, bounded: Any = None, **more: Any) -> Any:
        row = await real(self, user, reader, wanted, **more)
        jo = await attack.server.services.users.add("jo", "correct horse battery", role="operator")
        return await self.approve(jo, reader, row.order_id)

    async with connected(attack.server.app, attack.token) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Planner, "_check_bounds", lambda *_: None)
            assert await _draft_of(attack, client) != await _draft_of(attack, client), "two drafts of one proposal"
        assert len(await attack.drafts()) == 2
        with monkeypatch.context() as patch:
            patch.setattr(Planner, "_check_bounds", lambda *_: None)
            patch.setattr(OrderDesk, "draft", eager)
            await _draft_of(attack, client)
    with pytest.raises(AssertionError):
        await attack.nothing_decided()


async def test_planted_a_planner_that_forgets_the_tenant_is_caught_and_meets_a_second_wall(
    attack: Attack, model: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another's proposal would then be answered otherwise than an unknown one; the order desk still has no such host."""
    real = Planner.every

    async def every(self: Planner, _reader: Any) -> Any:
        return await real(self, attack.store.for_sites({"clinic-1", "clinic-2"}))

    theirs = await attack.proposal_of(frozenset({"clinic-2"}))
    monkeypatch.setattr(Planner, "every", every)
    codes = [(await said(model, "draft_order", proposal=proposal))["error"]["code"] for proposal in (theirs, "0" * 16)]
    assert codes == ["no_such_host", "no_such_proposal"]
    assert await attack.drafts() == []
