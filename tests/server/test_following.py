"""Two servers on one PostgreSQL: what one sequences the other shows, byte for byte, and neither writes over the other."""

from __future__ import annotations

import base64
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, root_of
from compliance_agent.log.note import Note
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, Tile
from compliance_agent.server.opening import watch
from compliance_agent.server.services import duties as desk
from compliance_agent.server.services.duties import Duties
from compliance_agent.server.services.watching import LOOKS
from compliance_agent.server.store import Address
from tests.server.builder import FakeHost, Hands, Server, acknowledged, serving

pytestmark = pytest.mark.anyio
SITE = "clinic-1"
OURS = (SITE, 2026)


@asynccontextmanager
async def replicas(root: Path, address: Address, **settings: Any) -> AsyncIterator[list[Server]]:
    """Two, of which the first one sequences everything; nothing happens by itself but rounds."""
    clock = Hands()
    async with AsyncExitStack() as stack:
        found = []
        for name in ("a", "b"):
            if name == "b":
                shutil.copytree(root / "a" / "keys", root / "b" / "keys")
            found.append(
                await stack.enter_async_context(
                    serving(
                        root / name,
                        clock=clock,
                        database=address.url,
                        duty_lease_s=300,
                        log_interval_ms=60_000,
                        **settings,
                    )
                )
            )
        yield found


async def sequenced(*servers: Server) -> None:
    for server in servers:
        await server.services.sequencer.round()
    for server in servers:
        await server.services.sequencer.follow()


def shown(server: Server) -> tuple[int, bytes]:
    note = server.services.log_files.published(*OURS)
    found = Checkpoint.parse(Note.parse(note or b"").text)
    return found.size, found.root


async def leaves(server: Server) -> list[bytes]:
    return await server.services.store.for_sites({SITE}).leaves(*OURS, 0, 10_000)


