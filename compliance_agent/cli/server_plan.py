"""`compliance-agent server plan`: what could be done about each finding and why, and a draft of it when a person says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, duration, label_of, settings_of, with_services
from compliance_agent.cli.server_orders import by_option, person, say, shown_row, whole_reader
from compliance_agent.core.planning import RULES, as_document

if TYPE_CHECKING:
    from compliance_agent.runbook import Runbook
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records.planning import PlanRule, Worked

SCHEMA = "compliance-agent/server-plans/v1"
RULES_SCHEMA = "compliance-agent/server-plan-rules/v1"
DRAFTED_SCHEMA = "compliance-agent/server-plan-drafted/v1"
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


@plan.command("rules")
@json_option
@data_dir_option
@click.pass_context
def rules(ctx: click.Context, as_json: bool) -> None:
    """List what people promoted to a rule, how often the cure had worked then, and how often it has by now."""

    async def look(services: Services) -> list[dict[str, Any]]:
        reader = await whole_reader(services)
        return [
            _rule(rule, await reader.worked(rule.site_id, rule.check, rule.reason))
            for rule in await reader.plan_rules()
        ]

    _say_rules(with_services(settings_of(ctx), look), as_json)


_site = click.option("--site", required=True, help="The clinic whose rule it is.")


@plan.command("promote")
@click.argument("check")
@click.argument("reason")
@_site
@click.option("--yes", is_flag=True, help="Do not ask after showing how often it worked.")
@by_option
@json_option
@data_dir_option
@click.pass_context
def promote(ctx: click.Context, check: str, reason: str, site: str, yes: bool, by: str, as_json: bool) -> None:
    """Make the runbook's cure of a finding (CHECK REASON) a rule of a site: `draft-promoted` then drafts each such proposal."""
    settings, place = settings_of(ctx), (label_of("--site", site), check, reason)

    async def look(services: Services) -> tuple[Runbook, Worked]:
        user = await person(services, by)
        return await services.promoting().worked(await services.users.reader(user), place)

    async def act(services: Services) -> PlanRule:
        user = await person(services, by)
        return await services.promoting().promote(user, await services.users.reader(user), place)

    book, worked = with_services(settings, look)
    click.echo(
        f"{check} {reason} at {site}, by runbook {book.id} {book.version}: {worked.ordered} orders of people succeeded; of "
        f"{worked.applied} cures {worked.passed} passed when looked at again, {worked.undone} were undone",
        err=True,
    )
    if not yes:
        click.confirm("make it a rule?", abort=True, err=True)
    _say_rules([_rule(with_services(settings, act), worked)], as_json)


@plan.command("demote")
@click.argument("check")
@click.argument("reason")
@_site
@by_option
@data_dir_option
@click.pass_context
def demote(ctx: click.Context, check: str, reason: str, site: str, by: str) -> None:
    """Make it no rule any more."""
    place = (label_of("--site", site), check, reason)

    async def act(services: Services) -> PlanRule:
        user = await person(services, by)
        return await services.promoting().demote(user, await services.users.reader(user), place)

    rule = with_services(settings_of(ctx), act)
    click.echo(f"{check} {reason}: no rule of {site} any more, which it was since {utc(rule.promoted_at)}", err=True)


@plan.command("draft-promoted")
@click.option("--yes", is_flag=True, help="Do not ask.")
@by_option
@json_option
@data_dir_option
@click.pass_context
def draft_promoted(ctx: click.Context, yes: bool, by: str, as_json: bool) -> None:
    """Draft every proposal that a promoted rule is about. They are orders like any other: people approve and sign each."""
    if not yes:
        click.confirm("draft every proposal that a rule is about?", abort=True, err=True)

    async def act(services: Services) -> list[dict[str, Any]]:
        user = await person(services, by)
        found = await services.promoting().draft_promoted(user, await services.users.reader(user))
        return [
            {
                **{name: as_document(item.proposal)[name] for name in ("proposal_id", "key_id", "check", "reason")},
                "order_id": item.order.order_id if item.order is not None else None,
                "refused": item.code or None,
            }
            for item in found
        ]

    found = with_services(settings_of(ctx), act)
    if as_json:
        print_json({"schema": DRAFTED_SCHEMA, "drafted": found})
        return
    rows = [
        [item["order_id"] or "none", item["key_id"][:12], f"{item['check']} {item['reason']}", item["refused"] or ""]
        for item in found
    ]
    table(("order", "host", "finding", "refused"), rows)


def _rule(rule: PlanRule, now: Worked) -> dict[str, Any]:
    names = ("site_id", "check", "reason", "runbook", "runbook_sha256", "promoted_by")
    return {
        **{name: getattr(rule, name) for name in names},
        "promoted_at": utc(rule.promoted_at),
        "then": {name: getattr(rule, name) for name in now._fields},
        "now": now._asdict(),
    }


def _say_rules(found: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json({"schema": RULES_SCHEMA, "rules": found})
        return
    rows = [
        [item["site_id"], f"{item['check']} {item['reason']}", item["runbook"], _counts(item["then"]),
         _counts(item["now"]), item["promoted_by"], item["promoted_at"]]
        for item in found
    ]  # fmt: skip
    table(("site", "finding", "runbook", "then", "now", "by", "at"), rows)


def _counts(worked: dict[str, int]) -> str:
    return f"{worked['passed']} of {worked['applied']} held, {worked['undone']} undone"


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
