"""The server asks its witnesses: receipts carry their word, their absence shows and stops nothing, proof of a rollback does."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from compliance_agent.errors import ConfigError, Unavailable
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash
from compliance_agent.log.note import Note
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.ports import HttpReply
from compliance_agent.server import opening as module
from compliance_agent.server.cosigning import Cosigning, policy_of
from compliance_agent.server.log_keys import LogKeys
from tests.log.builder import signer
from tests.server.builder import START, FakeHost, Hands, Server, serving
from tests.witness.builder import NAME, Local, Wall

pytestmark = pytest.mark.anyio
ORIGIN = "compliance-server/clinic-1/2026"
URL = "http://witness.test"
Answer = Callable[[str, str, bytes], Awaitable[HttpReply]]


@dataclass
class Way:
    """A transport to a function, which counts."""

    answer: Answer
    asked: list[str] = field(default_factory=list)

    async def request(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        timeout_s: float = 20.0,
    ) -> HttpReply:
        self.asked.append(method)
        return await self.answer(method, path, body)

    async def close(self) -> None:
        return None


async def down(method: str, path: str, body: bytes) -> HttpReply:
    raise Unavailable("no connection")


async def hanging(method: str, path: str, body: bytes) -> HttpReply:
    await asyncio.Event().wait()
    raise AssertionError


@dataclass
class World:
    """A data directory, a witness of its own clinic's log, and the way between them, which may be changed."""

    root: Path
    monkeypatch: pytest.MonkeyPatch
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = self.root / "data"
        self.data.mkdir(mode=0o700)
        key = LogKeys(self.data / "keys").verifier(ORIGIN)
        self.clock = Hands()
        self.wall = Wall(int(START.timestamp()))
        self.witness = Local(self.root / "witness", self.wall, logs={ORIGIN: [key]})
        self.way = Way(self.witness.witness.answer)
        self.file = self.root / "witnesses"
        self.file.write_text(f"witness w1 {next(iter(self.witness.keys.keys))} {URL}\nquorum w1\n")
        self.policy: Policy = policy_of(self.file.read_text(), f"{key}")
        self.monkeypatch.setattr(module, "HttpTransport", lambda url: self.way)

    @asynccontextmanager
    async def serving(self, **settings: Any) -> AsyncIterator[Server]:
        given = {"witness_policy_file": self.file, "witness_deadline_ms": 10_000, **self.settings, **settings}
        async with serving(self.data, clock=self.clock, **given) as server:
            yield server

    @property
    def checkpoint(self) -> bytes:
        return (self.data / "log/clinic-1/2026/checkpoint").read_bytes()

    def witnesses(self, note: bytes | None = None) -> set[str]:
        return set(self.policy.verify(self.checkpoint if note is None else note).witnesses)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


def cosigning(server: Server) -> Cosigning:
    found = server.services.cosigning
    assert found is not None
    return found


def notes(reply: httpx2.Response) -> list[bytes]:
    """The checkpoints of a reply's receipts."""
    assert reply.status_code == 200, reply.text
    return [Proof.parse(base64.b64decode(item["proof"])).checkpoint for item in reply.json()["receipts"]]


async def settled(server: Server) -> None:
    for _ in range(20):
        await server.services.sequencer.round()
        await cosigning(server).settled()
        if not await server.services.store.for_sites({"clinic-1"}).any_pending():
            return
    raise AssertionError("the log does not come to rest")


async def leaves(server: Server) -> list[dict[str, Any]]:
    found = await server.services.store.for_sites({"clinic-1"}).leaves("clinic-1", 2026, 0, 10_000)
    return [json.loads(leaf) for leaf in found]


# --- what receipts carry --------------------------------------------------------------------------


async def test_receipts_are_made_under_a_checkpoint_that_the_witness_has_cosigned(world: World) -> None:
    async with world.serving() as server:
        host = await server.enrolled()
        for note in notes(await server.deliver(host, host.next(), host.next())):
            assert world.policy.verify(note).quorum_met
        await settled(server)
        assert world.witnesses() == {"w1"}
        standing = server.services.board.witnessing["clinic-1", 2026]
        assert (standing.met, dict(standing.failed), standing.size) == (
            True,
            {},
            Checkpoint.parse(Note.parse(world.checkpoint).text).size,
        )
        assert (await server.client.get("/readyz")).status_code == 200
        assert "compliance_server_log_unwitnessed 0.0" in (await server.client.get("/metrics")).text


