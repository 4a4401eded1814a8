"""Logs that another replica sequences, shown here too: from the database, each tree computed anew under its signed checkpoint.

A replica has files of its own, so no disk is shared. What the one on duty has committed and signed is read, grown into the same
tiles, and shown only when the root that comes out is the signed one. The largest checkpoint is kept beside (`LogHeads`) as
everywhere: a replica remembers what a restored database does not.

Whoever was shown a checkpoint by one replica must not be shown a smaller one by another, which would look like a log that was
set back. So before a replica answers for a log that it only follows, it catches up (`look`, for that site).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import timedelta

from compliance_agent.errors import AgentError
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import FULL
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.log_reading import LogReading
from compliance_agent.server.records import Clock, Leaf, NewestHead, Shard, Store
from compliance_agent.server.services.board import Board, Head
from compliance_agent.server.services.growth import Files, Tree
from compliance_agent.server.stillness import Stillness, is_waited_out

Place = tuple[str, int]
MOST_WARM = 65_536  # entries that are told to whoever waits for receipts; more than that were not waited for


class Following:
    """Follows logs. Used by one task at a time.

    Args:
        store, files, keys, heads, board, clock: of the server.
        still: where it is said that a log stands still.
        patience: how long a checkpoint waits for its witnesses before receipts go out under it; None when there are none.
    """

    def __init__(
        self,
        store: Store,
        files: LogFiles,
        keys: LogKeys,
        heads: LogHeads,
        board: Board,
        clock: Clock,
        still: Stillness,
        patience: timedelta | None = None,
    ) -> None:
        self._store = store
        self._files = files
        self._keys = keys
        self._heads = heads
        self._board = board
        self._clock = clock
        self._still = still
        self._patience = patience
        self._reading = LogReading(store, files, keys, heads)
        self.behind: set[str] = set()  # sites of which less is shown here than by others
        self._trees: dict[Place, Tree] = {}
        self._shown: dict[Place, NewestHead] = {}
        self._untold: dict[Place, list[Leaf]] = {}  # entries whose checkpoint waits for its witnesses

    def forget(self, site_id: str) -> None:
        """It is sequenced here from now on, or not any more."""
        self.behind.discard(site_id)
        for place in [place for place in self._trees if place[0] == site_id]:
            del self._trees[place]
            self._shown.pop(place, None)

    async def look(self, sites: Collection[str], ours: Callable[[str], bool]) -> None:
        """Show what is new of these sites' logs, but of those that are ours."""
        followed = {site for site in sites if not ours(site) and not self._stopped(site)}
        if not followed:
            return
        for head in await self._store.for_sites(followed).newest_heads():
            place = head.site_id, head.year
            if head.size == 0 or self._shown.get(place) == head or self._stopped(head.site_id):
                continue
            try:
                await self._follow(head)
                self._still.well(head.site_id)
                self.behind.discard(head.site_id)
            except (AgentError, OSError) as error:
                self._trees.pop(place, None)
                self.behind.add(head.site_id)
                await self._failed(head, error)

    def _stopped(self, site_id: str) -> bool:
        """Whether it was stopped here; what others have stopped is shown as far as it is signed."""
        return site_id in self._board.stopped and site_id not in self._still.elsewhere

    async def _failed(self, head: NewestHead, error: AgentError | OSError) -> None:
        """The next look tries it again in any case; whoever sequences is not told to."""
        if is_waited_out(error):
            self._still.pause(head.site_id, getattr(error, "code", ""))
        elif getattr(error, "code", "") != "log_restored" or not await self._has_moved(head):
            self._still.stop(head.site_id, error)

    async def _has_moved(self, head: NewestHead) -> bool:
        """Whether the database has gone on since, so that what was shown elsewhere is not ahead of it."""
        found = await self._store.for_sites({head.site_id}).newest_heads()
        return any(one.year == head.year and one.size > head.size for one in found)

    async def _follow(self, head: NewestHead) -> None:
        place = head.site_id, head.year
        reader = self._store.for_sites({head.site_id})
        shard = next(one for one in await reader.shards() if one.year == head.year)
        signed = self._reading.verified(shard, shard.checkpoint)
        if signed is None or shard.checkpoint is None:
            return
        tree, files, leaves = await self._grown(shard, signed)
        note = await self._note(shard, head, signed)
        if not self._files.remote:  # in a bucket it has been shown to everybody
            await asyncio.to_thread(self._show, tree.shard, files, shard.checkpoint, note)
        self._trees[place] = tree
        self._post(shard, signed, note or shard.checkpoint, leaves)
        if note is not None or self._patience is None or self._is_late(shard):
            self._shown[place] = head._replace(size=signed.size)

    async def _grown(self, shard: Shard, signed: Checkpoint) -> tuple[Tree, Files, list[Leaf]]:
        """The tree under the signed checkpoint, with the files that are new here."""
        held = self._trees.get((shard.site_id, shard.year))
        at = replace(shard, size=signed.size, root=signed.root, edge=b"")
        if held is not None and held.shard.size <= signed.size <= held.shard.size + MOST_WARM:
            start = held.shard.size
            new = await self._store.for_sites({shard.site_id}).placed(shard.site_id, shard.year, start, signed.size)
            tree, files = held.grown([leaf.leaf for leaf in new], shard.sequenced_at)
            if len(new) == signed.size - start and tree.edge.root() == signed.root:
                return Tree(replace(at, edge=tree.shard.edge), tree.edge, tree.tail), files if new else [], new
        growth, _ = await self._reading.read(at)
        return growth.tree, growth.files, []

    async def _note(self, shard: Shard, head: NewestHead, signed: Checkpoint) -> bytes | None:
        """The checkpoint with the lines of its witnesses, where it has them already."""
        if head.cosigned_size != signed.size:
            return None
        found = await self._store.for_sites({shard.site_id}).cosigned(shard.site_id, shard.year)
        if found is None or found[0] != signed.size or Note.parse(found[1]).text != signed.text:
            return None
        return found[1] if self._reading.verified(shard, found[1]) is not None else None

    def _show(self, shard: Shard, files: Files, signed: bytes, note: bytes | None) -> None:
        site_id, year = shard.site_id, shard.year
        for tile, content in files:
            self._files.put(site_id, year, tile, content)
        self._heads.keep(site_id, year, signed)
        self._keys.show(site_id, year, shard.origin)
        visible = self._files.published(site_id, year)
        if visible is None or note is not None or Note.parse(visible).text != Note.parse(signed).text:
            self._files.publish(site_id, year, note or signed)
        self._files.drop_partials(site_id, year, (tile for tile, _ in files if tile.width == FULL))

    def _post(self, shard: Shard, signed: Checkpoint, note: bytes, leaves: list[Leaf]) -> None:
        """Receipts go out under it; while witnesses are asked, those who wait may wait a little for their lines."""
        place = shard.site_id, shard.year
        leaves, known = [*self._untold.pop(place, []), *leaves], self._board.heads.get(place)
        cosigned = self._patience is None or len(Note.parse(note).signatures) > len(
            Note.parse(shard.checkpoint or note).signatures
        )
        if known is not None and known.size < signed.size and not cosigned and not self._is_late(shard):
            self._untold[place] = leaves
            return
        at = shard.published_at or shard.sequenced_at
        self._board.post(*place, Head(signed.size, note, at), leaves)

    def _is_late(self, shard: Shard) -> bool:
        at = shard.published_at or shard.sequenced_at
        return self._patience is not None and self._clock() - at > self._patience
