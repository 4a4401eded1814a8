"""Older checkpoints of a log, out of its own entries: a page of them, each held against the tree that is served now."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import NoInput, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.merkle import RootHash, verify_consistency
from compliance_agent.log.note import Note
from compliance_agent.server.services import older_heads as module
from compliance_agent.server.services.checkpoints import State
from compliance_agent.server.services.logbook import Logbook
from compliance_agent.server.services.served_logs import ServedLogs
from tests.server.authority import stamping
from tests.server.builder import Server, serving
from tests.server.test_cosigning import World, leaves, settled
from tests.server.test_dates import auditor

pytestmark = pytest.mark.anyio


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return World(tmp_path, monkeypatch)


async def grown(server: Server, world: World | None, times: int = 3) -> Logbook:
    """So many records, each followed by an entry of time."""
    host = await server.enrolled()
    for number in range(times):
        await server.deliver(host, host.next())
        for _ in range(20):  # a witness may answer late
            await settled(server)
            if world is None or sum(leaf["kind"] == "time" for leaf in await leaves(server)) > number:
                break
        server.clock.move(301)
        if world is not None:
            world.wall.at += 301
    return server.services.logbook(server.services.store.for_sites({"clinic-1"}))


def said(note: bytes) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)


async def test_each_stands_with_who_signed_it_and_the_newest_goes_on_from_it(world: World) -> None:
    async with world.serving() as server:
        book = await grown(server, world)
        log = await book.log("clinic-1")
        sizes = [one.size for one in log.older.heads]
        assert sizes == sorted(sizes, reverse=True) and len(sizes) == 3 and log.older.next is None
        assert {one.lines[0].code for one in log.older.heads} == {"continued"}
        assert {one.witnesses[0].code for one in log.older.heads} == {"cosigned"}
        assert log.checkpoint is not None and log.anchor is not None
        assert log.anchor.size == log.checkpoint.size, "the newest is cosigned itself"
        for one in log.older.heads:
            note = await book.older("clinic-1", 2026, one.index)
            assert said(note).size == one.size and note == one.note
            _check_proof(await book.consistency("clinic-1", 2026, one.size), said(note))


def _check_proof(proof: bytes, older: Checkpoint) -> None:
    """As anybody would who has read C2SP tlog-witness."""
    head, _, note = proof.decode().partition("\n\n")
    first, *path = head.split("\n")
    newest = said(note.encode())
    assert first == f"old {older.size}"
    hashes = [from_base64(one, "hash", "bad") for one in path if one]
    verify_consistency(older.size, newest.size, hashes, older.root, newest.root)


async def test_they_come_page_by_page_and_an_end_that_is_none_is_said(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PER_PAGE", 1)
    async with world.serving() as server:
        book = await grown(server, world)
        seen: list[int] = []
        before: int | None = None
        for _ in range(5):
            page = (await book.log("clinic-1", 2026, before)).older
            seen += [one.size for one in page.heads]
            before = page.next
            if before is None:
                break
        assert len(seen) == len(set(seen)) == 3 and seen == sorted(seen, reverse=True)
        monkeypatch.setattr(module, "TILES", 0)
        stopped = (await book.log("clinic-1")).older
        assert (stopped.heads, stopped.why, stopped.next) == ((), "stopped", 256)
        monkeypatch.setattr(module, "TILES", 1)

        def missing(*_: Any) -> list[bytes]:
            raise NoInput("not there")

        monkeypatch.setattr(ServedLogs, "entries", missing)
        assert (await book.log("clinic-1")).older.why == "unreadable"


@pytest.mark.parametrize(
    ("planted", "code"),
    [("fork", "forked"), ("early", "forked"), ("stranger", "no_known_signature"), ("junk", "bad_checkpoint")],
)
async def test_a_planted_one_is_wrong_and_anchors_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, planted: str, code: str
) -> None:
    """Signed by the log's own key over another tree; of a size the tree had not; by nobody we know; and no checkpoint at all."""
    async with world.serving() as server:
        book = await grown(server, world, 1)
        services = server.services
        [real] = (await book.log("clinic-1")).older.heads
        root = RootHash(bytes(32)) if planted == "fork" else said(real.note).root
        size = real.index + 1 if planted == "early" else real.size
        note = services.log_keys.note(Checkpoint(said(real.note).origin, size, root), services.clock())
        if planted == "stranger":
            note = note.replace(b"\n\xe2\x80\x94 compliance-server", b"\n\xe2\x80\x94 compliance-other")
        right = ServedLogs.entries

        def entries(self: ServedLogs, *asked: Any) -> list[bytes]:
            leaves = right(self, *asked)
            leaf = b'{"kind":"time","checkpoint":7}' if planted == "junk" else time_leaf(note, [])
            return [leaf if b'"kind":"time"' in one else one for one in leaves]

        monkeypatch.setattr(ServedLogs, "entries", entries)
        [found] = (await book.log("clinic-1")).older.heads
        assert (found.lines[0].state, found.lines[0].code, found.anchored_at) == (State.WRONG, code, None)


