"""The log of a packet while it is built: its published checkpoint, its tree made again from its files, and its entries when asked.

    log = await open_log(reader, files, keys, wanted, sleep)

Where its first entries were destroyed because their time was over, their hashes come from the tiles, which must give the signed
root all the same; `gone` says up to where.
"""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from compliance_agent.adapters.durable import read_file
from compliance_agent.entries.act import ABOUT_EXCEPTIONS
from compliance_agent.entries.minimum import Pruned
from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.merkle import HASH_BYTES, LeafHash, hash_leaf
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries, written
from compliance_agent.log.tree import Edge
from compliance_agent.packet.choosing import Wanted
from compliance_agent.packet.outside import OLDER, YEAR
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.records import Shard, SiteReader

WITNESSES, AUTHORITY = "witnesses.policy", "tsa-ca.pem"  # under keys/, where the server leaves them
LOOKS, LOOK_S = 25, 0.2  # for a checkpoint that its witnesses have cosigned; a new one is visible before they have
_TILES = 512  # files of entries in memory at once, 90 KB each: records come host by host, and those of each host lie in all of them
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True)
class Log:
    """A log under its published checkpoint, as its files show it.

    Attributes:
        hashes: every hash tile.
        first: its first entry; b"" where that is served no more.
        times: (index, entry) of each entry of kind `time`.
        acts: of each act about an exception.
        read: gives a file of entries.
        gone: what it says of entries that were destroyed, None while all are there.
        policy: its key, and the witnesses that the server asks about it.
        authority: certificates of the time-stamping authority that the server asks.
    """

    shard: Shard
    note: bytes
    key: VerifierKey
    size: int
    hashes: dict[Tile, bytes]
    first: bytes
    times: list[tuple[int, Mapping[str, Any]]]
    read: Callable[[Tile], bytes]
    gone: Pruned | None = None
    acts: list[Mapping[str, Any]] = field(default_factory=list)
    policy: bytes = b""
    authority: bytes = b""
    _entries: Callable[[Tile], list[bytes]] = field(init=False)

    def __post_init__(self) -> None:
        decoded = functools.lru_cache(_TILES)(lambda tile: decode_entries(self.read(tile), tile.width))
        object.__setattr__(self, "_entries", decoded)

    def entry(self, index: int) -> bytes:
        """The entry of this index."""
        first = index // FULL
        return self._entries(Tile(ENTRIES, first, min(FULL, self.size - first * FULL)))[index % FULL]

    @property
    def tiles(self) -> list[Tile]:
        """The files of entries that there are."""
        gone = self.gone
        every = (tile for tile in written(0, self.size) if tile.level == ENTRIES)
        return [tile for tile in every if gone is None or not gone.covers(tile)]

    @property
    def minimum(self) -> int:
        """Of the first entry whose record was not destroyed."""
        return self.gone.minimum if self.gone is not None else 0

    @property
    def older(self) -> dict[str, bytes]:
        """The checkpoint of the year before as a file, where the first entry binds one and is there."""
        previous = json.loads(self.first).get("previous") if self.first else None
        if not previous:
            return {}
        return {f"{OLDER}{self.shard.year - 1}{YEAR}": from_base64(previous, "previous", "bad_entry")}


async def open_log(reader: SiteReader, served: LogFiles, keys: Path, wanted: Wanted, sleep: Sleep) -> Log:
    """The log that a packet is about.

    Raises:
        NoInput: there is no such log, or nothing of it was published.
        BadEvidence: its files do not hold together.
    """
    shards = {shard.year: shard for shard in await reader.shards()}
    note = served.published(wanted.site_id, wanted.year)
    shard = shards.get(wanted.year)
    if shard is None or note is None:
        there = ", ".join(map(str, sorted(shards))) or "none"
        raise NoInput(f"site {wanted.site_id}: no log of {wanted.year} (there is: {there})")
    vkey = read_file(keys / f"{wanted.site_id}-{wanted.year}.vkey", limit_bytes=4_096)
    key = VerifierKey.parse(vkey.decode("ascii", "replace").strip())
    witnesses, authority = (_left(keys / name) for name in (WITNESSES, AUTHORITY))
    policy = f"log {key}\n".encode() + (witnesses or b"quorum none\n")
    for _ in range(LOOKS):
        if not _lacks_witnesses(policy, note):
            break
        await sleep(LOOK_S)
        note = served.published(wanted.site_id, wanted.year) or note
        shard = next(one for one in await reader.shards() if one.year == wanted.year)
    log = await asyncio.to_thread(_opened, shard, served, note, key)
    return replace(log, policy=policy, authority=authority)


def _lacks_witnesses(policy: bytes, note: bytes) -> bool:
    """Whether waiting may help; what is wrong with either is for the packet's verifier to name."""
    try:
        return not Policy.parse(policy).verify(note).quorum_met
    except BadEvidence:
        return False


def _left(path: Path) -> bytes:
    """What the server left there, nothing where it asks nobody."""
    return read_file(path, limit_bytes=65_536) if path.exists() else b""


def _opened(shard: Shard, served: LogFiles, note: bytes, key: VerifierKey) -> Log:
    signed = Note.parse(note)
    signed.verify([key])
    checkpoint = Checkpoint.parse(signed.text)
    gone = served.pruned(shard.site_id, shard.year)
    if gone is not None:
        gone.of(shard.origin, checkpoint.size)

    def read(tile: Tile) -> bytes:
        return served.read(shard.site_id, shard.year, tile)

    log = Log(shard, note, key, checkpoint.size, {}, b"", [], read, gone)
    edge, first, whole = Edge(), b"", set(written(0, checkpoint.size))  # not what it has while it grows
    for index in range(gone.first_served // FULL if gone is not None else 0):
        edge = _grown(log, edge, whole, _hashes(read(Tile(0, index))))
    for tile in log.tiles:
        entries = decode_entries(read(tile), tile.width)
        edge = _grown(log, edge, whole, list(map(hash_leaf, entries)))
        first = entries[0] if tile.index == 0 else first
        said = (json.loads(entry) for entry in entries if b'"act":"exception_' in entry)
        log.acts.extend(leaf for leaf in said if leaf["act"] in ABOUT_EXCEPTIONS)
        here = enumerate(entries, tile.index * FULL)
        log.times.extend((at, json.loads(entry)) for at, entry in here if b'"kind":"time"' in entry)
    if checkpoint.origin != shard.origin or edge.root() != checkpoint.root:
        raise BadEvidence(
            f"log {shard.origin}: its entries do not make the tree that its checkpoint signs", code="bad_tile",
            hint="compliance-agent server log",
        )  # fmt: skip
    return replace(log, first=first)


def _grown(log: Log, edge: Edge, whole: Collection[Tile], leaves: Sequence[LeafHash]) -> Edge:
    """The edge after these, and the tiles that they finish kept."""
    edge, grown = edge.grow(leaves)
    log.hashes.update((tile, content) for tile, content in grown if tile in whole)
    return edge


def _hashes(tile: bytes) -> list[LeafHash]:
    return [LeafHash(tile[at : at + HASH_BYTES]) for at in range(0, len(tile), HASH_BYTES)]
