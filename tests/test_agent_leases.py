"""The whole agent with a disruptive drift: without leave it waits and records why, once for each reason; with leave it heals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compliance_agent.core import leases
from compliance_agent.site_lease import FILE, NoLease, SiteLease
from tests.agent_scene import Scene
from tests.test_site_lease import DRIFT

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    yield made
    await made.close()


async def test_the_agent_asks_its_server_over_the_real_client_and_gives_back(scene: Scene) -> None:
    agent = scene.agent()
    lease = SiteLease(agent, scene.config.state_dir)
    assert await lease.take(DRIFT, 60) is None
    assert (scene.config.state_dir / FILE).exists()
    assert [item.label for item in scene.server.board.leases] == ["srv-1"]
    await lease.release()
    assert scene.server.board.leases == ()
    scene.server.down = True
    assert await lease.take(DRIFT, 60) == NoLease("lease_server_down")


async def test_another_host_of_the_site_keeps_it_waiting(scene: Scene) -> None:
    agent = scene.agent()
    other = leases.Ask("other", "srv-2", "backup", "ab" * 32, 600)
    scene.server.board, answer = leases.take(scene.server.board, other, 0, cured=None)
    assert answer.lease is not None
    refused = await SiteLease(agent, scene.config.state_dir).take(DRIFT, 60)
    assert isinstance(refused, NoLease) and refused.reason == "lease_busy"


@pytest.mark.parametrize(("settings", "asks"), [({}, True), ({"leases": False}, False)])
async def test_leases_are_on_where_there_is_a_server_and_may_be_off(
    tmp_path: Path, settings: dict[str, bool], asks: bool
) -> None:
    scene = Scene(tmp_path, settings=settings)
    agent = scene.agent()
    assert (agent._healing_engine()._lease is not None) is asks
    await scene.close()


async def test_a_host_without_a_server_heals_as_ever(tmp_path: Path) -> None:
    scene = Scene(tmp_path, with_server=False)
    assert scene.agent()._healing_engine()._lease is None
    await scene.close()


async def test_each_reason_for_waiting_is_recorded_once(scene: Scene) -> None:
    agent, check = scene.agent(), next(iter(scene.detector.standing))
    scene.detector.drift(check)
    for reason in ("lease_server_down", "lease_busy"):
        scene.healer.held[check] = reason
        await scene.cycle(agent, 3)
    await scene.delivered(agent)
    errors = [item["error"] for item in scene.documents() if item["kind"] == "remediation"]
    assert errors == ["lease_server_down", "lease_busy"]
