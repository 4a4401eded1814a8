"""`compliance-agent server mcp`: the Model Context Protocol over standard input and output, beside the running server."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.common import json_option, print_json, table, utc
from compliance_agent.cli.server_common import data_dir_option, existing, settings_of, with_services
from compliance_agent.errors import ConfigError, Refusal

if TYPE_CHECKING:
    from compliance_agent.server.desks import Services
    from compliance_agent.server.records import Audited
    from compliance_agent.server.services.calls import Caller
    from compliance_agent.server.settings import ServerSettings

_PATH = click.Path(path_type=Path, readable=False)
MOST_TOKEN_BYTES = 256


@click.group("mcp", invoke_without_command=True)
@click.option("--stdio", is_flag=True, help="Speak it over standard input and output, as a client's subprocess.")
@click.option("--token-file", type=_PATH, help="File with the operator token of whoever calls.")
@data_dir_option
@click.pass_context
def mcp(ctx: click.Context, stdio: bool, token_file: Path | None) -> None:
    """What programs may ask of the fleet for a person (docs/mcp.md). Over HTTP the server itself answers, at /mcp."""
    if ctx.invoked_subcommand is not None:
        return
    if not stdio:
        raise click.UsageError("give --stdio, or a subcommand; over HTTP the server itself answers, at /mcp")
    settings = settings_of(ctx)
    existing(settings)
    if settings.mcp == "off":
        raise ConfigError("mcp: is off, and this server answers no program", hint="set mcp to read or propose")
    if token_file is None:
        raise click.UsageError("--stdio: needs --token-file with the operator token of whoever calls")
    asyncio.run(_serve(settings, token_file))


@mcp.command("transcript")
@click.option("--after", type=click.IntRange(0), default=0, help="Only calls after this number [all].")
@click.option("--at-most", type=click.IntRange(1, 100_000), default=1_000, show_default=True, help="So many.")
@click.option("--replay", is_flag=True, help="Hold each against the log, ask again, and compare the answer.")
@json_option
@data_dir_option
@click.pass_context
def transcript(ctx: click.Context, after: int, at_most: int, replay: bool, as_json: bool) -> None:
    """List what programs have asked, for whom, and how it ended.

    With --replay exit status 1 when a line is not what the log says, or an answer about records that do not change is another one.
    """
    from compliance_agent.server.services import replay as desk

    async def read(services: Services) -> list[dict[str, Any]]:
        calls = await desk.transcript(services, after, at_most)
        if replay:
            return [_document(item.audited, item.call, item.found) for item in await desk.replayed(services, calls)]
        return [_document(item, json.loads(item.subject), None) for item in calls]

    found = with_services(settings_of(ctx), read)
    if as_json:
        print_json({"schema": "compliance-agent/server-mcp-transcript/v1", "calls": found})
    else:
        columns = ("number", "at", "name", "client", "tool", "outcome", "replayed")
        table(columns, [[str(item[name] or "") for name in columns] for item in found])
    ctx.exit(1 if any(item["replayed"] in desk.FINDINGS for item in found) else 0)


def _document(item: Audited, call: Mapping[str, Any], found: str | None) -> dict[str, Any]:
    return {
        "number": item.number,
        "at": utc(item.at),
        "name": item.actor,
        "client": call.get("client"),
        "tool": call.get("tool"),
        "arguments": json.dumps(call.get("arguments"), sort_keys=True),
        "outcome": call.get("outcome"),
        "answer_sha256": call.get("answer_sha256"),
        "replayed": found,
    }


async def _serve(settings: ServerSettings, token_file: Path) -> None:
    try:
        from compliance_agent.server.mcp_endpoint import serve_stdio
    except ImportError as error:
        raise ConfigError("mcp: needs the extra `mcp`", hint="pip install 'compliance-agent[mcp]'") from error
    from compliance_agent.logs import configure
    from compliance_agent.server.opening import opened
    from compliance_agent.server.services.calls import CallDesk

    configure("ERROR")
    async with opened(settings) as services:
        desk = CallDesk(services)

        async def caller() -> Caller:
            """Looked up anew for each request: a revoked token counts from the next one on."""
            found = await desk.caller(secret)
            if found is None:
                raise Refusal("the operator token is worth nothing now", code="not_signed_in", status=401)
            return found

        secret = read_file(token_file, limit_bytes=MOST_TOKEN_BYTES, secret=True).decode("ascii", "replace").strip()
        await caller()
        await serve_stdio(desk, caller, sys.stdin.buffer)