async def test_what_one_sequences_the_other_shows(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        for count, server in ((1, first), (90, second), (100, first), (100, second), (1, second)):
            bundles = [host.next() for _ in range(count)]
            assert acknowledged(await server.deliver(host, *bundles), host, bundles) == ["stored"] * count
            await sequenced(first, second)
            assert shown(first) == shown(second)
        held = await leaves(first)
        assert shown(second) == (294, root_of(b"".join(map(hash_leaf, held)))) and len(held) == 294
        for tile in (Tile(0, 0), Tile(0, 1, 38), Tile(1, 0, 1), Tile(ENTRIES, 0), Tile(ENTRIES, 1, 38)):
            one, other = (server.services.log_files.exactly(*OURS, tile) for server in (first, second))
            assert one == other
        assert (tmp_path / f"b/heads/{SITE}-2026").read_bytes() == (tmp_path / f"a/heads/{SITE}-2026").read_bytes()


async def test_receipts_come_from_either(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        bundles = [host.next() for _ in range(3)]
        await second.deliver(host, *bundles)
        await sequenced(first, second)
        ids = {"protocol": 1, "bundles": [bundle.document["bundle_id"] for bundle in bundles]}
        for server in (first, second):
            reply = await server.post("/api/v1/receipts", ids, headers=host.headers)
            proofs = [Proof.parse(base64.b64decode(item["proof"])) for item in reply.json()["receipts"]]
            assert [Checkpoint.parse(Note.parse(proof.checkpoint).text).size for proof in proofs] == [5, 5, 5]


async def test_nobody_is_shown_a_smaller_log_than_before(tmp_path: Path, postgresql: Address) -> None:
    """Whoever saw a checkpoint at one replica finds it, and its tiles, at one that had not looked since."""
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, *(host.next() for _ in range(10)))
        await sequenced(first, second)
        for _ in range(2):  # two checkpoints, of which the second replica sees the last one alone
            await first.deliver(host, *(host.next() for _ in range(5)))
            await first.services.sequencer.round()
        assert shown(first)[0] == 22 and shown(second)[0] == 12
        partial = await second.client.get(f"/log/{SITE}/2026/tile/0/000.p/17", headers=host.headers)
        assert partial.content == first.services.log_files.exactly(*OURS, Tile(0, 0, 17))
        note = await second.client.get(f"/log/{SITE}/2026/checkpoint", headers=host.headers)
        assert Checkpoint.parse(Note.parse(note.content).text).size == 22
        entries = await second.client.get(f"/log/{SITE}/2026/tile/entries/000.p/17", headers=host.headers)
        assert entries.content == first.services.log_files.exactly(*OURS, Tile(ENTRIES, 0, 17))
        wider = await second.client.get(f"/log/{SITE}/2026/tile/0/000.p/23", headers=host.headers)
        assert wider.status_code == 404


async def test_a_new_replica_writes_all_files_from_the_database(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        for _ in range(3):
            await first.deliver(host, *(host.next() for _ in range(100)))
        await sequenced(first, second)
        shutil.copytree(tmp_path / "a/keys", tmp_path / "c/keys")
        async with serving(tmp_path / "c", clock=first.clock, database=postgresql.url, duty_lease_s=300) as third:
            assert shown(third) == shown(first)
            assert third.services.log_files.exactly(*OURS, Tile(ENTRIES, 0)) == first.services.log_files.exactly(
                *OURS, Tile(ENTRIES, 0)
            )


async def test_what_is_destroyed_beside_one_goes_at_all(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        for _ in range(3):
            await first.deliver(host, *(host.next() for _ in range(100)))
        await sequenced(first, second)
        at = "2033-06-01T12:00:00.000000Z"  # its records may go by then
        await first.by_hand(
            f"INSERT INTO pruned_logs (site_id, year, minimum, pruned_at) VALUES ('{SITE}', 2026, 256, '{at}')"
        )
        assert await second.services.pruning.keep_up() == 1
        assert await second.services.pruning.keep_up() == 0
        gone = await second.client.get(f"/log/{SITE}/2026/tile/entries/000", headers=host.headers)
        assert (gone.status_code, gone.json()["code"]) == (410, "pruned")
        assert not (tmp_path / f"b/log/{SITE}/2026/tile/entries/000").exists()
        assert (tmp_path / f"a/log/{SITE}/2026/tile/entries/000").exists()  # until it looks, too


async def test_a_follower_shows_nothing_that_the_entries_do_not_give(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await sequenced(first, second)
        before = shown(second)
        await first.deliver(host, host.next())
        await first.services.sequencer.round()
        await first.by_hand("UPDATE log_entries SET leaf = 'other' WHERE leaf_index = 3")
        await second.services.sequencer.follow()
        assert shown(second) == before
        assert second.services.board.stopped == {SITE: "log_damaged"}
        stale = await second.client.get(f"/log/{SITE}/2026/checkpoint", headers=host.headers)
        assert (stale.status_code, stale.json()["code"]) == (503, "log_behind")


async def test_a_follower_remembers_what_a_restored_database_does_not(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        host = await first.enrolled()
        await first.deliver(host, host.next())
        await sequenced(first, second)
        old = await first.by_hand("SELECT size, root, edge, checkpoint, checkpoint_size FROM log_shards")
        await first.deliver(host, host.next())
        await sequenced(first, second)
        await first.by_hand(
            "UPDATE log_shards SET size = $1, root = $2, edge = $3, checkpoint = $4, checkpoint_size = $5", *old[0]
        )
        await second.services.sequencer.follow()
        assert second.services.board.stopped == {SITE: "log_restored"}


async def test_one_watches_over_what_all_say_of_themselves(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        second.services.board.stopped[SITE] = "log_forked"
        await second.services.duties.look()
        await first.services.duties.look()

        async def watched(server: Server) -> list[str]:
            look = watch(server.services).look
            for _ in range(LOOKS):
                await look()
            return [one.cause.kind for one in await server.services.alarms.all() if one.closed_at is None]

        assert await watched(second) == [], "it is not its duty"
        assert await watched(first) == ["log_still"]
        second.services.board.stopped.clear()
        await second.services.duties.look()
        await first.services.duties.look()
        assert await watched(first) == []


# --- one is stopped, and goes on ------------------------------------------------------------------


async def _taken_over(first: Server, second: Server) -> FakeHost:
    """The first one sleeps over the end of its lease, believes all the same, and has something to sequence."""
    host = await first.enrolled()
    await first.deliver(host, host.next())
    await sequenced(first, second)
    first.clock.move(301)
    await second.services.duties.look()
    await second.deliver(host, host.next())
    await sequenced(second)
    assert shown(second)[0] == 4
    await second.deliver(host, host.next())
    return host


async def test_a_sequencer_that_slept_writes_nothing_and_follows(tmp_path: Path, postgresql: Address) -> None:
    async with replicas(tmp_path, postgresql) as (first, second):
        await _taken_over(first, second)
        before = await leaves(first)
        assert await first.services.sequencer.round() == 0
        assert first.services.duties.refused == 1
        assert await leaves(first) == before
        await sequenced(second, first)
        assert shown(first) == shown(second) and shown(first)[0] == 5
        assert first.services.board.stopped == second.services.board.stopped == {}


async def test_planted_without_the_check_the_last_wall_stops_a_log(
    tmp_path: Path, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Still no fork: the compare-and-swap holds. But a log stands still, which the check would have spared."""

    async def check(self: Duties, tx: object, tenures: object) -> None: ...

    monkeypatch.setattr(desk.Duties, "check", check)
    async with replicas(tmp_path, postgresql) as (first, second):
        await _taken_over(first, second)
        await first.services.sequencer.round()
        assert first.services.board.stopped == {"": "sequenced_elsewhere"}
        await sequenced(second)
        assert shown(second)[0] == 5
