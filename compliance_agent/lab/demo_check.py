"""The demo as a test: every simulated host drifts in every curable way, heals, and the server holds verified proof of it.

What is believed is what the checks see on the simulated machines, the evidence on disk under the offline verifier, and what the
server answers over HTTP; not an agent's own count of its successes.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from compliance_agent.errors import AgentError
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab import drift as synthetic
from compliance_agent.lab.demo import Demo, DemoHost
from compliance_agent.lab.demo_proposal import propose_and_heal
from compliance_agent.lab.operator import Operator

SETTLE_S = 20.0
HEAL_S = 25.0
DELIVER_S = 15.0


class DemoFailed(AgentError):
    """The demo did not show what it must."""

    code = "demo_failed"
    exit_status = 1


@dataclass(frozen=True)
class Healed:
    """One drift that went all the way."""

    host_id: str
    fault: str
    check: str
    bundle_id: str


async def run_check(demo: Demo, say: Callable[[str], None]) -> list[Healed]:
    """Play the bounded scene; what was healed and proven, or an error that names what was not.

    Raises:
        DemoFailed: names the host and what is missing.
    """
    started = time.monotonic()
    clinics = demo.clinics()
    await _until(
        lambda: all(host.agent.latest and not host.unmet() for host in clinics),
        SETTLE_S,
        lambda: _unmet(clinics, "at the start"),
    )
    say(f"{len(clinics)} simulated clinic hosts comply ({time.monotonic() - started:.1f} s)")
    for host in clinics:
        for fault in demo.curable_faults(host):
            demo.inject(host, fault)
    for host in clinics:
        say(f"{host.host_id} drifts: {', '.join(host.injected)}")
    await _until(
        lambda: all(not _unhealed(host) for host in clinics),
        HEAL_S,
        lambda: "; ".join(f"{host.host_id} did not heal {_unhealed(host)}" for host in clinics if _unhealed(host)),
    )
    await _until(lambda: all(not host.unmet() for host in clinics), SETTLE_S, lambda: _unmet(clinics, "after healing"))
    say(f"all healed and checked again ({time.monotonic() - started:.1f} s)")
    operator = Operator(demo.url, await demo.operator_token())
    try:
        await _ordered(demo, clinics[0], operator)
        say(f"{clinics[0].host_id} did a signed order once, and its signed record is the answer")
        if demo.speaks_mcp:
            await propose_and_heal(demo, clinics[0], operator, say)
        else:
            say("without the extra `mcp` no program can propose anything, so that is not shown")
        await asyncio.gather(*(_delivered(host) for host in demo.hosts))
        demo.pin_log_keys()
        proven = [item for host in clinics for item in await _proven(host, operator)]
        for host in demo.hosts:
            await _all_at_server(host, operator)
    finally:
        await operator.close()
    say(
        f"every bundle is at the server and in its log, verified there and offline ({time.monotonic() - started:.1f} s)"
    )
    await _until(lambda: not demo.unwitnessed(), DELIVER_S, lambda: f"unwitnessed: {', '.join(demo.unwitnessed())}")
    say("a witness has cosigned the newest checkpoint of every log")
    unseen = [host.host_id for host in clinics if not _saw_the_witness(host)]
    if unseen:
        raise DemoFailed(f"no bundle says that a witness stood behind the log: {', '.join(unseen)}")
    say("each clinic host has said so itself in its signed evidence")
    return proven


async def _until(done: Callable[[], bool], seconds: float, why_not: Callable[[], str]) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise DemoFailed(why_not())
        await asyncio.sleep(0.05)


def _unmet(hosts: Iterable[DemoHost], when: str) -> str:
    return "; ".join(
        f"{host.host_id} does not comply {when}: "
        + ", ".join(
            f"{result.check} {result.result} ({result.reason})"
            for result in host.agent.latest
            if result.result != "pass"
        )
        for host in hosts
        if host.unmet() or not host.agent.latest
    )


def _unhealed(host: DemoHost) -> str:
    """Checks that were let drift and have not been healed, as text."""
    wanted = {synthetic.FAULTS[name].check for name in host.injected}
    return ", ".join(sorted(wanted - set(host.healed)))


async def _ordered(demo: Demo, host: DemoHost, operator: Operator) -> None:
    """A signed order goes out, is done, and the server holds the host's verified record of its end."""
    order_id = await demo.order_a_look(host)
    deadline = time.monotonic() + DELIVER_S
    while (order := await operator.get(f"/api/v1/orders/{order_id}"))["state"] != "answered":
        if time.monotonic() > deadline:
            raise DemoFailed(f"{host.host_id}: order {order_id} is {order['state']}, not answered")
        await asyncio.sleep(0.2)
    if order["outcome"] != "success":
        raise DemoFailed(f"{host.host_id}: order {order_id} ended {order['outcome']} ({order['error']})")
    bundle = await operator.get(f"/api/v1/bundles/{order['bundle_id']}")
    document = json.loads(base64.b64decode(bundle["bundle"]))
    if not bundle["valid"] or document["artifacts"] != [
        {"name": "order", "sha256": order["sha256"], "size": len(base64.b64decode(order["envelope"]))}
    ]:
        raise DemoFailed(f"{host.host_id}: bundle {order['bundle_id']} is no verified record of order {order_id}")


