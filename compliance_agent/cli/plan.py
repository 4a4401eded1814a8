"""`compliance-agent plan`: what `heal` would do, step by step, and what holds back what it would not do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.cli.check import detector_for, look_at
from compliance_agent.cli.common import config_option, json_option, load_config, print_json, unconfigured
from compliance_agent.healing import HealingEngine
from compliance_agent.logs import configure

SCHEMA = "compliance-agent/plan/v1"


@click.command()
@click.argument("checks", nargs=-1)
@config_option
@json_option
@click.pass_context
def command(ctx: click.Context, checks: tuple[str, ...], config_path: Path | None, as_json: bool) -> None:
    """Show what would be put back for each failing check (or only for CHECKS), and which gate holds it back.

    This is the same plan and the same decision that `heal` and the agent use; nothing is changed. Exit status 1 when something
    has drifted.
    """
    configure("CRITICAL")
    drifted = runner.run(show(checks, config_path, as_json))
    ctx.exit(1 if drifted else 0)


async def show(checks: tuple[str, ...], config_path: Path | None, as_json: bool) -> bool:
    """Print the plans; whether there was drift. What healing remembers is read beside a running agent."""
    config = load_config(config_path) or unconfigured(Path("/nonexistent"))
    detector = detector_for(config_path, None)
    store = HealingStore.looking(config.database_path)
    host: Any = detector.host
    engine = HealingEngine(config, host=host, baseline=detector.baseline, observe=detector.check_one, store=store)
    results = [result for result in await look_at(detector, checks) if result.drifted]
    previews = [await engine.preview(result) for result in results]
    if as_json:
        print_json({"schema": SCHEMA, "plans": [preview.as_document() for preview in previews]})
        return bool(results)
    if not results:
        click.echo("nothing has drifted")
    for preview in previews:
        click.echo(preview.text())
    return bool(results)
