"""The task that gives log entries their indexes, and publishes what they grow into (the rules of Sunlight and Tessera).

Each round, for every site with pending entries:

1. one transaction: indexes, size, root and edge, by compare-and-swap on the size this sequencer holds;
2. the files of the growth, durable, never with other bytes than a path has;
3. the signed checkpoint into the log's row, by compare-and-swap, before anybody can see it;
4. the same beside the database (`LogHeads`), then the checkpoint file.

Of several replicas one does this for a site at a time (services.duties): 1 and 3 carry the epoch of its duty, and are refused once
another epoch began; the compare-and-swap is the last wall behind that. What others sequence is followed (following.py).

A crash after any of them is mended at the next start from the database alone: committed entries keep their indexes for ever, and
files are derived from them again. The database must never be rolled back: when what was visible is ahead of it, or is not a
prefix of it, the log stands still, loudly, and evidence goes on being taken. So it does when the state of a write is unknown and
reading again would not tell. A clock that did not advance, a full disk, and a database that is away, are waited out.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from compliance_agent.errors import AgentError, LogStopped, OffDuty, StorageError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import FULL
from compliance_agent.logs import where
from compliance_agent.server.cosigning import Cosigning
from compliance_agent.server.following import Following
from compliance_agent.server.log_duties import LogDuties
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.log_reading import Growth, LogReading
from compliance_agent.server.log_stops import LogStops, going_on
from compliance_agent.server.records import Clock, Leaf, PendingLeaf, Shard, Store, Transaction
from compliance_agent.server.services.board import Board, Head
from compliance_agent.server.services.duties import Duties
from compliance_agent.server.services.growth import Files, Tree
from compliance_agent.server.stillness import ALL_SITES, Stillness

AT_MOST = 4_096  # entries in one round
CLOSING_S = 3.0
PATIENCE_S = 2.0  # between rounds while something is waited out

log = structlog.get_logger()


class Sequencer:
    """Owns the logs that are its duty. One may run on a data directory.

    Args:
        store: holds the truth.
        files: what is served.
        keys: sign checkpoints.
        heads: remember the largest checkpoint of each log, whatever becomes of the store and the files.
        board: where heads, new entries and reasons to stand still are posted.
        clock: gives the time, which must advance from round to round.
        name: of the server, in the origin of new logs.
        duties: which logs this process sequences; all of them, whatever others do, when not given.
        cosigning: asks witnesses about each checkpoint before receipts are made under it; the board alone when not given.
        interval_s: between rounds, while there is something for each; after a pause the first entry begins one at once.
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
        duties: Duties | None = None,
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
        self._duties = LogDuties(duties)
        if cosigning is not None:
            cosigning.fence = self._duties.fence
        self._gained: set[str] = set()  # sites whose witnesses are asked before they go on
        self._still = Stillness(board)
        self._stops = LogStops(store, self._still, clock)
        self._reading = LogReading(store, files, keys, heads)
        patience = timedelta(seconds=cosigning.deadline_s) if cosigning is not None and cosigning.witnesses else None
        self._following = Following(store, files, keys, heads, board, clock, self._still, patience)
        self._noted = 0
        self._time = time.monotonic
        self._round_at = self._time()
        self._due = asyncio.Event()
        self._closing = False
        self._one = asyncio.Lock()  # rounds do not overlap, whoever asks for one

    # --- running --------------------------------------------------------------------------------

    def notify(self, count: int) -> None:
        """So many entries were decided just now. A round begins when they are many, or when there was none for an interval."""
        self._noted += count
        calm = self._time() - self._round_at >= self._interval_s and not self._board.paused
        if self._noted >= self._batch or (count and calm):
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
            called = self._due.is_set()
            self._due.clear()
            while (grown := await self.round()) >= AT_MOST and not self._closing:
                pass
            if called or grown:  # the log of another process may not have grown here
                self._round_at = self._time()
            with contextlib.suppress(StorageError):  # the next round says it
                await self.follow()

    async def recover(self) -> None:
        """Read every log, write out what a crash has left, and stand still where that would contradict what was published."""
        sites = await self._store.all_sites()
        self._take_up(sites)
        shards = await self._store.for_sites(sites).shards()
        held = {(shard.site_id, shard.year) for shard in shards}
        for site_id, year in await asyncio.to_thread(lambda: sorted({*self._files.known(), *self._heads.known()})):
            if (site_id, year) not in held:
                self._still.stop(site_id, LogStopped(f"log {site_id}/{year}: not in the database", code="log_restored"))
        if self._duties.shared:
            await self._stops.hear(sites)
        ours = [shard for shard in shards if shard.site_id in self._duties.ours(sites)]
        await self._ask_witnesses(ours)
        self._still.again, self._gained = self._still.again - sites, set()
        try:
            for shard in ours:
                await self._recover_site(shard)
        except OffDuty:
            self._still.again.add(ALL_SITES)
        await self.follow()

    async def _ask_witnesses(self, shards: Sequence[Shard]) -> None:
        """What they hold of these logs must be a prefix of what is held here."""
        if self._cosigning is None:
            return
        newest = {shard.site_id: shard for shard in shards}  # they come in the order of their years
        asked = await asyncio.gather(*map(self._cosigning.latest, newest.values()))
        for shard, seen in zip(newest.values(), asked, strict=True):
            await self._hold_all(shard, seen)

    # --- whose turn it is -----------------------------------------------------------------------

    def leads(self, site_id: str) -> bool:
        """Whether this process sequences this site's log, and has read it."""
        read = self._still.again.isdisjoint({site_id, ALL_SITES}) and site_id not in self._still.elsewhere
        return read and self._duties.holds(site_id)

    async def current(self, site_id: str) -> None:
        """See to it that what is shown here of a site's log is not older than what any other replica has shown.

        Raises:
            StorageError: nobody can tell.
        """
        if not self.leads(site_id):
            await self.follow(site_id)
            if site_id in self._following.behind:
                raise StorageError(f"log of {site_id}: not all of it can be shown here", code="log_behind")

    async def follow(self, site_id: str | None = None) -> None:
        """Show what other replicas have published: of every site, or of one."""
        if not self._duties.shared:
            return
        async with self._one:
            sites = await self._store.all_sites() if site_id is None else {site_id}
            if site_id is None:
                await self._stops.hear(sites)
            await self._following.look(sites, self.leads)
            await self._stops.tell(sites)

    def _take_up(self, sites: frozenset[str]) -> None:
        """What became our duty is read before it goes on; what is not any more is let go."""
        for site_id, ours in self._duties.look(sites).items():
            self._trees.pop(site_id, None)
            self._following.forget(site_id)
            self._board.paused.pop(site_id, None)
            if self._cosigning is not None:
                self._cosigning.forget(site_id)
            for noted in (self._still.again, self._gained):
                (noted.add if ours else noted.discard)(site_id)

    async def show_cosigned(self, site_id: str, year: int, note: bytes) -> bool:
        """Make a checkpoint visible with the lines that were added to it, unless a newer one is by now; whether it was."""
        async with self._one:
            visible = await asyncio.to_thread(self._files.published, site_id, year)
            if visible is None or not _same_text(visible, note):
                return False
            await asyncio.to_thread(self._files.publish, site_id, year, note)
        if self._duties.shared:
            await self._store.write(lambda tx: self._tell(tx, site_id, year, note), {site_id})
        return True

    async def _tell(self, tx: Transaction, site_id: str, year: int, note: bytes) -> None:
        await self._duties.fence(tx, {site_id})
        await tx.save_cosigned(site_id, year, Checkpoint.parse(Note.parse(note).text).size, note)

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
                await self._reading.hold(shard, checkpoint, {})
            except LogStopped as error:
                self._still.stop(shard.site_id, error)

    async def round(self) -> int:
        """Sequence and publish what is pending, at most AT_MOST entries; how many that were. Raises nothing."""
        self._noted = 0
        try:
            async with self._one:
                return await self._round()
        except OffDuty:
            self._still.again.add(ALL_SITES)  # what is still ours goes on from what the database says
        except (StorageError, LogStopped) as error:
            self._still.failed(ALL_SITES, error)
        except Exception as error:
            log.error("log.crashed", error=type(error).__name__, where=where(error))
            self._still.failed(ALL_SITES, LogStopped("a bug in the sequencer; it was logged", code="sequencer_crashed"))
        return 0

    async def _round(self) -> int:
        if ALL_SITES in self._board.stopped:
            return 0
        try:
            known = await self._store.all_sites()
            self._take_up(known)
            await self._read_again(known)
            now = self._clock()
            sites = self._ready(self._duties.ours(known), now)
            if not sites or not await self._store.for_sites(sites).any_pending():
                return 0
        except StorageError as error:  # nothing was to be written yet
            self._still.wait_out(ALL_SITES, error.code)
            return 0
        growths = await self._store.write(lambda tx: self._commit(tx, sites, now), sites)
        for growth in growths:
            self._trees[growth.tree.shard.site_id] = growth.tree
        await self._publish(growths, now)
        return sum(len(growth.leaves) for growth in growths)

    # --- 1: indexes -----------------------------------------------------------------------------

    async def _commit(self, tx: Transaction, sites: frozenset[str], now: datetime) -> list[Growth]:
        await self._duties.fence(tx, sites)
        if self._duties.shared:
            sites = await going_on(tx, sites)
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
            signed = await self._store.write(lambda tx: self._save(tx, signed))
        for growth in await self._each(signed, self._show):
            shard = growth.tree.shard
            self._trees[shard.site_id] = growth.tree
            self._still.well(shard.site_id)
            self._still.well(ALL_SITES)
            self._posting.post(shard.site_id, shard.year, _head(shard, shard.checkpoint), growth.leaves)

    async def _each(self, growths: Sequence[Growth], act: Callable[[Growth], None]) -> list[Growth]:
        """Do this for each in threads, as it is waiting for the disk above all; those for which it was done."""

        async def one(growth: Growth) -> bool:
            try:
                await asyncio.to_thread(act, growth)
            except (AgentError, OSError) as error:
                site_id = growth.tree.shard.site_id
                if self._duties.holds(site_id):
                    self._still.failed(site_id, error)
                else:  # another replica has gone on meanwhile
                    self._still.again.add(site_id)
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

    async def _save(self, tx: Transaction, growths: Sequence[Growth]) -> list[Growth]:
        """Those that may be shown."""
        sites = frozenset(growth.tree.shard.site_id for growth in growths)
        await self._duties.fence(tx, sites)
        going = await going_on(tx, sites) if self._duties.shared else sites
        saved = [growth for growth in growths if growth.tree.shard.site_id in going]
        for growth in saved:
            if not await tx.save_checkpoint(growth.tree.shard, old=growth.old):
                raise _elsewhere(growth.tree.shard.site_id)
        return saved

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
            growth, visible = await self._reading.read(shard)
        except StorageError as error:
            self._still.wait_out(shard.site_id, error.code)
            return
        except (AgentError, OSError) as error:
            self._still.stop(shard.site_id, error)
            return
        try:
            now = self._clock()
            if growth.files:
                await asyncio.to_thread(self._write_files, growth)
            if shard.checkpoint is None or shard.checkpoint_size < shard.size:
                growth = self._signed(growth, max(now, shard.sequenced_at))
                if not await self._store.write(lambda tx: self._save(tx, [growth])):
                    return
            signed = growth.tree.shard.checkpoint or b""
            if visible is None or not _same_text(visible, signed):
                visible = signed
                await asyncio.to_thread(self._show, growth)
            else:  # a directory from before heads were kept
                await asyncio.to_thread(self._heads.keep, shard.site_id, shard.year, signed)
        except OffDuty:
            raise
        except (AgentError, OSError) as error:
            self._still.failed(shard.site_id, error)
            return
        self._trees[shard.site_id] = growth.tree
        self._board.paused.pop(shard.site_id, None)
        self._posting.post(shard.site_id, shard.year, _head(growth.tree.shard, visible))  # with the lines it had

    async def _read_again(self, sites: frozenset[str]) -> None:
        """Back to what the database says: after a failure that left everything in a known state, and for a log that became ours."""
        if not self._still.again:
            return
        ours = self._duties.ours(sites)
        wanted = ours if ALL_SITES in self._still.again else ours & self._still.again
        shards = await self._store.for_sites(wanted).shards()
        await self._ask_witnesses([shard for shard in shards if shard.site_id in self._gained])
        self._still.again, self._gained = set(), set()
        self._board.paused.pop(ALL_SITES, None)
        for shard in shards:
            await self._recover_site(shard)

    # --- standing still -------------------------------------------------------------------------

    def _ready(self, sites: frozenset[str], now: datetime) -> frozenset[str]:
        """The sites that may go on: not stopped, read again since the last failure, and later than their last round."""
        if ALL_SITES in self._still.again or ALL_SITES in self._board.stopped:
            return frozenset()
        ready = sites - self._board.stopped.keys() - self._still.again
        newest = {site: self._trees[site].shard for site in ready & self._trees.keys()}
        last = {site: max(shard.sequenced_at, shard.published_at or now) for site, shard in newest.items()}
        for site, at in last.items():
            if at > now:
                self._still.pause(site, "clock_not_advanced")
            elif self._board.paused.get(site) == "clock_not_advanced":
                del self._board.paused[site]
        return frozenset(site for site in ready if site not in last or last[site] < now)


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
