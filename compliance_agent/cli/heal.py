"""`compliance-agent heal`: put back what has drifted, once, through the same gates and the same transaction as the agent."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.adapters import runner
from compliance_agent.agent import ComplianceAgent
from compliance_agent.cli import plan
from compliance_agent.cli.check import look_at
from compliance_agent.cli.common import config_option, json_option, print_json, require_config, table
from compliance_agent.logs import configure
from compliance_agent.models import Outcome, RemediationResult

SCHEMA = "compliance-agent/heal/v1"


@click.command()
@click.argument("checks", nargs=-1)
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done; same as `plan`.")
@click.pass_context
def command(
    ctx: click.Context, checks: tuple[str, ...], config_path: Path | None, as_json: bool, dry_run: bool
) -> None:
    """Put back what has drifted (or only CHECKS), where baseline, budget and maintenance window allow it.

    Each cure is a transaction: rollback point, steps, the check again; undone when the check does not pass. It is recorded as
    evidence. Exit status 0 when everything that had drifted is healed, 1 otherwise, 75 while the agent itself is running.
    """
    configure("CRITICAL")
    if dry_run:
        ctx.exit(1 if runner.run(plan.show(checks, config_path, as_json)) else 0)
    results = runner.run(_heal(checks, config_path))
    if as_json:
        print_json({"schema": SCHEMA, "results": [_document(result) for result in results]})
    elif results:
        table(("check", "outcome", "reason"), [[r.check, str(r.outcome), r.reason or r.error or ""] for r in results])
    else:
        click.echo("nothing has drifted")
    ctx.exit(0 if all(result.outcome == Outcome.SUCCESS for result in results) else 1)


async def _heal(checks: tuple[str, ...], config_path: Path | None) -> list[RemediationResult]:
    agent = ComplianceAgent(require_config(config_path), mcp_client=None)
    try:
        await agent.recover()
        drifted = [drift for drift in await look_at(agent.drift_detector, checks) if drift.drifted]
        return [await agent.heal_now(drift) for drift in drifted]
    finally:
        await agent.close()


def _document(result: RemediationResult) -> dict[str, object]:
    return {
        "check": result.check,
        "outcome": str(result.outcome),
        "reason": result.reason,
        "error": result.error,
        "not_before": result.not_before,
        "post_result": result.post_result,
        "steps": [{"action": step.action, "result": step.result, "code": step.code} for step in result.actions],
    }
