"""The largest checkpoint that was ever signed for each log, kept apart from the database and from the log's files.

A restored database signs a second history as soon as nothing tells it of the first; `log/` tells it, unless that is lost too. So
each checkpoint is written here, durably, before anybody can see it: `heads/<site>-<year>`, the signed note itself, in the data
directory or in the bucket. A database that is behind it, or contradicts it, stops that log. Only a larger checkpoint replaces one,
and nothing removes one.
"""

from __future__ import annotations

import re
from pathlib import Path

from compliance_agent.errors import BadEvidence, LogStopped
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import MAX_NOTE_BYTES, Note
from compliance_agent.server.blobs import Directory
from compliance_agent.server.records.blobs import Blobs

_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)-([0-9]{4})")


class LogHeads:
    """The heads in `where`. Calls block; errors are `StorageError`, or `NoInput` in reading."""

    def __init__(self, where: Path | Blobs) -> None:
        self._blobs: Blobs = Directory(where, 0o700) if isinstance(where, Path) else where

    def known(self) -> list[tuple[str, int]]:
        """Site and year of every log that ever signed a checkpoint here."""
        names = map(_NAME.fullmatch, self._blobs.children(""))
        return sorted((found[1], int(found[2])) for found in names if found)

    def get(self, site_id: str, year: int) -> bytes | None:
        """The signed note, not verified; None when there is none."""
        return self._blobs.get(_name(site_id, year), limit_bytes=MAX_NOTE_BYTES)

    def keep(self, site_id: str, year: int, note: bytes) -> None:
        """Make a checkpoint that was just signed durable.

        Raises:
            LogStopped: a larger one, or another of this size, was signed before; or what is there cannot be read.
        """
        new = _read(note)

        def larger(there: bytes | None) -> bytes | None:
            if there is None:
                return note
            try:
                old = _read(there)
            except BadEvidence as error:
                raise LogStopped(f"heads/{_name(site_id, year)}: {error}", code="checkpoint_unusable") from error
            if old.size > new.size:
                raise LogStopped(f"log {new.origin}: signed {old.size} entries before {new.size}", code="log_restored")
            if old.size == new.size and old.root != new.root:
                raise LogStopped(f"log {new.origin}: signed another root of {new.size} entries", code="log_forked")
            return None if old.size == new.size else note

        self._blobs.update(_name(site_id, year), larger, limit_bytes=MAX_NOTE_BYTES)

    def keep_all_of(self, other: LogHeads) -> None:
        """Take over what another place remembers, as when a server moves from a directory to a bucket.

        Raises:
            LogStopped: they contradict each other.
        """
        for place in other.known():
            note, here = other.get(*place), self.get(*place)
            if note is not None and (here is None or _read(here).size <= _read(note).size):
                self.keep(*place, note)


def _name(site_id: str, year: int) -> str:
    return f"{site_id}-{year:04}"


def _read(note: bytes) -> Checkpoint:
    return Checkpoint.parse(Note.parse(note).text)
