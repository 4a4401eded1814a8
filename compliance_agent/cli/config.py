"""`compliance-agent config check|show`: is the configuration usable, and what does it amount to."""

from __future__ import annotations

import dataclasses
import os
import pwd
import sys
from datetime import time
from pathlib import Path

import click

from compliance_agent.baseline import load
from compliance_agent.cli import Suggesting
from compliance_agent.cli.common import config_option, json_option, print_json
from compliance_agent.cli.places import require_config
from compliance_agent.cli.split import Here, findings
from compliance_agent.crypto import Ed25519Signer
from compliance_agent.errors import NoInput
from compliance_agent.local_socket import uid_of


@click.group(cls=Suggesting)
def command() -> None:
    """Check or show the agent's configuration."""


@command.command()
@config_option
@json_option
def check(config_path: Path | None, as_json: bool) -> None:
    """Read configuration and baseline whole; exit status 78 and one line naming the field when they cannot be used.

    Where three processes are asked for, this host is looked at too: a line for each user, unit, socket or file that is missing or
    somebody else's, and exit status 1.
    """
    config = require_config(config_path)
    baseline = load(config.baseline_path, signed_by=config.baseline_key_file)
    lacking = findings(config, baseline.sha256, Here())
    if as_json:
        named = {"version": baseline.version, "sha256": baseline.sha256, "checks": list(baseline.entries)}
        place = {"site_id": config.site_id, "host_id": config.host_id}
        print_json({"schema": "compliance-agent/config-check/v1", **place, "baseline": named, "findings": lacking})
    else:
        said = f"{config.host_id} at {config.site_id}, baseline {baseline.version} with {len(baseline.entries)} checks"
        click.echo(f"{'not yet' if lacking else 'ok'}: {said}")
        for line in lacking:
            click.echo(f"  {line}")
    sys.exit(1 if lacking else 0)


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


@command.command("public-key")
@config_option
def public_key(config_path: Path | None) -> None:
    """Print this host's public key (PEM): what `verify --key` and `openssl pkeyutl -pubin` need.

    Exit status 66 before the first run. Where three processes share the host, root looks as the agent's user, whose key it is.
    """
    config = require_config(config_path)
    path = config.signing_key_file
    if config.privileges == "split" and os.geteuid() == 0:
        become(config.run_user)
    if not os.path.lexists(path):
        raise NoInput(f"{path}: there is no key yet", hint="the first run, or enrol, makes it")
    click.echo(Ed25519Signer(path).public_pem(), nl=False)


def become(user: str) -> None:
    """Go on as this user, for good.

    Raises:
        ConfigError: there is none of that name.
    """
    found = pwd.getpwuid(uid_of(user))
    os.setgroups([])
    os.setresgid(found.pw_gid, found.pw_gid, found.pw_gid)
    os.setresuid(found.pw_uid, found.pw_uid, found.pw_uid)


def _shown(value: object) -> object:
    if isinstance(value, time):
        return f"{value:%H:%M}"
    return str(value) if isinstance(value, Path) else value
