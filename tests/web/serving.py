"""A real server over a seeded real database, for the viewer's tests: the app in process, or on a loopback port for a browser."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI

from compliance_agent.lab.seeding import MovingClock, SeededHost, seed_fleet
from compliance_agent.server.app import create_app
from compliance_agent.server.desks import Services
from compliance_agent.server.opening import utc_now
from compliance_agent.server.runner import Ending
from compliance_agent.server.settings import ServerSettings

NAME, PASSWORD = "auditor", "correct horse battery"
OTHER = "elsewhere"  # a user who may only see clinic-harbour


@dataclass(frozen=True)
class Served:
    """The app with what stands behind it."""

    app: FastAPI
    services: Services
    hosts: dict[str, SeededHost]
    clock: MovingClock
    database: Path


S = TypeVar("S", bound=Served)


@asynccontextmanager
async def serving(
    folder: Path, *, seeded: bool = True, prepare: Callable[[Served], Awaitable[None]] | None = None, **asked: Any
) -> AsyncIterator[Served]:
    """The server over a new data directory, started, with two users and, when asked for, the seeded fleet.

    `prepare` does more to it; `asked` are settings.
    """
    clock = MovingClock(datetime.now(UTC).replace(microsecond=0))
    # Tests move the clock, and stay signed in.
    settings = ServerSettings(data_dir=folder.resolve() / "server", session_idle_s=86_400, **asked)
    app = create_app(settings, clock=clock, log_clock=utc_now)
    async with app.router.lifespan_context(app):
        services: Services = app.state.services
        hosts = await seed_fleet(services.store, services.ingest, clock) if seeded else {}
        while await services.sequencer.round():
            pass  # every record has its receipt before anybody looks
        if services.cosigning is not None:
            await services.cosigning.settled()
        await services.users.add(NAME, PASSWORD)
        await services.users.add(OTHER, PASSWORD, sites=frozenset({"clinic-harbour"} if seeded else ()))
        served = Served(app, services, hosts, clock, settings.data_dir / "server.db")
        if prepare is not None:
            await prepare(served)
        yield served


def on_loopback(folder: Path, *, seeded: bool = True, **asked: Any) -> AbstractContextManager[tuple[str, Served]]:
    """The app over a new data directory (`serving`), on a free loopback port; its address and what stands behind it."""
    return listening(serving(folder, seeded=seeded, **asked))


@contextmanager
def listening(serves: AbstractAsyncContextManager[S]) -> Iterator[tuple[str, S]]:
    """What serves an app, on a free loopback port, in a thread with its own loop; its address, and what it gave."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        ready: list[S] = []
        server: list[uvicorn.Server] = []

        async def run() -> None:
            async with serves as served:
                config = uvicorn.Config(served.app, log_level="error", lifespan="off")
                server.append(Ending(config, served.app.state.streams.close))
                ready.append(served)
                await server[0].serve(sockets=[listener])

        thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        thread.start()
        while thread.is_alive() and not (server and server[0].started):
            thread.join(0.02)
        if not ready:
            raise RuntimeError("the server did not start")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", ready[0]
        finally:
            server[0].should_exit = True
            thread.join(10)
