"""The `compliance-agent` command: one module of this package per subcommand, imported only when it is used.

Data goes to standard output, talk to standard error. Exit status: 0 fine, 1 findings, 2 usage, then sysexits (65 bad evidence,
66 no input, 69 unavailable, 70 a bug, 73 and 74 storage, 75 try again, 76 a broken local protocol, 77 permission,
78 configuration), 130 Ctrl-C, 141 closed pipe.

`--help` by itself is answered here, without the library that parses words: that is most of what it would cost.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # of `typing`, whose import is a third of what `--help` takes
if TYPE_CHECKING:
    from compliance_agent.cli.command_line import Suggesting, group

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
PURPOSE = "Compliance evidence for clinic hosts: observe, judge, heal, record, deliver, prove."
WIDTH = 80  # of what is no terminal, and the only one at which `--help` is answered here
HELP = f"""\
Usage: compliance-agent [OPTIONS] COMMAND [ARGS]...

  {PURPOSE.rpartition(" ")[0]}
  {PURPOSE.rpartition(" ")[2]}

Options:
  --version   Show the version and exit.
  -h, --help  Show this message and exit.

Commands:
"""


def __getattr__(name: str) -> object:
    """`group` and `Suggesting`, which the parser's library comes with."""
    if name in {"group", "Suggesting"}:
        from compliance_agent.cli import command_line

        return getattr(command_line, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main() -> None:
    """Entry point: runs the command and leaves with a documented exit status; every error is one line."""
    if sys.argv[1:] in (["--help"], ["-h"]) and _width() == WIDTH:
        text = help_text().encode("ascii")
        try:
            if sys.__stdout__ is not None and os.write(sys.__stdout__.fileno(), text) == len(text):
                sys.exit(0)
        except OSError:
            pass  # the whole program knows what to say of it
    if sys.argv[1:] in (["run"], ["uplink"]):
        from compliance_agent.cli.daemons import main as daemon

        daemon(sys.argv[1])
    from compliance_agent.cli.command_line import main as parse

    parse()


def help_text() -> str:
    """What `--help` prints where lines may be `WIDTH` long."""
    longest = max(map(len, COMMANDS))
    return HELP + "".join(f"  {name:{longest}}  {sentence}\n" for name, sentence in COMMANDS.items())


def _width() -> int:
    """Columns, as `shutil.get_terminal_size` tells them."""
    try:
        columns = int(os.environ.get("COLUMNS") or 0)
    except ValueError:
        columns = 0
    if columns > 0:
        return columns
    try:
        return os.get_terminal_size(1).columns or WIDTH
    except OSError:
        return WIDTH


__all__ = ["COMMANDS", "Suggesting", "group", "main"]
