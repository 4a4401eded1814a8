"""`compliance-agent server user`: people, what each may do and see, and their scripts."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, label_of, settings_of, with_services
from compliance_agent.errors import NoInput

if TYPE_CHECKING:
    from compliance_agent.server.records import Dates, User

ROLES = ("owner", "operator", "proposer", "viewer", "auditor")
_PATH = click.Path(path_type=Path, readable=False)
_DAY = click.DateTime(("%Y-%m-%d",))


def limits(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say what a person may see."""
    for option in (
        click.option("--until", "last", type=_DAY, help="Last day whose records an auditor may see (UTC)."),
        click.option("--from", "first", type=_DAY, help="First day whose records an auditor may see (UTC)."),
        click.option("--every-client", is_flag=True, help="Sites of every client of this server."),
        click.option("--client", help="Sites of this client alone."),
        click.option("--site", "sites", multiple=True, help="Only this site; may be given more than once [all]."),
    ):
        function = option(function)
    return function


def _dates(first: datetime | None, last: datetime | None) -> Dates | None:
    from compliance_agent.server.records import Dates

    if first is None and last is None:
        return None
    if first is None or last is None or not first <= last or last.year > 9_000:
        raise click.BadParameter("--from and --until: give both, in order")
    return Dates(first.date(), last.date())


def _sites(names: tuple[str, ...]) -> frozenset[str] | None:
    return frozenset(label_of("--site", item) for item in names) or None


def _client(client: str | None, every: bool, otherwise: str | None) -> str | None:
    if client is not None and every:
        raise click.BadParameter("--client and --every-client: give one of them")
    return None if every else label_of("--client", client) if client is not None else otherwise


@click.group("user")
def user() -> None:
    """People: what they may do and see; and their scripts."""


@user.command("add")
@click.argument("name")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True, help="What the person may do.")
@click.option(
    "--password-file", type=_PATH, help="File with the password; else it is asked for, or read from standard input."
)
@limits
@json_option
@data_dir_option
@click.pass_context
def add(
    ctx: click.Context,
    name: str,
    role: str,
    password_file: Path | None,
    sites: tuple[str, ...],
    client: str | None,
    every_client: bool,
    first: datetime | None,
    last: datetime | None,
    as_json: bool,
) -> None:
    """Let a person in. Without --client and --every-client, for the sites of the server's own client."""
    settings = settings_of(ctx)
    of_client = _client(client, every_client, settings.client_id)
    password, only, dates = _password(password_file), _sites(sites), _dates(first, last)
    made = with_services(
        settings,
        lambda services: services.users.add(name, password, role=role, client_id=of_client, sites=only, dates=dates),
    )
    _print([made], as_json, said=f"user {name} made")


@user.command("list")
@json_option
@data_dir_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List people, disabled ones too."""
    _print(with_services(settings_of(ctx), lambda services: services.users.all()), as_json)


@user.command("role")
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
@click.option("--from", "first", type=_DAY, help="First day whose records an auditor may see (UTC).")
@click.option("--until", "last", type=_DAY, help="Last day whose records an auditor may see (UTC).")
@json_option
@data_dir_option
@click.pass_context
def role_(
    ctx: click.Context, name: str, role: str, first: datetime | None, last: datetime | None, as_json: bool
) -> None:
    """Give a person another role. It counts from the next request on."""
    dates = _dates(first, last)
    changed = with_services(settings_of(ctx), lambda services: services.users.set_role(name, role, dates))
    _print([changed], as_json, said=f"{name} is {role} now")


@user.command("sites")
@click.argument("name")
@limits
@json_option
@data_dir_option
@click.pass_context
def sites_(
    ctx: click.Context,
    name: str,
    sites: tuple[str, ...],
    client: str | None,
    every_client: bool,
    first: datetime | None,
    last: datetime | None,
    as_json: bool,
) -> None:
    """Say which sites a person may see: those named, or all of the client. A move to another client ends every session."""
    only, dates = _sites(sites), _dates(first, last)

    async def act(services: Any) -> User:
        held = {item.name: item for item in await services.users.all()}.get(name)
        of_client = _client(client, every_client, held.client_id if held else None)
        changed: User = await services.users.set_sites(name, client_id=of_client, sites=only, dates=dates)
        return changed

    _print([with_services(settings_of(ctx), act)], as_json, said=f"sites of {name} changed")


@user.command("disable")
@click.argument("name")
@json_option
@data_dir_option
@click.pass_context
def disable(ctx: click.Context, name: str, as_json: bool) -> None:
    """Let a person in no more; every session and token ends."""
    changed = with_services(settings_of(ctx), lambda services: services.users.set_disabled(name, True))
    _print([changed], as_json, said=f"{name} is disabled")


@user.command("enable")
@click.argument("name")
@json_option
@data_dir_option
@click.pass_context
def enable(ctx: click.Context, name: str, as_json: bool) -> None:
    """Let a disabled person in again; sessions and tokens that ended stay ended."""
    changed = with_services(settings_of(ctx), lambda services: services.users.set_disabled(name, False))
    _print([changed], as_json, said=f"{name} is enabled")


@user.command("password")
@click.argument("name")
@click.option("--password-file", type=_PATH, help="File with the new password; else it is asked for.")
@data_dir_option
@click.pass_context
def password_(ctx: click.Context, name: str, password_file: Path | None) -> None:
    """Change a person's password; every session ends."""
    password = _password(password_file)
    with_services(settings_of(ctx), lambda services: services.users.set_password(name, password))
    click.echo(f"password of {name} changed", err=True)


