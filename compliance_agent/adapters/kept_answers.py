"""Answers of programs that are kept: a program is not started again to say the same of files that nothing has touched.

An answer is kept with a print of all that the program reads (`program_reads.py`), itself and what it is linked with among it:
device, inode, size, mode, owner, modification and change time of each. It is given again while the print is the same, for at most
FULL_S, by the rules of digests of files (file_digests.py, `undisturbed.py`): nothing of it had been touched for a while when the
program began, no clock was set and nothing mounted since, and its file systems have this kernel's times. The print is taken before
and after the program, so a change meanwhile is not missed. Whatever is not sure is run.

A print costs something too, so the first is taken when the same was asked within FULL_S.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compliance_agent.adapters.program_reads import Reads, reads_of
from compliance_agent.adapters.undisturbed import Undisturbed
from compliance_agent.dataclass import dataclass
from compliance_agent.ports import Ran

FULL_S = 900.0
MOST_BYTES, MOST_ANSWERS = 1 << 18, 16
LINKED = ("/etc/ld.so.cache", "/etc/ld.so.preload")  # what it is linked with: rewritten where libraries come and go
APT_SAYS = b"WARNING: apt does not have a stable CLI interface. Use with caution in scripts."
_pack = struct.Struct("<8q").pack


@dataclass(frozen=True)
class Print:
    """Everything that was read, at one moment. `epoch`: of how many disturbances; `keepable`: it may stand for the bytes."""

    digest: bytes
    epoch: int
    keepable: bool


@dataclass(frozen=True)
class _Kept:
    print: Print
    at_s: float
    ran: Ran


class KeptAnswers:
    """The answers of one host's programs. Its methods block.

    Args:
        reads: what a program reads.
        wall_ns, boot_s, undisturbed: as of `FileDigests`.
    """

    def __init__(
        self,
        reads: Callable[[Sequence[str]], Reads | None] = reads_of,
        wall_ns: Callable[[], int] = time.time_ns,
        boot_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME),
        undisturbed: Undisturbed | None = None,
    ) -> None:
        self._reads, self._wall_ns, self._boot_s = reads, wall_ns, boot_s
        self._undisturbed = undisturbed if undisturbed is not None else Undisturbed()
        self._lock = threading.Lock()
        self._epoch = 0
        self._kept: dict[tuple[str, ...], _Kept] = {}
        self._asked: dict[tuple[str, ...], float] = {}

    def forget(self) -> None:
        """Have every program run again."""
        self._kept, self._asked = {}, {}

    def now_s(self) -> float:
        """The time that `keep` is told of."""
        return self._boot_s()

    def print(self, argv: Sequence[str], program: str, *, again: bool = False) -> Print | None:
        """What this program, which stands there, would read now; None when its answer cannot be kept, or was not asked lately.

        `again` is after its answer.
        """
        now, key = self._boot_s(), tuple(argv)
        if not again:
            before = self._asked.get(key)
            if len(self._asked) >= MOST_ANSWERS and before is None:
                return None
            self._asked[key] = now
            if before is None or not 0 <= now - before < FULL_S:
                return None
        return self._taken(argv, program)

    def same(self, argv: Sequence[str], print_: Print | None) -> Ran | None:
        """The answer that was kept, if it was made of just this, not too long ago."""
        kept = self._kept.get(tuple(argv))
        if kept is None or print_ is None or kept.print != print_:
            return None
        return kept.ran if 0 <= self._boot_s() - kept.at_s < FULL_S else None

    def keep(self, argv: Sequence[str], before: Print, after: Print | None, began_s: float, ran: Ran) -> None:
        """An answer whose program began then, between these two."""
        self._kept.pop(tuple(argv), None)
        fine = ran.exit_status == 0 and ran.err.strip() in {b"", APT_SAYS} and len(ran.out) <= MOST_BYTES
        if before.keepable and before == after and fine:
            self._kept[tuple(argv)] = _Kept(before, began_s, ran)

    def _taken(self, argv: Sequence[str], program: str) -> Print | None:
        with self._lock:
            if not self._undisturbed.still():
                self._epoch, self._kept = self._epoch + 1, {}
            epoch, devices, settled_s = self._epoch, self._undisturbed.devices, self._undisturbed.settled_s
        try:
            reads = self._reads(argv)
            if reads is None or settled_s is None:
                return None
            ink = _Ink(devices, self._wall_ns() - int(settled_s * 1e9))
            ink.all(reads, (program, *(path for path in LINKED if Path(path).exists())))
            return Print(ink.digest.digest(), epoch, ink.keepable)
        except (OSError, ValueError):
            return None


class _Ink:
    """A print in the making. `keepable` is False as soon as something was touched later than `settled_ns`, or elsewhere."""

    def __init__(self, devices: frozenset[int], settled_ns: int) -> None:
        self.digest = hashlib.blake2b(digest_size=32)
        self.keepable = True
        self._devices, self._settled_ns = devices, settled_ns

    def all(self, reads: Reads, more: Sequence[str]) -> None:
        """All of it.

        Raises:
            OSError: it cannot be looked at, or is not there.
        """
        for path in (*reads.whole, *more):
            self._whole(path)
        for path in reads.present:
            self._present(path)
        if reads.listed is not None:
            directories = set[bytes]()  # nearly every list names the same ones
            for each in _listed(reads.listed, reads.alone):
                if each not in directories and self._one(each):
                    directories.add(each)

    def _whole(self, path: str) -> None:
        self._add(os.lstat(path))
        info = Path(path).stat()
        self._add(info)
        if stat.S_ISDIR(info.st_mode):
            for name in _names(path):
                self.digest.update(os.fsencode(name) + b"\0")
                self._one(f"{path}/{name}")

    def _one(self, path: str | bytes) -> bool:
        """A file, or where a link leads; of a directory what it is and whose, not what is in it. Whether it is a directory."""
        try:
            info = os.lstat(path)
            if stat.S_ISLNK(info.st_mode):
                self._add(info)
                info = os.stat(path)  # noqa: PTH116  a thousand of them, and a Path costs more than the call
        except (FileNotFoundError, NotADirectoryError):
            self.digest.update(b"-")
            return False
        regular = stat.S_ISREG(info.st_mode)
        (self._add if regular else self._kind)(info)
        return not regular

    def _present(self, path: str) -> None:
        try:
            self._kind(Path(path).stat())
        except FileNotFoundError:
            self.digest.update(b"-")

    def _kind(self, info: os.stat_result) -> None:
        self.digest.update(_pack(info.st_mode, info.st_uid, info.st_gid, 0, 0, 0, 0, 0))

    def _add(self, info: os.stat_result) -> None:
        mode, inode, device, _, uid, gid, size = info[:7]
        changed_ns = info.st_ctime_ns
        self.digest.update(_pack(device, inode, size, info.st_mtime_ns, changed_ns, mode, uid, gid))
        if changed_ns > self._settled_ns or device not in self._devices:
            self.keepable = False


def _listed(directory: str, alone: str | None) -> Iterator[bytes]:
    """The paths in these lists."""
    lists = [f"{directory}/{name}" for name in _names(directory) if name.endswith(".list")]
    for file in (*lists, *((alone,) if alone else ())):
        yield from (line for line in Path(file).read_bytes().split(b"\n") if line[:1] == b"/")


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries)
