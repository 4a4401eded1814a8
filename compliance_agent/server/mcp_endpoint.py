"""The Model Context Protocol in front of the desk for calls: `POST /mcp`, and standard input and output. Nothing is decided here.

Over HTTP every request stands alone: it brings its operator token, is charged before its body is read, is bounded in size and depth
before anything parses it, and may go to any replica. A token in a cookie, and a session, open nothing here. This module alone knows
the SDK, and only a server with the setting `mcp` loads it.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.server.transport_security import TransportSecuritySettings
from mcp.shared.exceptions import MCPError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from compliance_agent import __version__
from compliance_agent.errors import Refusal
from compliance_agent.server.services.calls import NOTICE, CallDesk, Caller
from compliance_agent.server.services.tools import TOOLS, Tier, Tool
from compliance_agent.server.services.tools.resources import RESOURCES, asked

PATH = "/mcp"
CALLER = "compliance_agent.caller"  # in a request's scope
MOST_REQUEST_BYTES = 65_536
MOST_DEPTH = 16
INSTRUCTIONS = f"{NOTICE} Hosts are named by key ids. Nothing here approves or signs: people do, in the viewer."
logging.getLogger("mcp").addHandler(logging.NullHandler())
logging.getLogger("mcp").propagate = False  # it repeats headers and bodies, which are the caller's words

CallerOf = Callable[[Any], Awaitable[Caller]]


def protocol_server(desk: CallDesk, caller_of: CallerOf) -> Server[Any]:
    """The protocol over this desk; `caller_of` says for each request who calls."""

    async def list_tools(ctx: Any, _params: Any) -> types.ListToolsResult:
        caller = await caller_of(ctx)
        return types.ListToolsResult(tools=[_tool(item) for item in desk.offered(caller.user)], ttl_ms=0)

    async def call_tool(ctx: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        answered = await desk.call(await caller_of(ctx), params.name, params.arguments or {})
        content: list[types.ContentBlock] = [types.TextContent(type="text", text=answered.body.decode())]
        return types.CallToolResult(content=content, is_error=answered.refused)

    async def list_resources(ctx: Any, _params: Any) -> types.ListResourcesResult:
        await caller_of(ctx)
        found = [
            types.Resource(uri=item.uri, name=item.name, description=item.doc, mime_type="application/json")
            for item in RESOURCES
            if "{" not in item.uri
        ]
        return types.ListResourcesResult(resources=found)

    async def list_templates(ctx: Any, _params: Any) -> types.ListResourceTemplatesResult:
        await caller_of(ctx)
        found = [
            types.ResourceTemplate(
                uri_template=item.uri, name=item.name, description=item.doc, mime_type="application/json"
            )
            for item in RESOURCES
            if "{" in item.uri
        ]
        return types.ListResourceTemplatesResult(resource_templates=found)

    async def read_resource(ctx: Any, params: types.ReadResourceRequestParams) -> types.ReadResourceResult:
        caller = await caller_of(ctx)
        tool, arguments = asked(str(params.uri))
        answered = await desk.call(caller, tool, arguments)
        if answered.refused:
            raise MCPError(code=types.INVALID_PARAMS, message="no such resource")
        content = types.TextResourceContents(uri=params.uri, mime_type="application/json", text=answered.body.decode())
        return types.ReadResourceResult(contents=[content])

    return Server(
        "compliance-agent",
        version=__version__,
        instructions=INSTRUCTIONS,
        get_tool_input_schema=lambda name: TOOLS[name].schema if name in TOOLS else None,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_templates,
        on_read_resource=read_resource,
    )


def _tool(tool: Tool) -> types.Tool:
    reads = tool.tier is Tier.READ
    hints = types.ToolAnnotations(
        read_only_hint=reads, destructive_hint=False, idempotent_hint=reads, open_world_hint=False
    )
    return types.Tool(name=tool.name, description=tool.doc, input_schema=tool.schema, annotations=hints)


class HttpEndpoint:
    """`/mcp` as an ASGI app: who calls, how often, how much; then the SDK's stateless transport."""

    def __init__(self, desk: CallDesk, names: Iterable[str], public_url: str | None) -> None:
        """`names` are those under which this server is reached."""
        self._desk = desk
        self._manager = StreamableHTTPSessionManager(
            protocol_server(desk, _caller_of_request),
            json_response=True,
            stateless=True,
            security_settings=_security(names, public_url),
            max_request_body_size=MOST_REQUEST_BYTES,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Take requests until the end of this."""
        async with self._manager.run():
            yield

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":  # no stream to open and no session to end: every request stands alone
            await Response(status_code=405, headers={"allow": "POST"})(scope, receive, send)
            return
        request = Request(scope, receive)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        caller = await self._desk.caller(secret) if scheme.lower() == "bearer" else None
        if caller is None:
            await Response(status_code=401, headers={"www-authenticate": "Bearer"})(scope, receive, send)
            return
        self._desk.charge(caller.client)
        body = await request.body()
        check_depth(body)
        scope[CALLER] = caller
        await self._manager.handle_request(scope, _again(body, receive), send)


def route() -> Route:
    """The route; the app's state has the endpoint once the server is open."""

    async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
        await scope["app"].state.mcp(scope, receive, send)

    return Route(PATH, _Raw(endpoint), methods=["GET", "POST", "DELETE"], include_in_schema=False)


class _Raw:
    """An ASGI app as such: a route calls a plain function with a request instead."""

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)