async def test_without_its_witness_a_log_goes_on_and_is_visibly_unwitnessed(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    world.way.answer = down
    async with world.serving() as server:
        host = await server.enrolled()
        (note,) = notes(await server.deliver(host, host.next()))
        assert not world.policy.verify(note).quorum_met
        await settled(server)
        standing = server.services.board.witnessing["clinic-1", 2026]
        assert (standing.met, dict(standing.failed)) == (False, {"w1": "unavailable"})
        assert "compliance_server_log_unwitnessed 1.0" in (await server.client.get("/metrics")).text
        assert world.witnesses() == set()
        world.way.answer = world.witness.witness.answer
        cosigning(server).tick()
        await cosigning(server).settled()
        assert world.witnesses() == {"w1"}, "asked again without the log having grown"
        (note,) = notes(await server.deliver(host, host.next()))
        assert world.policy.verify(note).quorum_met
    told = capsys.readouterr().out
    assert (told.count("log.unwitnessed"), told.count("log.witnessed ")) == (1, 1), "once each"


@pytest.mark.timeout(30)
async def test_a_witness_that_hangs_delays_receipts_once_and_other_clinics_never(world: World) -> None:
    """The deadline is a minute here, and the test is given half of that: nothing in it could pass by waiting."""
    world.way.answer = hanging
    async with world.serving(witness_deadline_ms=60_000) as server:
        waiting, other = await server.enrolled(), await server.enrolled("ws-02", "clinic-2")
        while len(cosigning(server)._logs) < 2:
            await server.services.sequencer.round()
        one = cosigning(server)._logs["clinic-1", 2026]
        one.met = False  # as after a first deadline
        (note,) = notes(await server.deliver(waiting, waiting.next()))
        assert not world.policy.verify(note).quorum_met
        cosigning(server)._logs["clinic-2", 2026].met = False
        assert notes(await server.deliver(other, other.next()))


async def test_the_deadline_makes_it_unwitnessed(world: World) -> None:
    world.way.answer = hanging
    async with world.serving(witness_deadline_ms=10) as server:
        host = await server.enrolled()
        assert not world.policy.verify(notes(await server.deliver(host, host.next()))[0]).quorum_met
        assert server.services.board.witnessing["clinic-1", 2026].failed == {"w1": "timed_out"}


async def test_a_line_that_does_not_verify_is_nobodys_word(world: World) -> None:
    liar = signer(NAME, seed="another key")

    async def lying(method: str, path: str, body: bytes) -> HttpReply:
        return HttpReply(200, {}, f"{liar.line('x' + chr(10))}\n".encode())

    world.way.answer = lying
    async with world.serving() as server:
        host = await server.enrolled()
        assert not world.policy.verify(notes(await server.deliver(host, host.next()))[0]).quorum_met
        assert world.witnesses() == set()


# --- over restarts --------------------------------------------------------------------------------


async def test_lines_once_visible_stay_over_a_restart_without_the_witness(world: World) -> None:
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
    before = world.checkpoint
    world.way.answer = down
    async with world.serving() as server:
        await settled(server)
        assert world.checkpoint == before
        found = await server.services.receipts.of((await server.services.store.for_sites({"clinic-1"}).hosts())[0], [])
        assert found == []
        assert world.policy.verify(server.services.board.heads["clinic-1", 2026].note).quorum_met


async def test_a_crash_before_the_witness_was_asked_is_made_up_for_at_the_start(world: World) -> None:
    world.way.answer = down
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
    assert world.witnesses() == set()
    world.way.answer = world.witness.witness.answer
    async with world.serving() as server:
        await cosigning(server).settled()
        assert world.witnesses() == {"w1"}


async def test_a_server_that_was_put_back_is_stopped_by_what_its_witness_remembers(world: World) -> None:
    """Database and log directory of yesterday: nothing on this machine could tell."""
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
    shutil.copytree(world.data, world.root / "yesterday")
    async with world.serving() as server:
        await server.deliver(host, host.next())
        await settled(server)
    shutil.rmtree(world.data)
    shutil.copytree(world.root / "yesterday", world.data)
    async with world.serving() as server:
        assert server.services.board.stopped == {"clinic-1": "log_restored"}
        assert (await server.client.get("/readyz")).status_code == 503
    unguarded = Way(down)
    world.monkeypatch.setattr(module, "HttpTransport", lambda url: unguarded)
    async with world.serving() as server:
        assert server.services.board.stopped == {}, "without the witness's word it could not be told (the mutant)"


async def test_it_is_stopped_while_it_runs_too(world: World) -> None:
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
    shutil.copytree(world.data, world.root / "yesterday")
    async with world.serving() as server:
        await server.deliver(host, host.next())
        await settled(server)
    shutil.rmtree(world.data)
    shutil.copytree(world.root / "yesterday", world.data)
    world.way.answer = down
    async with world.serving() as server:
        world.way.answer = world.witness.witness.answer
        cosigning(server).tick()
        await cosigning(server).settled()
        assert server.services.board.stopped == {"clinic-1": "log_restored"}


async def test_a_witness_cannot_stop_a_log_by_a_checkpoint_that_we_never_signed(world: World) -> None:
    forged = signer(ORIGIN, seed="not ours")
    shown = Checkpoint(ORIGIN, 1_000, RootHash(bytes(32))).text

    async def lying(method: str, path: str, body: bytes) -> HttpReply:
        if method == "POST":
            return HttpReply(409, {"content-type": "text/x.tlog.size"}, b"1000\n")
        return HttpReply(200, {}, Note(shown, (forged.line(shown),)).encode())

    world.way.answer = lying
    async with world.serving() as server:
        host = await server.enrolled()
        assert notes(await server.deliver(host, host.next()))
        await cosigning(server).settled()
        assert server.services.board.witnessing["clinic-1", 2026].failed == {"w1": "ahead"}
        assert server.services.board.stopped == {}
    async with world.serving() as server:
        assert server.services.board.stopped == {}


# --- time in the log ------------------------------------------------------------------------------


async def test_time_is_written_once_an_interval_and_never_in_answer_to_itself(world: World) -> None:
    async def times() -> list[tuple[int, int]]:
        """Index of each time entry, and the size of the tree whose time it proves."""
        found = []
        for index, leaf in enumerate(await leaves(server)):
            if leaf["kind"] == "time":
                note = base64.b64decode(leaf["checkpoint"])
                assert world.policy.verify(note).quorum_met
                found.append((index, Checkpoint.parse(Note.parse(note).text).size))
        return found

    async def interval() -> None:
        world.clock.move(301)
        world.wall.at += 301
        cosigning(server).tick()
        await settled(server)

    async with world.serving(time_entry_interval_s=300) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
        assert len(await times()) == 1, "at once, and no second one before the interval is over"
        await interval()
        known = await times()
        for _ in range(2):
            await interval()
            assert await times() == known, "nothing but time entries has come"
        await server.deliver(host, host.next())
        await settled(server)
        await server.deliver(host, host.next())
        await settled(server)
        assert len(await times()) == len(known) + 1, (
            "the interval is over for the first, and has begun anew for the second"
        )
        await interval()
        index, size = (await times())[-1]
        assert size <= index
        assert {leaf["kind"] for leaf in (await leaves(server))[size:]} == {"time"}, (
            "every other entry is older than that"
        )


async def test_a_restart_does_not_write_it_again(world: World) -> None:
    async with world.serving() as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
        world.clock.move(301)
        world.wall.at += 301
        cosigning(server).tick()
        await settled(server)
        before = len(await leaves(server))
    for _ in range(3):
        async with world.serving() as server:
            await settled(server)
            assert len(await leaves(server)) == before


async def test_without_any_witness_no_time_is_claimed(world: World) -> None:
    world.way.answer = down
    async with world.serving() as server:
        host: FakeHost = await server.enrolled()
        await server.deliver(host, host.next())
        await settled(server)
        assert "time" not in {leaf["kind"] for leaf in await leaves(server)}


# --- what may be configured -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("quorum none\n", "no quorum"),
        ("nonsense\n", "policy line 2"),
        ("witness w1 x+1+2 http://w\nquorum w1\n", "policy line 2"),
        ("log {log}\nquorum none\n", "holds a log line"),
        ("", "has no quorum"),
    ],
)
async def test_a_policy_that_asks_nobody_is_refused_at_the_start(world: World, text: str, said: str) -> None:
    world.file.write_text(text)
    with pytest.raises(ConfigError, match=f"witness_policy_file .*{said}"):
        async with world.serving():
            raise AssertionError
