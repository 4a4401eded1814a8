"""`compliance-agent server alerts`: what people were told, whether the channels work, and who looks after it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, settings_of, with_services
from compliance_agent.errors import AgentError, ConfigError

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services


@click.group("alerts")
def alerts() -> None:
    """What began and ended that a person should know of."""


@alerts.command("list")
@json_option
@data_dir_option
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """List alerts, open ones first, and what of them waits to be sent or was given up. Exit status 1 while one is open."""

    async def act(services: Services) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        found, counts = await services.alarms.all(), await services.alarms.counts()
        outbox = [
            {"channel": channel, "state": state, "count": number} for (channel, state), number in sorted(counts.items())
        ]
        return [_document(item) for item in found], outbox

    found, outbox = with_services(settings_of(ctx), act)
    if as_json:
        print_json({"schema": "compliance-agent/server-alerts/v1", "alerts": found, "outbox": outbox})
    else:
        keys = ("alert_id", "kind", "site_id", "count", "opened_at", "closed_at", "acked_by")
        table(
            ("alert", "kind", "site", "count", "since", "until", "acknowledged by"),
            [["" if item[key] is None else str(item[key]) for key in keys] for item in found],
        )
        for item in outbox:
            if item["state"] != "sent":
                click.echo(f"{item['channel']}: {item['count']} {item['state']}", err=True)
    ctx.exit(1 if any(item["closed_at"] is None for item in found) else 0)


def _document(item: Any) -> dict[str, Any]:
    return {
        "alert_id": item.alert_id,
        "kind": item.cause.kind,
        "site_id": item.cause.site_id,
        "key_id": item.cause.key_id,
        "count": item.count,
        "opened_at": utc(item.opened_at),
        "closed_at": utc(item.closed_at),
        "acked_at": utc(item.acked_at),
        "acked_by": item.acked_by,
    }


@alerts.command("test")
@json_option
@data_dir_option
@click.pass_context
def test(ctx: click.Context, as_json: bool) -> None:
    """Send a test through every channel, at once and past the outbox, and say what came of it. Exit status 1 when one failed."""

    async def act(services: Services) -> list[dict[str, Any]]:
        if not services.alarms.channels:
            raise ConfigError("alerts_file: no channel is configured", hint="docs/alerts.md has one of each kind")
        return [await _tried(services, name) for name in services.alarms.channels]

    found = with_services(settings_of(ctx), act)
    if as_json:
        print_json({"schema": "compliance-agent/server-alerts-test/v1", "channels": found})
    else:
        rows = [[item["channel"], "taken" if item["taken"] else "FAILED", item["code"] or ""] for item in found]
        table(("channel", "", ""), rows)
    ctx.exit(0 if all(item["taken"] for item in found) else 1)


async def _tried(services: Services, name: str) -> dict[str, Any]:
    import secrets

    from compliance_agent.server.records.alarms import Alert, Cause, Delivery

    now = datetime.now(UTC)
    alert, code = Alert(secrets.token_hex(16), Cause("test"), 0, now, now), None
    try:
        for transition in ("open", "close"):
            await services.alarms.channels[name].send(Delivery(0, name, transition, alert))
    except AgentError as error:
        code = error.code
    return {"channel": name, "taken": code is None, "code": code}


@alerts.command("ack")
@click.argument("alert_id")
@click.option("--actor", default="operator", show_default=True, help="Who looks after it, by an id and not a name.")
@json_option
@data_dir_option
@click.pass_context
def ack(ctx: click.Context, alert_id: str, actor: str, as_json: bool) -> None:
    """Note that somebody looks after an alert; one that does not end by itself (a fork) has ended by that."""
    with_services(settings_of(ctx), lambda services: services.alarms.acknowledge(alert_id, actor))
    if as_json:
        print_json({"schema": "compliance-agent/server-alerts-ack/v1", "alert_id": alert_id, "acked_by": actor})
    else:
        click.echo(f"alert {alert_id} acknowledged", err=True)
