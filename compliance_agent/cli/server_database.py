"""`compliance-agent server migrate` and `server move`: the schema of the server's database, and from SQLite to PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

from compliance_agent.cli.common import table
from compliance_agent.cli.progress import progress
from compliance_agent.cli.server_common import data_dir_option, existing, no_server, settings_of
from compliance_agent.errors import ConfigError

if TYPE_CHECKING:
    from compliance_agent.server.moving import Moved
    from compliance_agent.server.store import Address

_PATH = click.Path(path_type=Path, readable=False)


@click.command("migrate")
@click.option("--owner", metavar="URL", help="PostgreSQL: the same database as the role that owns its tables.")
@click.option("--owner-password-file", type=_PATH, help="File with that role's password.")
@data_dir_option
@click.pass_context
def migrate(ctx: click.Context, owner: str | None, owner_password_file: Path | None) -> None:
    """Make the database's schema, or bring it up to this program's. On SQLite every start does that by itself."""
    from compliance_agent.server import store
    from compliance_agent.server.opening import database, password_of
    from compliance_agent.server.settings import check_database

    settings = settings_of(ctx)
    where = database(settings)
    if isinstance(where, Path):
        existing(settings)
        asyncio.run(_opened(where))
        click.echo(f"{where}: schema is up to date", err=True)
        return
    if owner is None:
        raise ConfigError(
            "--owner: the role that the server connects as owns nothing, so another one makes the schema",
            hint="--owner postgresql://OWNER@HOST/NAME, the same database",
        )
    check_database("--owner", owner)
    role = unquote(urlsplit(where.url).username or "")
    mended = asyncio.run(store.migrate(store.Address(owner, password_of(owner_password_file)), role))
    for name in mended:
        click.echo(f"put up again: {name}", err=True)
    asyncio.run(_opened(where))
    click.echo(f"{where}: schema is up to date", err=True)


@click.command("move")
@click.option(
    "--to", "to", metavar="URL", help="The new database as the server will reach it [`database` of the settings]."
)
@click.option("--password-file", type=_PATH, help="File with that role's password [database_password_file].")
@click.option("--owner", metavar="URL", required=True, help="The same database as the role that owns its tables.")
@click.option("--owner-password-file", type=_PATH, help="File with the owner's password.")
@click.option(
    "--dry-run", is_flag=True, help="Compute every log, count the rows and look at the target; change nothing."
)
@data_dir_option
@click.pass_context
def move(
    ctx: click.Context,
    to: str | None,
    password_file: Path | None,
    owner: str,
    owner_password_file: Path | None,
    dry_run: bool,
) -> None:
    """Move all rows from the SQLite file into an empty PostgreSQL database. The server must not run."""
    from compliance_agent.server.log_places import log_places
    from compliance_agent.server.moving import SOURCE, rehearse
    from compliance_agent.server.moving import move as move_all
    from compliance_agent.server.opening import password_of, utc_now
    from compliance_agent.server.settings import check_database
    from compliance_agent.server.store import Address

    settings = settings_of(ctx)
    url = to or settings.database
    if url is None:
        raise ConfigError("--to: the settings name no database", hint="--to postgresql://ROLE@HOST/NAME")
    if not (settings.data_dir / SOURCE).is_file():
        raise no_server(f"{settings.data_dir}: holds no {SOURCE} to move")
    check_database("--to", url)
    check_database("--owner", owner)
    target = Address(url, password_of(password_file or settings.database_password_file))
    owned = Address(owner, password_of(owner_password_file))
    places = functools.partial(log_places, settings, utc_now)
    click.echo(f"computing every log of {settings.data_dir / SOURCE} once more ...", err=True)
    if dry_run:
        _show(asyncio.run(rehearse(settings.data_dir, target, owned, places)))
        click.echo("the logs are sound and the target is empty; nothing was changed (--dry-run)", err=True)
        return
    with progress("copying the rows", lambda: None) as told:
        done = asyncio.run(move_all(settings.data_dir, target, owned, told, places))
    _show(done)
    click.echo(f"moved and verified; the file is now {settings.data_dir / done.aside}", err=True)
    if settings.database != url:
        click.echo(f"before the server starts, set in its settings: database: {url}", err=True)


def _show(done: Moved) -> None:
    table(("table", "rows", "sha256"), [[item.table, str(item.rows), item.sha256] for item in done.tables if item.rows])
    table(
        ("log", "entries", "signed"),
        [[f"{item.site_id}/{item.year}", str(item.size), str(item.signed)] for item in done.logs if item.year],
    )


async def _opened(where: Path | Address) -> None:
    from compliance_agent.server.store import SqlStore

    await (await SqlStore.open(where)).close()
