"""`compliance-agent server retention`: how long records are kept, and the holds that beat every expiry."""

from __future__ import annotations

from typing import Any

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, settings_of, with_services
from compliance_agent.errors import NoInput


def _settings(ctx: click.Context) -> Any:
    settings = settings_of(ctx)
    if not (settings.data_dir / "server.db").is_file():
        raise NoInput(f"{settings.data_dir}: holds no server.db", hint="name the server's directory with --data-dir")
    return settings


@click.group("retention")
def retention() -> None:
    """How long records are kept: six years from creation or last in effect, and longer where a hold stands."""


@retention.group("hold")
def hold() -> None:
    """Legal holds: while one stands, nothing that it covers is destroyed."""


_site = click.option("--site", required=True, help="The clinic.")
_host = click.option("--host", help="Only its hosts with this label [every host of the site].")
_reason = click.option("--reason-id", required=True, help="Id of the matter in your own books; letters, digits and ._-")


@hold.command("add")
@_site
@_host
@_reason
@data_dir_option
@click.pass_context
def hold_add(ctx: click.Context, site: str, host: str | None, reason_id: str) -> None:
    """Hold every record of a site, or of one of its hosts. It stands until it is released."""
    with_services(_settings(ctx), lambda services: services.holds.add(site, host, reason_id))
    click.echo(f"hold {reason_id} on {site}/{host or '*'} stands", err=True)


@hold.command("release")
@_site
@_host
@_reason
@data_dir_option
@click.pass_context
def hold_release(ctx: click.Context, site: str, host: str | None, reason_id: str) -> None:
    """End a hold. What it covered is kept as long as the rule says, and no longer than that."""
    with_services(_settings(ctx), lambda services: services.holds.release(site, host, reason_id))
    click.echo(f"hold {reason_id} on {site}/{host or '*'} released", err=True)


@hold.command("list")
@click.option("--site", help="Only this clinic.")
@json_option
@data_dir_option
@click.pass_context
def hold_list(ctx: click.Context, site: str | None, as_json: bool) -> None:
    """List holds, released ones too."""
    found = with_services(_settings(ctx), lambda services: services.holds.of(site))
    items = [
        {
            "site_id": item.site_id,
            "host_id": item.host_id,
            "reason_id": item.reason_id,
            "added_at": utc(item.added_at),
            "released_at": utc(item.released_at),
        }
        for item in found
    ]
    if as_json:
        print_json({"schema": "compliance-agent/server-holds/v1", "holds": items})
        return
    rows = [
        [item["site_id"] or "", item["host_id"] or "*", item["reason_id"] or "", item["added_at"] or ""]
        for item in items
    ]
    ends = [item["released_at"] or "stands" for item in items]
    table(("site", "host", "reason id", "since", "until"), [[*row, end] for row, end in zip(rows, ends, strict=True)])
