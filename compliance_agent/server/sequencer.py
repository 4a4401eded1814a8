"""The one task that gives log entries their indexes, and publishes what they grow into (the rules of Sunlight and Tessera).

Each round, for every site with pending entries:

1. one transaction: indexes, size, root and edge, by compare-and-swap on the size this sequencer holds;
2. the files of the growth, durable, never with other bytes than a path has;
3. the signed checkpoint into the log's row, by compare-and-swap, before anybody can see it;
4. the same beside the database (`LogHeads`), then the checkpoint file.

A crash after any of them is mended at the next start from the database alone: committed entries keep their indexes for ever, and
files are derived from them again. The database must never be rolled back: when what was visible is ahead of it, or is not a
prefix of it, the log stands still, loudly, and evidence goes on being taken. So it does when the state of a write is unknown and
reading again would not tell. A clock that did not advance, a full disk, and a database that is away, are waited out.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

import structlog

from compliance_agent.errors import AgentError, BadEvidence, LogStopped, NoInput, StorageError, StorageFull
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf, verify_consistency
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import Edge, TileReader, TileTree
from compliance_agent.logs import where
from compliance_agent.server.cosigning import Cosigning
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Clock, Leaf, PendingLeaf, Shard, Store, Transaction
from compliance_agent.server.services.board import Board, Head
from compliance_agent.server.services.growth import Files, Tree, edge_from_tiles, edge_of

ALL_SITES = ""
AT_MOST = 4_096  # entries in one round
CLOSING_S = 3.0
PATIENCE_S = 2.0  # between rounds while something is waited out
# Not written, or (a COMMIT to PostgreSQL without an answer) to be read again: a log is only grown by compare-and-swap.
# What a bucket did not take, or did not say that it took, is written again from the database.
WAITED_OUT = frozenset({"busy", "database_away", "commit_unknown", "blobs_away", "blobs_refused"})

log = structlog.get_logger()


@dataclass(frozen=True)
class Growth:
    """What one round did to one log: committed, not yet published."""

    old: bytes | None  # the checkpoint before
    tree: Tree
    files: Files
    leaves: tuple[Leaf, ...] = ()


class Sequencer:
    """Owns the logs. Exactly one may run on a data directory; a second one is stopped by the compare-and-swap.

    Args:
        store: holds the truth.
        files: what is served.
        keys: sign checkpoints.
        heads: remember the largest checkpoint of each log, whatever becomes of the store and the files.
        board: where heads, new entries and reasons to stand still are posted.
        clock: gives the time, which must advance from round to round.
        name: of the server, in the origin of new logs.
        cosigning: asks witnesses about each checkpoint before receipts are made under it; the board alone when not given.
        interval_s: between rounds.
        batch: pending entries that begin a round before the interval is over.
    """

    def __init__(
        self,
        store: Store,
        files: LogFiles,
        keys: LogKeys,
        heads: LogHeads,
        board: Board,
        clock: Clock,
        *,
        name: str,
        cosigning: Cosigning | None = None,
        interval_s: float = 0.25,
        batch: int = 256,
    ) -> None:
        self._store = store
        self._files = files
        self._keys = keys
        self._heads = heads
        self._board = board
        self._clock = clock
        self._name = name
        self._cosigning = cosigning
        self._posting = board if cosigning is None else cosigning
        if cosigning is not None:
            cosigning.show, cosigning.contradicted, cosigning.noted = self.show_cosigned, self.hold_against, self.notify
        self._interval_s = interval_s
        self._batch = batch
        self._trees: dict[str, Tree] = {}
        self._again: set[str] = set()  # sites to read again before they go on; ALL_SITES for every one
        self._said: dict[str, str] = {}  # codes of pauses that were logged; repeats are not
        self._noted = 0
        self._due = asyncio.Event()
        self._closing = False
        self._one = asyncio.Lock()  # rounds do not overlap, whoever asks for one

    # --- running --------------------------------------------------------------------------------

    def notify(self, count: int) -> None:
        """So many entries were decided just now."""
        self._noted += count
        if self._noted >= self._batch:
            self._due.set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Recover, then sequence until the block ends; what is pending by then is still published."""
        await self.recover()
        task = asyncio.create_task(self._run())
        self._board.sequencing = True
        try:
            yield
        finally:
            self._closing = True
            self._due.set()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task, CLOSING_S)
            self._board.sequencing = False
            self._board.turn()

    async def _run(self) -> None:
        while not self._closing:
            wait_s = max(self._interval_s, PATIENCE_S) if self._board.paused else self._interval_s
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), wait_s)
            self._due.clear()
            while await self.round() >= AT_MOST and not self._closing:
                pass

    async def recover(self) -> None:
        """Read every log, write out what a crash has left, and stand still where that would contradict what was published."""
        shards = await self._store.for_sites(await self._store.all_sites()).shards()
        held = {(shard.site_id, shard.year) for shard in shards}
        for site_id, year in await asyncio.to_thread(lambda: sorted({*self._files.known(), *self._heads.known()})):
            if (site_id, year) not in held:
                self._stop(site_id, LogStopped(f"log {site_id}/{year}: not in the database", code="log_restored"))
        if self._cosigning is not None:
            newest = {shard.site_id: shard for shard in shards}  # they come in the order of their years
            asked = await asyncio.gather(*map(self._cosigning.latest, newest.values()))
            for shard, seen in zip(newest.values(), asked, strict=True):
                await self._hold_all(shard, seen)
        for shard in shards:
            await self._recover_site(shard)

    async def show_cosigned(self, site_id: str, year: int, note: bytes) -> bool:
        """Make a checkpoint visible with the lines that were added to it, unless a newer one is by now; whether it was."""
        async with self._one:
            visible = await asyncio.to_thread(self._files.published, site_id, year)
            if visible is None or not _same_text(visible, note):
                return False
            await asyncio.to_thread(self._files.publish, site_id, year, note)
            return True

    async def hold_against(self, site_id: str, seen: list[Checkpoint]) -> None:
        """What was signed by our key and shown elsewhere must be a prefix of what is held; else that site's log stands still."""
        async with self._one:
            for shard in await self._store.for_sites({site_id}).shards():
                await self._hold_all(shard, [checkpoint for checkpoint in seen if checkpoint.origin == shard.origin])

    async def _hold_all(self, shard: Shard, seen: Sequence[Checkpoint]) -> None:
        for checkpoint in seen:
            try:
                if checkpoint.size > shard.size:
                    raise LogStopped(
                        f"log {shard.origin}: a witness cosigned {checkpoint.size} entries, the database holds {shard.size}",
                        code="log_restored",
                    )
                await self._hold(shard, checkpoint, {})
            except LogStopped as error:
                self._stop(shard.site_id, error)

    async def round(self) -> int:
        """Sequence and publish what is pending, at most AT_MOST entries; how many that were. Raises nothing."""
        self._noted = 0
        try:
            async with self._one:
                return await self._round()
        except (StorageError, LogStopped) as error:
            self._failed(ALL_SITES, error)
        except Exception as error:
            log.error("log.crashed", error=type(error).__name__, where=where(error))
            self._failed(ALL_SITES, LogStopped("a bug in the sequencer; it was logged", code="sequencer_crashed"))
        return 0

    async def _round(self) -> int:
        if ALL_SITES in self._board.stopped:
            return 0
        try:
            await self._read_again()
            now = self._clock()
            sites = self._ready(await self._store.all_sites(), now)
            if not sites or not await self._store.for_sites(sites).any_pending():
                return 0
        except StorageError as error:  # nothing was to be written yet
            self._wait_out(ALL_SITES, error.code)
            return 0
        growths = await self._store.write(lambda tx: self._commit(tx, sites, now), sites)
        for growth in growths:
            self._trees[growth.tree.shard.site_id] = growth.tree
        await self._publish(growths, now)
        return sum(len(growth.leaves) for growth in growths)

    # --- 1: indexes -----------------------------------------------------------------------------

    async def _commit(self, tx: Transaction, sites: frozenset[str], now: datetime) -> list[Growth]:
        pending: dict[str, list[PendingLeaf]] = {}
        for leaf in await tx.pending_leaves(sites, AT_MOST):
            pending.setdefault(leaf.site_id, []).append(leaf)
        return [await self._grow(tx, site_id, leaves, now) for site_id, leaves in pending.items()]

    async def _grow(self, tx: Transaction, site_id: str, pending: list[PendingLeaf], now: datetime) -> Growth:
        before = self._trees.get(site_id)
        old = before.shard.checkpoint if before is not None else None
        files: Files = []
        if before is None or before.shard.year < now.year:
            origin = f"{self._name}/{site_id}/{now.year}"
            if before is not None and before.shard.checkpoint_size != before.shard.size:
                raise LogStopped(f"log {before.shard.origin}: its year ends unpublished", code="unpublished")
            tree, first, files = Tree.opened(site_id, origin, old, now)
            if not await tx.open_shard(tree.shard, first):
                raise _elsewhere(site_id)
            old = None
        else:
            tree = before
        start = tree.shard.size
        grown, more = tree.grown([item.leaf for item in pending], now)
        if not await tx.grow_shard(grown.shard, old_size=start):
            raise _elsewhere(site_id)
        if not await tx.place_leaves(site_id, grown.shard.year, start, [item.number for item in pending]):
            raise _elsewhere(site_id)
        leaves = tuple(
            Leaf(site_id, grown.shard.year, index, item.leaf, item.key_id, item.epoch, item.seq)
            for index, item in enumerate(pending, start)
        )
        return Growth(old, grown, _latest(files, more), leaves)

    # --- 2, 3, 4: files, checkpoint, publication ------------------------------------------------

    async def _publish(self, growths: Sequence[Growth], now: datetime) -> None:
        """Write, sign, save, show: one site's failure is not another's."""
        signed = [self._signed(growth, now) for growth in await self._each(growths, self._write_files)]
        if signed:
            await self._store.write(lambda tx: self._save(tx, signed))
        for growth in await self._each(signed, self._show):
            shard = growth.tree.shard
            self._trees[shard.site_id] = growth.tree
            self._well(shard.site_id)
            self._well(ALL_SITES)
            self._posting.post(shard.site_id, shard.year, _head(shard, shard.checkpoint), growth.leaves)

    async def _each(self, growths: Sequence[Growth], act: Callable[[Growth], None]) -> list[Growth]:
        """Do this for each in threads, as it is waiting for the disk above all; those for which it was done."""

        async def one(growth: Growth) -> bool:
            try:
                await asyncio.to_thread(act, growth)
            except (AgentError, OSError) as error:
                self._failed(growth.tree.shard.site_id, error)
                return False
            return True

        done = await asyncio.gather(*map(one, growths))
        return [growth for growth, well in zip(growths, done, strict=True) if well]

    def _write_files(self, growth: Growth) -> None:
        shard = growth.tree.shard
        for tile, content in growth.files:
            self._files.put(shard.site_id, shard.year, tile, content)

    def _signed(self, growth: Growth, now: datetime) -> Growth:
        note = self._keys.note(growth.tree.checkpoint, now)
        shard = replace(growth.tree.shard, checkpoint=note, checkpoint_size=growth.tree.shard.size, published_at=now)
        return replace(growth, tree=replace(growth.tree, shard=shard))

    async def _save(self, tx: Transaction, growths: Sequence[Growth]) -> None:
        for growth in growths:
            if not await tx.save_checkpoint(growth.tree.shard, old=growth.old):
                raise _elsewhere(growth.tree.shard.site_id)

    def _show(self, growth: Growth) -> None:
        shard = growth.tree.shard
        self._heads.keep(shard.site_id, shard.year, shard.checkpoint or b"")
        self._keys.show(shard.site_id, shard.year, shard.origin)
        self._files.publish(shard.site_id, shard.year, shard.checkpoint or b"")
        full = [tile for tile, _ in growth.files if tile.width == FULL]
        if full:
            self._files.keep(shard.site_id, shard.year, shard.checkpoint or b"")
        self._files.drop_partials(shard.site_id, shard.year, full)

    # --- recovery -------------------------------------------------------------------------------

    async def _recover_site(self, shard: Shard) -> None:
        if shard.site_id in self._board.stopped:
            return
        try:
            growth, visible = await self._read(shard)
        except StorageError as error:
            self._wait_out(shard.site_id, error.code)
            return
        except (AgentError, OSError) as error:
            self._stop(shard.site_id, error)
            return
        try:
            now = self._clock()
            if growth.files:
                await asyncio.to_thread(self._write_files, growth)
            if shard.checkpoint is None or shard.checkpoint_size < shard.size:
                growth = self._signed(growth, max(now, shard.sequenced_at))
                await self._store.write(lambda tx: self._save(tx, [growth]))
            signed = growth.tree.shard.checkpoint or b""
            if visible is None or not _same_text(visible, signed):
                visible = signed
                await asyncio.to_thread(self._show, growth)
            else:  # a directory from before heads were kept
                await asyncio.to_thread(self._heads.keep, shard.site_id, shard.year, signed)
        except (AgentError, OSError) as error:
            self._failed(shard.site_id, error)
            return
        self._trees[shard.site_id] = growth.tree
        self._board.paused.pop(shard.site_id, None)
        self._posting.post(shard.site_id, shard.year, _head(growth.tree.shard, visible))  # with the lines it had

    async def _read(self, shard: Shard) -> tuple[Growth, bytes | None]:
        """The log as the database holds it, with the files that may be missing; and the checkpoint that is visible.

        Raises:
            LogStopped: the rows contradict each other, or what is visible.
        """
        site_id, year, size = shard.site_id, shard.year, shard.size
        reader = self._store.for_sites({site_id})
        try:
            visible = await asyncio.to_thread(self._files.published, site_id, year)
            signed = self._verified(shard, shard.checkpoint)
            seen = self._verified(shard, visible)
            head = self._verified(shard, await asyncio.to_thread(self._heads.get, site_id, year))
        except (BadEvidence, NoInput) as error:
            raise LogStopped(f"log {shard.origin}: {error}", code="checkpoint_unusable") from error
        for shown in (seen, head):
            if shown is not None and shown.size > size:
                raise LogStopped(
                    f"log {shard.origin}: published {shown.size} entries, the database holds {size}",
                    code="log_restored",
                )
        begun = signed if visible is not None else None  # nothing to be seen: write all of it again
        old = await self._edge_at(shard, begun)
        leaves = await reader.leaves(site_id, year, old.size // FULL * FULL, size)
        known = size - old.size
        before = Tree(replace(shard, size=old.size), old, tuple(leaves[: len(leaves) - known]))
        tree, files = before.grown(leaves[len(leaves) - known :], shard.sequenced_at)
        unfinished = b"".join(map(hash_leaf, tree.tail))
        if tree.shard != shard or unfinished != (tree.edge.levels[0] if tree.edge.levels else b""):
            raise LogStopped(f"log {shard.origin}: entries do not give the root that is held", code="log_damaged")
        for held in (signed, seen, head):
            if held is not None:
                await self._hold(shard, held, dict(files))
        return Growth(shard.checkpoint, Tree(shard, tree.edge, tree.tail), files if known else []), visible

    def _verified(self, shard: Shard, note: bytes | None) -> Checkpoint | None:
        if note is None:
            return None
        found = Note.parse(note)
        found.verify([self._keys.verifier(shard.origin)])
        checkpoint = Checkpoint.parse(found.text)
        if checkpoint.origin != shard.origin:
            raise BadEvidence("checkpoint is of another log", code="bad_checkpoint")
        return checkpoint

    async def _edge_at(self, shard: Shard, signed: Checkpoint | None) -> Edge:
        """The edge under the checkpoint that was signed last: from its row, its tiles, or else from all entries."""
        if signed is None:
            return Edge()
        with contextlib.suppress(BadEvidence, NoInput):
            if signed.size == shard.size:
                edge = edge_of(shard.size, shard.edge)
            else:
                edge = await asyncio.to_thread(edge_from_tiles, signed.size, self._reader(shard))
            if edge.root() == signed.root:
                return edge
        edge = await self._edge_of_entries(shard, signed.size)
        if edge.root() != signed.root:
            raise LogStopped(f"log {shard.origin}: entries contradict the signed checkpoint", code="log_damaged")
        return edge

    async def _edge_of_entries(self, shard: Shard, size: int) -> Edge:
        leaves = await self._store.for_sites({shard.site_id}).leaves(shard.site_id, shard.year, 0, size)
        if len(leaves) != size:
            raise LogStopped(f"log {shard.origin}: {len(leaves)} of {size} entries are held", code="log_damaged")
        return Edge().grow(map(hash_leaf, leaves))[0]

    async def _hold(self, shard: Shard, seen: Checkpoint, new: dict[Tile, bytes]) -> None:
        """Whatever was signed or shown must be a prefix of what the database holds; tiles say it fast, entries for certain."""
        tree = TileTree(shard.size, self._reader(shard, new))
        with contextlib.suppress(BadEvidence, NoInput):
            path = await asyncio.to_thread(tree.consistency, seen.size)
            verify_consistency(seen.size, shard.size, path, seen.root, RootHash(shard.root))
            return
        if (await self._edge_of_entries(shard, seen.size)).root() != seen.root:
            raise LogStopped(
                f"log {shard.origin}: the checkpoint of {seen.size} entries is not a prefix of the {shard.size} held",
                code="log_forked",
            )

    def _reader(self, shard: Shard, new: dict[Tile, bytes] | None = None) -> TileReader:
        def read(level: int, index: int, width: int) -> bytes:
            tile = Tile(level, index, width)
            ours = (new or {}).get(tile)
            return self._files.read(shard.site_id, shard.year, tile) if ours is None else ours

        return read

    async def _read_again(self) -> None:
        """After a failure that left everything in a known state: back to what the database says."""
        if not self._again:
            return
        sites = await self._store.all_sites()
        shards = await self._store.for_sites(sites if ALL_SITES in self._again else sites & self._again).shards()
        self._again = set()
        self._board.paused.pop(ALL_SITES, None)
        for shard in shards:
            await self._recover_site(shard)

    # --- standing still -------------------------------------------------------------------------

    def _ready(self, sites: frozenset[str], now: datetime) -> frozenset[str]:
        """The sites that may go on: not stopped, read again since the last failure, and later than their last round."""
        if ALL_SITES in self._again or ALL_SITES in self._board.stopped:
            return frozenset()
        ready = sites - self._board.stopped.keys() - self._again
        newest = {site: self._trees[site].shard for site in ready & self._trees.keys()}
        last = {site: max(shard.sequenced_at, shard.published_at or now) for site, shard in newest.items()}
        for site, at in last.items():
            if at > now:
                self._pause(site, "clock_not_advanced")
            elif self._board.paused.get(site) == "clock_not_advanced":
                del self._board.paused[site]
        return frozenset(site for site in ready if site not in last or last[site] < now)

    def _failed(self, site_id: str, error: Exception) -> None:
        """Wait out what is certainly not written, or what reading again will tell; stop on everything else."""
        if isinstance(error, StorageFull) or (isinstance(error, StorageError) and error.code in WAITED_OUT):
            self._wait_out(site_id, error.code)
        else:
            self._stop(site_id, error)

    def _wait_out(self, site_id: str, code: str) -> None:
        self._again.add(site_id)
        self._pause(site_id, code)

    def _pause(self, site_id: str, code: str) -> None:
        if self._said.get(site_id) != code:
            log.error("log.paused", code=code, site_id=site_id or None)
        self._said[site_id] = self._board.paused[site_id] = code
        self._board.turn()

    def _well(self, site_id: str) -> None:
        self._board.paused.pop(site_id, None)
        if self._said.pop(site_id, None) is not None:
            log.info("log.resumed", site_id=site_id or None)

    def _stop(self, site_id: str, error: Exception) -> None:
        code = "write_unknown" if isinstance(error, StorageError | OSError) else getattr(error, "code", "log_stopped")
        if site_id not in self._board.stopped:
            log.critical("log.stopped", code=code, site_id=site_id or None)
        self._board.stopped.setdefault(site_id, code)
        self._board.turn()


def _elsewhere(site_id: str) -> LogStopped:
    return LogStopped(f"log of {site_id}: another sequencer has grown it", code="sequenced_elsewhere")


def _head(shard: Shard, note: bytes | None) -> Head:
    return Head(shard.checkpoint_size, note or b"", shard.published_at or shard.sequenced_at)


def _same_text(one: bytes, other: bytes) -> bool:
    """Whether two notes are one checkpoint, whoever else has signed either."""
    return Note.parse(one).text == Note.parse(other).text


def _latest(first: Files, second: Files) -> Files:
    """Files of two growths in one round, without the partial ones that nobody will see."""
    seen = {(tile.level, tile.index) for tile, _ in second}
    return [item for item in first if (item[0].level, item[0].index) not in seen] + second
