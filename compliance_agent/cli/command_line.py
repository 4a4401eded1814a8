"""The command line itself: the parser, what is said of an error, and the status with which the program ends."""

from __future__ import annotations

import errno
import importlib
import os
import sys
from typing import Any

import click

from compliance_agent import __version__, import_structlog_alone
from compliance_agent.cli import COMMANDS, PURPOSE
from compliance_agent.errors import AgentError, Unavailable


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
    return importlib.import_module(f"{__package__}.{cmd_name.replace('-', '_')}")


@click.group(
    cls=LazyGroup, help=PURPOSE, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.version_option(__version__, prog_name="compliance-agent")
def group() -> None:
    """All commands; `help` above is what `--help` says of them."""


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
    except SystemExit as leaving:
        if sys.stdout is not out:  # click's own answer to a closed pipe: it replaces the streams, and says 1
            sys.stdout, sys.stderr = out, err
            return _closed_pipe()
        return status_of(leaving)
    except BaseException as error:
        return status_of(error)
    return status if isinstance(status, int) else 0


def status_of(ended_by: BaseException) -> int:
    """The exit status for what ended a command; what there is to say of it is said, in one line."""
    try:
        raise ended_by
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
        return leaving.code if isinstance(leaving.code, int) else 1
    except BrokenPipeError:
        return _closed_pipe()
    except ModuleNotFoundError as error:
        return _not_here(error)
    except OSError as error:
        return _unwritable(error) if error.errno in {errno.ENOSPC, errno.EDQUOT} else _bug(error)
    except Exception as error:
        return _bug(error)


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
