"""A log as it is served: `<site>/<year>/{checkpoint,tile/...}` in a directory or a bucket, as any web server can hand it out.

A tile or entry bundle is written once: a second writing of the same path must bring the same bytes. Full ones never change any
more: where the store can hold a blob until a day, they are held for six years from when they were written, and so is the
checkpoint that came with each (`kept/<size>`). Nothing here is trusted when it is read back; the database holds the truth and the
signed head.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

from compliance_agent.core.retention import kept_until
from compliance_agent.entries.minimum import MAX_BYTES, NAME, Pruned
from compliance_agent.errors import AgentError, LogStopped, NoInput, StorageError, StorageForbidden
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES
from compliance_agent.log.note import MAX_NOTE_BYTES, Note
from compliance_agent.log.tiles import ENTRIES, FULL, MAX_ENTRY_BYTES, TILE_BYTES, Tile, decode_entries, encode_entries
from compliance_agent.server.blobs import Directory
from compliance_agent.server.records import Clock
from compliance_agent.server.records.blobs import Blobs, Lock

_LARGEST_BUNDLE = FULL * (MAX_ENTRY_BYTES + 2)
_YEAR = re.compile(r"[0-9]{4}")


class LogFiles:
    """The files of every log of this server. Calls block; errors are `StorageError` unless they say otherwise.

    Args:
        where: a directory, or any other place for blobs.
        clock: says from when what is written is held; needed where the place can hold it.
    """

    def __init__(self, where: Path | Blobs, clock: Clock | None = None) -> None:
        self.blobs: Blobs = Directory(where) if isinstance(where, Path) else where
        self._clock = clock

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network."""
        return self.blobs.remote

    def known(self) -> list[tuple[str, int]]:
        """Site and year of every log that has a published checkpoint here."""
        years = ((site, year) for site in self.blobs.children("") for year in self.blobs.children(site))
        return sorted(
            (site, int(year))
            for site, year in years
            if _YEAR.fullmatch(year) and "checkpoint" in self.blobs.children(f"{site}/{year}")
        )

    def put(self, site_id: str, year: int, tile: Tile, content: bytes) -> None:
        """Make a tile durable.

        Raises:
            LogStopped: code `tile_conflict`; the path holds other bytes, which stay.
        """
        name = _name(site_id, year, tile.path)
        if self.blobs.create(name, content, self._until() if tile.width == FULL else None):
            return
        if self.blobs.get(name, limit_bytes=_LARGEST_BUNDLE) != content:
            raise LogStopped(f"{tile.path}: holds other bytes than the committed tree", code="tile_conflict")

    def publish(self, site_id: str, year: int, note: bytes) -> None:
        """Replace the published checkpoint, atomically and durably; never by one over fewer entries."""
        size = _size(note)

        def newer(there: bytes | None) -> bytes | None:
            return note if there is None or _size(there) <= size else None

        self.blobs.update(_name(site_id, year, "checkpoint"), newer, limit_bytes=MAX_NOTE_BYTES)

    def keep(self, site_id: str, year: int, note: bytes) -> None:
        """Have the store hold this checkpoint, where it can: the word of the log's key about tiles that it holds, too."""
        if self.blobs.locks:
            self.blobs.create(_name(site_id, year, f"kept/{_size(note)}"), note, self._until())

    def published(self, site_id: str, year: int) -> bytes | None:
        """The checkpoint that is visible, None when there is none; NoInput when there is one that cannot be read."""
        return self.blobs.get(_name(site_id, year, "checkpoint"), limit_bytes=MAX_NOTE_BYTES)

    def pruned(self, site_id: str, year: int) -> Pruned | None:
        """What the log says of entries that it serves no more; None while all are there, BadEvidence when it cannot be read."""
        raw = self.blobs.get(_name(site_id, year, NAME), limit_bytes=MAX_BYTES)
        return None if raw is None else Pruned.parse(raw)

    def prune(self, site_id: str, year: int, said: Pruned) -> None:
        """Say the minimum index durably; then remove the entry bundles that are wholly below it.

        Raises:
            StorageForbidden: code `retained`; the store holds some of them longer. The others are gone.
        """
        self.blobs.update(_name(site_id, year, NAME), lambda _there: said.encode(), limit_bytes=MAX_BYTES)
        held: StorageForbidden | None = None
        for index in range(said.minimum // FULL):
            name = _name(site_id, year, Tile(ENTRIES, index).path)
            try:
                self.blobs.delete(name)
            except StorageForbidden as error:
                if error.code != "retained":
                    raise
                held = held or error
            self.blobs.delete_below(f"{name}.p")
        if held is not None:
            raise held

    def read(self, site_id: str, year: int, tile: Tile) -> bytes:
        """A tile, or the full tile that has replaced a partial one; NoInput when neither is there."""
        try:
            return self.exactly(site_id, year, tile)
        except NoInput:
            if tile.width == FULL:
                raise
            return self.exactly(site_id, year, Tile(tile.level, tile.index))

    def exactly(self, site_id: str, year: int, tile: Tile) -> bytes:
        """The file of exactly this tile; NoInput when it is not there."""
        limit = _LARGEST_BUNDLE if tile.level == ENTRIES else TILE_BYTES
        found = self.blobs.get(_name(site_id, year, tile.path), limit_bytes=limit)
        if found is None:
            raise NoInput(f"{_name(site_id, year, tile.path)}: is not there")
        return found

    def cut(self, site_id: str, year: int, tile: Tile) -> bytes:
        """A partial tile from a wider partial one, which it begins: another replica has shown a tree of that size; else NoInput."""
        there = self.blobs.children(_name(site_id, year, tile.path).rpartition("/")[0]) if tile.width < FULL else ()
        widths = [int(name) for name in there if name.isdigit()]
        for width in sorted(width for width in widths if tile.width < width < FULL):
            with contextlib.suppress(NoInput):  # the full one has replaced it meanwhile
                wider = self.exactly(site_id, year, Tile(tile.level, tile.index, width))
                if tile.level == ENTRIES:
                    return encode_entries(decode_entries(wider, width)[: tile.width])
                return wider[: tile.width * HASH_BYTES]
        raise NoInput(f"{tile.path}: not there")

    def drop_partials(self, site_id: str, year: int, tiles: Iterable[Tile]) -> None:
        """Delete the partial tiles that these published full ones replace (C2SP tlog-tiles allows it); a failure costs space."""
        for tile in tiles:
            with contextlib.suppress(StorageError):
                self.blobs.delete_below(_name(site_id, year, f"{tile.path}.p"))

    def lock(self, site_id: str, year: int, tile: Tile) -> Lock | None:
        """What the store holds a tile by."""
        return self.blobs.lock(_name(site_id, year, tile.path))

    def _until(self) -> datetime | None:
        """The end of the last day on which something of today must be kept."""
        if self._clock is None or not self.blobs.locks:
            return None
        return datetime.combine(kept_until(self._clock().astimezone(UTC).date()) + timedelta(days=1), time(), UTC)


def _name(site_id: str, year: int, path: str) -> str:
    return f"{site_id}/{year:04}/{path}"


def _size(note: bytes) -> int:
    """Entries under a checkpoint; none where it cannot be read, so that a sound one replaces it."""
    try:
        return Checkpoint.parse(Note.parse(note).text).size
    except AgentError:
        return 0
