"""What may be proposed: an order, as the planner has it, and an exception. A draft does nothing; people approve, sign and deploy.

Over the planner's desk alone: its rules say what could be ordered about a finding, and its bounds hold how often.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from compliance_agent.core import order_keys
from compliance_agent.core.planning import as_document
from compliance_agent.errors import Refusal
from compliance_agent.evidence.allowlist import registry
from compliance_agent.facts import NAME
from compliance_agent.server.records.orders import OrderRow
from compliance_agent.server.services import orders, roles
from compliance_agent.server.services.fleet import UNMET
from compliance_agent.server.services.planning import Plans
from compliance_agent.server.services.tools.plain import known_word, reason_of
from compliance_agent.server.services.tools.scene import Scene
from compliance_agent.server.services.tools.standing import CHECK, HOST, LIMIT, SITE, SKIP, at
from compliance_agent.server.services.tools.words import Answer, Tier, Tool, number, page, text, word

PROPOSAL = text("proposal", "A proposal's id: 16 hexadecimal digits", r"[0-9a-f]{16}", 16)
ORDER = text("order", "An order's id: 32 hexadecimal digits", r"[0-9a-f]{32}", 32)
KIND = word("kind", "One of the proposal's options, where not its own kind", ("check", "remediate", "approve"))
TARGET = text(
    "target", "The plan's target as the host shows it, where the proposal needs it", NAME.pattern, 96, loose=True
)
DAYS = number("days", "For how many days, from now on", 1, 366)


def _proposal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The planner's own document, in the names that the other tools have, with what it takes to go on from it."""
    said = dict(document)
    signers = order_keys.least(said["kind"]) if said["kind"] else 0
    return {
        "proposal": said.pop("proposal_id"),
        "host": said.pop("key_id"),
        "site": said.pop("site_id"),
        **said,
        "reason": reason_of(said["check"], said["reason"]),
        "held": known_word(said["held"]),
        "people_who_must_approve": signers,
        "people_who_must_sign": signers,
    }


async def _proposals(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    site_id = scene.site(arguments["site"])
    plans: Plans = await scene.services.planner().proposals(scene.user, scene.reader.only(site_id))
    return page([_proposal(as_document(item)) for item in plans.proposals], arguments, site=site_id, more=plans.more)


async def _draft(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    planner = scene.services.planner()
    proposal = await planner.find(scene.user, scene.reader, arguments["proposal"])
    scene.about(proposal.finding.site_id)
    chosen = {name: arguments[name] for name in ("kind", "target") if name in arguments}
    row = await planner.draft(scene.user, scene.reader, arguments["proposal"], **chosen)
    return Answer({**_order(scene, row), "proposal": _proposal(as_document(proposal))})


def _order(scene: Scene, row: OrderRow) -> dict[str, Any]:
    return {
        "order": row.order_id,
        "site": row.site_id,
        "host": row.key_id,
        "kind": row.kind,
        "state": orders.standing(row, scene.now),
        "people_who_must_sign": order_keys.least(row.kind),
        "drafted_at": at(row.drafted_at),
        "outcome": known_word(row.outcome),
        "error": known_word(row.error),
        "bundle": row.bundle_id,
    }


async def _show_order(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    row = await scene.services.orders.find(scene.reader, arguments["order"])
    scene.about(row.site_id)
    return Answer(_order(scene, row))


async def _list_orders(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    site_id = scene.site(arguments["site"])
    return page([_order(scene, row) for row in await scene.reader.only(site_id).orders()], arguments, site=site_id)


async def _exception(scene: Scene, arguments: Mapping[str, Any]) -> Answer:
    """Nothing is kept: an exception is a line of a baseline, which a person approves by name and signs."""
    host, check = await scene.host(arguments["host"]), arguments["check"]
    if host.revoked_at is not None:
        raise Refusal("no such host", code="not_found", status=404)
    standing = next((item for item in await scene.fleet.checks(host.key_id) if item.check == check), None)
    if standing is None or standing.verdict.result not in UNMET:
        raise Refusal("exception: the check does not fail on that host", code="nothing_to_except", status=409)
    known, reason = registry().checks[check], reason_of(check, standing.verdict.reason)
    reasons = [reason] if reason in known["reasons"] else []
    until = scene.now + timedelta(days=arguments["days"])
    line = {
        "check": check,
        "reasons": reasons,
        "created": at(scene.now),
        "expires": at(until),
        "id": None,
        "approver": None,
    }
    return Answer(
        {
            "host": host.key_id,
            "site": host.site_id,
            "baseline_sha256": known_word(host.baseline_sha256),
            "exception": line,
            "effect": "the verdict is `exception` in place of `fail` until it expires, and nothing is cured; it never shows as met",
            "risk": {"severity": known["severity"], "citations": known["citations"], "unmet_since": at(standing.verdict.since)},
            "next": "a person adds id and approver, puts the line into a new baseline, signs it, and has hosts adopt it",
        }
    )  # fmt: skip


PROPOSING = (
    Tool(
        "list_proposals",
        Tier.READ,
        "What could be ordered about each finding of a site: the plan as it would run, its expected effect, whether users"
        " notice, what can be undone, and who must agree. Writes nothing.",
        (SITE, SKIP, LIMIT),
        _proposals,
    ),
    Tool("list_orders", Tier.READ, "The newest orders of a site, at most 100.", (SITE, SKIP, LIMIT), _list_orders),
    Tool("show_order", Tier.READ, "How an order stands, and how the host answered.", (ORDER,), _show_order),
    Tool(
        "draft_order",
        Tier.PROPOSE,
        "Draft the order of one proposal. It does nothing before people have approved and signed it.",
        (PROPOSAL, KIND.optional(), TARGET.optional()),
        _draft,
        roles.Act.DRAFT_ORDER,
    ),
    Tool(
        "draft_exception",
        Tier.PROPOSE,
        "Word an exception for a check that fails on a host, as the line that a person could put into its baseline. Keeps nothing.",
        (HOST, CHECK, DAYS),
        _exception,
        roles.Act.DRAFT_ORDER,
    ),
)
