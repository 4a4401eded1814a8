"""`compliance-agent loglevel LEVEL`: the running agent logs more, or less, for a while."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.admin.client import demand
from compliance_agent.cli.common import config_option, json_option, print_json
from compliance_agent.cli.places import load_config
from compliance_agent.log_level import DEFAULT_S, LEVELS, LONGEST_S

SCHEMA = "compliance-agent/loglevel/v1"


@click.command()
@click.argument("level", type=click.Choice(LEVELS, case_sensitive=False))
@click.option("--minutes", type=click.IntRange(1, LONGEST_S // 60), default=DEFAULT_S // 60, show_default=True)
@config_option
@json_option
def command(level: str, minutes: int, config_path: Path | None, as_json: bool) -> None:
    """Log at LEVEL for a while; then the configuration's level counts again."""
    asked = {"level": level, "seconds": minutes * 60}
    document = {"schema": SCHEMA, **demand(load_config(config_path), "POST", "/loglevel", asked).document}
    if as_json:
        print_json(document)
    else:
        click.echo(f"the agent logs {level} for {minutes} min, then {document['then']}")
