"""`compliance-agent server migrate`: the schema of the server's database, made or brought up to date."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import click

from compliance_agent.cli.server_common import data_dir_option, existing, settings_of
from compliance_agent.errors import ConfigError

if TYPE_CHECKING:
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
    from compliance_agent.server.app import database, password_of
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


async def _opened(where: Path | Address) -> None:
    from compliance_agent.server.store import SqlStore

    await (await SqlStore.open(where)).close()
