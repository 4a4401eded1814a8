"""`compliance-agent server`: run it, and look after its enrolment tokens, users and hosts.

The subcommands work on the data directory itself, also while the server runs: both write behind the same lock.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from compliance_agent.adapters.durable import create_file
from compliance_agent.cli import server_backup, server_people, server_retention
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option as _data_dir_option
from compliance_agent.cli.server_common import duration, existing, label_of
from compliance_agent.cli.server_common import settings_of as _settings
from compliance_agent.cli.server_common import with_services as _with_services
from compliance_agent.errors import BadEvidence, NoInput, NotPermitted

if TYPE_CHECKING:
    from compliance_agent.server.api.deps import Services
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
    from compliance_agent.server.app import database, ensure_admin

    settings = _settings(ctx, tls=tls or ctx.obj["tls"])
    if database(settings).exists():
        raise NotPermitted(f"{settings.data_dir}: holds a server already; nothing was changed")
    password = _with_services(settings, ensure_admin, new=True)
    click.echo(f"a new server in {settings.data_dir}; admin's password is in {password}", err=True)


@command.command("enrol-token")
@click.option("--site", required=True, help="The clinic the host belongs to; made when it is new.")
@click.option("--client", help="The client a new site belongs to.")
@click.option("--expires", default="1h", show_default=True, help="How long the token is good for: 15m, 1h, 7d.")
@click.option("--out", type=_PATH, help="Write the token to this new file (0600) instead of standard output.")
@_data_dir_option
@click.pass_context
def enrol_token(ctx: click.Context, site: str, client: str | None, expires: str, out: Path | None) -> None:
    """Make a one-time token with which one host can enrol. It is shown once and kept nowhere."""
    from compliance_agent.server.tls import known_authority

    settings = _settings(ctx)
    site, client = label_of("--site", site), label_of("--client", client or settings.client_id)
    life = duration(expires)
    if out is not None and os.path.lexists(out):
        raise NotPermitted(f"{out}: exists; a token is not written over anything")

    async def make(services: Services) -> str:
        authority = known_authority(settings.data_dir / "tls")  # which exists now where the settings say tls
        token, expires_at, made = await services.enrolment.new_token(
            site, client, life, ca_sha256=authority, actor="operator"
        )
        click.echo(
            f"for one host of {made.site_id} (client {made.client_id}), until {expires_at:%Y-%m-%d %H:%M:%SZ}", err=True
        )
        return token

    token = _with_services(settings, make)
    if out is None:
        click.echo(token)
    elif not create_file(out, f"{token}\n".encode()):
        raise NotPermitted(f"{out}: exists; a token is not written over anything")


@command.command("hosts")
@json_option
@_data_dir_option
@click.pass_context
def hosts(ctx: click.Context, as_json: bool) -> None:
    """List every host: site, label, key, when it was last seen, and what stands."""
    found = _with_services(_settings(ctx), _hosts)
    if as_json:
        print_json({"schema": "compliance-agent/server-hosts/v1", "hosts": found})
        return
    for item in found:
        seen = item["last_seen_at"] or "never"
        counts = " ".join(f"{name}={count}" for name, count in item["counts"].items() if count)
        click.echo(
            f"{item['site_id']}  {item['host_id']}  {item['key_id'][:16]}  {item['state']}  seen {seen}  {counts}"
        )


async def _hosts(services: Services) -> list[dict[str, Any]]:
    fleet = services.fleet(services.store.for_sites(await services.store.all_sites()))
    return [
        {
            "site_id": item.host.site_id,
            "client_id": item.host.client_id,
            "host_id": item.host.host_id,
            "key_id": item.host.key_id,
            "state": "revoked" if item.host.revoked_at else "silent" if item.silent else "live",
            "broken": item.broken,
            "last_seen_at": item.host.last_seen_at.strftime("%Y-%m-%dT%H:%M:%SZ") if item.host.last_seen_at else None,
            "counts": item.counts,
        }
        for item in await fleet.hosts()
    ]


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


@command.command("revoke")
@click.argument("key_id")
@_data_dir_option
@click.pass_context
def revoke(ctx: click.Context, key_id: str) -> None:
    """Accept nothing more from a host, named by its key id or by 12 or more of its first characters."""
    if not re.fullmatch(r"[0-9a-f]{12,64}", key_id):
        raise click.BadParameter("KEY_ID: expected at least 12 hexadecimal characters")

    async def act(services: Services) -> str:
        fleet = services.fleet(services.store.for_sites(await services.store.all_sites()))
        found = [item.host for item in await fleet.hosts() if item.host.key_id.startswith(key_id)]
        if len(found) != 1:
            raise NoInput(
                f"KEY_ID: {len(found)} hosts have a key that begins so; expected one",
                hint="compliance-agent server hosts",
            )
        await services.enrolment.revoke(found[0].site_id, found[0].key_id, actor="operator")
        return found[0].host_id

    click.echo(f"host {_with_services(_settings(ctx), act)} revoked", err=True)


@command.command("readopt")
@_data_dir_option
@click.pass_context
def readopt(ctx: click.Context) -> None:
    """After a restored backup: take back from the log's files what the database lacks. The server must not run."""
    from compliance_agent.server.app import only_server
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
command.add_command(server_retention.retention)
command.add_command(server_people.user)
