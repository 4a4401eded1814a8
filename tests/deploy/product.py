"""What the files of deploy/ may speak of: the server's commands, settings, routes and figures, as the program has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import yaml

from compliance_agent.cli.server import command as server
from compliance_agent.server.app import create_app
from compliance_agent.server.settings import ServerSettings, parse

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"


def read(path: str) -> Any:
    return yaml.safe_load((DEPLOY / path).read_text("utf-8"))


def documents(path: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / path).read_text("utf-8")))


def settings_of(environment: dict[str, Any]) -> ServerSettings:
    """As the server would read them; unknown names and values that cannot be used are refused by the server itself."""
    assert all(isinstance(value, str) for value in environment.values()), environment
    return parse(None, {name: value for name, value in environment.items() if name.startswith("MSP_")})


def parsed(arguments: list[str]) -> click.Context:
    """A command line after `compliance-agent server`, as click takes it apart; nothing is run."""
    context = server.make_context("server", list(arguments))
    if not arguments:
        return context
    name, inner, rest = server.resolve_command(context, [*context._protected_args, *context.args])
    assert name is not None and inner is not None
    return inner.make_context(name, rest, parent=context)


def routes() -> set[str]:
    return set(create_app(ServerSettings()).openapi()["paths"])
