"""`compliance-agent server exception`: list, grant, approve and end what people accept for a while, on the data directory.

An exception is an act in the site's log. No verdict changes by it and no host is told (docs/adr/0021).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, settings_of, with_services
from compliance_agent.cli.server_orders import by_option, host_named, person, whole_reader
from compliance_agent.core.accepted import DAYS, MEASURES, REASONS
from compliance_agent.errors import NoInput

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records import SiteReader, User
    from compliance_agent.server.records.exceptions import RecordedException

SCHEMA = "compliance-agent/server-exceptions/v1"
Act = Callable[["Services", "User", "SiteReader"], Awaitable["RecordedException"]]


@click.group("exception")
def exception() -> None:
    """Failing checks that people accept for a while: list, grant, approve, end."""


@exception.command("list")
@click.option("--site", help="Only of this clinic.")
@click.option(
    "--host", metavar="KEY_ID", help="Only what is about this host: 12 or more first characters of its key id."
)
@click.option("--standing", is_flag=True, help="Only what has not ended; what waits for a second person too.")
@json_option
@data_dir_option
@click.pass_context
def list_exceptions(ctx: click.Context, site: str | None, host: str | None, standing: bool, as_json: bool) -> None:
    """List exceptions in the order in which they were recorded, those that ended too."""

    async def look(services: Services) -> list[dict[str, Any]]:
        reader = await whole_reader(services)
        key_id = None if host is None else await host_named(reader, host)
        found = await services.exceptions().listed(reader, site, key_id)
        shown = [_shown(services, one) for one in found]
        return [one for one in shown if not standing or one["state"] in {"stands", "waiting"}]

    _say(with_services(settings_of(ctx), look), as_json)


@exception.command("grant")
@click.option("--host", required=True, metavar="KEY_ID", help="The host: 12 or more first characters of its key id.")
@click.option("--check", required=True, help="The check that fails.")
@click.option("--reason", type=click.Choice(list(REASONS)), required=True, help="Why it is accepted.")
@click.option("--measure", type=click.Choice(list(MEASURES)), required=True, help="What is done instead.")
@click.option(
    "--reference", required=True, metavar="ID", help="Of the document in your own books that says both in full."
)
@click.option("--days", type=click.Choice([str(days) for days in DAYS]), required=True, help="It ends after so many.")
@click.option("--whole-site", is_flag=True, help="For every host of that host's clinic.")
@by_option
@json_option
@data_dir_option
@click.pass_context
def grant(
    ctx: click.Context, host: str, check: str, reason: str, measure: str, reference: str, days: str, whole_site: bool,
    by: str, as_json: bool,
) -> None:  # fmt: skip
    """Record that a failing check is accepted from now on. It shows as an exception, never as met, and the host is told nothing."""
    import secrets

    from compliance_agent.server.services.exceptions import Wanted

    async def act(services: Services, user: User, reader: SiteReader) -> RecordedException:
        key_id = await host_named(reader, host)
        wanted = Wanted(key_id, check, reason, measure, reference, int(days), whole_site)
        return await services.exceptions().record(user, reader, wanted, secrets.token_hex(16))

    _act(ctx, by, as_json, act)


@exception.command("approve")
@click.argument("exception_id")
@by_option
@json_option
@data_dir_option
@click.pass_context
def approve(ctx: click.Context, exception_id: str, by: str, as_json: bool) -> None:
    """Approve one that waits for a second person; it counts from now on."""
    _act(ctx, by, as_json, lambda services, user, reader: services.exceptions().approve(user, reader, exception_id))


@exception.command("rule")
@click.option("--site", required=True, help="The clinic.")
@click.option("--people", type=click.Choice(["1", "2"]), help="So many have to approve, from now on.")
@click.option("--by", metavar="NAME", help="With --people: the person who does this, as the server knows them.")
@json_option
@data_dir_option
@click.pass_context
def rule(ctx: click.Context, site: str, people: str | None, by: str | None, as_json: bool) -> None:
    """Say how many people have to approve an exception of a clinic; with --people, have it so."""
    if (people is None) != (by is None):
        raise click.UsageError("--people: needs --by, and --by needs it")

    async def work(services: Services) -> int:
        reader = await whole_reader(services)
        if by is not None:
            user = await person(services, by)
            mine = await services.users.reader(user)
            await services.exceptions().set_people(user, mine, site, int(people or 0))
        found = [one.exception_people for one in await reader.only(site).site_rows()]
        if not found:
            raise NoInput(f"--site: there is no site {site[:64]}")
        return found[0]

    needs = with_services(settings_of(ctx), work)
    if as_json:
        print_json({"schema": "compliance-agent/server-exception-rule/v1", "site_id": site, "people": needs})
        return
    click.echo(f"{site}: an exception needs {'one person' if needs == 1 else 'two people'}")


@exception.command("end")
@click.argument("exception_id")
@by_option
@json_option
@data_dir_option
@click.pass_context
def end(ctx: click.Context, exception_id: str, by: str, as_json: bool) -> None:
    """End one now. It is kept, with who ended it and when."""
    _act(ctx, by, as_json, lambda services, user, reader: services.exceptions().withdraw(user, reader, exception_id))


def _act(ctx: click.Context, by: str, as_json: bool, act: Act) -> None:
    async def work(services: Services) -> list[dict[str, Any]]:
        user = await person(services, by)
        return [_shown(services, await act(services, user, await services.users.reader(user)))]

    _say(with_services(settings_of(ctx), work), as_json)


def _shown(services: Services, made: RecordedException) -> dict[str, Any]:
    from compliance_agent.server.services.exceptions import digest

    times = {name: utc(getattr(made, name)) for name in ("created_at", "expires_at", "withdrawn_at", "seconded_at")}
    return {**vars(made), **times, "state": made.state(services.clock()), "sha256": digest(made)}


def _say(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"schema": SCHEMA, "exceptions": found})
        return
    rows = [
        [one["exception_id"], one["state"], one["site_id"], (one["key_id"] or "every host")[:16], one["check"],
         one["reason"], one["measure"], one["reference"],
         " and ".join(name for name in (one["approver"], one["seconded_by"]) if name), one["withdrawn_at"] or one["expires_at"]]
        for one in found
    ]  # fmt: skip
    names = ("exception", "state", "site", "host", "check", "reason", "instead", "documented in", "approved by", "ends")
    table(names, rows)
