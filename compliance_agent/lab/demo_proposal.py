"""The demo's proposal: drift that may not heal itself, proposed to a program, agreed to by people, and healed on the host.

    the host waits for people -> a program reads what could be done, and drafts it -> two people approve -> two keys sign
    -> the host does it, once -> its check passes -> the signed records of it are at the server

The program is a client of the Model Context Protocol over HTTP with a token that may draft and no more. What it may not, it tries:
to approve, to draft without what people have to bring, and to draft twice. The target that is approved is read at the host, as
`plan --json` shows it there.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from compliance_agent.errors import AgentError, BadReply, ServerRefused
from compliance_agent.lab.operator import Operator
from compliance_agent.transport.http import HttpTransport

if TYPE_CHECKING:
    from compliance_agent.lab.demo import Demo, DemoHost

FAULT, CHECK = "telnet_running", "services"
WAIT_S = 20.0
T = TypeVar("T")


class NotShown(AgentError):
    """The demo did not show what it must."""

    code = "demo_failed"
    exit_status = 1


class Program:
    """A program that speaks the Model Context Protocol at a server: each call is one request, and stands alone."""

    def __init__(self, url: str, token: str) -> None:
        self._transport = HttpTransport(url)
        self._headers = {
            "authorization": f"Bearer {token}",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
        }

    async def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """A tool's answer: `data` or `items`, or `error`.

        Raises:
            ServerRefused: any status but 200.
            BadReply: not an answer of a tool.
        """
        said = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}
        reply = await self._transport.request("POST", "/mcp", body=json.dumps(said).encode(), headers=self._headers)
        if reply.status != 200:
            raise ServerRefused(f"{tool}: the server answered {reply.status}", status=reply.status)
        try:
            [content] = json.loads(reply.body)["result"]["content"]
            return dict(json.loads(content["text"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadReply(f"{tool}: not an answer of a tool") from error

    async def close(self) -> None:
        """Close the connection."""
        await self._transport.close()


async def propose_and_heal(demo: Demo, host: DemoHost, operator: Operator, say: Callable[[str], None]) -> str:
    """Play it; the id of the record that shows the check passing.

    Raises:
        NotShown: names what is missing.
    """
    engine = host.agent.healing_engine
    engine.config = replace(engine.config, approval_for_disruptive=True)
    healed = host.healed.count(CHECK)
    program = Program(demo.url, await demo.program_token())
    try:
        demo.inject(host, FAULT)
        proposal = await _until(lambda: _waiting(program, host), f"{host.host_id}: no plan of {CHECK} waits for people")
        if host.healed.count(CHECK) != healed:
            raise NotShown(f"{host.host_id}: healed {CHECK}, which waits for people, by itself")
        say(f"{host.host_id} does not heal {CHECK} by itself: {proposal['why']}")
        order_id = await _drafted(demo, program, proposal, await _target(host))
        say(
            f"a program read that, and drafted order {order_id[:8]} by runbook {proposal['runbook']['id']}; it could do no more"
        )
        await demo.agree(order_id)
        order = await _until(lambda: _answered(operator, order_id), f"order {order_id} is not answered")
        if order["outcome"] != "success" or {mark["what"] for mark in order["marks"]} != {"approved", "signed"}:
            raise NotShown(f"{host.host_id}: order {order_id} ended {order['outcome']} ({order['error']})")
        record = await _until(lambda: _record(operator, host, order), f"{host.host_id}: {CHECK} did not heal")
    finally:
        await program.close()
    say("two people approved it, two keys signed it, the host did it once, and its check passes")
    return record


async def _waiting(program: Program, host: DemoHost) -> dict[str, Any] | None:
    """The proposal about this host, once its plan waits for people."""
    found = (await program.call("list_proposals", site=host.site_id)).get("items", [])
    return next((item for item in found if (item["check"], item["rule"]) == (CHECK, "approve")), None)


async def _target(host: DemoHost) -> str:
    """What `compliance-agent plan --json` shows on that host."""
    drift = await host.agent.drift_detector.check_one(CHECK)
    return str((await host.agent.healing_engine.preview(drift)).target)


async def _drafted(demo: Demo, program: Program, proposal: Mapping[str, Any], target: str) -> str:
    """The one draft that comes of it; what else a program may try changes nothing."""
    before = await demo.order_states()
    for tool, arguments in (
        ("approve_order", {"order": "0" * 32}),
        ("draft_order", {"proposal": proposal["proposal"]}),
        ("draft_order", {"proposal": proposal["proposal"], "target": "; rm -rf /"}),
        ("draft_order", {"proposal": "0" * 16, "target": target}),
    ):
        answer = await program.call(tool, **arguments)
        if "error" not in answer or await demo.order_states() != before:
            raise NotShown(f"a program could call {tool} with {sorted(arguments)}")
    answer = await program.call("draft_order", proposal=proposal["proposal"], target=target)
    if "error" in answer:
        raise NotShown(f"a program could not draft what was proposed: {answer['error']['code']}")
    order_id = str(answer["data"]["order"])
    again = await program.call("draft_order", proposal=proposal["proposal"], target=target)
    if again.get("error", {}).get("code") != "plan_open" or await demo.order_states() != {**before, order_id: "draft"}:
        raise NotShown("a program could draft the same twice, or more than a draft")
    return order_id


async def _answered(operator: Operator, order_id: str) -> dict[str, Any] | None:
    order = await operator.get(f"/api/v1/orders/{order_id}")
    return dict(order) if order["state"] == "answered" else None


async def _record(operator: Operator, host: DemoHost, order: Mapping[str, Any]) -> str | None:
    """The verified record of the cure, made after the order was answered."""
    items = (await operator.get(f"/api/v1/bundles?host={host.key_id}&check={CHECK}&outcome=success"))["items"]
    after = await operator.get(f"/api/v1/bundles/{order['bundle_id']}")
    if not items:
        return None
    bundle = await operator.get(f"/api/v1/bundles/{items[0]['bundle_id']}")
    document, answer = (json.loads(base64.b64decode(item["bundle"])) for item in (bundle, after))
    later = document["seq"] > answer["seq"]
    return str(items[0]["bundle_id"]) if later and bundle["valid"] and document["post_result"] == "pass" else None


async def _until(look: Callable[[], Awaitable[T | None]], why_not: str) -> T:
    deadline = time.monotonic() + WAIT_S
    while (found := await look()) is None:
        if time.monotonic() > deadline:
            raise NotShown(why_not)
        await asyncio.sleep(0.2)
    return found
