"""What an agent says to changes that it cannot make."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compliance_agent.adapters.notify import Notify
from compliance_agent.admin.acts import Acts
from compliance_agent.admin.door import Call
from compliance_agent.admin.standing import Standing
from compliance_agent.baseline import parse
from compliance_agent.errors import Refusal, StorageFull
from compliance_agent.healing import HealingEngine
from compliance_agent.log_level import LogLevel
from compliance_agent.watchdog import Watchdog
from tests.agent_scene import BASELINE, Scene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def never() -> None:
    raise AssertionError("not asked for here")


@pytest.fixture
async def standing(tmp_path: Path) -> AsyncIterator[Standing]:
    """An agent with the real healing engine."""
    scene = Scene(tmp_path, with_server=False)
    agent = scene.agent()
    agent.healing_engine = HealingEngine(
        scene.config, host=scene.detector.host, baseline=parse(BASELINE), clock=scene.clock
    )
    level = LogLevel(lambda _level: None, agent.clock)
    yield Standing(agent, Watchdog(agent, Notify({})), level, never)
    agent.healing_engine.close()
    await scene.close()


async def test_a_profile_without_its_extra_is_refused_with_the_next_step(
    standing: Standing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyinstrument", None)
    with pytest.raises(Refusal, match="extra `profile`") as refused:
        await Acts(standing).profile(Call(0, {}, {}))
    assert (refused.value.status, refused.value.code) == (501, "profiler_missing")
    assert not standing.profiling.locked()


async def test_what_cannot_be_recorded_is_not_paused(standing: Standing, monkeypatch: pytest.MonkeyPatch) -> None:
    acts, engine = Acts(standing), standing.agent.healing_engine
    create = standing.agent.recording.create

    async def full(**_fields: object) -> None:
        raise StorageFull("planted")

    monkeypatch.setattr(standing.agent.recording, "create", full)
    with pytest.raises(StorageFull):
        await acts.pause(Call(7, {}, {"reason": "testing"}))
    assert await engine.standing_pause() is None
    monkeypatch.setattr(standing.agent.recording, "create", create)
    await acts.pause(Call(7, {}, {"reason": "testing", "seconds": 600}))
    monkeypatch.setattr(standing.agent.recording, "create", full)
    with pytest.raises(StorageFull):
        await acts.pause(Call(8, {}, {"reason": "maintenance"}))
    former = await engine.standing_pause()
    assert former is not None and (former.uid, former.reason, former.seconds) == (7, "testing", 600)
    with pytest.raises(StorageFull):
        await acts.resume(Call(8, {}, {}))
    assert await engine.standing_pause() is not None, "its end cannot be recorded either"


async def test_an_order_is_ended_by_an_order(standing: Standing) -> None:
    acts, engine = Acts(standing), standing.agent.healing_engine
    engine.pause()
    with pytest.raises(Refusal) as refused:
        await acts.resume(Call(0, {}, {}))
    assert (refused.value.status, refused.value.code) == (409, "paused_by_order")
    await acts.pause(Call(0, {}, {"reason": "testing"}))
    engine.resume()
    assert await engine.standing_pause() is not None, "nor does an order end what a person at the host asked for"
