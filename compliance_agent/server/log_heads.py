"""The largest checkpoint that was ever signed for each log, kept apart from the database and from the log's files.

A restored database signs a second history as soon as nothing tells it of the first; `log/` tells it, unless that is lost too. So
each checkpoint is written here, durably, before anybody can see it: `heads/<site>-<year>`, the signed note itself. A database that
is behind it, or contradicts it, stops that log. Only a larger checkpoint replaces one, and nothing removes one.
"""

from __future__ import annotations

import re
from pathlib import Path

from compliance_agent.adapters.durable import make_directory, read_file, write_file
from compliance_agent.errors import BadEvidence, LogStopped
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import MAX_NOTE_BYTES, Note

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)-([0-9]{4})")


class LogHeads:
    """The heads in `root`. Calls block on the disk; errors are `StorageError`, or `NoInput` in reading."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def known(self) -> list[tuple[str, int]]:
        """Site and year of every log that ever signed a checkpoint here."""
        names = map(_NAME.fullmatch, (path.name for path in self.root.glob("*")))
        return sorted((found[1], int(found[2])) for found in names if found)

    def get(self, site_id: str, year: int) -> bytes | None:
        """The signed note, not verified; None when there is none."""
        path = self._path(site_id, year)
        return read_file(path, limit_bytes=MAX_NOTE_BYTES) if path.exists() else None

    def keep(self, site_id: str, year: int, note: bytes) -> None:
        """Make a checkpoint that was just signed durable.

        Raises:
            LogStopped: a larger one, or another of this size, was signed before; or what is there cannot be read.
        """
        new, before = _read(note), self.get(site_id, year)
        try:
            old = _read(before) if before is not None else None
        except BadEvidence as error:
            raise LogStopped(f"{self._path(site_id, year)}: {error}", code="checkpoint_unusable") from error
        if old is not None and old.size > new.size:
            raise LogStopped(f"log {new.origin}: signed {old.size} entries before {new.size}", code="log_restored")
        if old is not None and old.size == new.size:
            if old.root != new.root:
                raise LogStopped(f"log {new.origin}: signed another root of {new.size} entries", code="log_forked")
            return
        make_directory(self.root)
        write_file(self._path(site_id, year), note, 0o644)

    def _path(self, site_id: str, year: int) -> Path:
        return self.root / f"{site_id}-{year:04}"


def _read(note: bytes) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)
