"""A log as the database holds it, read whole and held against everything that was ever shown of it.

What is read here is where a sequencer goes on, and what a replica that follows it shows. Nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

from compliance_agent.errors import BadEvidence, LogStopped, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf, verify_consistency
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import Edge, TileReader, TileTree
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Leaf, Shard, Store
from compliance_agent.server.services.growth import Files, Tree, edge_from_tiles, edge_of


@dataclass(frozen=True)
class Growth:
    """What one round did to one log: committed, not yet published."""

    old: bytes | None  # the checkpoint before
    tree: Tree
    files: Files
    leaves: tuple[Leaf, ...] = ()


class LogReading:
    """Reads logs.

    Args:
        store: holds the truth.
        files: what is served here.
        keys: whose checkpoints are believed.
        heads: the largest checkpoint of each log that was ever seen here.
    """

    def __init__(self, store: Store, files: LogFiles, keys: LogKeys, heads: LogHeads) -> None:
        self._store = store
        self._files = files
        self._keys = keys
        self._heads = heads

    async def read(self, shard: Shard) -> tuple[Growth, bytes | None]:
        """The log as the database holds it, with the files that may be missing; and the checkpoint that is visible here.

        Args:
            shard: with its edge, or without: then nobody appends to it here.

        Raises:
            LogStopped: the rows contradict each other, or what is or was visible.
        """
        site_id, year = shard.site_id, shard.year
        try:
            visible = await asyncio.to_thread(self._files.published, site_id, year)
            signed = self.verified(shard, shard.checkpoint)
            seen = self.verified(shard, visible)
            head = self.verified(shard, await asyncio.to_thread(self._heads.get, site_id, year))
        except (BadEvidence, NoInput) as error:
            raise LogStopped(f"log {shard.origin}: {error}", code="checkpoint_unusable") from error
        for shown in (seen, head):
            if shown is not None and shown.size > shard.size:
                raise LogStopped(
                    f"log {shard.origin}: published {shown.size} entries, the database holds {shard.size}",
                    code="log_restored",
                )
        old = await self._edge_at(shard, seen)
        growth = await self._from(shard, old)
        if growth is None and old.size:  # what is visible here may be of another tree: then it does not begin this one
            growth = await self._from(shard, Edge())
        if growth is None:
            raise LogStopped(f"log {shard.origin}: entries do not give the root that is held", code="log_damaged")
        for held in (signed, seen, head):
            if held is not None:
                await self.hold(shard, held, dict(growth.files))
        return growth, visible

    async def _from(self, shard: Shard, old: Edge) -> Growth | None:
        """The tree and its files, grown from an older one; None when that does not give the root that is held."""
        leaves = await self._store.for_sites({shard.site_id}).leaves(
            shard.site_id, shard.year, old.size // FULL * FULL, shard.size
        )
        known = shard.size - old.size
        before = Tree(replace(shard, size=old.size), old, tuple(leaves[: len(leaves) - known]))
        tree, files = before.grown(leaves[len(leaves) - known :], shard.sequenced_at)
        whole = shard if shard.edge else replace(shard, edge=tree.shard.edge)
        unfinished = b"".join(map(hash_leaf, tree.tail))
        if tree.shard != whole or unfinished != (tree.edge.levels[0] if tree.edge.levels else b""):
            return None
        return Growth(shard.checkpoint, tree, files if known else [])

    def verified(self, shard: Shard, note: bytes | None) -> Checkpoint | None:
        """What a note says that our key has signed for this log.

        Raises:
            BadEvidence: it is none.
        """
        if note is None:
            return None
        found = Note.parse(note)
        found.verify([self._keys.verifier(shard.origin)])
        checkpoint = Checkpoint.parse(found.text)
        if checkpoint.origin != shard.origin:
            raise BadEvidence("checkpoint is of another log", code="bad_checkpoint")
        return checkpoint

    async def hold(self, shard: Shard, seen: Checkpoint, new: Mapping[Tile, bytes]) -> None:
        """Whatever was signed or shown must be a prefix of what the database holds; tiles say it fast, entries for certain.

        Raises:
            LogStopped: `log_forked`, it is not.
        """
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

    async def _edge_at(self, shard: Shard, seen: Checkpoint | None) -> Edge:
        """The edge under the checkpoint that is visible here: from the log's row, from tiles, or else from all entries.

        Empty when nothing is visible, and when nothing leads to what is: then all files are written again, or are contradicted.
        """
        if seen is None:
            return Edge()
        with contextlib.suppress(BadEvidence, NoInput):
            if seen.size == shard.size and shard.edge:
                edge = edge_of(shard.size, shard.edge)
            else:
                edge = await asyncio.to_thread(edge_from_tiles, seen.size, self._reader(shard, {}))
            if edge.root() == seen.root:
                return edge
        edge = await self._edge_of_entries(shard, seen.size)
        return edge if edge.root() == seen.root else Edge()

    async def _edge_of_entries(self, shard: Shard, size: int) -> Edge:
        leaves = await self._store.for_sites({shard.site_id}).leaves(shard.site_id, shard.year, 0, size)
        if len(leaves) != size:
            raise LogStopped(f"log {shard.origin}: {len(leaves)} of {size} entries are held", code="log_damaged")
        return Edge().grow(map(hash_leaf, leaves))[0]

    def _reader(self, shard: Shard, new: Mapping[Tile, bytes]) -> TileReader:
        def read(level: int, index: int, width: int) -> bytes:
            tile = Tile(level, index, width)
            ours = new.get(tile)
            return self._files.read(shard.site_id, shard.year, tile) if ours is None else ours

        return read
