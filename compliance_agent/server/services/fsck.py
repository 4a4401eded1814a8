"""Is every log what it says it is? All of it computed once more, from rows and from files, and held against what was signed.

rows    the entries, counted from 0 without a gap, give the root that is held, and the root that was signed
files   the entry bundles hold the same entries, every tile of the signed tree has the bytes it must have
locks   where the store can hold a file, it holds every full one
heads   the signed checkpoint is the visible one, verifies under the log's key, and none larger was ever signed
bundles every stored bundle has its entry, which names the digest of its bytes, its place and signature

Memory is bounded by the largest tile: entries are read in bundles of 256.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import date

from compliance_agent.core.retention import kept_until
from compliance_agent.entries.minimum import NAME
from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES, LeafHash, hash_leaf
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import ENTRIES, FULL, TILE_BYTES, Tile, decode_entries
from compliance_agent.log.tree import Edge
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Shard, SiteReader, Store

_CHUNK = 500
MOST_PROBLEMS = 20  # per log; the first ones say enough


@dataclass
class Finding:
    """One log and what is wrong with it; `pruned` entries from the first on were destroyed, and their files removed."""

    site_id: str
    year: int
    size: int
    signed: int
    bundles: int = 0
    pending: int = 0
    pruned: int = 0
    problems: list[str] = field(default_factory=list)

    def says(self, problem: str) -> None:
        """Note a problem, while there is room."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)


