"""`compliance-agent server leases`: which hosts of a site may disturb their users now, how many at a time, and which goes first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table
from compliance_agent.cli.server_common import data_dir_option, label_of, settings_of, with_services

if TYPE_CHECKING:
    from compliance_agent.core.leases import Board, Lease, Waiting
    from compliance_agent.server.desks import Services

_ACTOR = "operator"
_site = click.option("--site", required=True, help="The clinic.")


@click.group("leases")
def leases() -> None:
    """Leave to run cures that users would notice: how many hosts of a site at a time, and which one goes first."""


@leases.command("show")
@_site
@json_option
@data_dir_option
@click.pass_context
def show(ctx: click.Context, site: str, as_json: bool) -> None:
    """Say who holds a lease at a site, who waits, and how far each cure has come."""

    async def read(services: Services) -> dict[str, Any]:
        return _document(site, await services.leases.board(label_of("--site", site)), services.clock().timestamp())

    found = with_services(settings_of(ctx), read)
    if as_json:
        print_json({"schema": "compliance-agent/server-leases/v1", **found})
        return
    click.echo(f"{site}: {found['hosts_at_once']} at a time, first {found['canary'] or 'whoever asks'}")
    held = [[one["host_id"], one["check"], str(one["fence"]), f"{one['for_s']} s"] for one in found["leases"]]
    table(("holds", "check", "token", "for"), held)
    for one in found["waiting"]:
        click.echo(f"waits: {one['host_id']}, asked {one['asked_s']} s ago")
    for one in found["cures"]:
        click.echo(f"cure of {one['check']}: {one['state']} on {one['canary'][:16]}")


def _document(site: str, board: Board, now: float) -> dict[str, Any]:
    held = [item for item in board.leases if item.until > now]
    return {
        "site_id": site,
        "hosts_at_once": board.hosts_at_once,
        "canary": board.canary or None,
        "leases": [
            {**_who(item), "check": item.check, "fence": item.fence, "for_s": int(item.until - now)} for item in held
        ],
        "waiting": [{**_who(item), "asked_s": int(now - item.last)} for item in board.waiting],
        "cures": [
            {"check": item.check, "target": item.target, "canary": item.canary, "state": item.state}
            for item in board.waves
        ],
    }


def _who(item: Lease | Waiting) -> dict[str, str]:
    return {"key_id": item.holder, "host_id": item.label}


@leases.command("set")
@_site
@click.option("--hosts-at-once", type=click.IntRange(1, 1_000), required=True, help="So many hosts at a time.")
@click.option("--canary", help="Label of the host that tries what is new to the site [whoever asks first].")
@data_dir_option
@click.pass_context
def set_rules(ctx: click.Context, site: str, hosts_at_once: int, canary: str | None) -> None:
    """Say how many hosts of a site may be worked on at a time, and which goes first with a cure that is new to it."""
    first = label_of("--canary", canary) if canary else ""
    site = label_of("--site", site)
    with_services(
        settings_of(ctx),
        lambda services: services.leases.set_rules(site, hosts_at_once=hosts_at_once, canary=first, actor=_ACTOR),
    )
    click.echo(f"{site}: {hosts_at_once} at a time, first {first or 'whoever asks'}", err=True)


@leases.command("retry")
@_site
@click.argument("check")
@data_dir_option
@click.pass_context
def retry(ctx: click.Context, site: str, check: str) -> None:
    """After somebody looked into a cure that failed on the first host: let a host try it again."""
    site = label_of("--site", site)
    with_services(settings_of(ctx), lambda services: services.leases.retry(site, check, actor=_ACTOR))
    click.echo(f"{site}: cures of {check} begin anew with one host", err=True)
