"""A log as it is served: `<root>/<site>/<year>/{checkpoint,tile/...}`, plain files that any web server can hand out.

A tile or entry bundle is written once: a second writing of the same path must bring the same bytes. Nothing here is trusted when it
is read back; the database holds the truth and the signed head.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

from compliance_agent.adapters.durable import (
    create_file,
    fsync_directory,
    make_directory,
    read_file,
    remove_file,
    storage_error,
    write_file,
)
from compliance_agent.entries.minimum import MAX_BYTES, NAME, Pruned
from compliance_agent.errors import LogStopped, NoInput
from compliance_agent.log.note import MAX_NOTE_BYTES
from compliance_agent.log.tiles import ENTRIES, FULL, MAX_ENTRY_BYTES, TILE_BYTES, Tile

MODE = 0o644
_LARGEST_BUNDLE = FULL * (MAX_ENTRY_BYTES + 2)
_YEAR = re.compile(r"[0-9]{4}")


class LogFiles:
    """The files of every log of this server. Calls block on the disk; errors are `StorageError` unless they say otherwise."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def directory(self, site_id: str, year: int) -> Path:
        """Where one log stands."""
        return self.root / site_id / f"{year:04}"

    def known(self) -> list[tuple[str, int]]:
        """Site and year of every log that has a published checkpoint here."""
        found = self.root.glob("*/*/checkpoint")
        return sorted((p.parents[1].name, int(p.parent.name)) for p in found if _YEAR.fullmatch(p.parent.name))

    def put(self, site_id: str, year: int, tile: Tile, content: bytes) -> None:
        """Make a tile durable.

        Raises:
            LogStopped: code `tile_conflict`; the path holds other bytes, which stay.
        """
        path = self.directory(site_id, year) / tile.path
        make_directory(path.parent, 0o755)
        if create_file(path, content, MODE):
            return
        if read_file(path, limit_bytes=_LARGEST_BUNDLE) != content:
            raise LogStopped(f"{tile.path}: holds other bytes than the committed tree", code="tile_conflict")
        _resync(path)

    def publish(self, site_id: str, year: int, note: bytes) -> None:
        """Replace the published checkpoint, atomically and durably."""
        directory = self.directory(site_id, year)
        make_directory(directory, 0o755)
        write_file(directory / "checkpoint", note, MODE)

    def published(self, site_id: str, year: int) -> bytes | None:
        """The checkpoint that is visible, None when there is none; NoInput when there is one that cannot be read."""
        path = self.directory(site_id, year) / "checkpoint"
        return read_file(path, limit_bytes=MAX_NOTE_BYTES) if path.exists() else None

    def pruned(self, site_id: str, year: int) -> Pruned | None:
        """What the log says of entries that it serves no more; None while all are there, BadEvidence when it cannot be read."""
        path = self.directory(site_id, year) / NAME
        return Pruned.parse(read_file(path, limit_bytes=MAX_BYTES)) if path.exists() else None

    def prune(self, site_id: str, year: int, said: Pruned) -> None:
        """Say the minimum index durably; then remove the entry bundles that are wholly below it."""
        directory = self.directory(site_id, year)
        write_file(directory / NAME, said.encode(), MODE)
        for index in range(said.minimum // FULL):
            path = directory / Tile(ENTRIES, index).path
            remove_file(path)
            if (partial := path.with_name(f"{path.name}.p")).is_dir():
                shutil.rmtree(partial)

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
        return read_file(self.directory(site_id, year) / tile.path, limit_bytes=limit)

    def drop_partials(self, site_id: str, year: int, tiles: Iterable[Tile]) -> None:
        """Delete the partial tiles that these published full ones replace (C2SP tlog-tiles allows it); a failure costs space."""
        for tile in tiles:
            path = self.directory(site_id, year) / tile.path
            with contextlib.suppress(OSError):
                shutil.rmtree(path.with_name(f"{path.name}.p"))


def _resync(path: Path) -> None:
    """A file that a crashed run left may not be durable yet."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"writing {path}") from error
