"""Is every log what it says it is? All of it computed once more, from the rows and from the files, and held against what was signed.

rows    the entries, counted from 0 without a gap, give the root that is held, and the root that was signed
files   the entry bundles hold the same entries, every tile of the signed tree has the bytes it must have
heads   the signed checkpoint is the visible one, and verifies under the log's key
bundles every stored bundle has its entry, which names its digest, place and signature

Memory is bounded by the largest tile: entries are read in bundles of 256.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries
from compliance_agent.log.tree import Edge
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Shard, SiteReader, Store

_CHUNK = 500
MOST_PROBLEMS = 20  # per log; the first ones say enough


@dataclass
class Finding:
    """One log and what is wrong with it."""

    site_id: str
    year: int
    size: int
    signed: int
    bundles: int = 0
    pending: int = 0
    problems: list[str] = field(default_factory=list)

    def says(self, problem: str) -> None:
        """Note a problem, while there is room."""
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)


class Fsck:
    """Reads only; a server may run beside it, whose newest entries may then be missed."""

    def __init__(self, store: Store, files: LogFiles, keys: LogKeys) -> None:
        self._store = store
        self._files = files
        self._keys = keys

    async def run(self) -> AsyncIterator[Finding]:
        """One finding for each log; a site's bundles are counted with its newest."""
        sites = await self._store.all_sites()
        shards = await self._store.for_sites(sites).shards()
        newest = {shard.site_id: shard.year for shard in shards}
        for shard in shards:
            finding = Finding(shard.site_id, shard.year, shard.size, shard.checkpoint_size)
            reader = self._store.for_sites({shard.site_id})
            signed = self._head(shard, finding)
            await self._tree(reader, shard, signed, finding)
            if newest[shard.site_id] == shard.year:
                await self._bundles(reader, finding)
            yield finding
        for site_id in sorted(sites - newest.keys()):
            finding = Finding(site_id, 0, 0, 0)
            await self._bundles(self._store.for_sites({site_id}), finding)
            yield finding
        for site_id, year in await asyncio.to_thread(self._files.known):
            if (site_id, year) not in {(shard.site_id, shard.year) for shard in shards}:
                yield Finding(site_id, year, 0, 0, problems=["is published, and not in the database"])

    def _head(self, shard: Shard, finding: Finding) -> Checkpoint | None:
        """The checkpoint in the row, verified; the visible one must be it, or an older one of a server that runs."""
        try:
            signed, visible = (self._verified(shard, note) for note in (shard.checkpoint, self._visible(shard)))
        except (BadEvidence, NoInput) as error:
            finding.says(f"checkpoint: {error}")
            return None
        if signed is None:
            finding.says("checkpoint: none was signed")
        elif visible is None:
            finding.says("checkpoint: none is published")
        elif visible.size < signed.size:
            finding.says(f"checkpoint: published {visible.size} entries, signed {signed.size}")
        elif visible.size > signed.size:
            finding.says(
                f"checkpoint: published {visible.size} entries, the database signed {signed.size} (a restored backup?)"
            )
        elif visible != signed:
            finding.says(f"checkpoint: another root is published for {signed.size} entries")
        return signed

    def _visible(self, shard: Shard) -> bytes | None:
        return self._files.published(shard.site_id, shard.year)

    def _verified(self, shard: Shard, note: bytes | None) -> Checkpoint | None:
        if note is None:
            return None
        parsed = Note.parse(note)
        parsed.verify([self._keys.verifier(shard.origin)])
        checkpoint = Checkpoint.parse(parsed.text)
        if checkpoint.origin != shard.origin:
            raise BadEvidence(f"is of another log than {shard.origin}", code="bad_checkpoint")
        return checkpoint

    async def _tree(self, reader: SiteReader, shard: Shard, signed: Checkpoint | None, finding: Finding) -> None:
        """Grow the log once more from its rows, and hold each file of the signed tree against what it must be."""
        edge, files_edge, limit = Edge(), Edge(), signed.size if signed is not None else 0
        ends = sorted({*range(FULL, shard.size, FULL), limit, shard.size} - {0})
        for end in ends:
            leaves = await reader.leaves(shard.site_id, shard.year, edge.size, end)
            if len(leaves) != end - edge.size:
                finding.says(f"entries {edge.size} to {end - 1}: {len(leaves)} are held")
                return
            edge, _ = edge.grow(map(hash_leaf, leaves))
            if end <= limit and (end % FULL == 0 or end == limit):
                files_edge = await asyncio.to_thread(self._files_of, shard, files_edge, end, edge, finding)
            if end == limit and signed is not None and edge.root() != signed.root:
                finding.says(f"root of {end} entries is not the one that was signed")
        if edge.root() != shard.root or edge.size != shard.size:
            finding.says(f"root of {shard.size} entries is not the one that is held")
        if signed is not None and files_edge.size == limit and files_edge.root() != signed.root:
            finding.says(f"root of {limit} entries in files is not the one that was signed")

    def _files_of(self, shard: Shard, before: Edge, end: int, rows: Edge, finding: Finding) -> Edge:
        """The tree as its entry bundles show it, grown to `end`; every tile that this finishes is compared."""
        index = before.size // FULL
        width = end - index * FULL
        try:
            entries = self._entries(shard, Tile(ENTRIES, index, width))
        except (BadEvidence, NoInput):
            finding.says(f"{Tile(ENTRIES, index, width).path}: missing or damaged")
            return before
        after, tiles = before.grow(map(hash_leaf, entries))
        if after != rows:
            finding.says(f"{Tile(ENTRIES, index, width).path}: does not hold the entries of the database")
        for tile, content in tiles:
            if tile.width == FULL or end == finding.signed:
                self._compare(shard, tile, content, finding)
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
