"""`compliance-agent config check|show`: is the configuration usable, and what does it amount to."""

from __future__ import annotations

import dataclasses
from datetime import time
from pathlib import Path

import click

from compliance_agent.baseline import load
from compliance_agent.cli import Suggesting
from compliance_agent.cli.common import config_option, json_option, print_json, require_config


@click.group(cls=Suggesting)
def command() -> None:
    """Check or show the agent's configuration."""


@command.command()
@config_option
@json_option
def check(config_path: Path | None, as_json: bool) -> None:
    """Read configuration and baseline whole; exit status 78 and one line naming the field when they cannot be used."""
    config = require_config(config_path)
    baseline = load(config.baseline_path)
    if as_json:
        named = {"version": baseline.version, "sha256": baseline.sha256, "checks": list(baseline.entries)}
        place = {"site_id": config.site_id, "host_id": config.host_id}
        print_json({"schema": "compliance-agent/config-check/v1", **place, "baseline": named})
        return
    click.echo(
        f"ok: {config.host_id} at {config.site_id}, baseline {baseline.version} with {len(baseline.entries)} checks"
    )


@command.command()
@config_option
@json_option
def show(config_path: Path | None, as_json: bool) -> None:
    """Print every setting as it is in effect, defaults and environment included. Files with secrets are named, never read."""
    config = require_config(config_path)
    settings = {field.name: _shown(getattr(config, field.name)) for field in dataclasses.fields(config)}
    if as_json:
        print_json({"schema": "compliance-agent/config/v1", "settings": settings})
        return
    for name, value in settings.items():
        click.echo(f"{name}: {'' if value is None else value}")


def _shown(value: object) -> object:
    if isinstance(value, time):
        return f"{value:%H:%M}"
    return str(value) if isinstance(value, Path) else value
