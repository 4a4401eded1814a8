"""A server in this process, on a real SQLite file, and on a real PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from compliance_agent.server.store import Address
from tests.postgres import Postgres, shared
from tests.server.builder import Server, serving

SQLITE, POSTGRESQL = "sqlite", "postgresql"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Postgres]:
    """The PostgreSQL of this test session."""
    base = tmp_path_factory.getbasetemp()
    running, handle = shared(base if worker_id == "master" else base.parent)
    yield running
    os.close(handle)


@pytest.fixture
async def postgresql(postgres: Postgres) -> AsyncIterator[Address]:
    """A new database, its schema made, as the server's role reaches it."""
    async with postgres.database() as name:
        yield postgres.address(name)


@asynccontextmanager
async def a_database(request: pytest.FixtureRequest) -> AsyncIterator[Address | None]:
    """What the test's parameter says: SQLite in the data directory (None), or a new database of PostgreSQL."""
    if request.param == SQLITE:
        yield None
        return
    server: Postgres = request.getfixturevalue("postgres")
    async with server.database() as name:
        yield server.address(name)


@pytest.fixture(params=[SQLITE, POSTGRESQL])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server]:
    async with (
        a_database(request) as address,
        serving(tmp_path / "data", database=address.url if address is not None else None) as running,
    ):
        yield running
