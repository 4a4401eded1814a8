"""`compliance-agent enrol`: redeem a one-time token, so that this host's key is known to the server."""

from __future__ import annotations

import dataclasses
import os
import pwd
import socket
import stat
import sys
from pathlib import Path
from typing import Any

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.durable import give
from compliance_agent.adapters.secrecy import keep_out_of_dumps
from compliance_agent.cli.common import PATH, config_option, json_option, print_json
from compliance_agent.cli.places import SYSTEM_CONFIG, load_config
from compliance_agent.config import LABEL, LOG_KEY_NAME, ORDER_ROOT_NAME, AgentConfig
from compliance_agent.crypto import Ed25519Signer, key_words
from compliance_agent.enrolment import Token, enrol, order_root_of, pin_authority, pin_order_root, read_token, save
from compliance_agent.errors import ConfigError, NotPermitted
from compliance_agent.facts import SHA256
from compliance_agent.local_socket import uid_of
from compliance_agent.logs import configure
from compliance_agent.transport.http import HttpTransport
from compliance_agent.transport.protocol import Enrolled


@click.command()
@click.option("--server", "url", required=True, help="https://host[:port] of the server.")
@click.option(
    "--token-file", type=PATH, required=True, help="File with the one-time token (mode 600); - is standard input."
)
@click.option("--host-id", help="This host's label at the site; its name when not given.")
@click.option("--state-dir", type=PATH, help="Where the agent keeps its state and key.")
@click.option("--ca-file", type=PATH, help="Certificate authority of the server (PEM).")
@click.option(
    "--order-root", metavar="SHA256", help="The order root that this host is to be pinned to, as its holders say it."
)
@click.option("--again", is_flag=True, help="Enrol although this host already is.")
@config_option
@json_option
def command(
    url: str, token_file: Path, host_id: str | None, state_dir: Path | None, ca_file: Path | None, again: bool,
    order_root: str | None, config_path: Path | None, as_json: bool,
) -> None:  # fmt: skip
    """Make this host known to a server.

    The host's key is made here and never leaves. What comes back (API key, the server's acknowledgement key) is written under
    the state directory; the settings to put into the agent's configuration are printed.
    """
    keep_out_of_dumps()
    configure("WARNING")
    token = read_token(token_file, sys.stdin.buffer)
    config = _config(url, token, host_id, state_dir, ca_file, config_path)
    api_key_file = config.mcp_api_key_file or config.state_dir / "keys" / "api-key"
    server_key_file = config.mcp_server_key_file or config.state_dir / "keys" / "server-key"
    if os.path.lexists(api_key_file) and not again:
        raise NotPermitted(f"this host is enrolled already ({api_key_file} is there)", hint="--again enrols it anew")
    if order_root is not None and not SHA256.fullmatch(order_root):
        raise click.BadParameter("--order-root: expected 64 hexadecimal characters")
    root = order_root_of(token, order_root)
    if order_root is not None and config.order_keys_file is not None:
        raise ConfigError("--order-root: the configuration has order_keys_file; a host has one or the other")
    if token.ca_sha256 is None and config.mcp_ca_file is None and url.startswith("https:"):
        raise ConfigError(
            "the token names no certificate authority, so nothing vouches for this server",
            hint="give --ca-file, or ask for a token of the server's own",
        )
    if token.ca_sha256 is not None and config.mcp_ca_file is None:
        config = dataclasses.replace(config, mcp_ca_file=runner.run(_pin(config, token.ca_sha256)))
    enrolled = runner.run(_enrol(config, token))
    pin_file, pin = config.order_root_file or config.signing_key_file.parent / ORDER_ROOT_NAME, None
    if config.order_keys_file is None:  # a host whose list is looked after by hand stays so
        pin = pin_order_root(pin_file, root, insisted=order_root is not None)
    save(enrolled, api_key_file, server_key_file, config.mcp_log_key_file)
    if config.privileges == "split" and os.geteuid() == 0:
        give_away(config, api_key_file, server_key_file)
    settings = {
        "client_id": enrolled.client_id,
        "site_id": enrolled.site_id,
        "host_id": enrolled.host_id,
        "state_dir": str(config.state_dir),
        **({"privileges": config.privileges} if config.privileges != "single" else {}),
        "mcp_url": url,
        "mcp_api_key_file": str(api_key_file),
        "mcp_server_key_file": str(server_key_file),
        **({"mcp_log_key_file": str(config.mcp_log_key_file)} if config.mcp_log_key_file else {}),
        **({"order_root_file": str(pin_file)} if pin else {}),
        **({"mcp_ca_file": str(config.mcp_ca_file)} if config.mcp_ca_file else {}),
    }
    if as_json:
        said = {"key_id": enrolled.key_id, "key_words": key_words(enrolled.key_id), "waiting": enrolled.waiting}
        print_json({"schema": "compliance-agent/enrol/v1", **said, "settings": settings})
        return
    click.echo(f"enrolled as {enrolled.host_id} at {enrolled.site_id} with key {enrolled.key_id[:16]}", err=True)
    click.echo(f"key words: {key_words(enrolled.key_id)}", err=True)
    if pin is not None:
        click.echo(f"pinned to order root {pin}, in words {key_words(pin)}", err=True)
    if enrolled.waiting:
        click.echo(
            "the server accepts nothing from this host before an operator approved it by these words; until then "
            "what is recorded waits here",
            err=True,
        )
    for name, value in settings.items():
        click.echo(f"{name}: {value}")


