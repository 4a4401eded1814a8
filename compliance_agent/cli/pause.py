"""`compliance-agent pause REASON`: the running agent heals nothing for a while; looking and recording go on."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.admin.client import demand
from compliance_agent.cli.common import Bounded, config_option, json_option, print_json
from compliance_agent.cli.places import load_config
from compliance_agent.core.pausing import DEFAULT_S, LONGEST_S, REASONS

SCHEMA = "compliance-agent/pause/v1"


@click.command()
@click.argument("reason", type=click.Choice(list(REASONS)))
@click.option("--hours", type=Bounded(0.02, LONGEST_S / 3_600), default=DEFAULT_S / 3_600, show_default=True)
@config_option
@json_option
def command(reason: str, hours: float, config_path: Path | None, as_json: bool) -> None:
    """Heal nothing on this host for a while, for a REASON that is recorded with who asked.

    It ends by itself, survives a restart, and needs a running agent. Looking, recording and delivering go on.
    """
    asked = {"reason": reason, "seconds": round(hours * 3_600)}
    document = {"schema": SCHEMA, **demand(load_config(config_path), "POST", "/pause", asked).document}
    if as_json:
        print_json(document)
    else:
        click.echo(f"healing is paused until {document['until']} ({REASONS[reason]}); record {document['bundle_id']}")
