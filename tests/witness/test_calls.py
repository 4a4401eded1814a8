"""An agent that only calls out witnesses a real server's log; what does not grow, or is not shown to grow, it never cosigns."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from compliance_agent.config import AgentConfig
from compliance_agent.errors import ConfigError
from compliance_agent.lab.log import FakeLog, Lie
from compliance_agent.log.note import Note
from compliance_agent.ports import HttpReply
from compliance_agent.witness_role import WitnessRole, beside
from tests.agent_scene import Scene
from tests.server.builder import START, Server
from tests.server.test_cosigning import World, settled
from tests.witness.builder import Wall

pytestmark = pytest.mark.anyio
NAME = "other-clinic.example/w"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Served:
    """The way to a log: a lying one in memory, which takes every line."""

    def __init__(self, log: FakeLog) -> None:
        self.log = log
        self.brought: list[bytes] = []

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 1,
    ) -> HttpReply:
        if method == "POST":
            self.brought.append(body)
            return HttpReply(204, {}, b"")
        found = self.log.file(path.removeprefix("/"))
        return HttpReply(404, {}, b"") if found is None else HttpReply(200, {}, found)

    async def close(self) -> None:
        return None


def config(root: Path, line: str, **more: Any) -> AgentConfig:
    (root / "logs").write_text(line)
    return AgentConfig(
        client_id="msp",
        site_id="elsewhere",
        host_id="w",
        state_dir=root / "state",
        witness_logs_file=root / "logs",
        **{"witness_name": NAME, **more},
    )


@pytest.fixture
async def lying(tmp_path: Path) -> AsyncIterator[tuple[FakeLog, Served, WitnessRole]]:
    log = FakeLog("clinic-1")
    served = Served(log)
    role = WitnessRole(
        config(tmp_path, f"log {log.vkey} https://log.example/log/clinic-1/2026\n"), Wall(), lambda url: served
    )
    yield log, served, role
    await role.close()


def grow(log: FakeLog, count: int) -> None:
    for number in range(count):
        log.append(b"entry %d" % number)


async def test_a_server_that_cannot_reach_it_is_witnessed(tmp_path: Path, world: World) -> None:
    url = "https://server.example/log/clinic-1/2026"
    made = config(tmp_path, f"log {world.policy.logs[0]} {url}\n", witness_token_file=tmp_path / "token")
    way = Way()
    (tmp_path / "token").write_text("t")
    (tmp_path / "token").chmod(0o600)
    role = WitnessRole(made, Wall(int(START.timestamp())), lambda _: way)
    (vkey,) = role.keys.keys
    world.file.write_text(f"witness out {vkey}\nquorum out\n")
    world.policy = world.policy.parse(f"log {world.policy.logs[0]}\n{world.file.read_text()}".encode())
    async with world.serving() as server:
        host = await server.enrolled()
        way.server, way.headers = server, await server.operator(sites=frozenset({"clinic-1"}))
        for _ in range(3):
            await server.deliver(host, host.next())
            await settled(server)
            assert world.witnesses() == set()
            await role.calls.turn()
            assert (world.witnesses(), set(role.calls.trouble.values())) == ({"out"}, {""})
            assert server.services.board.witnessing["clinic-1", 2026].met
    await role.close()


class Way:
    """The way to a real app, with an operator's token."""

    server: Server
    headers: dict[str, str]

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 1,
    ) -> HttpReply:
        given = {**(headers or {}), **(self.headers if method == "GET" else {})}
        reply = await self.server.client.request(method, f"/log/clinic-1/2026{path}", content=body, headers=given)
        return HttpReply(reply.status_code, dict(reply.headers), reply.content)

    async def close(self) -> None:
        return None


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    (tmp_path / "server").mkdir()
    return World(tmp_path / "server", monkeypatch)


async def test_a_fork_is_never_cosigned(lying: tuple[FakeLog, Served, WitnessRole]) -> None:
    log, served, role = lying
    grow(log, 300)
    await role.calls.turn()
    assert len(served.brought) == 1
    for more in (0, 5):
        log.fork()
        grow(log, more)
        await role.calls.turn()
        assert len(served.brought) == 1 and role.calls.trouble[log.origin] == "log_forked"


