"""The SDK's own client in front of a server in this process, and a person's token for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client
from mcp_types import CallToolResult, TextContent

from tests.server.builder import Server

URL = "http://server.test/mcp"
ON: dict[str, Any] = {"mcp": "propose", "public_url": "http://server.test", "mcp_calls_per_min": 0}


async def token_of(server: Server, name: str, *, role: str = "proposer", sites: frozenset[str] | None = None) -> str:
    """An operator token of a new person."""
    await server.services.users.add(name, "correct horse battery", role=role, sites=sites)
    return (await server.services.users.tokens.create(name, timedelta(days=1)))[0]


@contextlib.asynccontextmanager
async def connected(
    app: Any, token: str, *, mode: str = "auto", headers: Mapping[str, str] | None = None
) -> AsyncIterator[Client]:
    """A client over streamable HTTP, as this token."""
    carried = {"authorization": f"Bearer {token}", **(headers or {})}
    async with (
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app), headers=carried) as http,
        Client(streamable_http_client(URL, http_client=http), mode=mode) as client,
    ):
        yield client


def text_of(result: CallToolResult) -> str:
    """The one text of an answer."""
    [content] = result.content
    assert isinstance(content, TextContent)
    return content.text


async def said(client: Client, tool: str, /, **arguments: Any) -> dict[str, Any]:
    """A tool's answer, parsed."""
    result = await client.call_tool(tool, arguments)
    document = json.loads(text_of(result))
    assert ("error" in document) is result.is_error
    return dict(document)


@contextlib.asynccontextmanager
async def by_subprocess(server: Server, token: str, directory: Path) -> AsyncIterator[Client]:
    """A client that starts `server mcp --stdio` on the data directory of this server."""
    path = directory / "token"
    path.touch(0o600)
    path.write_text(f"{token}\n")
    words = [
        "server",
        "--data-dir",
        str(server.services.settings.data_dir),
        "mcp",
        "--stdio",
        "--token-file",
        str(path),
    ]
    environment = {"MSP_SERVER_MCP": server.services.settings.mcp}
    started = StdioServerParameters(
        command=sys.executable, args=["-m", "compliance_agent", *words], env=environment, cwd=Path.cwd()
    )
    async with Client(started) as client:
        yield client


async def lines(server: Server) -> list[dict[str, Any]]:
    """The line of every call, in order."""
    found = await server.by_hand("SELECT subject FROM audit WHERE action LIKE 'tool_%' ORDER BY number")
    return [json.loads(line) for (line,) in found]


async def leaves(server: Server, site_id: str) -> list[bytes]:
    """All entries of a site's log, once each has its index."""
    reader = server.services.store.for_sites({site_id})
    while await reader.any_pending():
        await asyncio.sleep(0.01)
    [shard] = await reader.shards()
    return await reader.leaves(site_id, shard.year, 0, shard.size)
