"""`compliance-agent server mcp`: the Model Context Protocol over standard input and output, beside the running server."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from compliance_agent.adapters.durable import read_file
from compliance_agent.cli.server_common import data_dir_option, existing, settings_of
from compliance_agent.errors import ConfigError, Refusal

if TYPE_CHECKING:
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
