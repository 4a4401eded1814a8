"""Digests of many files in one go, and those kept that need not be taken again.

A digest is kept by everything that the kernel says of its file (`_touched`), for at most FULL_S. It is kept only of a file that
had not been touched for a while when it was read: a change within the granularity of its times, or through a mapped page, would not
show.
It is used only as long as no clock was set and nothing mounted (`undisturbed.py`). Whatever is not sure is read.

So whoever writes to a file by way of the file system is seen at the next look. Whoever writes to the device below it, as root,
is seen when the digest is too old, which is the only reason why it ever is.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Callable, Sequence

from compliance_agent.adapters.batch import Batch
from compliance_agent.adapters.undisturbed import Undisturbed
from compliance_agent.errors import CannotTell
from compliance_agent.ports import FileDigest

FULL_S = 900.0  # a digest stands for at most so long for bytes that were not read again
MOST_KEPT = 8192
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink"}
_PIECE_BYTES = 1 << 20


_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# How the file was, and when it was read. Thousands, each made at each look.
_Kept = tuple[tuple[int, ...], float, FileDigest]


class FileDigests:
    """The digests of one host.

    Args:
        wall_ns: the clock that the kernel takes change times from.
        boot_s: seconds since boot, those asleep included.
        undisturbed: says whether change times can be relied on.
    """

    def __init__(
        self,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        undisturbed: Undisturbed | None = None,
    ) -> None:
        self._wall_ns, self._boot_s = wall_ns, boot_s
        self._undisturbed = undisturbed if undisturbed is not None else Undisturbed()
        self._kept: dict[str, _Kept] = {}

    def begin(self) -> None:
        """Before a look: let go of what cannot be relied on any more."""
        if not self._undisturbed.still():
            self._kept = {}

    def forget(self) -> None:
        """Have every byte read again at the next look."""
        self._kept = {}

    def close(self) -> None:
        """Give back descriptors; it can be used again."""
        self.forget()
        self._undisturbed.close()

    def of(self, path: str, most_bytes: int) -> FileDigest:
        """One path. Blocks.

        Raises:
            CannotTell: see `Host.digests`.
            OSError: it cannot be looked at.
        """
        info = os.lstat(path)
        store, touched, now = self._kept, _touched(info), self._boot_s()
        kept = store.get(path)
        if kept is not None and kept[0] == touched and 0 <= now - kept[1] < FULL_S:
            if info.st_size > most_bytes:
                raise _too_long(path, most_bytes)
            return kept[2]
        kind, mode, size = KINDS.get(stat.S_IFMT(info.st_mode), "other"), stat.S_IMODE(info.st_mode), info.st_size
        if kind != "file":
            return FileDigest(kind, mode, size, None)
        if size > most_bytes:
            raise _too_long(path, most_bytes)
        since_ns = self._wall_ns() - info.st_ctime_ns
        digest = _read(path, size, touched)
        store.pop(path, None)  # which may have been let go of meanwhile
        if self._settled(info.st_dev, since_ns) and len(store) < MOST_KEPT:
            store[path] = touched, now, FileDigest(kind, mode, size, digest, kept=True)
        return FileDigest(kind, mode, size, digest)

    def _settled(self, device: int, since_ns: int) -> bool:
        settled_s = self._undisturbed.settled_s
        return settled_s is not None and since_ns >= settled_s * 1e9 and device in self._undisturbed.devices


class DigestBatch(Batch[FileDigest]):
    """Digests of some paths.

    Args:
        total_bytes: what is left of it is `left`.
    """

    def __init__(self, digests: FileDigests, paths: Sequence[str], most_bytes: int, total_bytes: int) -> None:
        super().__init__(paths, self._of)
        self.left = total_bytes
        self._digests, self._most_bytes = digests, most_bytes

    def work(self) -> None:
        self._digests.begin()
        super().work()

    def _of(self, path: str) -> FileDigest:
        found = self._digests.of(path, min(self._most_bytes, self.left))
        if found.sha256 is not None:
            self.left -= found.size_bytes
        return found


def _touched(info: os.stat_result) -> tuple[int, ...]:
    """All that tells this file, as it is, from any other."""
    return (*info[:7], info.st_mtime_ns, info.st_ctime_ns)  # mode, inode, device, links, owner, group, size


def _too_long(path: str, most_bytes: int) -> CannotTell:
    return CannotTell("output_too_large", f"{path}: longer than the {most_bytes} bytes that may be read")


def _read(path: str, size: int, touched: tuple[int, ...]) -> str:
    """The digest of a regular file that was looked at before it is opened: opening a device may already do something.

    Raises:
        CannotTell: it is not the same file, or not as long, or was touched meanwhile.
        OSError: it cannot be read.
    """
    try:
        handle = os.open(path, _FLAGS)
        try:
            found = _digest(handle, size) if _touched(os.fstat(handle)) == touched else None
        finally:
            os.close(handle)
        if found is not None and _touched(os.lstat(path)) == touched:
            return found
    except FileNotFoundError:  # it was there a moment ago
        pass
    raise CannotTell("unparsable", f"{path}: changed while it was read")


def _digest(handle: int, size: int) -> str | None:
    """Of an open file's bytes; None where they are not as many."""
    piece = os.read(handle, min(_PIECE_BYTES, size + 1))
    digest, left = hashlib.sha256(piece), size - len(piece)
    if not left and size < _PIECE_BYTES:  # less than was asked for: its end
        return digest.hexdigest()
    while left >= 0 and (piece := os.read(handle, min(_PIECE_BYTES, left + 1))):
        digest.update(piece)
        left -= len(piece)
    return None if left else digest.hexdigest()
