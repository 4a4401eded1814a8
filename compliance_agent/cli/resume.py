"""`compliance-agent resume`: end a pause that a person at this host asked for."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.admin.client import demand
from compliance_agent.cli.common import config_option, json_option, print_json
from compliance_agent.cli.places import load_config

SCHEMA = "compliance-agent/resume/v1"


@click.command()
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> None:
    """End a pause that `pause` began. One that a signed order began is ended by a signed order."""
    document = {"schema": SCHEMA, **demand(load_config(config_path), "POST", "/resume").document}
    if as_json:
        print_json(document)
    elif document["paused"]:
        click.echo("healing stays paused: a signed order paused it too")
    else:
        done = f"healing goes on; record {document['bundle_id']}"
        click.echo(done if document["bundle_id"] else "healing was not paused")
