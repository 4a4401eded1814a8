"""`compliance-agent profile`: a call tree of the running agent, written to a file."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.adapters.durable import write_file
from compliance_agent.admin.client import demand
from compliance_agent.cli.common import PATH, config_option
from compliance_agent.cli.places import load_config


@click.command()
@click.option("--seconds", type=click.IntRange(1, 60), default=10, show_default=True, help="How long.")
@click.option(
    "--output",
    type=PATH,
    required=True,
    help="File to write: *.html for a call tree and a flame graph, anything else for text.",
)
@config_option
def command(seconds: int, output: Path, config_path: Path | None) -> None:
    """Watch the running agent for a while and write where its time went.

    Needs the extra `profile` where the agent is installed; refused with exit status 69 without it.
    """
    asked = {"seconds": seconds, "format": "html" if output.suffix == ".html" else "text"}
    reply = demand(load_config(config_path), "POST", "/profile", asked, timeout_s=seconds + 30.0)
    write_file(output, reply.body)
    click.echo(f"{output}: {len(reply.body)} bytes", err=True)
