"""`compliance-agent server plan`: what could be done about each finding and why, and a draft of it when a person says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table
from compliance_agent.cli.server_common import data_dir_option, duration, settings_of, with_services
from compliance_agent.cli.server_orders import by_option, person, say, shown_row, whole_reader
from compliance_agent.core.planning import RULES, as_document

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services

SCHEMA = "compliance-agent/server-plans/v1"
ADVICE_SCHEMA = "compliance-agent/server-plan-advice/v1"


@click.group("plan")
def plan() -> None:
    """Proposals: what could be done about each finding, by which runbook, and why. Nothing is done by itself."""


@plan.command("list")
@click.option("--site", help="Only of this clinic.")
@click.option("--host", metavar="KEY_ID", help="Only of this host: the first characters of its key id.")
@click.option("--orders", "only_orders", is_flag=True, help="Only those of which an order can be drafted.")
@json_option
@data_dir_option
@click.pass_context
def list_plans(ctx: click.Context, site: str | None, host: str | None, only_orders: bool, as_json: bool) -> None:
    """List what could be done about each finding that stands, what is due first before the others."""

    async def look(services: Services) -> tuple[list[dict[str, Any]], bool]:
        found = await services.planner().computed(await whole_reader(services))
        return [as_document(item) for item in found.proposals], found.more

    documents, more = with_services(settings_of(ctx), look)
    kept = [
        item
        for item in documents
        if site in {None, item["site_id"]}
        and item["key_id"].startswith(host or "")
        and (item["kind"] is not None or not only_orders)
    ]
    if as_json:
        print_json({"schema": SCHEMA, "more": more, "proposals": kept})
        return
    columns = ("proposal", "site", "host", "finding", "order", "runbook", "due", "rule")
    table(columns, [_row(item) for item in kept])
    for rule in dict.fromkeys(item["rule"] for item in kept):
        click.echo(f"{rule}: {RULES[rule].why}")
    if more:
        click.echo("there are more findings than these; they are the ones that are due first", err=True)


def _row(item: dict[str, Any]) -> list[str]:
    return [
        item["proposal_id"], item["site_id"], item["key_id"][:12], f"{item['check']} {item['reason']}",
        (item["kind"] or "none") + (" (disruptive)" if item["disruptive"] else ""),
        item["runbook"]["id"] if item["runbook"] else "none", item["due"] or "", item["rule"],
    ]  # fmt: skip


@plan.command("draft")
@click.argument("proposal_id")
@click.option("--order", "kind", help="Another kind of order than its rule's; `plan list --json` has its options.")
@click.option("--target", help="Of an approval: the plan, as `compliance-agent plan --json` shows it at the host.")
@click.option("--life", default="15m", show_default=True, help="How long the order is good for, once it is signed.")
@click.option("--yes", is_flag=True, help="Do not ask after showing the proposal.")
@by_option
@json_option
@data_dir_option
@click.pass_context
def draft(
    ctx: click.Context, proposal_id: str, kind: str | None, target: str | None, life: str, yes: bool, by: str,
    as_json: bool,
) -> None:  # fmt: skip
    """Make a draft of one proposal. It is an order like any other: people approve and sign it before a host hears of it."""
    settings, seconds = settings_of(ctx), int(duration(life).total_seconds())

    async def find(services: Services) -> dict[str, Any]:
        user = await person(services, by)
        return as_document(await services.planner().find(user, await services.users.reader(user), proposal_id))

    async def act(services: Services) -> dict[str, Any]:
        user = await person(services, by)
        reader = await services.users.reader(user)
        row = await services.planner().draft(user, reader, proposal_id, kind=kind, target=target, life_s=seconds)
        return await shown_row(services, reader, row)

    _show(with_services(settings, find))
    if not yes:
        click.confirm("draft this?", abort=True, err=True)
    say(with_services(settings, act), as_json)


@plan.command("advise")
@by_option
@json_option
@data_dir_option
@click.pass_context
def advise(ctx: click.Context, by: str, as_json: bool) -> None:
    """Ask the configured model what it would do, among what the rules allow. Its words do nothing; a person drafts."""

    async def ask(services: Services) -> dict[str, Any]:
        user = await person(services, by)
        found = await services.adviser().advise(user, await services.users.reader(user))
        choices = [{"option": item.kind, **_said(as_document(item.proposal))} for item in found.choices]
        return {"schema": ADVICE_SCHEMA, "asked": found.asked, "refused": found.code or None, "choices": choices}

    document = with_services(settings_of(ctx), ask)
    if as_json:
        print_json(document)
    elif document["refused"]:
        click.echo(f"nothing of the answer was taken: {document['refused']}", err=True)
    else:
        rows = [[item["proposal_id"], f"{item['check']} {item['reason']}", item["option"] or "none", item["rule"]]
                for item in document["choices"]]  # fmt: skip
        table(("proposal", "finding", "the model would", "the rules say"), rows)
    ctx.exit(1 if document["refused"] else 0)


def _said(item: dict[str, Any]) -> dict[str, Any]:
    return {name: item[name] for name in ("proposal_id", "key_id", "check", "reason", "rule", "kind")}


def _show(item: dict[str, Any]) -> None:
    """What is about to be drafted, on standard error, beside what the command answers."""
    lines = [
        f"{item['check']} {item['reason']} on {item['key_id'][:12]} of {item['site_id']} since {item['since']}",
        f"  order {item['kind'] or 'none'}: {item['why']}",
    ]
    if item["runbook"]:
        lines.append(f"  runbook {item['runbook']['id']} {item['runbook']['version']}, due {item['due']}")
    lines += [f"  step {step['action']}" for cure in item["cures"] for step in cure["steps"]]
    if item["kind"]:
        lines.append(
            f"  users may notice: {'yes' if item['disruptive'] else 'no'}; can be undone: {item['undo'] or '-'}"
        )
    if item["do"]:
        lines.append(f"  for people: {item['do']}")
    click.echo("\n".join(lines), err=True)
