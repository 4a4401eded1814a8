"""Wiring: the API and the viewer in front of the server's parts.

    app = create_app(settings)          # nothing is opened yet
    uvicorn.run(app)                    # the lifespan opens the data directory, and drains and closes it at the end

What it opens is in `opening.py`.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import structlog
from fastapi import FastAPI
from starlette.routing import Route
from starlette.types import ASGIApp

from compliance_agent import __version__
from compliance_agent.adapters.durable import make_directory
from compliance_agent.errors import AgentError, ConfigError
from compliance_agent.server import openapi
from compliance_agent.server.api import agent, evidence, operations, orders, problems, read, samples
from compliance_agent.server.api import exceptions as exceptions_api
from compliance_agent.server.api import log as log_api
from compliance_agent.server.api.beside import App
from compliance_agent.server.api.edge import Edge, WholeEdge
from compliance_agent.server.desks import Services
from compliance_agent.server.metrics import Metrics
from compliance_agent.server.opening import ensure_admin, hand_on, names_of, only_server, opened, utc_now, watch
from compliance_agent.server.packet_runner import PacketRunner
from compliance_agent.server.records import Clock
from compliance_agent.server.services.verification import Verifier
from compliance_agent.server.settings import ServerSettings

log = structlog.get_logger()


def create_app(
    settings: ServerSettings,
    *,
    clock: Clock = utc_now,
    verifier: Verifier | None = None,
    log_clock: Clock | None = None,
) -> App:
    """The server as an ASGI app. Its lifespan opens the data directory, and drains and closes it.

    Args:
        settings: checked settings.
        clock: gives the time.
        verifier: the checks on a bundle; another one in tests that plant a fault.
        log_clock: the clock of the logs alone, in tests whose other clock stands still.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            try:
                make_directory(settings.data_dir)
                stack.enter_context(only_server(settings.data_dir))
                app.state.services = services = await stack.enter_async_context(
                    opened(settings, clock, verifier, log_clock)
                )
                hand_on(services)
                await ensure_admin(services)
                await stack.enter_async_context(services.duties.running())
                if services.cosigning is not None:
                    await stack.enter_async_context(services.cosigning.running())
                await stack.enter_async_context(services.sequencer.running())
                if not services.duties.alone and not services.log_files.remote:
                    await stack.enter_async_context(services.pruning.running())
                await stack.enter_async_context(services.alarms.running())
                await stack.enter_async_context(packet_runner(services).running())
                await stack.enter_async_context(watch(services).running())
                if settings.mcp != "off":
                    app.state.mcp = await stack.enter_async_context(_protocol(services))
            except AgentError as error:
                app.state.startup_error = error  # for the runner: uvicorn keeps the error to itself
                raise
            log.info("server.started", version=__version__)
            yield
            await services.ingest.drain()
            await services.checkin.drain()
            log.info("server.stopped")

    from compliance_agent.web.security import SecurityHeaders, answer_headers

    metrics = Metrics()
    app = App(
        title="compliance-agent server",
        version=__version__,
        lifespan=lifespan,
        openapi_url="/api/v1/openapi.json",
        docs_url=None,  # the usual pages load scripts from elsewhere
        redoc_url=None,
    )
    app.state.metrics = metrics
    app.add_middleware(Edge, observe=metrics.observe)
    problems.install(app)
    people = (read.router, orders.router, orders.baselines, exceptions_api.router, samples.router, samples.packets)
    for router in (agent.router, log_api.router, *people, operations.router):
        app.include_router(router)
    app.router.routes.append(evidence.ROUTE)
    if settings.mcp != "off":
        app.router.routes.append(_protocol_route())
    _mount_viewer(app)
    app.answer_beside(
        (evidence.ROUTE, agent.CHECKIN),
        lambda answer: SecurityHeaders(Edge(answer, observe=metrics.observe)),
        lambda endpoint, path: WholeEdge(endpoint, path, metrics.observe, answer_headers),
    )
    openapi.install(app)
    return app


def packet_runner(services: Services) -> PacketRunner:
    """What builds packets beside the requests."""
    duties = services.duties
    return PacketRunner(
        services.settings, services.store, services.packets, duties.replica_id, alone=services.settings.database is None
    )


@contextlib.asynccontextmanager
async def _protocol(services: Services) -> AsyncIterator[ASGIApp]:
    """The endpoint for programs that call tools; loaded where it is wanted, for it takes an extra and half a second."""
    from compliance_agent.server.mcp_endpoint import HttpEndpoint
    from compliance_agent.server.services.calls import CallDesk

    settings = services.settings
    endpoint = HttpEndpoint(CallDesk(services), names_of(settings), settings.public_url)
    async with endpoint.running():
        yield endpoint


def _protocol_route() -> Route:
    try:
        from compliance_agent.server import mcp_endpoint
    except ImportError as error:
        raise ConfigError("mcp: needs the extra `mcp`", hint="pip install 'compliance-agent[mcp]'") from error
    return mcp_endpoint.route()


def _mount_viewer(app: FastAPI) -> None:
    from compliance_agent.web import (
        account,
        check_views,
        controls,
        exceptions,
        federated,
        log_views,
        packets,
        samples,
        search,
        streams,
        views,
    )
    from compliance_agent.web import orders as order_views

    app.include_router(views.router)
    app.include_router(check_views.router)
    app.include_router(exceptions.router)
    app.include_router(account.router)
    app.include_router(federated.router)
    app.include_router(log_views.router)
    app.include_router(controls.router)
    app.include_router(search.router)
    app.include_router(order_views.router)
    app.state.streams = streams.Streams()
    app.include_router(streams.router)
    app.include_router(packets.router)
    app.include_router(samples.router)
    views.mount_static(app)


def main() -> None:
    """Write the OpenAPI document to the file that the first argument names."""
    text = openapi.text(create_app(ServerSettings()))
    Path(sys.argv[1]).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
