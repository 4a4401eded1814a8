"""`compliance-agent status`: what this host's agent has done, what waits, and what stands; read beside the running agent."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from compliance_agent import __version__
from compliance_agent.adapters.agent_view import AgentView, looking
from compliance_agent.adapters.clock import SystemClock, read_clock_state
from compliance_agent.cli.common import config_option, json_option, parsed, print_json, table, utc
from compliance_agent.cli.places import require_config
from compliance_agent.config import AgentConfig
from compliance_agent.core.gates import Moment
from compliance_agent.drills import DRILLS
from compliance_agent.errors import AgentError, CannotTell
from compliance_agent.installed import agent_digest
from compliance_agent.order_trust import standing

SCHEMA = "compliance-agent/status/v1"
RECENT_ORDERS = 5


@click.command()
@config_option
@json_option
def command(config_path: Path | None, as_json: bool) -> None:
    """Show statistics, queue, last heartbeat and the last recorded verdict of every check.

    The running agent is asked; where none answers, its records are read, and it says so. Nothing is looked at on the host and
    nothing is changed. Exit status 66 when no agent has run here yet.
    """
    config = require_config(config_path)
    document = answered(config)
    if document is None:
        with looking(config.database_path) as view:
            document = as_document(config, view, datetime.now(UTC))
    if as_json:
        print_json(document)
    else:
        _print(document)


def as_document(config: AgentConfig, view: AgentView, now: datetime) -> dict[str, Any]:
    """The stable object of `--json` (docs/json.md)."""
    queue, pause = view.queue(), _pause(view)
    heartbeat = view.moment("heartbeat")
    return {
        "schema": SCHEMA,
        "site_id": config.site_id,
        "host_id": config.host_id,
        "version": __version__,
        "code_sha256": agent_digest(),
        "running": view.agent_runs(),
        "source": "records",
        "live": None,
        "healing_paused": view.paused() or pause is not None,
        "pause": pause,
        "last_heartbeat": utc(heartbeat),
        "last_heartbeat_age_s": _age_s(heartbeat, now),
        "statistics": view.statistics(),
        "queue": {
            **queue,
            "oldest_pending": utc(parsed(queue["oldest_pending"])),
            "oldest_pending_age_s": _age_s(parsed(queue["oldest_pending"]), now),
            "next_attempt_at": utc(parsed(queue["next_attempt_at"])),
        },
        "chain": view.chain(),
        "events": view.events(),
        "orders": _orders(view.orders(RECENT_ORDERS), standing(config, view.order_trust(), now)),
        "log": _log(view.log(), config.witness_policy_file is not None, now),
        "proven": [
            {"drill": drill.id, "check": drill.check, "last_fired": utc(view.moment(f"proven.{drill.id}"))}
            for drill in DRILLS.values()
        ],
        "checks": [{**vars(standing), "since": utc(parsed(standing.since))} for standing in view.standings()],
    }


def answered(config: AgentConfig) -> dict[str, Any] | None:
    """What the running agent says; None where none does."""
    from compliance_agent.admin.client import ask, found

    try:
        reply = ask(found(config), "GET", "/status")
        return reply.document if reply.status == 200 else None
    except AgentError:
        return None


def _pause(view: AgentView) -> dict[str, Any] | None:
    """A pause that a person at this host asked for, while it lasts."""
    pause, clock = view.pause(), SystemClock()
    try:
        now = Moment(clock.now(), clock.monotonic(), read_clock_state().boot_id)
    except CannotTell:
        now = Moment(clock.now(), 0.0, "")
    if pause is None or pause.left_s(now) <= 0:
        return None
    return {"reason": pause.reason, "uid": pause.uid, "since": utc(pause.since.wall), "until": utc(pause.until)}


def _log(log: dict[str, Any] | None, has_witnesses: bool, now: datetime) -> dict[str, Any] | None:
    if log is None:
        return None
    oldest = parsed(log["oldest_unlogged"])
    times = {name: utc(parsed(log[name])) for name in ("seen_at", "witnessed_at")} | {"oldest_unlogged": utc(oldest)}
    witnessing = "not_configured"
    if has_witnesses:
        witnessing = "none_followed" if not log["origin"] else "witnessed" if times["witnessed_at"] else "unwitnessed"
    return {**log, **times, "witnessing": witnessing, "oldest_unlogged_age_s": _age_s(oldest, now)}


def _orders(orders: dict[str, Any] | None, trust: dict[str, Any]) -> dict[str, Any] | None:
    if orders is None:
        return None
    recent = [{**item, "at": utc(parsed(item["at"]))} for item in orders["recent"]]
    return {**orders, "server_time": utc(parsed(orders["server_time"])), "trust": trust, "recent": recent}


def _age_s(at: datetime | None, now: datetime) -> int | None:
    return None if at is None else max(0, int((now - at).total_seconds()))


def age(seconds: int | None) -> str:
    """`3 h 5 min`, for people."""
    if seconds is None:
        return "never"
    days, rest = divmod(seconds, 86_400)
    hours, rest = divmod(rest, 3_600)
    minutes, rest = divmod(rest, 60)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (rest, "s")]
    first = next((number for number, (value, _) in enumerate(parts) if value), 3)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2] if value or unit == "s") or "0 s"


def _print_log(log: dict[str, Any]) -> None:
    followed = f"{log['origin']} at {log['size']} entries" if log["origin"] else "none followed"
    waits = f", oldest for {age(log['oldest_unlogged_age_s'])}" if log["unlogged"] else ""
    click.echo(f"log        {followed}; {log['receipted']} receipts, {log['unlogged']} without{waits}")
    if log["shed"]:
        click.echo(f"           {log['shed']} older records were let go under their receipts")
    if log["witnessing"] == "witnessed":
        click.echo(f"           witnessed at {log['witnessed_at']}")
    elif log["witnessing"] == "unwitnessed":
        click.echo("           UNWITNESSED: its last checkpoint lacks the quorum of witness_policy_file")
    for item in log["contradicted"]:
        click.echo(f"           {item['origin']} contradicted itself ({item['code']}) and is not believed")


def _print_trust(trust: dict[str, Any]) -> None:
    by = f"root {trust['root_version']}, " if trust["root_version"] else ""
    if trust["state"] == "good":
        click.echo(f"signers    {by}list {trust['keys_version']}, until {trust['expires']}")
    elif trust["state"] == "expired":
        click.echo(
            f"signers    EXPIRED at {trust['expires']} ({by}list {trust['keys_version']}): every order is refused"
        )
    else:
        click.echo(f"signers    {by}no list that can be used ({trust['state']}): every order is refused")


def _print_live(live: dict[str, Any]) -> None:
    loop = live["loop"]
    codes = f"NOT READY ({', '.join(live['not_ready'])})" if live["not_ready"] else "ready"
    last = f", last cycle {loop['last_cycle']} in {loop['last_cycle_ms']} ms" if loop["last_cycle"] else ""
    click.echo(f"           {codes}{last}, next after {loop['interval_s']:g} s")
    if live["breaker"] not in {None, "closed"}:
        click.echo(f"           the server is not asked for {live['breaker_wait_s']:g} s (breaker {live['breaker']})")


def root_key_line(live: dict[str, Any] | None) -> str:
    """That root does not know this host by its key, for people; empty where it does, or takes no order."""
    root = (live or {}).get("root_key") or {}
    if root.get("state") == "differs":
        key, why = root["key_id"][:16], root["code"] or "not told yet"
        return (
            f"root knows ANOTHER KEY of this host ({key}, {why}): it refuses orders for a baseline and approvals; "
            "compliance-agent baseline permit, as root"
        )
    if root.get("state") == "not_known" and root.get("code"):
        return f"root could not be asked which key of this host it knows ({root['code']})"
    return ""


def _print_events(events: dict[str, Any]) -> None:
    untold = ", ".join(f"{item['kind']} {item['code']}" for item in events["untold"])
    polled = f"; POLLED ALONE: {untold}" if untold else ""
    click.echo(f"events     {events['sources']} sources wake checks between rounds{polled}")


def _print(document: dict[str, Any]) -> None:
    running = {True: "running", False: "not running", None: "not known"}[document["running"]]
    queue, chain = document["queue"], document["chain"]
    waits = f", oldest for {age(queue['oldest_pending_age_s'])}" if queue["pending"] else ""
    trouble = f", last error {queue['last_error']}" if queue["last_error"] else ""
    said = "said by the agent" if document["source"] == "agent" else "read from its records"
    click.echo(f"agent      {document['host_id']} at {document['site_id']}: {running}; {said}")
    click.echo(f"code       {document['version']}, {document['code_sha256']}")
    if document["live"] is not None:
        _print_live(document["live"])
        if line := root_key_line(document["live"]):
            click.echo(f"           {line}")
    click.echo(f"heartbeat  {age(document['last_heartbeat_age_s'])}{' ago' if document['last_heartbeat'] else ''}")
    click.echo(f"delivery   {queue['pending']} waiting{waits}{trouble}; {queue['uploaded']} acknowledged")
    if queue["damaged"]:
        click.echo(f"damaged    {queue['damaged']} bundles are damaged and kept aside")
    if chain is not None:
        click.echo(f"chain      epoch {chain['epoch']}, bundle {chain['seq']}, key {chain['key_id'][:16]}")
    if document["log"] is not None:
        _print_log(document["log"])
    if document["events"] is not None:
        _print_events(document["events"])
    if document["orders"] is not None and document["orders"]["stopped"]:
        click.echo("orders     STOPPED by a signed stop_all; a resume that two people signed ends it")
    elif document["pause"] is not None:
        pause = document["pause"]
        click.echo(f"healing    paused until {pause['until']} by uid {pause['uid']}: {pause['reason']}")
    elif document["healing_paused"]:
        click.echo("healing    paused by an order")
    if document["orders"] is not None and document["orders"]["trust"]["known_by"] is not None:
        _print_trust(document["orders"]["trust"])
    for item in document["orders"]["recent"] if document["orders"] is not None else ():
        ended = f"{item['outcome'] or 'under way'} {item['error'] or ''}".rstrip()
        click.echo(f"order      {item['at']} {item['kind'] or 'unreadable'} {(item['order_id'] or '')[:16]}: {ended}")
    fired = ", ".join(f"{item['drill']} {(item['last_fired'] or 'never')[:10]}" for item in document["proven"])
    click.echo(f"proven     {fired}")
    click.echo("since      " + ", ".join(f"{name} {value}" for name, value in document["statistics"].items()))
    rows = [
        [item["check"], item["result"], item["reason"], f"{item['outcome']} {item['gate']}".strip(), item["since"][:19]]
        for item in document["checks"]
    ]
    if rows:
        click.echo()
        table(("check", "verdict", "reason", "done", "since (UTC)"), rows, styled=1)
