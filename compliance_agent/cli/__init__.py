"""The `compliance-agent` command: one module of this package per subcommand, imported only when it is used.

Data goes to standard output, talk to standard error. Exit status: 0 fine, 1 findings, 2 usage, then sysexits (65 bad evidence,
66 no input, 69 unavailable, 70 a bug, 73 and 74 storage, 75 try again, 77 permission, 78 configuration), 130 Ctrl-C,
141 closed pipe.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from compliance_agent import __version__
from compliance_agent.errors import AgentError

COMMANDS = {
    "check": "Look at this host and print a verdict for each check.",
    "plan": "Show what would be put back, and what holds it back.",
    "heal": "Put back what has drifted, where the baseline allows it.",
    "run": "Run the agent in the foreground.",
    "status": "Show statistics, queue and last heartbeat of this host's agent.",
    "why": "Say why a check was (not) fixed.",
    "enrol": "Make this host known to a server with a one-time token.",
    "verify": "Check evidence offline: signatures, form, chain.",
    "config": "Check or show the agent's configuration.",
    "server": "Run the server, and its enrolment tokens, users and hosts.",
    "demo": "A server, simulated clinic hosts and this machine, live.",
    "lab": "Tools for trying things out: synthetic drift.",
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called, so that `--help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        if not isinstance(command, click.Command):
            raise RuntimeError(f"cli/{cmd_name}.py holds no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from compliance_agent.words import nearest

        if args and not args[0].startswith("-") and args[0] not in COMMANDS:
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="compliance-agent")
def group() -> None:
    """Compliance evidence for clinic hosts: observe, judge, heal, record, deliver, prove."""


def main() -> None:
    """Entry point: runs the command and turns every error into one line and a documented exit status."""
    try:
        status = group.main(prog_name="compliance-agent", standalone_mode=False)
    except AgentError as error:
        _say(error.line)
        sys.exit(error.exit_status)
    except click.exceptions.Exit as exit_:
        sys.exit(exit_.exit_code)
    except click.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
    except Exception as error:
        from compliance_agent.logs import where

        _say(f"this is a bug: {type(error).__name__} at {where(error)}; please report it with the command you ran")
        sys.exit(70)
    sys.exit(status if isinstance(status, int) else 0)


def _say(line: str) -> None:
    click.echo(f"compliance-agent: {line}", err=True)
