"""`compliance-agent server enrol-token` and `server hosts`: which machines may speak for a clinic."""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.adapters.durable import create_file
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, duration, label_of, settings_of, with_services
from compliance_agent.crypto import key_words
from compliance_agent.errors import NoInput, NotPermitted

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records import Host
    from compliance_agent.server.services.fleet import HostStanding

_PATH = click.Path(path_type=Path, readable=False)
_ACTOR = "operator"


@click.group("enrol-token", invoke_without_command=True)
@click.option("--site", help="The clinic the host belongs to; made when it is new.")
@click.option("--client", help="The client a new site belongs to.")
@click.option("--expires", default="1h", show_default=True, help="How long the token is good for: 15m, 1h, 7d.")
@click.option("--out", type=_PATH, help="Write the token to this new file (0600) instead of standard output.")
@data_dir_option
@click.pass_context
def enrol_token(ctx: click.Context, site: str | None, client: str | None, expires: str, out: Path | None) -> None:
    """Make a one-time token with which one host can enrol (without a subcommand). It is shown once and kept nowhere."""
    if ctx.invoked_subcommand is not None:
        return
    if site is None:
        raise click.UsageError("Missing option '--site'.")
    life = duration(expires)
    if out is not None and os.path.lexists(out):
        raise NotPermitted(f"{out}: exists; a token is not written over anything")
    token = _new_token(ctx, label_of("--site", site), client, life)
    if out is None:
        click.echo(token)
    elif not create_file(out, f"{token}\n".encode()):
        raise NotPermitted(f"{out}: exists; a token is not written over anything")


def _new_token(ctx: click.Context, site: str, client: str | None, life: timedelta) -> str:
    from compliance_agent.server.services.secrets import hashed
    from compliance_agent.server.tls import known_authority

    settings = settings_of(ctx)
    client = label_of("--client", client or settings.client_id)

    async def make(services: Services) -> str:
        authority = known_authority(settings.data_dir / "tls")  # which exists now where the settings say tls
        trust = await services.order_trust.published(site)
        token, expires_at, made = await services.enrolment.new_token(
            site, client, life, ca_sha256=authority, actor=_ACTOR, order_root=trust.root.sha256 if trust else None
        )
        if trust is not None:
            click.echo(f"it pins order root {trust.root.version}: {key_words(trust.root.sha256)}", err=True)
        click.echo(
            f"token {hashed(token)[:16]}, for one host of {made.site_id} (client {made.client_id}), "
            f"until {expires_at:%Y-%m-%d %H:%M:%SZ}",
            err=True,
        )
        return token

    return with_services(settings, make)


@enrol_token.command("list")
@json_option
@data_dir_option
@click.pass_context
def tokens(ctx: click.Context, as_json: bool) -> None:
    """List every token by its id, newest first. No token can be had from what is kept of it."""

    async def read(services: Services) -> list[dict[str, Any]]:
        now = services.clock()
        found = await services.enrolment.tokens(await services.store.all_sites())
        return [
            {
                "token_id": item.id,
                "site_id": item.site_id,
                "state": item.state(now),
                "made_at": utc(item.created_at),
                "expires_at": utc(item.expires_at),
                "used_at": utc(item.used_at),
                "used_by": item.used_by,
            }
            for item in found
        ]

    found = with_services(settings_of(ctx), read)
    if as_json:
        print_json({"schema": "compliance-agent/server-tokens/v1", "tokens": found})
        return
    names = ("token_id", "site_id", "state", "expires_at", "used_by")
    table(
        ("token", "site", "state", "until", "used by"), [[(item[name] or "")[:20] for name in names] for item in found]
    )


@enrol_token.command("revoke")
@click.argument("token_id")
@data_dir_option
@click.pass_context
def revoke_token(ctx: click.Context, token_id: str) -> None:
    """Let a token that nobody has used be worth nothing. TOKEN_ID is what `enrol-token list` shows."""
    if not re.fullmatch(r"[0-9a-f]{8,64}", token_id):
        raise click.BadParameter("TOKEN_ID: expected at least 8 hexadecimal characters")

    async def act(services: Services) -> str:
        sites = await services.store.all_sites()
        return (await services.enrolment.revoke_token(sites, token_id, actor=_ACTOR)).site_id

    click.echo(f"token {token_id} for {with_services(settings_of(ctx), act)} revoked", err=True)


