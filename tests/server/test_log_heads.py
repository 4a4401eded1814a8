"""A server that was set back and has lost its log's files signs no second history: it remembers what it signed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from compliance_agent.errors import LogStopped
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash
from compliance_agent.log.note import Note
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from tests.server.builder import START, Server
from tests.server.test_fsck import problems
from tests.server.test_readopt import LOG, readopted, scene
from tests.server.test_sequencer import reasons, restarted, settled

pytestmark = pytest.mark.anyio
NAME = "clinic-1-2026"


def signed_sizes(directory: Path) -> list[int]:
    """Sizes of whatever is published."""
    notes = (path.read_bytes() for path in (directory / "log").glob("*/*/checkpoint"))
    return [Checkpoint.parse(Note.parse(note).text).size for note in notes]


async def signs_a_second_history(directory: Path) -> bool:
    """Whether a server on this directory publishes anything after new evidence has come in."""
    async with restarted(directory, 2) as server:
        await server.enrolled("ws-09")
        await settled_or_stopped(server)
        stopped = await reasons(server) == (503, ["log_restored"])
    assert stopped != bool(signed_sizes(directory))
    return not stopped


async def settled_or_stopped(server: Server) -> None:
    for _ in range(5):
        await server.services.sequencer.round()


async def test_files_that_are_lost_too_do_not_let_it_sign_again(tmp_path: Path) -> None:
    """The database is of yesterday and `log/` is gone: nothing is signed, nothing is written, and fsck names it."""
    directory = tmp_path / "data"
    await scene(directory)
    shutil.rmtree(directory / "log")
    head = (directory / "heads" / NAME).read_bytes()
    assert not await signs_a_second_history(directory)
    assert (directory / "heads" / NAME).read_bytes() == head
    assert any("entries were signed, the database holds" in item for item in await problems(directory))


async def test_a_database_that_is_lost_wholly_is_noticed(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    await scene(directory)
    shutil.rmtree(directory / "log")
    for stale in directory.glob("server.db*"):
        stale.unlink()
    assert not await signs_a_second_history(directory)


async def test_a_sequencer_that_does_not_look_signs_a_second_history(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: without the heads nothing stops it."""
    directory = tmp_path / "data"
    await scene(directory)
    shutil.rmtree(directory / "log")
    monkeypatch.setattr(LogHeads, "get", lambda *_: None)
    monkeypatch.setattr(LogHeads, "known", lambda _: [])
    monkeypatch.setattr(LogHeads, "keep", lambda *_: None)
    assert await signs_a_second_history(directory)


async def test_a_log_that_went_another_way_is_refused_without_files(tmp_path: Path) -> None:
    """The database is longer than what was signed, and holds something else."""
    directory = tmp_path / "data"
    host, later, _, _ = await scene(directory)
    shutil.move(directory / "heads", tmp_path / "heads")
    shutil.rmtree(directory / "log")
    async with restarted(directory, 2) as server:  # who lost both has nothing to hold it against
        other = replace(host, seq=1, prev=later[0].document["prev"])
        for _ in range(3):
            await server.deliver(other, *(other.next() for _ in range(90)))
        await settled(server)
    shutil.rmtree(directory / "heads")
    shutil.move(tmp_path / "heads", directory / "heads")
    shutil.rmtree(directory / "log")
    async with restarted(directory, 3) as server:
        assert await reasons(server) == (503, ["log_forked"])
    assert signed_sizes(directory) == []
    assert any("is not the one that was signed" in item for item in await problems(directory))


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
async def test_a_head_that_cannot_be_used_stops_the_log(tmp_path: Path, content: bytes | None) -> None:
    """Damaged, empty, or signed by somebody else: nobody knows what was signed."""
    directory = tmp_path / "data"
    await scene(directory)
    head = directory / "heads" / NAME
    if content is None:
        seen = Checkpoint.parse(Note.parse(head.read_bytes()).text)
        content = LogKeys(tmp_path / "other").note(seen, START)
    head.write_bytes(content)
    async with restarted(directory, 2) as server:
        assert await reasons(server) == (503, ["checkpoint_unusable"])


async def test_a_directory_of_an_older_version_gets_its_heads(tmp_path: Path) -> None:
    directory = tmp_path / "data"
    async with restarted(directory, 0) as server:
        await server.enrolled()
        await settled(server)
    shutil.rmtree(directory / "heads")
    async with restarted(directory) as server:
        assert await reasons(server) == (200, [])
    assert (directory / "heads" / NAME).read_bytes() == (directory / LOG / "checkpoint").read_bytes()


async def test_readopting_asks_the_heads_too(tmp_path: Path) -> None:
    """Files older than what was signed are not enough; a checkpoint file that is one behind is, for the entries are there."""
    directory = tmp_path / "data"
    _, _, _, heads = await scene(directory)
    note, whole = (directory / LOG / "checkpoint").read_bytes(), tmp_path / "whole"
    shutil.copytree(directory, whole)
    older = LogKeys(directory / "keys").note(heads[0], START)
    (whole / LOG / "checkpoint").write_bytes(older)
    assert [item.after for item in await readopted(whole)] == [heads[-1].size]
    async with restarted(whole, 3) as server:
        assert await reasons(server) == (200, [])
    assert (whole / LOG / "checkpoint").read_bytes() == note
    shutil.rmtree(directory / LOG)
    with pytest.raises(LogStopped) as caught:
        await readopted(directory)
    assert caught.value.code == "log_restored"


def test_only_a_larger_checkpoint_replaces_one(tmp_path: Path) -> None:
    heads, keys = LogHeads(tmp_path / "heads"), LogKeys(tmp_path / "keys")
    first, same = (keys.note(Checkpoint("s/clinic-1/2026", 5, RootHash(bytes([n]) * 32)), START) for n in (1, 2))
    smaller, larger = (keys.note(Checkpoint("s/clinic-1/2026", n, RootHash(bytes(32))), START) for n in (4, 6))
    heads.keep("clinic-1", 2026, first)
    for note, code in ((smaller, "log_restored"), (same, "log_forked")):
        with pytest.raises(LogStopped) as caught:
            heads.keep("clinic-1", 2026, note)
        assert caught.value.code == code
        assert heads.get("clinic-1", 2026) == first
    heads.keep("clinic-1", 2026, larger)
    assert (heads.get("clinic-1", 2026), heads.known()) == (larger, [("clinic-1", 2026)])
    assert heads.get("clinic-1", 2025) is None