@pytest.mark.parametrize(
    ("lie", "code"),
    [(Lie.WRONG_KEY, "no_known_signature"), (Lie.FORGED_LINE, "bad_signature"), (Lie.FLIPPED_TILE, "bad_tile"),
     (Lie.NO_TILE, "no_tile"), (Lie.TRUNCATED_TILE, "bad_tile"), (Lie.OTHER_SITE, "no_known_signature")],
)  # fmt: skip
async def test_what_is_not_shown_to_grow_is_not_cosigned_and_then_is(
    lying: tuple[FakeLog, Served, WitnessRole], lie: Lie, code: str
) -> None:
    log, served, role = lying
    grow(log, 3)
    await role.calls.turn()
    grow(log, 4)
    log.lie = lie
    await role.calls.turn()
    assert len(served.brought) == 1 and role.calls.trouble[log.origin] == code
    log.lie = Lie.NOTHING
    await role.calls.turn()
    assert len(served.brought) == 2 and role.calls.trouble[log.origin] == ""
    Note.parse(served.brought[-1]).verify([log.vkey, *role.keys.keys])


async def test_a_log_that_shows_less_than_was_cosigned_is_named(lying: tuple[FakeLog, Served, WitnessRole]) -> None:
    log, served, role = lying
    grow(log, 5)
    await role.calls.turn()
    log.roll_back(2)
    await role.calls.turn()
    assert len(served.brought) == 1 and role.calls.trouble[log.origin] == "log_rolled_back"


@pytest.mark.parametrize(
    "line", ["", "log {key}\n", "log {key} http://far.example\n", "witness w {key} https://x.example\n"]
)
def test_a_file_that_names_no_log_to_look_at_is_refused(tmp_path: Path, line: str) -> None:
    with pytest.raises(ConfigError, match="witness_logs_file"):
        WitnessRole(config(tmp_path, line.format(key=FakeLog("clinic-1").vkey)), Wall())


def test_one_token_never_goes_to_two_servers(tmp_path: Path) -> None:
    first, second = FakeLog("clinic-1"), FakeLog("clinic-2", seed="another")
    lines = f"log {first.vkey} https://a.example/1\nlog {second.vkey} https://b.example/2\n"
    with pytest.raises(ConfigError, match="one token"):
        WitnessRole(config(tmp_path, lines, witness_token_file=tmp_path / "token"), Wall())
    role = WitnessRole(config(tmp_path, lines), Wall())
    asyncio.run(role.close())


async def test_the_role_runs_beside_the_agent_and_its_trouble_is_not_the_agents(tmp_path: Path) -> None:
    log = FakeLog("clinic-9")
    (tmp_path / "logs").write_text(f"log {log.vkey} http://127.0.0.1:9/log/clinic-9/2026\n")
    scene = Scene(tmp_path, settings={"witness_logs_file": tmp_path / "logs", "witness_name": NAME})
    with capture_logs() as events:
        async with beside(scene.config, scene.clock):
            while not any(event["event"] == "witness.call_failed" for event in events):
                await asyncio.sleep(0.01)
    assert [event["code"] for event in events if event["event"] == "witness.call_failed"] == ["no_connection"]
    again = WitnessRole(scene.config, Wall())  # its state was given back
    await again.close()
    await scene.close()


async def test_a_crash_at_one_log_is_said_and_does_not_end_the_role(
    lying: tuple[FakeLog, Served, WitnessRole], monkeypatch: pytest.MonkeyPatch
) -> None:
    log, served, role = lying
    monkeypatch.setattr(log, "file", lambda path: 1 / 0)
    await role.calls.turn()
    assert role.calls.trouble[log.origin] == "ZeroDivisionError"
    monkeypatch.undo()
    await role.calls.turn()
    assert len(served.brought) == 1 and role.calls.trouble[log.origin] == ""
