"""`compliance-agent server retention`: how long records are kept, and the holds that beat every expiry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, settings_of, with_services
from compliance_agent.core.retention import RULE

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.services.pruning import LogState


@click.group("retention")
def retention() -> None:
    """How long records are kept: six years from creation or last in effect, and longer where a hold stands."""


@retention.command("show")
@click.option("--site", help="Only this clinic.")
@json_option
@data_dir_option
@click.pass_context
def show(ctx: click.Context, site: str | None, as_json: bool) -> None:
    """Say for each log what was destroyed, what may be, and what keeps the rest. Nothing is changed."""
    _print(with_services(settings_of(ctx), lambda services: services.pruning.show(site)), as_json, done=False)


@retention.command("prune")
@click.option("--site", help="Only this clinic.")
@click.option("--dry-run", is_flag=True, help="Only say what would be destroyed.")
@click.option(
    "--clock-checked", is_flag=True, help="This machine's clock is right, although nothing was signed here lately."
)
@json_option
@data_dir_option
@click.pass_context
def prune(ctx: click.Context, site: str | None, dry_run: bool, clock_checked: bool, as_json: bool) -> None:
    """Destroy the records whose time is over, from the first entry of each log to the first that must be kept."""

    async def act(services: Services) -> list[LogState]:
        if dry_run:
            return await services.pruning.show(site)
        return await services.pruning.prune(site, clock_checked=clock_checked)

    _print(with_services(settings_of(ctx), act), as_json, done=not dry_run)


def _print(found: list[LogState], as_json: bool, *, done: bool) -> None:
    items = [_document(item) for item in found]
    if as_json:
        print_json({"schema": "compliance-agent/server-retention/v1", "rule": RULE, "pruned": done, "logs": items})
        return
    columns = ("log", "entries", "kept from", "after prune" if not done else "now", "records", "next is kept until")
    rows = []
    for item, said in zip(found, items, strict=True):
        until = f"{said['kept_until']} ({said['why']})" if said["why"] else ""
        numbers = (item.size, item.minimum, item.could, item.records)
        rows.append([f"{item.site_id}/{item.year}", *map(str, numbers), until])
    table(columns, rows)


def _document(item: LogState) -> dict[str, Any]:
    kept = item.first_kept
    return {
        "site_id": item.site_id,
        "year": item.year,
        "size": item.size,
        "minimum_index": item.minimum,
        "minimum_after": item.could,
        "records": item.records,
        "kept_until": kept.until.isoformat() if kept else None,
        "why": kept.why if kept else None,
        "holds": list(kept.holds) if kept else [],
    }


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
    with_services(settings_of(ctx), lambda services: services.holds.add(site, host, reason_id))
    click.echo(f"hold {reason_id} on {site}/{host or '*'} stands", err=True)


@hold.command("release")
@_site
@_host
@_reason
@data_dir_option
@click.pass_context
def hold_release(ctx: click.Context, site: str, host: str | None, reason_id: str) -> None:
    """End a hold. What it covered is kept as long as the rule says, and no longer than that."""
    with_services(settings_of(ctx), lambda services: services.holds.release(site, host, reason_id))
    click.echo(f"hold {reason_id} on {site}/{host or '*'} released", err=True)


@hold.command("list")
@click.option("--site", help="Only this clinic.")
@json_option
@data_dir_option
@click.pass_context
def hold_list(ctx: click.Context, site: str | None, as_json: bool) -> None:
    """List holds, released ones too."""
    found = with_services(settings_of(ctx), lambda services: services.holds.of(site))
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
