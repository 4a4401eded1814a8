"""A database that was restored from a backup takes back what its logs had published meanwhile.

The files of a log are ahead of such a database, and the log stands still (`log_restored`), for two trees of one size must never be
signed. Here the entries that the database lacks are read from the entry bundles, grown on top of those it holds, and adopted only
when the tree they give has exactly the root of the newest checkpoint that is published, or that `heads/` remembers, signed by
this log's own key. Indexes and root go on.
Everything else is refused, with nothing written: files that are damaged or lost, a database that is no
prefix of what was signed, and a host that has signed another record for a place that is in the log.

An entry holds digests and signatures, not the record itself. Hosts that keep their records send them again, from the place that
check-in names; ingestion holds each against the entry that is already there. Revocations are carried out again. What
is in no entry does not come back: the API key of a host that was enrolled after the backup; it must enrol anew.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, replace
from typing import Any

from compliance_agent.errors import BadEvidence, LogStopped, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries
from compliance_agent.log.tree import Edge
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Clock, NewLeaf, Shard, Store, Transaction


@dataclass(frozen=True)
class Readopted:
    """What became of one log.

    Attributes:
        before, after: entries that the database held, and holds now; equal when there was nothing to take back.
        records: entries of records among those that were taken back; hosts send what the database lacks of them.
        enrolled: keys whose enrolment was among them; those hosts must enrol anew.
        revoked: keys that were revoked again.
    """

    site_id: str
    year: int
    before: int
    after: int
    records: int = 0
    enrolled: int = 0
    revoked: int = 0


class Readopt:
    """Works on a data directory that no server runs on."""

    def __init__(self, store: Store, files: LogFiles, keys: LogKeys, heads: LogHeads, clock: Clock, name: str) -> None:
        self._store = store
        self._files = files
        self._keys = keys
        self._heads = heads
        self._clock = clock
        self._name = name

    async def run(self) -> list[Readopted]:
        """Every published log, in order.

        Raises:
            LogStopped: a log cannot be taken back; nothing of it was changed, those before it were taken back.
        """
        sites = await self._store.all_sites()
        held = {(shard.site_id, shard.year): shard for shard in await self._store.for_sites(sites).shards()}
        found = []
        known = await asyncio.to_thread(lambda: {*self._files.known(), *self._heads.known()})
        for site_id, year in sorted(known):
            if site_id not in sites:
                raise LogStopped(
                    f"log {site_id}/{year}: the database does not know this clinic",
                    code="log_restored",
                    hint="restore a backup from after the clinic was added",
                )
            found.append(await self._one(site_id, year, held.get((site_id, year))))
        return found

    async def _one(self, site_id: str, year: int, shard: Shard | None) -> Readopted:
        origin = shard.origin if shard is not None else f"{self._name}/{site_id}/{year}"
        try:
            note, seen = await asyncio.to_thread(self._published, site_id, year, origin)
            before = shard.size if shard is not None else 0
            if seen.size <= before:
                return Readopted(site_id, year, before, before)
            edge = await self._edge(site_id, year, shard)
            gone = await asyncio.to_thread(self._files.pruned, site_id, year)
            if gone is not None and gone.first_served > before:
                raise BadEvidence(
                    f"entries {before} to {gone.first_served - 1} were destroyed when their time was over, and are in no file;"
                    " restore a backup that holds them", code="pruned",
                )  # fmt: skip
            leaves = await asyncio.to_thread(self._entries, site_id, year, before, seen.size)
        except (BadEvidence, NoInput) as error:
            raise LogStopped(f"log {origin}: {error}; nothing was changed", code="log_restored") from error
        edge, _ = edge.grow(map(hash_leaf, leaves))
        if edge.root() != seen.root:
            raise LogStopped(
                f"log {origin}: the {before} entries of the database and those of the files do not give the signed root of"
                f" {seen.size}; nothing was changed",
                code="log_forked",
            )
        now = max(self._clock(), shard.sequenced_at) if shard is not None else self._clock()
        grown = Shard(site_id, year, origin, seen.size, seen.root, b"".join(edge.levels), now, note, seen.size, now)
        entries = [_entry(site_id, leaf) for leaf in leaves]
        return await self._store.write(lambda tx: self._adopt(tx, shard, grown, entries))

    def _published(self, site_id: str, year: int, origin: str) -> tuple[bytes, Checkpoint]:
        """The newest checkpoint that anybody may have seen; a crash can leave `heads/` one ahead of the files."""
        notes = (self._files.published(site_id, year), self._heads.get(site_id, year))
        found = [(note, self._verified(note, origin)) for note in notes if note is not None]
        if not found:
            raise NoInput("no checkpoint is published")
        newest = max(found, key=lambda item: item[1].size)
        if any(seen.size == newest[1].size and seen.root != newest[1].root for _, seen in found):
            raise LogStopped(f"log {origin}: two roots of {newest[1].size} entries were signed", code="log_forked")
        return newest

    def _verified(self, note: bytes, origin: str) -> Checkpoint:
        parsed = Note.parse(note)
        parsed.verify([self._keys.verifier(origin)])
        checkpoint = Checkpoint.parse(parsed.text)
        if checkpoint.origin != origin:
            raise BadEvidence("checkpoint is of another log", code="bad_checkpoint")
        return checkpoint

    async def _edge(self, site_id: str, year: int, shard: Shard | None) -> Edge:
        """The tree that the database holds, from its entries."""
        edge, reader = Edge(), self._store.for_sites({site_id})
        while shard is not None and edge.size < shard.size:
            end = min(edge.size + FULL, shard.size)
            leaves = await reader.leaves(site_id, year, edge.size, end)
            if len(leaves) != end - edge.size:
                raise BadEvidence(f"entries {edge.size} to {end - 1}: {len(leaves)} are held", code="log_damaged")
            edge, _ = edge.grow(map(hash_leaf, leaves))
        return edge

    def _entries(self, site_id: str, year: int, start: int, end: int) -> list[bytes]:
        """Entries from the files, not trusted yet."""
        found: list[bytes] = []
        for index in range(start // FULL, -(-end // FULL)):
            tile = Tile(ENTRIES, index, min(FULL, end - index * FULL))
            raw = self._files.read(site_id, year, tile)
            try:
                entries = decode_entries(raw, tile.width)
            except BadEvidence:  # the full bundle stands in for a partial one
                entries = decode_entries(raw, FULL)[: tile.width]
            found += entries[max(start - index * FULL, 0) :]
        return found

    async def _adopt(
        self, tx: Transaction, old: Shard | None, grown: Shard, entries: list[tuple[NewLeaf, dict[str, Any]]]
    ) -> Readopted:
        before, now = old.size if old is not None else 0, grown.sequenced_at
        same = True
        if old is None:
            same = await tx.open_shard(replace(grown, checkpoint=None), entries[0][0].leaf)
        else:
            same = await tx.grow_shard(grown, old_size=before)
        first = max(before, 1)  # a log's first entry came with its row
        if not same or not await tx.save_checkpoint(grown, old=old.checkpoint if old is not None else None):
            raise LogStopped(f"log {grown.origin}: it was changed meanwhile", code="sequenced_elsewhere")
        if not await tx.adopt_leaves(
            grown.site_id, grown.year, first, [leaf for leaf, _ in entries[first - before :]], now
        ):
            raise LogStopped(
                f"log {grown.origin}: a record that waits here has another content than the log's entry for its place;"
                " nothing was changed",
                code="log_forked",
                hint="keep this data directory; the host has signed two histories",
            )
        kinds = [(document.get("kind"), document.get("event")) for _, document in entries]
        revoked = [leaf.key_id for leaf, document in entries if document.get("event") == "revoke" and leaf.key_id]
        for key_id in revoked:
            await tx.revoke_host(grown.site_id, key_id, now)
        if await tx.log_stops([grown.site_id]) == {grown.site_id: "log_restored"}:  # what is mended hereby
            await tx.lift_log(grown.site_id)
        subject = f"{grown.year}:{before}-{grown.size}"
        await tx.audit(now, "operator", "log.readopt", site_id=grown.site_id, subject=subject)
        records = sum(kind == "bundle" for kind, _ in kinds)
        enrolled = sum(kind == ("key", "enrol") for kind in kinds)
        return Readopted(grown.site_id, grown.year, before, grown.size, records, enrolled, len(revoked))


def _entry(site_id: str, leaf: bytes) -> tuple[NewLeaf, dict[str, Any]]:
    """An entry under the signed root: this log's own words."""
    document = json.loads(leaf)
    if document.get("event") == "rotate":  # the new key's API key was only in the database, and the old one has ended
        raise LogStopped(
            f"site {site_id}: a host changed its key after the backup, which cannot be taken back; nothing was changed",
            code="log_restored",
            hint="restore a backup from after the change",
        )
    place = (document["epoch"], document["seq"]) if document["kind"] == "bundle" else (None, None)
    return NewLeaf(site_id, leaf, document.get("key"), *place), document