async def _delivered(host: DemoHost) -> None:
    """Let the agent stop once it holds a receipt for everything it recorded; from then on its evidence stands still."""
    deadline = time.monotonic() + DELIVER_S
    while host.receipted < host.agent.stats["evidence_generated"]:
        if time.monotonic() > deadline:
            made = host.agent.stats["evidence_generated"]
            raise DemoFailed(f"{host.host_id}: {host.receipted} receipts for {made} bundles")
        await asyncio.sleep(0.05)
    host.agent.shutdown_event.set()
    if host.task is not None:
        await host.task


def _saw_the_witness(host: DemoHost) -> bool:
    """Whether a bundle names a head of the log that a witness had cosigned when this host checked it."""
    documents = (json.loads(path.read_bytes()) for path in host.agent.config.evidence_dir.rglob("bundle.json"))
    return any((document.get("log_head") or {}).get("witnessed_at") for document in documents)


async def _proven(host: DemoHost, operator: Operator) -> list[Healed]:
    """For each fault of this host the bundle at the server that shows fail -> success -> pass, verified by the server."""
    proven = []
    for fault in host.injected:
        check = synthetic.FAULTS[fault].check
        page = await operator.get(f"/api/v1/bundles?host={host.key_id}&check={check}&outcome=success")
        items = page["items"]
        if not items:
            raise DemoFailed(f"{host.host_id}: the server holds no successful remediation of {check}")
        bundle = await operator.get(f"/api/v1/bundles/{items[0]['bundle_id']}")
        if not bundle["valid"]:
            raise DemoFailed(f"{host.host_id}: bundle {items[0]['bundle_id']} does not verify at the server")
        proven.append(Healed(host.host_id, fault, check, items[0]["bundle_id"]))
    return proven


async def _all_at_server(host: DemoHost, operator: Operator) -> None:
    """What stands on the host's disk verifies offline, and the server holds as many, with the same head."""
    report = verify_paths([host.directory])
    if not report.ok:
        named = "; ".join(f"{problem.code} {problem.where}" for problem in report.problems[:3]) or "nothing found"
        raise DemoFailed(f"{host.host_id}: evidence does not verify offline: {named}")
    receipted = sum(chain.receipted for chain in report.chains)
    if receipted != report.found:
        raise DemoFailed(f"{host.host_id}: {receipted} of {report.found} bundles have a receipt that verifies offline")
    head = await operator.get(f"/api/v1/hosts/{host.key_id}")
    if head["head"]["seq"] != report.found:
        raise DemoFailed(
            f"{host.host_id}: {report.found} bundles on disk, the server's chain ends at {head['head']['seq']}"
        )
