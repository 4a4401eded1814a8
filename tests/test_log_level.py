"""Another level for a while, and back by itself; a new configuration ends it."""

from __future__ import annotations

import asyncio

import pytest

from compliance_agent.lab.clock import FakeClock
from compliance_agent.log_level import LogLevel

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_it_goes_back_by_itself() -> None:
    seen: list[str] = []
    level = LogLevel(seen.append, FakeClock())
    level.use("WARNING")
    level.use_for("DEBUG", 600)
    assert (level.now, level.left_s()) == ("DEBUG", 600.0)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (level.now, level.left_s(), seen) == ("WARNING", None, ["WARNING", "DEBUG", "WARNING"])


async def test_a_second_wish_takes_the_place_of_the_first() -> None:
    seen: list[str] = []
    level = LogLevel(seen.append, FakeClock())
    level.use("INFO")
    level.use_for("DEBUG", 600)
    level.use_for("ERROR", 60)
    level.use("INFO")
    for _ in range(5):
        await asyncio.sleep(0)
    assert (level.now, seen) == ("INFO", ["INFO", "DEBUG", "ERROR", "INFO"])
