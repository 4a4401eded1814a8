"""`compliance-agent server backup` and `server restore`: a whole, verified copy of a server's data directory, and back."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.progress import progress
from compliance_agent.cli.server_common import data_dir_option, settings_of, with_services
from compliance_agent.errors import NoInput

if TYPE_CHECKING:
    from compliance_agent.server.backup import Backup
    from compliance_agent.server.desks import Services

_PATH = click.Path(path_type=Path, readable=False)


@click.command("backup")
@click.option("--out", type=_PATH, required=True, help="The new directory to write; it must not be there yet.")
@json_option
@data_dir_option
@click.pass_context
def backup(ctx: click.Context, out: Path, as_json: bool) -> None:
    """Copy database, logs and keys while the server runs, check the copy, and note how much of each log it holds."""
    from compliance_agent.server.backup import back_up

    target = out.absolute()

    async def act(services: Services) -> Backup:
        with progress("copying the database", lambda: None) as told:
            return await back_up(services, target, told)

    made = with_services(settings_of(ctx), act)
    if as_json:
        document = {"schema": "compliance-agent/server-backup/v1", "directory": str(target)}
        print_json({**document, **asdict(made), "made_at": utc(made.made_at)})
        return
    columns = ("log", "entries", "with their records")
    table(columns, [[f"{item.site_id}/{item.year}", str(item.size), str(item.durable)] for item in made.logs])
    click.echo(f"{made.files} files, {made.size_bytes} bytes, checked, in {out}", err=True)


@click.command("restore")
@click.option("--from", "source", type=_PATH, required=True, help="A directory that `server backup` wrote.")
@click.option("--force", is_flag=True, help="Into a directory that holds something: its database is set aside.")
@json_option
@data_dir_option
@click.pass_context
def restore(ctx: click.Context, source: Path, force: bool, as_json: bool) -> None:
    """Verify a backup and put it into the data directory. The server must not run."""
    from compliance_agent.server.backup import MANIFEST
    from compliance_agent.server.log_places import log_places
    from compliance_agent.server.opening import utc_now
    from compliance_agent.server.restore import restore as put_back

    if not (source / MANIFEST).is_file():
        raise NoInput(f"{source}: holds no {MANIFEST}", hint="name a directory that `server backup` wrote")
    settings = settings_of(ctx)
    directory = settings.data_dir

    def files() -> int:
        return len(json.loads((source / MANIFEST).read_bytes()).get("files", ()))

    with progress("verifying the backup", files) as told:
        places = functools.partial(log_places, settings, utc_now)
        done = put_back(source.absolute(), directory, force=force, told=told, places=places)
    ahead = [item for item in done.logs if item.signed > item.size]
    if as_json:
        document = {"schema": "compliance-agent/server-restore/v1", "directory": str(directory)}
        print_json({**document, **asdict(done), "readopt": bool(ahead)})
        return
    columns = ("log", "entries", "signed since")
    table(
        columns, [[f"{item.site_id}/{item.year}", str(item.size), str(item.signed - item.size)] for item in done.logs]
    )
    if done.set_aside:
        click.echo(f"the database that was there is now {directory / done.set_aside}", err=True)
    if settings.database is not None:
        click.echo(
            "the settings name PostgreSQL: bring the restored rows into a new, empty database there with"
            f" compliance-agent server move --data-dir {directory} --owner URL, before the server starts",
            err=True,
        )
    if ahead:
        click.echo(
            f"more was signed than this database holds: compliance-agent server readopt --data-dir {directory}",
            err=True,
        )
    else:
        click.echo(
            "if anything was signed after this backup, put the newest log/ and heads/ in place before the server starts,"
            f" then: compliance-agent server readopt --data-dir {directory}",
            err=True,
        )
