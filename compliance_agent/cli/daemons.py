"""`run` and `uplink` as their units start them: with no word to parse, so without the library that parses words.

That library is a megabyte in each of the two processes for as long as the host is up. Given an option, or named otherwise, they
are commands as all others are; so is what they end with (`command_line.status_of`).
"""

from __future__ import annotations

import importlib

from compliance_agent import import_structlog_alone

SERVES = {"run": "compliance_agent.service", "uplink": "compliance_agent.uplink.process"}


def main(name: str) -> None:
    """Run it until it is told to end, and leave with the command's exit status."""
    status = 0
    try:
        _serve(name)
    except BaseException as error:
        from compliance_agent.cli import command_line

        status = command_line.status_of(error)
    from compliance_agent.adapters import runner

    runner.end(status)


def _serve(name: str) -> None:
    import_structlog_alone()
    from compliance_agent.adapters import runner
    from compliance_agent.cli.places import require_config

    runner.run(importlib.import_module(SERVES[name]).serve(lambda: require_config(None), None))
