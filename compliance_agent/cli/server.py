"""`compliance-agent server`: run it, and look after its enrolment tokens, users and hosts.

The subcommands work on the data directory itself, also while the server runs: both write behind the same lock.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compliance_agent.cli import (
    server_alerts,
    server_backup,
    server_database,
    server_enrolment,
    server_exceptions,
    server_leases,
    server_mcp,
    server_order_export,
    server_orders,
    server_people,
    server_plan,
    server_retention,
    server_tokens,
)
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option as _data_dir_option
from compliance_agent.cli.server_common import existing, label_of
from compliance_agent.cli.server_common import settings_of as _settings
from compliance_agent.cli.server_common import with_services as _with_services
from compliance_agent.errors import BadEvidence, NotPermitted

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.settings import ServerSettings

T = TypeVar("T")
_PATH = click.Path(path_type=Path, readable=False)


@click.group(invoke_without_command=True)
@click.option("--data-dir", type=_PATH, help="Directory of the database and the keys.")
@click.option("--config", "config_path", type=_PATH, help="Settings file (YAML).")
@click.option("--host", help="Address to listen on [127.0.0.1]; one that others can reach needs --tls.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Port to listen on [8080]; 0 takes a free one.")
@click.option("--tls", is_flag=True, default=None, help="Serve https with a certificate of the server's own authority.")
@click.pass_context
def command(
    ctx: click.Context,
    data_dir: Path | None,
    config_path: Path | None,
    host: str | None,
    port: int | None,
    tls: bool | None,
) -> None:
    """Run the server (without a subcommand), or look after its tokens, users and hosts."""
    ctx.obj = {"data_dir": data_dir, "config_path": config_path, "tls": tls}
    if ctx.invoked_subcommand is not None:
        return
    from compliance_agent.logs import configure
    from compliance_agent.server.runner import serve

    settings = _settings(ctx, host=host, port=port, tls=tls or None)
    configure(settings.log_level)
    click.echo(f"data directory {settings.data_dir}", err=True)
    sys.exit(serve(settings, lambda url: _announce(settings, url)))


def _announce(settings: ServerSettings, url: str) -> None:
    click.echo(f"listening on {url}")
    password = settings.data_dir / "admin-password"
    if password.exists():
        click.echo(f"sign in as admin with the password in {password}", err=True)
    sys.stdout.flush()


@command.command("init")
@click.option("--tls", is_flag=True, default=None, help="Make the server's own certificate authority too.")
@_data_dir_option
@click.pass_context
def init(ctx: click.Context, tls: bool | None) -> None:
    """Make a new server's database and keys, so that tokens can be made before it runs. Its first start does the same."""
    from compliance_agent.server.opening import ensure_admin, is_made

    settings = _settings(ctx, tls=tls or ctx.obj["tls"])
    if is_made(settings):
        raise NotPermitted(f"{settings.data_dir}: holds a server already; nothing was changed")
    password = _with_services(settings, ensure_admin, new=True)
    click.echo(f"a new server in {settings.data_dir}; admin's password is in {password}", err=True)


@command.command("logs")
@json_option
@_data_dir_option
@click.pass_context
def logs(ctx: click.Context, as_json: bool) -> None:
    """List every log: entries, the published checkpoint, who has cosigned it, and what waits.

    Exit status 1 while a log lacks its quorum of witnesses; no configured witness is said, and is no finding.
    """
    found = _with_services(_settings(ctx), _log_states)
    if as_json:
        print_json({"schema": "compliance-agent/server-logs/v1", "logs": found})
    else:
        columns = ("log", "entries", "published", "pending", "without receipt", "witnesses")
        table(columns, [[str(item[name]) for name in _LOG_COLUMNS] for item in found])
    ctx.exit(1 if any(item["witnesses"] == "unwitnessed" for item in found) else 0)


_LOG_COLUMNS = ("origin", "size", "published_at", "pending", "unlogged", "witnesses")


