"""`compliance-agent server operator-token`: what people's scripts call the API with."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.adapters.durable import create_file
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, duration, label_of, settings_of, with_services
from compliance_agent.errors import NotPermitted

if TYPE_CHECKING:
    from datetime import datetime

    from compliance_agent.server.desks import Services
    from compliance_agent.server.records import OperatorToken

ROLES = ("owner", "operator", "proposer", "viewer")
_PATH = click.Path(path_type=Path, readable=False)
_out = click.option("--out", type=_PATH, help="Write the token to this new file (0600) instead of standard output.")


@click.group("operator-token")
def operator_token() -> None:
    """Operator tokens: what people's scripts call the API with. Each is shown once and kept as a hash."""


@operator_token.command("create")
@click.argument("name")
@click.option("--label", help="What you call it by, such as the script that has it.")
@click.option("--role", type=click.Choice(ROLES), help="A lesser role than the person's [the person's].")
@click.option(
    "--site", "sites", multiple=True, help="Only this site; may be given more than once [all of the person's]."
)
@click.option("--expires", default="30d", show_default=True, help="How long it is good for: 1h, 30d; at most 366d.")
@_out
@data_dir_option
@click.pass_context
def create(
    ctx: click.Context,
    name: str,
    label: str | None,
    role: str | None,
    sites: tuple[str, ...],
    expires: str,
    out: Path | None,
) -> None:
    """Make one for the person NAME."""
    life, called = duration(expires), None if label is None else label_of("--label", label)
    only = frozenset(label_of("--site", item) for item in sites) or None
    _check_free(out)
    _hand_over(
        *with_services(
            settings_of(ctx),
            lambda services: services.users.tokens.create(name, life, label=called, role=role, sites=only),
        ),
        out,
    )


@operator_token.command("list")
@click.option("--user", "name", help="Of this person alone.")
@json_option
@data_dir_option
@click.pass_context
def list_(ctx: click.Context, name: str | None, as_json: bool) -> None:
    """List them by id, the newest first; none can be had from what is kept."""

    async def read(services: Services) -> list[dict[str, Any]]:
        now = services.clock()
        return [_document(item, now) for item in await services.users.tokens.all(name)]

    found = with_services(settings_of(ctx), read)
    if as_json:
        print_json({"schema": "compliance-agent/server-operator-tokens/v1", "tokens": found})
        return
    columns = ("token", "of", "label", "role", "sites", "state", "last used", "until")
    table(columns, [_row(item) for item in found])


@operator_token.command("rotate")
@click.argument("token_id")
@click.option("--overlap", default="24h", show_default=True, help="How long the old one stays good: 0s, 1h, 7d.")
@click.option("--expires", help="How long the new one is good for [as long as the old one was].")
@_out
@data_dir_option
@click.pass_context
def rotate(ctx: click.Context, token_id: str, overlap: str, expires: str | None, out: Path | None) -> None:
    """Make a new one in the place of TOKEN_ID, with its role and sites. The old one stays good for the overlap."""
    from datetime import timedelta

    lasts = timedelta() if overlap == "0s" else duration(overlap)
    life = None if expires is None else duration(expires)
    _check_free(out)
    meant = _id(token_id)
    made = with_services(settings_of(ctx), lambda services: services.users.tokens.rotate(meant, lasts, life))
    _hand_over(*made, out)


@operator_token.command("revoke")
@click.argument("token_id")
@data_dir_option
@click.pass_context
def revoke(ctx: click.Context, token_id: str) -> None:
    """Let TOKEN_ID be worth nothing from the next request on."""
    meant = _id(token_id)
    ended = with_services(settings_of(ctx), lambda services: services.users.tokens.revoke(meant))
    click.echo(f"token {ended.id} of {ended.user.name} revoked", err=True)


def _id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{8,64}", text):
        raise click.BadParameter("TOKEN_ID: expected at least 8 hexadecimal characters")
    return text


def _check_free(out: Path | None) -> None:
    if out is not None and os.path.lexists(out):
        raise NotPermitted(f"{out}: exists; a token is not written over anything")


def _hand_over(secret: str, made: OperatorToken, out: Path | None) -> None:
    """The one time that it is shown."""
    click.echo(f"token {made.id} of {made.user.name}, until {made.expires_at:%Y-%m-%d %H:%M:%SZ}", err=True)
    if out is None:
        click.echo(secret)
    elif not create_file(out, f"{secret}\n".encode()):
        raise NotPermitted(f"{out}: exists; a token is not written over anything", hint=f"revoke {made.id}")


def _document(item: OperatorToken, now: datetime) -> dict[str, Any]:
    return {
        "token_id": item.id,
        "name": item.user.name,
        "label": item.label,
        "role": item.role,
        "sites": None if item.sites is None else sorted(item.sites),
        "state": item.state(now),
        "made_at": utc(item.created_at),
        "expires_at": utc(item.expires_at),
        "used_at": utc(item.used_at),
        "successor": item.successor[:16] if item.successor else None,
    }


def _row(item: dict[str, Any]) -> list[str]:
    sites = "as the person" if item["sites"] is None else " ".join(item["sites"])
    role = item["role"] or "as the person"
    used = item["used_at"] or "never"
    return [item["token_id"], item["name"], item["label"] or "", role, sites, item["state"], used, item["expires_at"]]