@click.group("hosts", invoke_without_command=True)
@json_option
@data_dir_option
@click.pass_context
def hosts(ctx: click.Context, as_json: bool) -> None:
    """List every host (without a subcommand): site, label, key, when it was last seen, and what stands."""
    if ctx.invoked_subcommand is not None:
        return
    found = [_document(item) for item in with_services(settings_of(ctx), _standings)]
    if as_json:
        print_json({"schema": "compliance-agent/server-hosts/v1", "hosts": found})
        return
    for item in found:
        seen = item["last_seen_at"] or "never"
        counts = " ".join(f"{name}={count}" for name, count in item["counts"].items() if count)
        said = f"key words {item['key_words']}" if item["state"] in {"waiting", "contested"} else counts
        click.echo(f"{item['site_id']}  {item['host_id']}  {item['key_id'][:16]}  {item['state']}  seen {seen}  {said}")


async def _standings(services: Services) -> list[HostStanding]:
    return await services.fleet(services.store.for_sites(await services.store.all_sites())).hosts()


def _document(item: HostStanding) -> dict[str, Any]:
    host = item.host
    return {
        "site_id": host.site_id,
        "client_id": host.client_id,
        "host_id": host.host_id,
        "key_id": host.key_id,
        "key_words": key_words(host.key_id),
        "state": _state(item),
        "broken": item.broken,
        "last_seen_at": utc(host.last_seen_at),
        "counts": item.counts,
    }


def _state(item: HostStanding) -> str:
    host = item.host
    if host.revoked_at is not None:
        return "revoked"
    if host.waiting_since is not None:
        return "waiting"
    if host.contested_at is not None:
        return "contested"
    return "silent" if item.silent else "live"


@hosts.command("revoke")
@click.argument("key")
@data_dir_option
@click.pass_context
def revoke(ctx: click.Context, key: str) -> None:
    """Accept nothing more from a host, named by its key words, or by 12 or more characters of its key id."""

    async def act(services: Services, host: Host) -> None:
        await services.enrolment.revoke(host.site_id, host.key_id, actor=_ACTOR)

    click.echo(f"host {_one(ctx, key, act)} revoked", err=True)


@hosts.command("approve")
@click.argument("key")
@data_dir_option
@click.pass_context
def approve(ctx: click.Context, key: str) -> None:
    """Let a host that waits be one of its site, or say that a contested key is in one place only.

    Hold the words that the host shows (`compliance-agent enrol`, `keys list`) against those of `server hosts` first: they are its
    key's. KEY is those words, or 12 or more characters of the key id.
    """

    async def act(services: Services, host: Host) -> None:
        await services.enrolment.approve(host.site_id, host.key_id, actor=_ACTOR)

    click.echo(f"host {_one(ctx, key, act)} approved", err=True)


@hosts.command("recertify")
@click.argument("key")
@data_dir_option
@click.pass_context
def recertify(ctx: click.Context, key: str) -> None:
    """Let no client certificate of a host count any more, and the host ask for its first one anew (docs/certificates.md)."""

    async def act(services: Services, host: Host) -> None:
        await services.certificates.recertify(host.site_id, host.key_id, actor=_ACTOR)

    click.echo(f"host {_one(ctx, key, act)} has no client certificate now", err=True)


def _one(ctx: click.Context, key: str, act: Callable[[Services, Host], Awaitable[None]]) -> str:
    """Act on the one host whose key is meant; its label."""
    if not re.fullmatch(r"[0-9a-f]{12,64}|[a-z]{5}(-[a-z]{5}){4}", key):
        raise click.BadParameter("KEY: expected a host's key words, or at least 12 hexadecimal characters")

    async def found(services: Services) -> str:
        meant = [
            item.host
            for item in await _standings(services)
            if item.host.key_id.startswith(key) or key_words(item.host.key_id) == key
        ]
        if len(meant) != 1:
            raise NoInput(
                f"KEY: {len(meant)} hosts have such a key; expected one", hint="compliance-agent server hosts"
            )
        await act(services, meant[0])
        return meant[0].host_id

    return with_services(settings_of(ctx), found)
