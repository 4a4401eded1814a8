"""Two servers on one PostgreSQL, and a witness: whoever sequences a log asks, every replica shows what it said."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from compliance_agent.errors import OffDuty
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.server.following import Following
from compliance_agent.server.store import Address
from tests.server.builder import FakeHost, Server
from tests.server.test_cosigning import World, cosigning, down, notes

pytestmark = pytest.mark.anyio
OURS = ("clinic-1", 2026)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


@asynccontextmanager
async def replicas(world: World, address: Address) -> AsyncIterator[tuple[Server, Server]]:
    """Both know the witness; the first one sequences everything; nothing happens by itself but rounds."""
    other = world.root / "b"
    settings = {"database": address.url, "duty_lease_s": 300, "log_interval_ms": 60_000}
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(world.serving(**settings))
        shutil.copytree(world.data / "keys", other / "keys")
        world.data = other
        yield first, await stack.enter_async_context(world.serving(**settings))


async def logged(world: World, sequencing: Server, *following: Server) -> None:
    """A round, the witness's answer, and a look of the others."""
    await sequencing.services.sequencer.round()
    await cosigning(sequencing).settled()
    for server in following:
        await server.services.sequencer.follow()


def seen(world: World, server: Server) -> tuple[int, set[str]]:
    """Size and witnesses of the checkpoint that is in a replica's files."""
    note = server.services.log_files.published(*OURS) or b""
    return Checkpoint.parse(Note.parse(note).text).size, world.witnesses(note)


async def served(world: World, server: Server, host: FakeHost) -> tuple[int, set[str]]:
    """The same, as it is answered."""
    reply = await server.client.get("/log/clinic-1/2026/checkpoint", headers=host.headers)
    assert reply.status_code == 200, reply.text
    return Checkpoint.parse(Note.parse(reply.content).text).size, world.witnesses(reply.content)


async def taken_over(first: Server, second: Server) -> None:
    """The first one was silent for longer than its lease, and sees it."""
    first.clock.move(301)
    await second.services.duties.look()
    await first.services.duties.look()
    await first.services.sequencer.round()
    await second.services.sequencer.round()
    assert second.services.sequencer.leads("clinic-1")


async def test_what_one_sequences_and_has_cosigned_the_other_serves(world: World, postgresql: Address) -> None:
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        bundle = host.next()
        await second.deliver(host, bundle)
        await logged(world, first, second)
        size, witnesses = await served(world, first, host)
        assert witnesses == {"w1"} and size >= 3
        assert await served(world, second, host) == (size, {"w1"}) == seen(world, second)
        asked = {"protocol": 1, "bundles": [bundle.document["bundle_id"]]}
        (note,) = notes(await second.post("/api/v1/receipts", asked, headers=host.headers))
        assert world.witnesses(note) == {"w1"}


async def test_lines_that_come_later_are_shown_by_the_other_too(world: World, postgresql: Address) -> None:
    """The log has not grown since: only its lines have."""
    right, world.way.answer = world.way.answer, down
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await logged(world, first, second)
        before = await served(world, second, host)
        assert before[1] == set()
        world.way.answer = right
        cosigning(first).tick()
        await cosigning(first).settled()
        assert await served(world, second, host) == (before[0], {"w1"})


async def test_whoever_takes_over_goes_on_asking(world: World, postgresql: Address) -> None:
    """The witness was away when the checkpoint was signed, and the one that signed it is gone: the next one asks about it."""
    right, world.way.answer = world.way.answer, down
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await logged(world, first, second)
        size, _ = await served(world, second, host)
        world.way.answer = right
        world.wall.at += 301
        await taken_over(first, second)
        await logged(world, second, first)  # with an entry of time, which is due by now
        first_size, witnesses = await served(world, first, host)
        assert first_size >= size and witnesses == {"w1"} and seen(world, second) == (first_size, {"w1"})
        await first.deliver(host, host.next())
        await logged(world, second, first)
        assert await served(world, first, host) == await served(world, second, host)
        grown, witnesses = seen(world, second)
        assert grown > first_size and witnesses == {"w1"}


async def test_a_line_asked_for_under_a_duty_that_is_over_is_not_written(world: World, postgresql: Address) -> None:
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await logged(world, first, second)
        note = first.services.log_files.published(*OURS) or b""
        world.wall.at += 301
        await taken_over(first, second)
        await second.deliver(host, host.next())
        await logged(world, second, first)
        held = await first.services.store.for_sites({"clinic-1"}).cosigned(*OURS)
        with pytest.raises(OffDuty):
            await first.services.store.write(lambda tx: first.services.sequencer._tell(tx, *OURS, note), {"clinic-1"})
        assert await first.services.store.for_sites({"clinic-1"}).cosigned(*OURS) == held


async def test_a_witness_that_calls_out_is_heard_by_whoever_sequences(world: World, postgresql: Address) -> None:
    """Another one says so, and it comes again; behind a load balancer it meets the right one in a while."""
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await logged(world, first, second)
        note, place = first.services.log_files.published(*OURS) or b"", "/log/clinic-1/2026/cosignature"
        elsewhere = await second.client.post(place, content=note)
        assert (elsewhere.status_code, elsewhere.json()["code"]) == (503, "not_here")
        assert (await first.client.post(place, content=note)).status_code < 300
        world.wall.at += 301
        await taken_over(first, second)
        await logged(world, second, first)
        note = second.services.log_files.published(*OURS) or b""
        assert (await second.client.post(place, content=note)).status_code < 300
        assert (await first.client.post(place, content=note)).json()["code"] == "not_here"


async def test_planted_a_follower_that_leaves_the_lines_out_is_seen(
    world: World, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: object) -> None:
        return None

    monkeypatch.setattr(Following, "_note", nothing)
    async with replicas(world, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await logged(world, first, second)
        assert (await served(world, first, host))[1] == {"w1"} and (await served(world, second, host))[1] == set()
