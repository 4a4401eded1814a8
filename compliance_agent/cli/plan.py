"""`compliance-agent plan`: what `heal` would do, step by step, and what holds back what it would not do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.cli.check import detector_for, look_at, say_skipped, slow
from compliance_agent.cli.common import config_option, json_option, print_json, printable, unconfigured
from compliance_agent.cli.places import load_config
from compliance_agent.healing import HealingEngine
from compliance_agent.logs import configure
from compliance_agent.models import DriftResult, Result

SCHEMA = "compliance-agent/plan/v1"


@click.command()
@click.argument("checks", nargs=-1)
@config_option
@json_option
@click.pass_context
def command(ctx: click.Context, checks: tuple[str, ...], config_path: Path | None, as_json: bool) -> None:
    """Show what would be put back for each failing check (or only for CHECKS), and which gate holds it back.

    This is the same plan and the same decision that `heal` and the agent use; nothing is changed. Exit status 1 when something
    has drifted or could not be told.
    """
    configure("CRITICAL")
    findings = runner.run(show(checks, config_path, as_json))
    ctx.exit(1 if findings else 0)


async def show(checks: tuple[str, ...], config_path: Path | None, as_json: bool) -> bool:
    """Print the plans; whether there were findings. What healing remembers is read beside a running agent."""
    given = load_config(config_path)
    config = given or unconfigured(Path("/nonexistent"))
    detector = detector_for(config_path, None)
    store = HealingStore.looking(config.database_path)
    host: Any = detector.host
    engine = HealingEngine(config, host=host, baseline=detector.baseline, observe=detector.check_one, store=store)
    results = await look_at(detector, checks)
    previews = [await engine.preview(result) for result in results if result.drifted]
    unknown = [result for result in results if result.result is Result.UNKNOWN]
    if as_json:
        plans = [preview.as_document() for preview in previews]
        print_json({"schema": SCHEMA, "plans": plans, "unknown": unknown_as_document(unknown)})
    else:
        say(unknown, [preview.text() for preview in previews])
        say_skipped(() if checks else slow(detector))
        if given is None:
            click.echo("no configuration: the shipped baseline; `heal` needs a configuration", err=True)
    return bool(previews or unknown)


def unknown_as_document(results: Sequence[DriftResult]) -> list[dict[str, str]]:
    """Checks that could not tell, for `--json`."""
    return [{"check": result.check, "reason": result.reason} for result in results]


def say(unknown: Sequence[DriftResult], lines: Sequence[str]) -> None:
    """Print what was found, and what could not be told; "nothing has drifted" only when everything was seen."""
    for line in lines:
        click.echo(line)
    for result in unknown:
        sentence = result.verdict.sentence if result.verdict else result.reason
        click.echo(printable(f"{result.check}: could not tell ({result.reason}): {sentence}"))
    if not lines and not unknown:
        click.echo("nothing has drifted")
