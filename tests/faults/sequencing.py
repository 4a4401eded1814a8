"""A sequencer over a real database and real files that can be stopped at every write, and a judge of what it leaves.

`python -m tests.faults.sequencing` is a nursery: for each line `START AT DIR` on its standard input it forks a process that runs
the scene and kills itself (SIGKILL) at the write number AT. That prints `A <seq>` when an entry is promised and `V <base64 note>`
when a checkpoint is visible; `E <exit status, negative for a signal>` ends it. A fork saves the half second that an interpreter
takes to read the store.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, root_of
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import FULL, Tile, encode_entries, written
from compliance_agent.log.tree import Edge
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import NewLeaf, Site, Store, Transaction, Work
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.services.board import Board
from compliance_agent.server.store import SqlStore
from compliance_agent.server.store.packed_entry import unpacked

SITE = "clinic-1"
KEY = "k" * 64
BATCHES = (2, 251, 9, 300)  # the first two fill the first tile but for two entries; the next goes over its edge
NEW_YEAR_BEFORE = 3  # this batch is sequenced in the year after


class Crash(BaseException):
    """The process is gone: nothing that runs afterwards may catch this."""


def crash() -> None:
    raise Crash


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@dataclass
class Points:
    """Counts writes; at number `at` it acts (before the write, or after it took effect)."""

    at: int = 0
    act: Callable[[], None] = crash
    names: list[str] = field(default_factory=list)

    def hit(self, name: str) -> None:
        self.names.append(name)
        if len(self.names) == self.at:
            self.act()


class WatchedFiles(LogFiles):
    """The real files; each write is a point, and each visible checkpoint is told."""

    def __init__(self, root: Path, points: Points, visible: Callable[[bytes], None]) -> None:
        super().__init__(root)
        self._points = points
        self._visible = visible

    def put(self, site_id: str, year: int, tile: Tile, content: bytes) -> None:
        self._points.hit(f"before {tile.path}")
        super().put(site_id, year, tile, content)
        self._points.hit(f"after {tile.path}")

    def publish(self, site_id: str, year: int, note: bytes) -> None:
        self._points.hit("before checkpoint file")
        super().publish(site_id, year, note)
        self._visible(note)
        self._points.hit("after checkpoint file")

    def drop_partials(self, site_id: str, year: int, tiles: Iterable[Tile]) -> None:
        super().drop_partials(site_id, year, tiles)
        self._points.hit("after dropping partial tiles")


class WatchedHeads(LogHeads):
    """The real heads; each writing is two points."""

    def __init__(self, directory: Path, points: Points) -> None:
        super().__init__(directory / "heads")
        self._points = points

    def keep(self, site_id: str, year: int, note: bytes) -> None:
        self._points.hit("before head")
        super().keep(site_id, year, note)
        self._points.hit("after head")


class WatchedStore:
    """The real store; each transaction is two points."""

    def __init__(self, store: SqlStore, points: Points) -> None:
        self._store = store
        self._points = points

    async def write(self, work: Work[Any], sites: Iterable[str] | None = None) -> Any:
        self._points.hit("before transaction")
        done = await self._store.write(work, sites)
        self._points.hit("after transaction")
        return done

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@dataclass
class Said:
    """What came out: entries that were promised, and checkpoints that were visible."""

    acked: set[int] = field(default_factory=set)
    notes: list[bytes] = field(default_factory=list)

    def promise(self, seqs: Iterable[int]) -> None:
        self.acked |= set(seqs)

    def see(self, note: bytes) -> None:
        self.notes.append(note)


class Ticking:
    """A clock that advances by a millisecond whenever it is looked at."""

    def __init__(self, start: datetime) -> None:
        self.now = start

    def __call__(self) -> datetime:
        self.now += timedelta(milliseconds=1)
        return self.now


def leaf(seq: int) -> bytes:
    return bundle_leaf(KEY, 0, seq, "0" * 64, hashlib.sha256(str(seq).encode()).hexdigest(), bytes(64))


async def ensure_site(store: Store, now: datetime) -> None:
    await store.write(lambda tx: tx.add_site(Site(SITE, "msp", now)))


async def decide(store: Store, seqs: Sequence[int], now: datetime) -> None:
    """What ingest does in its transaction."""
    leaves = [NewLeaf(SITE, leaf(seq), KEY, 0, seq) for seq in seqs]

    async def work(tx: Transaction) -> None:
        await tx.add_leaves(leaves, now)

    await store.write(work)


def sequencer_over(
    directory: Path,
    store: Any,
    files: LogFiles,
    clock: Callable[[], datetime],
    kind: type[Sequencer] = Sequencer,
    heads: LogHeads | None = None,
) -> tuple[Sequencer, Board]:
    board = Board()
    heads = LogHeads(directory / "heads") if heads is None else heads
    return kind(store, files, LogKeys(directory / "keys"), heads, board, clock, name="msp", interval_s=0.001), board


async def scene(
    directory: Path, start: datetime, points: Points, said: Said, kind: type[Sequencer] = Sequencer
) -> dict[str, str]:
    """Recover, then promise and sequence what of the batches is not there yet; the reasons for which a log stands still."""
    directory.mkdir(exist_ok=True)
    real = await SqlStore.open(directory / "server.db")
    shards = await real.for_sites(await real.all_sites()).shards()
    newest = [max(shard.sequenced_at, shard.published_at or start) for shard in shards]
    clock = Ticking(max([start, *newest]))  # time goes on between two runs
    try:
        await ensure_site(real, clock())
        held = _seqs(directory)
        files = WatchedFiles(directory / "log", points, said.see)
        sequencer, board = sequencer_over(
            directory, WatchedStore(real, points), files, clock, kind, WatchedHeads(directory, points)
        )
        await sequencer.recover()
        await sequencer.round()
        first = 1
        for number, size in enumerate(BATCHES):
            if number == NEW_YEAR_BEFORE:
                clock.now = max(clock.now, datetime(2027, 1, 1, tzinfo=UTC))
            seqs = [seq for seq in range(first, first + size) if seq not in held]
            first += size
            if seqs:
                points.hit("before ingest")
                await decide(real, seqs, clock())
                said.promise(seqs)
                points.hit("after ingest")
                await sequencer.round()
        return board.stopped | board.paused
    finally:
        await real.close()


def _seqs(directory: Path) -> set[int]:
    with _rows(directory) as database:
        return {seq for (seq,) in database.execute("SELECT seq FROM log_entries WHERE seq IS NOT NULL")}


def _rows(directory: Path) -> Any:
    return contextlib.closing(sqlite3.connect(f"file:{directory}/server.db?mode=ro", uri=True))


def check(directory: Path, said: Said, *, whole: bool = True) -> None:
    """Whatever happened: what was promised is there once, and nothing that was ever visible is contradicted.

    With `whole`, a sequencer has run to the end since: everything is published, and the files are as they are served.
    """
    with _rows(directory) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        shards = database.execute(
            "SELECT year, size, root, checkpoint, checkpoint_size, origin FROM log_shards ORDER BY year"
        ).fetchall()
        entries = database.execute(
            "SELECT year, leaf_index, seq, leaf FROM log_entries ORDER BY year, leaf_index"
        ).fetchall()
    promised = [seq for _, _, seq, _ in entries if seq is not None]
    assert len(promised) == len(set(promised)), "an entry is there twice"
    assert said.acked <= set(promised), "a promised entry is lost"
    leaves = {year: [(index, unpacked(leaf)) for y, index, _, leaf in entries if y == year] for year, *_ in shards}
    for year, size, root, note, signed_size, origin in shards:
        assert [index for index, _ in leaves[year]] == list(range(size)), "indexes have a gap, or one is used twice"
        assert root_of(b"".join(hash_leaf(leaf) for _, leaf in leaves[year])) == root, (
            "the root is not that of the leaves"
        )
        visible = directory / "log" / SITE / str(year) / "checkpoint"
        shown = Checkpoint.parse(Note.parse(visible.read_bytes()).text) if visible.exists() else None
        assert shown is None or shown.size <= signed_size, "a checkpoint was visible before it was in the database"
        kept = LogHeads(directory / "heads").get(SITE, year)
        head = Checkpoint.parse(Note.parse(kept).text) if kept is not None else None
        assert shown is None or (head is not None and head.size >= shown.size), "a head was visible before it was kept"
        assert head is None or head.size <= signed_size, "a head was kept before it was in the database"
        assert not whole or (note is not None and signed_size == size and visible.read_bytes() == note)
        if whole:
            _check_files(directory / "log" / SITE / str(year), [leaf for _, leaf in leaves[year]])
        assert origin == f"msp/{SITE}/{year}"
    if whole and len(shards) == 2:
        previous = base64.b64encode(shards[0][3])
        assert b'"previous":"' + previous + b'"' in leaves[2027][0][1], "the year before is not bound"
    for note in [*said.notes, *(path.read_bytes() for path in (directory / "log").glob("*/*/checkpoint"))]:
        seen = Checkpoint.parse(Note.parse(note).text)
        first = leaves[int(seen.origin.rpartition("/")[2])][: seen.size]
        assert len(first) == seen.size, "a visible checkpoint is ahead of the log"
        assert root_of(b"".join(hash_leaf(leaf) for _, leaf in first)) == seen.root, (
            "a visible checkpoint is contradicted"
        )


def _check_files(directory: Path, leaves: list[bytes]) -> None:
    """Every file of the final tree is there with the right bytes, by way of growing it once more from nothing."""
    _, tiles = Edge().grow(map(hash_leaf, leaves))
    wanted = dict(tiles)
    for tile in written(0, len(leaves)):
        part = leaves[tile.index * FULL :][: tile.width]
        expected = wanted[tile] if tile.level >= 0 else encode_entries(part)
        assert (directory / tile.path).read_bytes() == expected, tile.path


def main() -> None:
    """Scenes, each in a process of its own."""
    for line in iter(sys.stdin.readline, ""):
        start, at, directory = line.rstrip("\n").split(" ", 2)
        child = os.fork()
        if not child:
            _born(Path(directory), datetime.fromisoformat(start), int(at))
        print("E", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def _born(directory: Path, start: datetime, at: int) -> NoReturn:
    class Printing(Said):
        def promise(self, seqs: Iterable[int]) -> None:
            print("A", *seqs, flush=True)

        def see(self, note: bytes) -> None:
            print("V", base64.b64encode(note).decode(), flush=True)

    status = 1
    try:
        asyncio.run(scene(directory, start, Points(at, kill), Printing()))
        status = 0
    except Exception:  # whatever it was, this process is a fork and must end here
        traceback.print_exc()
    finally:
        os._exit(status)


if __name__ == "__main__":
    main()
