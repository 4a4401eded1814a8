"""The host's side of a next API key: cut off at every step, neither side is locked out."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent import api_key_rotation
from compliance_agent.api_key_rotation import REQUEST_FILE
from compliance_agent.lab.server import Fault
from tests.agent_scene import Scene

pytestmark = pytest.mark.anyio
DAY = 86_400.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Cut(BaseException):
    """The power went."""


class KeyScene(Scene):
    """A host whose API key can be asked to give way."""

    @property
    def path(self) -> Path:
        assert self.config.mcp_api_key_file is not None
        return self.config.mcp_api_key_file

    @property
    def key(self) -> str:
        return self.path.read_text().strip()

    def beside(self, name: str) -> Path:
        return self.path.with_name(f"{self.path.name}.{name}")

    def ask(self) -> None:
        (self.config.state_dir / REQUEST_FILE).touch(mode=0o600)

    async def delivers(self) -> bool:
        """Whether the server takes a check-in of this host now."""
        assert self.live is not None
        checked = len(self.server.check_ins)
        await self.cycle(self.live)
        await self.delivered(self.live)
        return len(self.server.check_ins) > checked


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[KeyScene]:
    made = KeyScene(tmp_path)
    made.agent()
    yield made
    await made.close()


async def test_asked_for_it_gives_way_once_and_the_former_one_ends(scene: KeyScene) -> None:
    first = scene.key
    assert await scene.delivers() and scene.key == first
    scene.ask()
    assert await scene.delivers()
    second = scene.key
    assert second != first and second.startswith("cak1.") and len(second) == 48
    assert scene.path.stat().st_mode & 0o777 == 0o600
    assert await scene.delivers() and scene.key == second
    assert [chain.api_key for chain in scene.server.chains.values()] == [second]
    assert not scene.beside("next").exists() and scene.beside("former").read_text().strip() == first


async def test_it_gives_way_by_itself_after_its_days_and_not_before(scene: KeyScene) -> None:
    first = scene.key
    await scene.delivers()
    scene.clock.advance(89 * DAY)
    await scene.delivers()
    assert scene.key == first
    scene.clock.advance(2 * DAY)
    await scene.delivers()
    second = scene.key
    assert second != first
    scene.clock.advance(DAY)
    await scene.delivers()
    assert scene.key == second, "its own days begin"


async def test_days_of_zero_leave_it_to_people(tmp_path: Path) -> None:
    scene = KeyScene(tmp_path, settings={"api_key_rotation_days": 0})
    scene.agent()
    first = scene.key
    await scene.delivers()
    scene.clock.advance(4_000 * DAY)
    await scene.delivers()
    assert scene.key == first
    await scene.close()


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(
    "step", ["write_file:0", "announce:0", "write_file:1", "write_file:2", "remove_file:0", "remove_file:1"]
)
async def test_cut_off_at_every_step_the_host_is_heard_after_its_next_start(
    scene: KeyScene, monkeypatch: pytest.MonkeyPatch, step: str, after: bool
) -> None:
    """The power goes before or after the effect of each step; then the agent starts anew, and the rotation comes to its end."""
    assert await scene.delivers() and scene.live is not None
    first, (name, number) = scene.key, step.split(":")
    count = iter(range(100))

    def cutting(real: Any) -> Any:
        def cut(*given: Any, **more: Any) -> Any:
            mine = next(count) == int(number)
            if mine and not after:
                raise Cut
            found = real(*given, **more)
            if mine:
                raise Cut
            return found

        return cut

    with monkeypatch.context() as broken:
        if name == "announce":
            client = scene.live.mcp_client
            assert client is not None
            real = client.announce_api_key

            async def announce(*given: Any, **more: Any) -> None:
                if after:
                    await real(*given, **more)
                raise Cut

            broken.setattr(client, "announce_api_key", announce)
        else:
            broken.setattr(api_key_rotation, name, cutting(getattr(api_key_rotation, name)))
        scene.ask()
        with pytest.raises(Cut):
            await scene.live.rotate_api_key_if_due()
    await scene.restart()
    assert await scene.delivers(), "not locked out"
    assert await scene.delivers()
    assert scene.key != first
    assert [chain.api_key for chain in scene.server.chains.values()] == [scene.key], "the rotation came to its end"
    assert not scene.beside("next").exists() and not (scene.config.state_dir / REQUEST_FILE).exists()


@pytest.mark.parametrize(
    "fault", [Fault.refuse(500, "internal"), Fault.refuse(403, "bad_proof"), Fault.refuse(409, "host_contested")]
)
async def test_a_server_that_says_no_changes_nothing_and_is_asked_again(
    scene: KeyScene, fault: Fault, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await scene.delivers() and scene.live is not None
    first = scene.key
    scene.ask()
    scene.server.faults.append(fault)
    assert not await scene.live.rotate_api_key_if_due()
    assert scene.key == first and "key.api_rotation_failed" in capsys.readouterr().out
    following = scene.beside("next").read_text()
    assert await scene.delivers() and await scene.delivers()
    assert scene.key == following.strip(), "the same next key, told again"


async def test_a_host_that_was_enrolled_anew_meanwhile_makes_another_next_key(scene: KeyScene) -> None:
    assert await scene.delivers() and scene.live is not None
    scene.ask()
    scene.server.faults.append(Fault.refuse(409, "api_key_ended"))
    assert not await scene.live.rotate_api_key_if_due()
    assert not scene.beside("next").exists()
    first = scene.key
    assert await scene.delivers() and scene.key != first


async def test_a_server_restored_from_before_the_rotation_hears_the_host_again(scene: KeyScene) -> None:
    await scene.delivers()
    first = scene.key
    scene.ask()
    await scene.delivers()
    await scene.delivers()
    second = scene.key
    for chain in scene.server.chains.values():
        chain.api_key, chain.next_api_key = first, ""
    for _ in range(3):
        await scene.delivers()
    assert scene.key == second
    assert [chain.api_key for chain in scene.server.chains.values()] == [second]
    assert scene.live is not None and scene.live.mcp_client is not None and not scene.live.mcp_client.api_key_refused


async def test_where_uplink_has_the_key_nothing_is_touched(scene: KeyScene) -> None:
    assert scene.live is not None
    scene.live.api_key_rotation._config = dataclasses.replace(scene.config, privileges="split")
    scene.ask()
    assert scene.live.api_key_rotation.path is None and not await scene.live.rotate_api_key_if_due()
    assert not scene.beside("next").exists()


async def test_no_key_is_said(scene: KeyScene, capsys: pytest.CaptureFixture[str]) -> None:
    first = scene.key
    scene.ask()
    await scene.delivers()
    await scene.delivers()
    said = capsys.readouterr().out
    assert "key.api_rotated" in said and first not in said and scene.key not in said
    assert first not in repr(scene.live.mcp_client._credentials) if scene.live and scene.live.mcp_client else False
