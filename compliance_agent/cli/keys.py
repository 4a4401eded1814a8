"""`compliance-agent keys`: the keys of this host, and of a whole site as its log shows them; a new key in place of this host's."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import click

from compliance_agent.adapters import runner
from compliance_agent.adapters.agent_view import looking
from compliance_agent.adapters.durable import write_file
from compliance_agent.agent import ComplianceAgent
from compliance_agent.api_key_rotation import REQUEST_FILE
from compliance_agent.cli import Suggesting
from compliance_agent.cli.common import PATH, config_option, json_option, parsed, print_json, table, utc
from compliance_agent.cli.places import require_config
from compliance_agent.config import AgentConfig
from compliance_agent.errors import BadEvidence, NoInput, StateInUse, Unavailable
from compliance_agent.logs import configure
from compliance_agent.rotation import WHY_NOT, Rotated

LIST_SCHEMA = "compliance-agent/keys/v1"
LOG_SCHEMA = "compliance-agent/log-keys/v1"
ROTATE_SCHEMA = "compliance-agent/keys-rotate/v1"


@click.group(cls=Suggesting)
def command() -> None:
    """Show keys, and let a new one take this host's key's place."""


@command.command("list")
@click.option(
    "--log",
    "log_at",
    metavar="URL|DIR",
    help="Every key of a site, from its log of one year or from those of all, in place of this host's own.",
)
@click.option(
    "--log-key", "log_keys", multiple=True, metavar="VKEY|FILE", help="The log's verifier key, or a file of them."
)
@click.option("--ca-file", type=PATH, help="Certificate authority of the server at URL (PEM).")
@click.option("--token-file", type=PATH, help="File with a token that may see the log at URL.")
@config_option
@json_option
@click.pass_context
def list_keys(
    ctx: click.Context,
    log_at: str | None,
    log_keys: tuple[str, ...],
    ca_file: Path | None,
    token_file: Path | None,
    config_path: Path | None,
    as_json: bool,
) -> None:
    """List this host's keys, the present one last; with --log those of every host of the site.

    From a log each key is shown with the entries that enrolled it, let it give way, or revoked it: a clinic sees here every key
    that may sign for one of its machines. Exit status 65 when the log does not verify.
    """
    if log_at is None:
        _own(require_config(config_path), as_json)
        return
    if not log_keys:
        raise click.UsageError("--log needs --log-key: a log shows nothing without its key")
    ctx.exit(_of_log(log_at, log_keys, ca_file, token_file, as_json))


def _own(config: AgentConfig, as_json: bool) -> None:
    with looking(config.database_path) as view:
        found = view.keys()
    if not found:
        raise NoInput("no key has signed anything here yet", hint="compliance-agent run")
    if as_json:
        print_json({"schema": LIST_SCHEMA, "keys": [{**item, "until": utc(parsed(item["until"]))} for item in found]})
        return
    table(("key", "state", "until (UTC)"), [[i["key_id"], i["state"], (i["until"] or "")[:19]] for i in found])


def _of_log(
    log_at: str, log_keys: tuple[str, ...], ca_file: Path | None, token_file: Path | None, as_json: bool
) -> int:
    from compliance_agent.cli.remote import Trust, keys_as_policy, read_directory, read_logs
    from compliance_agent.evidence.chains import Tagger
    from compliance_agent.evidence.logged import read_log_keys

    policy = keys_as_policy(read_log_keys(log_keys))
    if log_at.startswith(("http://", "https://")):
        logs = read_logs(log_at, Trust(policy, None, ca_file, token_file), Tagger())
    else:
        logs = read_directory(Path(log_at), policy, Tagger())
    elsewhere: list[tuple[int | None, str, str | None]] = [(None, "in_an_earlier_log", None)]
    rows = [
        {"origin": log.origin, "key_id": key, "event": event, "index": index, "at": at, "records": len(line.indexes)}
        for log in logs
        for key, line in sorted(log.book.keys.items())
        for index, event, at in [*line.events] or elsewhere
    ]
    problems = [problem for log in logs for problem in log.problems]
    if as_json:
        told = [{"code": item.code, "where": item.where, "detail": item.detail} for item in problems]
        print_json({"schema": LOG_SCHEMA, "keys": rows, "problems": told})
    else:
        names = ("origin", "key_id", "event", "index", "at", "records")
        shown = [["" if row[name] is None else str(row[name])[:64] for name in names] for row in rows]
        table(("log", "key", "event", "entry", "at (server's time)", "records"), shown)
        for problem in problems:
            click.echo(f"{problem.code}: {problem.where}: {problem.detail}", err=True)
    return BadEvidence.exit_status if problems else 0


@command.command()
@config_option
@json_option
@click.option("--dry-run", is_flag=True, help="Only say whether it could be done now.")
@click.option("--api-key", "api_key", is_flag=True, help="The API key, with which this host calls its server, instead.")
@click.pass_context
def rotate(ctx: click.Context, config_path: Path | None, as_json: bool, dry_run: bool, api_key: bool) -> None:
    """Let a new key take this host's key's place, once all that was recorded is delivered.

    Both keys sign the statement, the server logs it, and the old key's file is removed when the server has signed that it knows.
    Exit status 0 when it is done, or left to the running agent; 75 when something is in the way.
    """
    configure("CRITICAL")
    config = require_config(config_path)
    if config.mcp_url is None:
        raise Unavailable(f"keys: {WHY_NOT['no_server']}", code="no_server")
    if api_key and (dry_run or config.privileges == "split"):
        raise click.UsageError(
            "--api-key: not with --dry-run, nor with privileges: split, where uplink has the API key"
        )
    ended = runner.run(_rotate_api_key(config) if api_key else _rotate(config, dry_run))
    text = {
        "rotated": "this host has a new API key; the former one ends with its first use"
        if api_key
        else f"this host is key {ended.key_id} now",
        "possible": "it could be done now",
        "left_to_the_agent": "the running agent does it with its next look, once everything is delivered",
    }.get(ended.code) or f"not now: {WHY_NOT[ended.code]}"
    if as_json:
        print_json({"schema": ROTATE_SCHEMA, "code": ended.code, "key_id": ended.key_id, "text": text})
    else:
        click.echo(text)
    ctx.exit(0 if ended.code in {"rotated", "possible", "left_to_the_agent"} else 75)


async def _rotate_api_key(config: AgentConfig) -> Rotated:
    write_file(config.state_dir / REQUEST_FILE, f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0o600)
    try:
        agent = ComplianceAgent(config)
    except StateInUse:
        return Rotated("left_to_the_agent", "")
    try:
        return Rotated("rotated" if await agent.rotate_api_key_if_due() else "not_told", agent.signer.key_id)
    finally:
        await agent.close()


async def _rotate(config: AgentConfig, dry_run: bool) -> Rotated:
    try:
        agent = ComplianceAgent(config)
    except StateInUse:
        if not dry_run:
            write_file(config.state_dir / "rotate-key", f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}\n".encode(), 0o600)
        return Rotated("left_to_the_agent", "")
    try:
        await agent.delivery.turn()
        if dry_run:
            return Rotated(await agent.key_rotation.obstacle() or "possible", agent.signer.key_id)
        return await agent.rotate_key()
    finally:
        await agent.close()