async def test_a_time_stamp_anchors_a_log_without_witnesses(tmp_path: Path) -> None:
    """Entries that came after it are not anchored, and are counted; the authority's certificate is there to be had."""
    with stamping(tmp_path / "tsa") as authority:
        asked: dict[str, Any] = {"tsa_url": authority.url, "tsa_ca_file": authority.ca_file}
        async with serving(tmp_path / "data", **asked) as server:
            book = await grown(server, None, 2)
            log = await book.log("clinic-1")
            [head] = log.older.heads
            assert (len(head.stamps), head.tokens) == (1, 1)
            assert log.anchor is not None and log.checkpoint is not None and book.anchors
            assert log.anchor.size == head.size < log.checkpoint.size
    async with serving(tmp_path / "plain") as server:
        book = await grown(server, None, 0)
        assert (await book.log("clinic-1")).anchor is None and not book.anchors


async def test_what_is_not_there_is_a_404(world: World) -> None:
    async with world.serving() as server:
        book = await grown(server, world, 1)
        for index in (0, 1, 999):
            with pytest.raises(Refusal, match="no such log"):
                await book.older("clinic-1", 2026, index)
        for year, size in ((2025, 1), (2026, 0)):
            with pytest.raises(Refusal, match="no such log"):
                await book.consistency("clinic-1", year, size)
        beyond = await book.consistency("clinic-1", 2026, 999)
        assert beyond.startswith(b"old 999\n\ncompliance-server/"), (
            "no path, and the newest all the same: it shows that it is smaller"
        )


async def test_an_auditor_of_some_dates_sees_the_log_and_no_more(server: Server) -> None:
    """The log holds digests and is whole for whoever may see its site; what the server does now is not theirs; nor another site."""
    host = await server.enrolled()
    await server.deliver(host, host.next())
    await server.services.sequencer.round()
    await auditor(server)
    for path, status in (
        ("/sites/clinic-1/log", 200), ("/sites/clinic-1/log?before=3", 200), ("/sites/clinic-1/log/2026/consistency/1", 200),
        ("/sites/clinic-1/log/2026/files/policy", 200), ("/sites/clinic-1/log/2026/files/log.pem", 200),
        ("/sites/clinic-1/log/2026/files/authority.pem", 404), ("/sites/clinic-1/log/2026/files/log-key.pem", 404),
        ("/sites/clinic-2/log", 404), ("/sites/clinic-2/log/2026/files/policy", 404),
        ("/sites/clinic-2/log/2026/consistency/1", 404),
        ("/sites/clinic-1/log?before=x", 404), ("/sites/clinic-1/log/2026/consistency/-1", 404),
    ):  # fmt: skip
        answer = await server.client.get(path)
        assert answer.status_code == status, path
        assert 'data-tile="unverified"' not in answer.text
    await server.services.users.add("anna", "correct horse battery")
    server.client.cookies.set("session", await server.services.users.login("anna", "correct horse battery"))
    page = (await server.client.get("/sites/clinic-1/log")).text
    assert 'data-tile="unverified"' in page and 'data-tile="unanchored"' in page
