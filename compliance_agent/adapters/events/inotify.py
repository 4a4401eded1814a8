"""inotify(7) by ctypes: three calls of libc and the form of their answers. Which paths are watched, and why, is for paths.py."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Iterator

from compliance_agent.dataclass import dataclass

MODIFY, ATTRIB, CLOSE_WRITE = 0x2, 0x4, 0x8
MOVED_FROM, MOVED_TO, CREATE, DELETE, DELETE_SELF, MOVE_SELF = 0x40, 0x80, 0x100, 0x200, 0x400, 0x800
UNMOUNT, OVERFLOW, IGNORED = 0x2000, 0x4000, 0x8000
MASK_ADD = 0x2000_0000
SELF = DELETE_SELF | MOVE_SELF  # of the watched object itself
NAMES = CREATE | DELETE | MOVED_FROM | MOVED_TO | SELF  # what a path leads to may be another
WRITTEN = MODIFY | CLOSE_WRITE  # the bytes of what stands there, which is the same as before
CONTENT = MODIFY | ATTRIB | CLOSE_WRITE | SELF
GONE = SELF | UNMOUNT | IGNORED
_HEAD = struct.Struct("iIII")
_READ_BYTES = 65_536


@dataclass(frozen=True)
class Event:
    """One event: which watch, what happened, and the name in a watched directory (empty for the object itself)."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One inotify instance. Raises `OSError` as the kernel answers: EMFILE, ENOSPC, ENOENT, EACCES."""

    def __init__(self) -> None:
        self.fd = _answer(_libc().inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, path: str, mask: int) -> int:
        """Watch what is at this path, links followed; the number of the watch, the same for the same object."""
        return _answer(_libc().inotify_add_watch(self.fd, os.fsencode(path), mask | MASK_ADD))

    def remove(self, watch: int) -> None:
        """Give up a watch; one that is gone already is fine."""
        _libc().inotify_rm_watch(self.fd, watch)

    def read(self) -> list[Event]:
        """What waits, up to one piece; nothing when nothing does."""
        try:
            return list(parsed(os.read(self.fd, _READ_BYTES)))
        except BlockingIOError:
            return []

    def close(self) -> None:
        """Give back the instance and all watches."""
        os.close(self.fd)


def parsed(raw: bytes) -> Iterator[Event]:
    """The events of one piece, which the kernel never cuts."""
    at = 0
    while at < len(raw):
        watch, mask, _, length = _HEAD.unpack_from(raw, at)
        at += _HEAD.size
        yield Event(watch, mask, os.fsdecode(raw[at : at + length].split(b"\0", 1)[0]))
        at += length


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _answer(value: int) -> int:
    if value < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return value
