"""`compliance-agent why CHECK`: why it was (not) fixed, from this host's own evidence; read beside the running agent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters.agent_view import AgentView, Record, Standing, looking
from compliance_agent.adapters.clock import SystemClock, read_clock_state
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.checks import registry
from compliance_agent.cli.common import config_option, json_option, parsed, print_json, table, utc
from compliance_agent.cli.places import require_config
from compliance_agent.cli.status import answered, root_key_line
from compliance_agent.config import AgentConfig
from compliance_agent.core.gates import REASONS, Context, Limits, Moment, decide
from compliance_agent.core.orders import REASONS as OF_ORDERS
from compliance_agent.core.schedule import MaintenanceWindow
from compliance_agent.errors import CannotTell, NoInput
from compliance_agent.healing import CODES
from compliance_agent.models import DriftResult, Mode, Plan, Result, Step, Verdict
from compliance_agent.remedies import actions
from compliance_agent.words import nearest

SCHEMA = "compliance-agent/why/v1"
SHOWN = 5
UNTOUCHED = {"deferred", "alert", "rejected", "expired"}


@click.command()
@click.argument("check")
@config_option
@json_option
def command(check: str, config_path: Path | None, as_json: bool) -> None:
    """Say what was last recorded of CHECK, what holds its cure back and until when, and how the last cures went.

    Everything comes from the agent's own records. Exit status 66 when nothing has been recorded of it yet.
    """
    if check not in registry():
        raise click.BadParameter(f"no check {check!r}{nearest(check, registry())}", param_hint="CHECK")
    config = require_config(config_path)
    with looking(config.database_path) as view:
        document = as_document(config, view, check)
    if as_json:
        print_json(document)
    else:
        _print(document)


def as_document(config: AgentConfig, view: AgentView, check: str) -> dict[str, Any]:
    """The stable object of `--json` (docs/json.md).

    Raises:
        NoInput: nothing has been recorded of the check.
    """
    standing = next((item for item in view.standings() if item.check == check), None)
    if standing is None:
        raise NoInput(f"check {check}: nothing has been recorded of it yet")
    live = (answered(config) or {}).get("live") or {}
    newest, latest = view.records(check, 1), _latest(live, check)
    untouched = standing.outcome in UNTOUCHED
    return {
        "schema": SCHEMA,
        "check": check,
        "result": standing.result,
        "reason": standing.reason,
        "reason_text": in_words(check, standing.reason),
        "since": utc(parsed(standing.since)),
        "bundle_id": newest[0].document["bundle_id"] if newest else None,
        "outcome": standing.outcome or None,
        "held_by": standing.gate if untouched else None,
        "held_by_text": in_words(check, standing.gate) if untouched else None,
        "not_before": not_before(config, standing) if untouched else None,
        "remediations": [_remediation(check, record) for record in view.records(check, SHOWN, kind="remediation")],
        "orders": [_order(check, record) for record in view.records(check, SHOWN, kind="order")],
        "source": "records" if latest is None else "agent",
        "latest": latest,
        "root_key": live.get("root_key"),
    }


def _latest(live: dict[str, Any], check: str) -> dict[str, Any] | None:
    """The newest look, recorded or not, as the running agent says; None where none answers."""
    return next((item for item in live.get("checks", ()) if item["check"] == check), None)


def in_words(check: str, token: str) -> str:
    """What a reason or gate means, in a sentence; the token itself where no list explains it."""
    spec = registry()[check].spec
    said = spec.reasons.get(token) or REASONS.get(token) or CODES.get(token)
    said = said or OF_ORDERS.get(token)
    said = said or next((action.codes[token] for action in actions().values() if token in action.codes), None)
    return said or {"as_expected": "as the baseline says"}.get(token) or token.replace("_", " ")


def not_before(config: AgentConfig, standing: Standing) -> str | None:
    """When the gate that holds the cure back opens by itself, where that can be told."""
    store = HealingStore.looking(config.database_path)
    memory = store.recall(standing.check, "", "")
    context = Context(
        now=_now(),
        mode=Mode.ENFORCE,
        history=memory.history,
        paused=standing.gate == "paused",
        paused_until=memory.pause.until if memory.pause is not None else None,
        contended_since=memory.contended_since,
        limits=Limits(
            config.healing_cooldown_sec, config.healing_budget_per_hour, config.flap_limit, config.flap_window_sec
        ),
        window=MaintenanceWindow(
            config.maintenance_window_start, config.maintenance_window_end, config.maintenance_window_zone
        ),
    )
    plan = Plan(standing.check, (Step("any"),), disruptive=standing.gate == "outside_window")
    verdict = Verdict(Result.FAIL, standing.reason)
    decision = decide(DriftResult(standing.check, True, verdict=verdict, plan=plan), context)
    opens = decision.not_before if decision.reason == standing.gate else None
    return utc(opens)


def _now() -> Moment:
    clock = SystemClock()
    try:
        return Moment(clock.now(), clock.monotonic(), read_clock_state().boot_id)
    except CannotTell:
        return Moment(datetime.now(UTC), 0.0, "")


def _remediation(check: str, record: Record) -> dict[str, Any]:
    document = record.document
    return {
        "at": document["timestamp_start"],
        "outcome": document["outcome"],
        "error": document["error"],
        "error_text": in_words(check, document["error"]) if document["error"] else None,
        "reason": document["reason"],
        "post_result": document["post_result"],
        "steps": [{name: step[name] for name in ("action", "result", "code")} for step in document["actions"]],
        "bundle_id": document["bundle_id"],
        "acknowledged": record.state == "uploaded",
    }


def _order(check: str, record: Record) -> dict[str, Any]:
    document = record.document
    return {
        "at": document["timestamp_start"],
        "order_id": document["order_id"],
        "outcome": document["outcome"],
        "error": document["error"],
        "error_text": in_words(check, document["error"]) if document["error"] else None,
        "bundle_id": document["bundle_id"],
    }


def _print(document: dict[str, Any]) -> None:
    click.echo(f"{document['check']}: {document['result']} since {document['since'][:19]} UTC")
    click.echo(f"  because {document['reason_text']} ({document['reason']})")
    if document["latest"] is not None:
        click.echo(
            f"  looked at last {document['latest']['looked_at']}: {document['latest']['result']} (says the agent)"
        )
    if document["held_by"]:
        until = f", until {document['not_before']}" if document["not_before"] else ""
        click.echo(f"  not fixed ({document['outcome']}): {document['held_by_text']} ({document['held_by']}){until}")
    elif document["outcome"]:
        click.echo(f"  last cure: {document['outcome']}")
    if line := root_key_line(document):
        click.echo(f"  {line}")
    if document["bundle_id"]:
        click.echo(f"  evidence {document['bundle_id']}")
    rows = [
        [
            item["at"][:19],
            item["outcome"],
            item["error_text"] or "",
            " ".join(f"{step['action']}={step['code'] or step['result']}" for step in item["steps"]),
            item["bundle_id"],
        ]
        for item in document["remediations"]
    ]
    if rows:
        click.echo()
        table(("cure at (UTC)", "outcome", "why", "steps", "evidence"), rows)
    asked = [
        [item["at"][:19], item["outcome"], item["error_text"] or "", (item["order_id"] or "")[:16], item["bundle_id"]]
        for item in document["orders"]
    ]
    if asked:
        click.echo()
        table(("order at (UTC)", "outcome", "why", "order", "evidence"), asked)
