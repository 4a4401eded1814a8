"""The `compliance-agent` command: one module of this package per subcommand, imported only when it is used.

Data goes to standard output, talk to standard error. Exit status: 0 fine, 1 findings, 2 usage, then sysexits (65 bad evidence,
66 no input, 69 unavailable, 70 a bug, 73 and 74 storage, 75 try again, 76 a broken local protocol, 77 permission,
78 configuration), 130 Ctrl-C, 141 closed pipe.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from compliance_agent import __version__, import_structlog_alone
from compliance_agent.errors import AgentError, Unavailable

COMMANDS = {
    "check": "Look at this host and print a verdict for each check.",
    "plan": "Show what would be put back, and what holds it back.",
    "heal": "Put back what has drifted, where the baseline allows it.",
    "run": "Run the agent in the foreground.",
    "uplink": "Run the one process that speaks to the network, beside run.",
    "pause": "Have the running agent heal nothing for a while.",
    "resume": "End that pause.",
    "reload": "Have the running agent read its files again.",
    "loglevel": "Have the running agent log more, or less, for a while.",
    "profile": "Take a call tree of the running agent.",
    "drill": "Make each detector fire once, and record that it did.",
    "status": "Show statistics, queue and last heartbeat of this host's agent.",
    "why": "Say why a check was (not) fixed.",
    "enrol": "Make this host known to a server with a one-time token.",
    "keys": "Show keys, and let a new one take this host's key's place.",
    "verify": "Check evidence offline: signatures, form, chain.",
    "packet": "Build, verify and show an auditor's packet.",
    "config": "Check or show the agent's configuration.",
    "baseline": "Lint, show, compare and sign baselines.",
    "runbook": "Lint, list, show and sign runbooks.",
    "order-root": "The offline root of orders: make it, sign with it, rotate it.",
    "server": "Run the server, and its enrolment tokens, users and hosts.",
    "witness": "Run a witness: cosign checkpoints of logs that only grew.",
    "demo": "A server, simulated clinic hosts and this machine, live.",
    "lab": "Tools for trying things out: synthetic drift.",
}


class Suggesting(click.Group):
    """A group that says which command a mistyped one may have meant."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        from compliance_agent.words import nearest

        known = self.list_commands(ctx)
        if args and not args[0].startswith("-") and args[0] not in known:
            ctx.fail(f"no such command {args[0]!r}{nearest(args[0], known)}")
        return super().resolve_command(ctx, args)


class LazyGroup(Suggesting):
    """A group whose commands are imported when they are called, so that `--help` costs nothing."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = _module(cmd_name).command
        if not isinstance(command, click.Command):
            raise RuntimeError(f"cli/{cmd_name}.py holds no command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


def _module(cmd_name: str) -> Any:
    import_structlog_alone()
    return importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="compliance-agent")
def group() -> None:
    """Compliance evidence for clinic hosts: observe, judge, heal, record, deliver, prove."""


def main() -> None:
    """Entry point: runs the command and leaves with a documented exit status; every error is one line."""
    status = _status()
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        status = _closed_pipe()
    except OSError as error:
        status = _unwritable(error)
    if "asyncio" not in sys.modules:  # nothing ran that could hang, such as `--help`
        sys.exit(status)
    from compliance_agent.adapters import runner

    runner.end(status)


def _status() -> int:
    out, err = sys.stdout, sys.stderr
    try:
        status = group.main(prog_name="compliance-agent", standalone_mode=False)
    except AgentError as error:
        _say(error.line)
        return error.exit_status
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except SystemExit as leaving:
        if sys.stdout is not out:  # click's own answer to a closed pipe: it replaces the streams, and says 1
            sys.stdout, sys.stderr = out, err
            return _closed_pipe()
        return leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError:
        return _closed_pipe()
    except ModuleNotFoundError as error:
        return _not_here(error)
    except OSError as error:
        return _unwritable(error) if error.errno in {errno.ENOSPC, errno.EDQUOT} else _bug(error)
    except Exception as error:
        return _bug(error)
    return status if isinstance(status, int) else 0


def _closed_pipe() -> int:
    """Whoever read our output has had enough. What is left of it goes nowhere, so that leaving does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno() if sys.__stdout__ else 1)
    return 141


def _unwritable(error: OSError) -> int:
    _closed_pipe()
    _say(f"standard output cannot be written: {errno.errorcode.get(error.errno or 0, 'EIO')}")
    return 74


def _not_here(error: ModuleNotFoundError) -> int:
    """A host has the agent's packages alone: no server, no page."""
    missing = str(error.name).partition(".")[0]
    if missing == __name__.partition(".")[0] or missing in sys.stdlib_module_names:
        return _bug(error)
    unavailable = Unavailable(
        f"the package {missing!r} is not installed here, which this command needs",
        hint="the agent's package has no server: pip install 'compliance-agent[server]', or the container image (docs/deploy.md)",
    )
    _say(unavailable.line)
    return unavailable.exit_status


def _bug(error: Exception) -> int:
    from compliance_agent.logs import where

    _say(f"this is a bug: {type(error).__name__} at {where(error)}; please report it with the command you ran")
    return 70


def _say(line: str) -> None:
    click.echo(f"compliance-agent: {line}", err=True)