def give_away(config: AgentConfig, api_key_file: Path, server_key_file: Path) -> None:
    """To each of the two processes its own: to uplink the API key and the authority, to the agent its key and what it pinned.

    Raises:
        ConfigError: one of the users does not exist.
        StorageError: a file cannot be given away.
    """
    log_key_file = config.mcp_log_key_file or server_key_file.with_name(LOG_KEY_NAME)
    pin_file = config.order_root_file or config.signing_key_file.parent / ORDER_ROOT_NAME
    ours = (config.signing_key_file, server_key_file, log_key_file, pin_file)
    for name, root, files in (
        (config.run_user, config.state_dir, ours),
        (config.uplink_user, config.uplink_dir, (api_key_file, config.uplink_dir / "ca.pem")),
    ):
        user = pwd.getpwuid(uid_of(name))
        give(root, [path for path in files if path.is_relative_to(root)], user.pw_uid, user.pw_gid)


def _config(
    url: str, token: Token, host_id: str | None, state_dir: Path | None, ca_file: Path | None, config_path: Path | None
) -> AgentConfig:
    name = socket.gethostname().split(".", maxsplit=1)[0]
    given: dict[str, Any] = {"mcp_url": url, "site_id": token.site}
    given |= {
        key: value for key, value in (("host_id", host_id), ("state_dir", state_dir), ("mcp_ca_file", ca_file)) if value
    }
    config = None if _is_empty(config_path) else load_config(config_path)
    if config is not None and config.site_id != token.site:
        raise ConfigError(
            f"the token is for site {token.site}, and the configuration says site_id {config.site_id}; nothing was sent",
            hint=f"ask for a token of {config.site_id}, or change site_id",
        )
    if config is not None:
        return dataclasses.replace(config, **given)
    given.setdefault("host_id", name if LABEL.fullmatch(name) else "host")
    return AgentConfig(client_id="unknown", **given)


def _is_empty(config_path: Path | None) -> bool:
    """Whether the configuration is a file with nothing in it: `enrol > /etc/msp/agent.yaml` has the shell make one first."""
    path = config_path or SYSTEM_CONFIG
    try:
        found = path.stat()
    except OSError:  # who reads it says so
        return False
    if not stat.S_ISREG(found.st_mode) or found.st_size:
        return False
    click.echo(f"{path} is empty: this host enrols in one process, with nothing configured", err=True)
    return True


async def _pin(config: AgentConfig, ca_sha256: str) -> Path:
    path = (config.uplink_dir if config.privileges == "split" else config.signing_key_file.parent) / "ca.pem"
    transport = HttpTransport(config.mcp_url or "", unverified=True)
    try:
        await pin_authority(transport, ca_sha256, path)
    finally:
        await transport.close()
    return path


async def _enrol(config: AgentConfig, token: Token) -> Enrolled:
    transport = HttpTransport(config.mcp_url or "", ca_file=config.mcp_ca_file)
    try:
        return await enrol(transport, Ed25519Signer(config.signing_key_file), token, config.host_id)
    finally:
        await transport.close()
