"""`compliance-agent reload`: the running agent reads its files again, as at SIGHUP, and says whether it took them."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.admin.client import demand
from compliance_agent.cli.common import config_option, json_option, print_json
from compliance_agent.cli.places import load_config

SCHEMA = "compliance-agent/reload/v1"


@click.command()
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> None:
    """Have the running agent read configuration, baseline and TLS files again.

    What cannot be used is refused whole, and the former files stay in force (exit status 78).
    """
    document = {"schema": SCHEMA, **demand(load_config(config_path), "POST", "/reload", timeout_s=60).document}
    if as_json:
        print_json(document)
    else:
        click.echo("the new files are in force")
