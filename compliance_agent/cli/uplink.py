"""`compliance-agent uplink`: the one process of a host that speaks to the network, where `privileges` is `split`."""

from __future__ import annotations

from pathlib import Path

import click

from compliance_agent.adapters import runner
from compliance_agent.cli.common import LEVELS, config_option
from compliance_agent.cli.places import require_config
from compliance_agent.uplink.process import serve


@click.command()
@config_option
@click.option("--log-level", type=click.Choice(LEVELS), help="Overrides the configuration's.")
def command(config_path: Path | None, log_level: str | None) -> None:
    """Take requests of the agent from a socket to the server, until SIGTERM or Ctrl-C; SIGHUP has it read its files again."""
    runner.run(serve(lambda: require_config(config_path), log_level))
