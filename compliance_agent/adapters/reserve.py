"""Room that is kept for a full disk: a file that is given up when nothing else is left, so that a queue can drain.

It is spent whole; what was not needed is taken back at once, before another program does, since draining may need more. While
it is spent, only writes that free space are taken. It is whole again once there is room for it and as much again.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import structlog

from compliance_agent.adapters.durable import write_file
from compliance_agent.errors import StorageError, StorageFull

SLACK_BYTES = 16_384  # left for the names and blocks that a file system keeps beside a file's content
LITTLE_BYTES = 65_536

log = structlog.get_logger()


class Reserve:
    """The reserve of one state directory.

    Args:
        directory: where it stands, on the file system whose room it keeps.
        size_bytes: of the whole reserve; 0 for none.
    """

    def __init__(self, directory: Path, size_bytes: int) -> None:
        self.path = directory / "reserve"
        self.spent = False
        self._bytes = size_bytes

    def no_room(self) -> bool:
        """Whether the file system is as good as full, of bytes or of names."""
        try:
            room = os.statvfs(self.path.parent)
        except OSError:
            return False
        return room.f_bavail * room.f_frsize < LITTLE_BYTES or (room.f_files > 0 and room.f_favail == 0)

    def whole(self) -> bool:
        """Whether all of it is there."""
        try:
            return self.path.stat().st_size >= self._bytes
        except FileNotFoundError:
            return self._bytes == 0

    def spend(self) -> None:
        """Give it up."""
        said, self.spent = self.spent, True
        with contextlib.suppress(OSError):
            self.path.unlink()  # absent when it was released before
            if not said:
                log.warning("storage.reserve_released", bytes=self._bytes)

    def keep_what_is_left(self) -> None:
        """Take back what was not needed, if there is any."""
        if not self.spent or self.path.exists():
            return
        with contextlib.suppress(OSError, StorageError):
            room = os.statvfs(self.path.parent)
            size = min(self._bytes, room.f_bavail * room.f_frsize - SLACK_BYTES)
            if size > 0:
                write_file(self.path, os.urandom(size))

    def refill(self) -> None:
        """Take it back whole.

        Raises:
            StorageFull: there is no room yet.
        """
        if self._bytes:
            room = os.statvfs(self.path.parent)
            if room.f_bavail * room.f_frsize < 2 * self._bytes:
                self.spent = True
                raise StorageFull(
                    "the disk of the state directory is full", hint="free some space; recording resumes by itself"
                )
            try:
                # Random bytes: a file system that compresses would give zeros no blocks.
                write_file(self.path, os.urandom(self._bytes))
            except StorageError as error:
                self.spent = True
                raise StorageFull(str(error)) from error
        if self.spent:
            log.info("storage.reserve_restored", bytes=self._bytes)
        self.spent = False