class Fsck:
    """Reads only; a server may run beside it, whose newest entries may then be missed."""

    def __init__(self, store: Store, files: LogFiles, keys: LogKeys, heads: LogHeads) -> None:
        self._store = store
        self._files = files
        self._keys = keys
        self._ever = heads

    async def run(self) -> AsyncIterator[Finding]:
        """One finding for each log; a site's bundles are counted with its newest."""
        visible, ever = await asyncio.to_thread(self._shown)  # before the rows, which are never behind what is visible
        sites = await self._store.all_sites()
        shards = await self._store.for_sites(sites).shards()
        newest = {shard.site_id: shard.year for shard in shards}
        for shard in shards:
            finding = Finding(shard.site_id, shard.year, shard.size, shard.checkpoint_size)
            reader, place = self._store.for_sites({shard.site_id}), (shard.site_id, shard.year)
            seen, signed = self._heads(shard, visible.get(place), finding)
            head = self._ever_signed(shard, ever.get(place), finding)
            await self._minimum(reader, shard, finding)
            await self._tree(reader, shard, [seen, head], signed, finding)
            if newest[shard.site_id] == shard.year:
                await self._bundles(reader, finding)
            yield finding
        for site_id in sorted(sites - newest.keys()):
            finding = Finding(site_id, 0, 0, 0)
            await self._bundles(self._store.for_sites({site_id}), finding)
            yield finding
        for site_id, year in (visible.keys() | ever.keys()) - {(shard.site_id, shard.year) for shard in shards}:
            yield Finding(site_id, year, 0, 0, problems=["is published, and not in the database"])

    async def _minimum(self, reader: SiteReader, shard: Shard, finding: Finding) -> None:
        """Entries that were destroyed are no damage, when the log says so and the database agrees."""
        held = await reader.minimum(shard.site_id, shard.year)
        index = held.index if held is not None else 0
        try:
            said = await asyncio.to_thread(self._files.pruned, shard.site_id, shard.year)
            published = said.of(shard.origin, shard.size) if said is not None else None
        except (BadEvidence, NoInput) as error:
            finding.says(str(error))
            return
        finding.pruned = published.first_served if published is not None else 0
        if (published.minimum if published is not None else 0) != index:
            at = published.minimum if published is not None else 0
            finding.says(f"{NAME}: says minimum index {at}, the database {index}: run server retention prune again")

    def _shown(self) -> tuple[dict[tuple[str, int], bytes], dict[tuple[str, int], bytes]]:
        """What is visible, and the largest that ever was."""
        visible = {place: self._files.published(*place) for place in self._files.known()}
        ever = {place: self._ever.get(*place) for place in self._ever.known()}
        return (
            {place: note for place, note in visible.items() if note is not None},
            {place: note for place, note in ever.items() if note is not None},
        )

    def _heads(self, shard: Shard, note: bytes | None, finding: Finding) -> tuple[Checkpoint | None, Checkpoint | None]:
        """The visible checkpoint and the one in the row, verified. The first may be older, just before it is replaced."""
        try:
            seen, signed = (self._verified(shard, item) for item in (note, shard.checkpoint))
        except (BadEvidence, NoInput) as error:
            finding.says(f"checkpoint: {error}")
            return None, None
        if signed is None:
            finding.says("checkpoint: none was signed")
        elif seen is None:
            finding.says("checkpoint: none is published")
        elif seen.size > signed.size:
            finding.says(
                f"checkpoint: published {seen.size} entries, the database signed {signed.size} (restored backup?)"
            )
        return seen, signed

    def _ever_signed(self, shard: Shard, note: bytes | None, finding: Finding) -> Checkpoint | None:
        try:
            head = self._verified(shard, note)
        except (BadEvidence, NoInput) as error:
            finding.says(f"heads: {error}")
            return None
        if head is not None and head.size > shard.size:
            finding.says(f"heads: {head.size} entries were signed, the database holds {shard.size} (restored backup?)")
        return head

    def _verified(self, shard: Shard, note: bytes | None) -> Checkpoint | None:
        if note is None:
            return None
        parsed = Note.parse(note)
        parsed.verify([self._keys.verifier(shard.origin)])
        checkpoint = Checkpoint.parse(parsed.text)
        if checkpoint.origin != shard.origin:
            raise BadEvidence(f"is of another log than {shard.origin}", code="bad_checkpoint")
        return checkpoint

    async def _tree(
        self,
        reader: SiteReader,
        shard: Shard,
        shown: list[Checkpoint | None],
        signed: Checkpoint | None,
        finding: Finding,
    ) -> None:
        """Grow the log once more from its rows, and hold each file of the signed tree against what it must be."""
        edge, files, limit = Edge(), Edge(), signed.size if signed is not None else 0
        roots = [(item.size, item.root) for item in (*shown, signed) if item is not None]
        ends = {*range(FULL, shard.size, FULL), *(size for size, _ in roots if size <= shard.size), shard.size}
        for end in sorted(ends - {0}):
            leaves = await reader.leaves(shard.site_id, shard.year, edge.size, end)
            if len(leaves) != end - edge.size:
                finding.says(f"entries {edge.size} to {end - 1}: {len(leaves)} are held")
                return
            edge, _ = edge.grow(map(hash_leaf, leaves))
            if any(end == size and edge.root() != root for size, root in roots):
                finding.says(f"root of {end} entries is not the one that was signed")
            if end == limit or (end < limit and end % FULL == 0):
                files = await asyncio.to_thread(self._files_of, shard, files, end, edge, finding)
        if edge.root() != shard.root or edge.size != shard.size:
            finding.says(f"root of {shard.size} entries is not the one that is held")

    def _files_of(self, shard: Shard, before: Edge, end: int, rows: Edge, finding: Finding) -> Edge:
        """The tree as its entry bundles show it, grown to `end`; every tile that this finishes is compared."""
        index = before.size // FULL
        width = end - index * FULL
        if finding.pruned > index * FULL:
            return self._pruned_tile(shard, before, rows, finding)
        try:
            entries = self._entries(shard, Tile(ENTRIES, index, width))
        except (BadEvidence, NoInput):
            finding.says(f"{Tile(ENTRIES, index, width).path}: missing or damaged")
            return before
        after, tiles = before.grow(map(hash_leaf, entries))
        if after != rows:
            finding.says(f"{Tile(ENTRIES, index, width).path}: does not hold the entries of the database")
        for tile, content in tiles:
            if tile.width == FULL:
                self._compare(shard, tile, content, finding)
        if width == FULL:
            self._held(shard, Tile(ENTRIES, index), finding)
        for level, row in enumerate(after.levels if end == finding.signed else ()):
            if row:
                tile = Tile(level, (end >> 8 * level) // FULL, len(row) // HASH_BYTES)
                self._compare(shard, tile, row, finding)
        return after

    def _pruned_tile(self, shard: Shard, before: Edge, rows: Edge, finding: Finding) -> Edge:
        """In place of entries that were destroyed: their hashes from the tile, which must be those of the database."""
        index = before.size // FULL
        try:
            content = self._files.exactly(shard.site_id, shard.year, Tile(0, index))
        except NoInput:
            content = b""
        if len(content) != TILE_BYTES:
            finding.says(f"{Tile(0, index).path}: missing or damaged")
            return rows
        after, tiles = before.grow(LeafHash(content[at : at + HASH_BYTES]) for at in range(0, TILE_BYTES, HASH_BYTES))
        if after != rows:
            finding.says(f"{Tile(0, index).path}: other bytes than the tree has")
            return rows
        for tile, expected in tiles:
            if tile.width == FULL:
                self._compare(shard, tile, expected, finding)
        return after

    def _entries(self, shard: Shard, tile: Tile) -> list[bytes]:
        try:
            return decode_entries(self._files.exactly(shard.site_id, shard.year, tile), tile.width)
        except NoInput:  # the full bundle may have replaced a partial one meanwhile
            whole = self._files.exactly(shard.site_id, shard.year, Tile(ENTRIES, tile.index))
            return decode_entries(whole, FULL)[: tile.width]

    def _compare(self, shard: Shard, tile: Tile, content: bytes, finding: Finding) -> None:
        try:
            found = self._files.read(shard.site_id, shard.year, tile)
        except NoInput:
            finding.says(f"{tile.path}: missing")
            return
        if found[: len(content)] != content:
            finding.says(f"{tile.path}: other bytes than the tree has")
        if tile.width == FULL:
            self._held(shard, tile, finding)

    def _held(self, shard: Shard, tile: Tile, finding: Finding) -> None:
        """Where the store can hold a file, it does, for the six years at least that the first day of this log asks for."""
        if not self._files.blobs.locks:
            return
        lock, due = self._files.lock(shard.site_id, shard.year, tile), kept_until(date(shard.year, 1, 1))
        if lock is None:
            finding.says(f"{tile.path}: the store does not hold it")
        elif lock.until.date() <= due:
            finding.says(f"{tile.path}: the store holds it until {lock.until:%Y-%m-%d}, which is before {due}")

    async def _bundles(self, reader: SiteReader, finding: Finding) -> None:
        after = 0
        while rows := await reader.signed_places(finding.site_id, after, _CHUNK):
            for number, expected, held, integrated in rows:
                after = number
                finding.bundles += 1
                finding.pending += held is not None and not integrated
                if held is None:
                    finding.says(f"bundle number {number}: has no entry")
                elif held != expected:
                    finding.says(f"bundle number {number}: its entry says something else")
        for number in await reader.emptied_early(finding.site_id):
            finding.says(f"bundle number {number}: its bytes are gone, and no minimum index covers it")