async def _caller_of_request(ctx: Any) -> Caller:
    caller = ctx.request.scope.get(CALLER) if ctx.request is not None else None
    if not isinstance(caller, Caller):
        raise RuntimeError("a request came past the endpoint")
    return caller


def _again(body: bytes, receive: Receive) -> Receive:
    """A body that was read, once more; then what else comes of the connection."""
    told = False

    async def receiving() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receiving


def check_depth(raw: bytes) -> None:
    """Refuse what is nested too deep, before anything parses it.

    Raises:
        Refusal: 400.
    """
    depth, quoted, escaped = 0, False, False
    for byte in raw:
        if quoted:
            if escaped:
                escaped = False
            elif byte == 0x5C:
                escaped = True
            elif byte == 0x22:
                quoted = False
        elif byte == 0x22:
            quoted = True
        elif byte in b"[{":
            depth += 1
            if depth > MOST_DEPTH:
                raise Refusal(f"body: nested deeper than {MOST_DEPTH} levels", code="too_deep", status=400)
        elif byte in b"]}":
            depth -= 1


def _security(names: Iterable[str], public_url: str | None) -> TransportSecuritySettings:
    """Requests to these names alone, and of no page from elsewhere: what comes under a rebound name is refused."""
    spelt = [f"[{name}]" if ":" in name else name for name in sorted(names)]
    hosts = [form for name in spelt for form in (name, f"{name}:*")]
    parts = urlsplit(public_url or "")
    origins = [f"{parts.scheme}://{parts.netloc}"] if public_url else []
    return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


class _Lines:
    """Standard input as the SDK reads it, line by line; one that is too long or too deep becomes one that is no request."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    async def __aiter__(self) -> AsyncIterator[str]:
        while raw := await anyio.to_thread.run_sync(self._next, abandon_on_cancel=True):
            yield raw.decode("utf-8", "replace")

    def _next(self) -> bytes:
        raw = self._stream.readline(MOST_REQUEST_BYTES)
        whole = len(raw) < MOST_REQUEST_BYTES or raw.endswith(b"\n")
        while not whole:
            rest = self._stream.readline(MOST_REQUEST_BYTES)
            whole = len(rest) < MOST_REQUEST_BYTES or rest.endswith(b"\n")
            raw = _REFUSED_LINE
        try:
            check_depth(raw)
        except Refusal:
            return _REFUSED_LINE
        return raw


_REFUSED_LINE = b"!\n"


async def serve_stdio(desk: CallDesk, caller_of: Callable[[], Awaitable[Caller]], stream: BinaryIO) -> None:
    """Speak over standard input and output until the client closes them.

    Args:
        desk: answers.
        caller_of: says for each request who calls; a Refusal ends that request.
        stream: standard input.
    """

    async def charged(_ctx: Any) -> Caller:
        try:
            caller = await caller_of()
            desk.charge(caller.client)
        except Refusal as refusal:
            raise MCPError(code=types.INVALID_REQUEST, message=f"{refusal.code}: {refusal}") from refusal
        return caller

    server = protocol_server(desk, charged)
    async with stdio_server(stdin=cast("Any", _Lines(stream))) as (reads, writes):
        await server.run(reads, writes, server.create_initialization_options())
