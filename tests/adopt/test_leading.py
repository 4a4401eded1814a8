"""An agent whose key gave way leads root to the new one; until root knows it, that is said, and orders are refused by that name."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from compliance_agent.admin.pages import _root_key
from compliance_agent.agent import ComplianceAgent
from compliance_agent.cli.status import root_key_line
from compliance_agent.errors import ConfigError
from compliance_agent.root_key import AFTER_REFUSAL_S, ASK_AGAIN_S
from tests.adopt.scene import NEWER, STATE, TRUST
from tests.adopt.test_agent import Split, live, served

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Split]:
    made = Split(tmp_path)
    yield made
    await made.close()


def known(scene: Split) -> str:
    return str(json.loads((scene.root / TRUST[1:]).read_bytes())["host"])


async def rotated(scene: Split) -> ComplianceAgent:
    """The agent after its key gave way, which nobody has told root."""
    agent = live(scene)
    bundle = await agent.evidence_generator.create_evidence("", None, kind="heartbeat", counts={"pending": 0})
    await agent.evidence_generator.store_evidence(bundle)
    await agent.delivery.turn()
    assert (await agent.rotate_key()).code == "rotated"
    scene.signer = agent.signer
    return agent


async def test_root_follows_and_orders_for_the_new_key_are_acted_on(scene: Split) -> None:
    with served(scene):
        await scene.cycle(scene.agent())
        former = known(scene)
        agent = await rotated(scene)
        assert (known(scene), agent.root_key.state) == (former, "differs")
        assert "ANOTHER KEY" in root_key_line({"root_key": _root_key(agent)})
        await scene.cycle(agent)
        assert known(scene) == agent.signer.key_id != former
        assert (agent.root_key.state, root_key_line({"root_key": _root_key(agent)})) == ("same", "")
        assert await scene.adopt(agent, scene.hold(NEWER)) == ("success", None)
    assert scene.stands() == ("2", "2")


async def test_an_order_right_after_the_rotation_does_not_wait_for_the_next_turn(scene: Split) -> None:
    with served(scene):
        await scene.cycle(scene.agent())
        agent = await rotated(scene)
        assert await scene.adopt(agent, scene.hold(NEWER)) == ("success", None)
    assert known(scene) == agent.signer.key_id


async def test_root_that_was_away_is_led_over_several_keys(scene: Split) -> None:
    with served(scene):
        await scene.cycle(scene.agent())
    former, agent = known(scene), await rotated(scene)
    agent = await rotated(scene)
    await scene.cycle(agent)
    assert (agent.root_key.state, agent.root_key.code) == ("differs", "adopt_unreachable")
    with served(scene):
        await scene.cycle(agent)
        assert known(scene) == former, "it is not asked at every turn"
        scene.clock.advance(ASK_AGAIN_S)
        await scene.cycle(agent)
    assert known(scene) == agent.signer.key_id
    gone = json.loads((scene.root / STATE[1:]).with_name("gone.json").read_bytes())["gone"]
    assert [step["old"] for step in gone] == [former, gone[0]["new"]]


async def test_where_root_does_not_follow_it_is_said_and_the_order_is_refused_by_that_name(
    scene: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    """Root was told another key by a person, so no statement of this host leads from it."""
    with served(scene):
        await scene.cycle(scene.agent())
        says = json.loads((scene.root / TRUST[1:]).read_bytes())
        agent = await rotated(scene)
        (scene.root / TRUST[1:]).write_text(json.dumps(says | {"host": "ba" * 32}))
        for _ in range(3):
            await scene.cycle(agent)
        assert await scene.adopt(agent, scene.hold(NEWER)) == ("failed", "root_other_key")
        assert _root_key(agent) == {"key_id": "ba" * 32, "state": "differs", "code": "no_statement"}
        assert "no_statement" in root_key_line({"root_key": _root_key(agent)})
        assert capsys.readouterr().out.count("key.root_not_led") == 1
        (scene.root / TRUST[1:]).write_text(json.dumps(says))
        scene.clock.advance(AFTER_REFUSAL_S)
        await scene.cycle(agent)
        assert agent.root_key.state == "same"
    assert scene.stands() == ("1", "1")


async def test_where_root_takes_no_orders_nothing_is_said(scene: Split) -> None:
    with served(scene):
        (scene.root / TRUST[1:]).unlink()
        await scene.cycle(scene.agent())
        assert _root_key(live(scene)) == {"key_id": None, "state": "no_orders", "code": "no_trust"}
    assert root_key_line({"root_key": _root_key(live(scene))}) == ""
    assert root_key_line(None) == root_key_line({"root_key": None}) == ""


async def test_another_refusal_keeps_its_name(scene: Split) -> None:
    with served(scene):
        await scene.cycle(scene.agent())
    error = ConfigError("x", code="other_host")
    assert live(scene).root_key.explained(error) is error


async def test_an_order_and_the_loop_lead_it_once_between_them(
    scene: Split, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(scene):
        await scene.cycle(scene.agent())
        agent = await rotated(scene)
        await asyncio.gather(*(agent.root_key.lead(now=True) for _ in range(3)))
        assert (agent.root_key.state, agent.root_key.code) == ("same", "")
    said = capsys.readouterr()
    assert (said.err.count("adopt.follows"), said.out.count("key.root_not_led")) == (1, 0)
