"""`compliance-agent run`: the agent in the foreground, until SIGTERM or Ctrl-C; SIGHUP has it read its files again."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn

import click

from compliance_agent.adapters import runner
from compliance_agent.cli.common import LEVELS, config_option
from compliance_agent.cli.places import require_config
from compliance_agent.config import AgentConfig
from compliance_agent.errors import ConfigError, NotPermitted
from compliance_agent.service import serve


@click.command()
@config_option
@click.option("--log-level", type=click.Choice(LEVELS), help="Overrides the configuration's.")
@click.option(
    "--give-up-root",
    is_flag=True,
    help="Started by root: run as the user `run_user`. What stays root makes the changes that `baseline permit` permitted.",
)
def command(config_path: Path | None, log_level: str | None, give_up_root: bool) -> None:
    """Run the agent until SIGTERM or Ctrl-C; it drains and stops in under 10 seconds. SIGHUP has it read its files again.

    With --give-up-root two processes run over a socket pair, for hosts and containers without a service manager: see docs/heal.md.
    """
    if give_up_root:
        _without_root(require_config(config_path), config_path, log_level)
    runner.run(serve(lambda: require_config(config_path), log_level))


def _without_root(config: AgentConfig, path: Path | None, log_level: str | None) -> NoReturn:
    """Become the root side of an agent that is started without root's rights.

    Raises:
        ConfigError: the processes of this host are started by their units, or a root side has its socket.
        NotPermitted: this is not root.
    """
    if config.privileges != "single" or config.heal_socket is not None:
        raise ConfigError(
            "--give-up-root: privileges is split, or heal_socket is set, so the root side is started already",
            hint="leave the option out; see docs/heal.md",
        )
    if os.geteuid() != 0:
        raise NotPermitted("--give-up-root: this user is not root", hint="start it as root, or leave the option out")
    python = (sys.executable, "-I", "-m")
    agent = [*python, "compliance_agent", "run"]
    agent += [] if path is None else ["--config", str(path.absolute())]
    agent += [] if log_level is None else ["--log-level", log_level]
    os.execv(sys.executable, [*python, "compliance_agent.pair", "--user", config.run_user, "--", *agent])  # noqa: S606
