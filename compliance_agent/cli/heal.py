"""`compliance-agent heal`: put back what has drifted, once, through the same gates and the same transaction as the agent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from compliance_agent.adapters import runner
from compliance_agent.agent import ComplianceAgent
from compliance_agent.cli import plan
from compliance_agent.cli.check import look_at
from compliance_agent.cli.common import config_option, json_option, print_json, utc
from compliance_agent.cli.places import require_config
from compliance_agent.core.gates import REASONS
from compliance_agent.healing import CODES
from compliance_agent.logs import configure
from compliance_agent.models import DriftResult, Outcome, RemediationResult, Result

SCHEMA = "compliance-agent/heal/v1"


@click.command()
@click.argument("checks", nargs=-1)
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only show what would be done; same as `plan`.")
@click.option(
    "--again", is_flag=True, help="Also cures that were rolled back before, or undone by others: you looked into it."
)
@click.pass_context
def command(
    ctx: click.Context, checks: tuple[str, ...], config_path: Path | None, as_json: bool, dry_run: bool, again: bool
) -> None:
    """Put back what has drifted (or only CHECKS), where baseline, budget and maintenance window allow it.

    Each cure is a transaction: rollback point, steps, the check again; undone when the check does not pass. It is recorded as
    evidence. Exit status 0 when all that had drifted is healed and nothing is unknown, 1 otherwise, 75 while the agent itself runs.
    """
    configure("CRITICAL")
    if dry_run and again:
        raise click.UsageError("--again would change what is remembered; leave out --dry-run")
    if dry_run:
        ctx.exit(1 if runner.run(plan.show(checks, config_path, as_json)) else 0)
    results, unknown = runner.run(_heal(checks, config_path, again))
    if as_json:
        ended = [_document(result) for result in results]
        print_json({"schema": SCHEMA, "results": ended, "unknown": plan.unknown_as_document(unknown)})
    else:
        plan.say(unknown, _lines(results))
    healed = all(result.outcome == Outcome.SUCCESS for result in results)
    ctx.exit(0 if healed and not unknown else 1)


async def _heal(
    checks: tuple[str, ...], config_path: Path | None, again: bool
) -> tuple[list[RemediationResult], list[DriftResult]]:
    agent = ComplianceAgent(require_config(config_path), mcp_client=None)
    try:
        await agent.recover()
        seen = await look_at(agent.drift_detector, checks)
        for drift in seen if again else ():
            agent.healing_engine.forgive(drift.check)
        ended = [await agent.heal_now(drift) for drift in seen if drift.drifted]
        return ended, [drift for drift in seen if drift.result is Result.UNKNOWN]
    finally:
        await agent.close()


def _lines(results: Sequence[RemediationResult]) -> list[str]:
    """A line for each cure: how it ended and why."""
    told = {**REASONS, **CODES}
    return [f"{r.check}: {r.outcome}: {told.get(r.reason, r.reason)} ({r.reason})" for r in results]


def _document(result: RemediationResult) -> dict[str, object]:
    return {
        "check": result.check,
        "outcome": str(result.outcome),
        "reason": result.reason,
        "error": result.error,
        "not_before": utc(result.not_before),
        "post_result": result.post_result,
        "steps": [{"action": step.action, "result": step.result, "code": step.code} for step in result.actions],
    }