async def _log_states(services: Services) -> list[dict[str, Any]]:
    sites = await services.store.all_sites()
    book = services.logbook(services.store.for_sites(sites))
    found = []
    for site_id in sorted(sites):
        log = await book.log(site_id)
        if log.shard is None:
            continue
        state = log.lines[-1].code  # the witnesses', or that there is no checkpoint to cosign
        found.append(
            {
                "site_id": site_id,
                "year": log.shard.year,
                "origin": log.shard.origin,
                "size": log.checkpoint.size if log.checkpoint else 0,
                "published_at": utc(log.published_at),
                "pending": log.backlog.count,
                "unlogged": log.unlogged,
                "witnesses": "none_configured" if state == "no_policy" else state,
                "cosigned": [{"name": item.name, "code": item.code, "at": utc(item.at)} for item in log.witnesses],
            }
        )
    return found


@command.command("readopt")
@_data_dir_option
@click.pass_context
def readopt(ctx: click.Context) -> None:
    """After a restored backup: take back from the log's files what the database lacks. The server must not run."""
    from compliance_agent.server.opening import only_server
    from compliance_agent.server.services.readopt import Readopt, Readopted

    settings = _settings(ctx)

    async def act(services: Services) -> list[Readopted]:
        files, keys, heads = services.log_files, services.log_keys, services.log_heads
        return await Readopt(services.store, files, keys, heads, services.clock, services.settings.name).run()

    with only_server(existing(settings)):
        found = _with_services(settings, act)
    for item in found:
        click.echo(
            f"{item.site_id}/{item.year}: {item.before} -> {item.after} entries; {item.records} of records, which hosts send "
            f"again; {item.enrolled} hosts must enrol anew; {item.revoked} revoked again"
        )


@command.command("lift")
@click.argument("site")
@_data_dir_option
@click.pass_context
def lift(ctx: click.Context, site: str) -> None:
    """After somebody has looked: let the log of a SITE go on that is stopped for all servers. Servers read it again first."""
    from compliance_agent.server.log_stops import lift as act

    name = label_of("SITE", site)
    code = _with_services(
        _settings(ctx), lambda services: act(services.store, services.clock(), name, actor="operator")
    )
    click.echo(f"{name}: stood still because of {code}; each server reads the log again before it goes on", err=True)


@command.command("fsck")
@json_option
@_data_dir_option
@click.pass_context
def fsck(ctx: click.Context, as_json: bool) -> None:
    """Compute every log once more, from the database and from the files, and hold it against what was signed."""
    found = _with_services(_settings(ctx), _logs)
    if as_json:
        print_json({"schema": "compliance-agent/server-fsck/v1", "valid": _sound(found), "logs": found})
    else:
        _print_logs(found)
    if not _sound(found):
        sys.exit(BadEvidence.exit_status)


def _sound(found: list[dict[str, Any]]) -> bool:
    return not any(item["problems"] for item in found)


def _print_logs(found: list[dict[str, Any]]) -> None:
    rows = [
        [
            f"{item['site_id']}/{item['year']}" if item["year"] else item["site_id"],
            str(item["size"]),
            str(item["signed"]),
            str(item["bundles"]),
            str(item["pending"]),
            "DAMAGED" if item["problems"] else "ok",
        ]
        for item in found
    ]
    table(("log", "entries", "signed", "bundles", "pending", ""), rows)
    for item in found:
        for problem in item["problems"]:
            click.echo(f"{item['site_id']}/{item['year']}: {problem}", err=True)


async def _logs(services: Services) -> list[dict[str, Any]]:
    from dataclasses import asdict

    from compliance_agent.server.services.fsck import Fsck

    checker = Fsck(services.store, services.log_files, services.log_keys, services.log_heads)
    return [asdict(item) async for item in checker.run()]


command.add_command(server_backup.backup)
command.add_command(server_backup.restore)
command.add_command(server_database.migrate)
command.add_command(server_database.move)
command.add_command(server_alerts.alerts)
command.add_command(server_retention.retention)
command.add_command(server_people.user)
command.add_command(server_tokens.operator_token)
command.add_command(server_enrolment.enrol_token)
command.add_command(server_enrolment.hosts)
command.add_command(server_orders.order)
server_orders.order.add_command(server_order_export.export)
command.add_command(server_exceptions.exception)
command.add_command(server_leases.leases)
command.add_command(server_plan.plan)
command.add_command(server_mcp.mcp)