@user.command("sessions")
@click.argument("name")
@click.option("--end", "ended", metavar="ID", help="End this session; `all` ends every one.")
@json_option
@data_dir_option
@click.pass_context
def sessions(ctx: click.Context, name: str, ended: str | None, as_json: bool) -> None:
    """List where a person is signed in, and end sessions."""

    async def act(services: Any) -> list[Any]:
        held = services.users.sessions
        if ended is not None:
            await held.end_named(name, None if ended == "all" else ended, by=None)
        found: list[Any] = await held.all_of(name)
        return found

    items = [
        {
            "session_id": item.id,
            "created_at": utc(item.created_at),
            "used_at": utc(item.used_at),
            "expires_at": utc(item.expires_at),
            "proved_at": utc(item.proved_at),
        }
        for item in with_services(settings_of(ctx), act)
    ]
    if as_json:
        print_json({"schema": "compliance-agent/server-sessions/v1", "name": name, "sessions": items})
        return
    columns = ("session_id", "created_at", "used_at", "proved_at")
    table(
        ("session", "since", "last used", "second factor"), [[item[key] or "no" for key in columns] for item in items]
    )


@user.command("reset-factor")
@click.argument("name")
@data_dir_option
@click.pass_context
def reset_factor(ctx: click.Context, name: str) -> None:
    """Take a person's second factor away, whose phone is lost; every session ends."""
    with_services(settings_of(ctx), lambda services: services.users.factors.reset(name))
    click.echo(f"{name} has no second factor now", err=True)


@user.command("link")
@click.argument("name")
@click.option("--issuer", help="The OpenID provider [the server's oidc_issuer].")
@click.option(
    "--subject", required=True, help="What the provider calls the person (`sub`); it is said when nobody is linked."
)
@click.option("--remove", is_flag=True, help="End the link instead, and every session.")
@data_dir_option
@click.pass_context
def link(ctx: click.Context, name: str, issuer: str | None, subject: str, remove: bool) -> None:
    """Let a person in who has signed in at an OpenID provider."""
    settings = settings_of(ctx)
    named = issuer or settings.oidc_issuer
    if named is None:
        raise click.BadParameter("--issuer: the server has no oidc_issuer, so say which provider it is")
    with_services(settings, lambda services: services.users.link(name, named, subject, linked=not remove))
    click.echo(f"{name} {'is no longer' if remove else 'is'} {subject} of {named}", err=True)


def _password(path: Path | None) -> str:
    if path is not None:
        try:
            return read_file(path, limit_bytes=1_024, secret=True).decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            raise NoInput(f"{path}: not UTF-8 text") from error
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline(1_024).rstrip("\r\n")


def _print(found: list[User], as_json: bool, *, said: str = "") -> None:
    items = [_document(item) for item in found]
    if as_json:
        print_json({"schema": "compliance-agent/server-users/v1", "users": items})
    elif said:
        click.echo(said, err=True)
    else:
        table(("name", "role", "client", "sites", "dates", "person", ""), [_row(item) for item in items])


def _document(item: User) -> dict[str, Any]:
    return {
        "name": item.name,
        "person_id": item.person_id,
        "role": item.role,
        "client_id": item.client_id,
        "sites": None if item.sites is None else sorted(item.sites),
        "first_on": item.dates.first.isoformat() if item.dates else None,
        "last_on": item.dates.last.isoformat() if item.dates else None,
        "created_at": utc(item.created_at),
        "disabled_at": utc(item.disabled_at),
    }


def _row(item: dict[str, Any]) -> list[str]:
    dates = f"{item['first_on']} to {item['last_on']}" if item["first_on"] else "all"
    sites = "all" if item["sites"] is None else " ".join(item["sites"])
    ended = "disabled" if item["disabled_at"] else ""
    return [item["name"], item["role"], item["client_id"] or "every", sites, dates, item["person_id"], ended]
