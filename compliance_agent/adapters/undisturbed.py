"""Whether what the kernel says of a file's times can be relied on: no clock was set and nothing mounted since the last question.

A file's change time (`st_ctime`) is set by the kernel from its clock, and no program can set it otherwise; so a file whose change
time is what it was has the bytes that it had, as long as that clock only went forward and the same file systems are mounted.
Both are told by the kernel: a timer that is cancelled when the clock is set (timerfd_create(2), `TFD_TIMER_CANCEL_ON_SET`), even
where it is set back again, and the mount table, which can be polled. Where one of them cannot be had, the answer is always no.

Change times are late for a page that a program has mapped and goes on writing to: until the kernel has written that page
back. So a file counts as settled only after several times as long as the kernel lets such pages wait. And only file systems of
RELIABLE are relied on; of others the times may be made elsewhere, or not at all.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
from pathlib import Path

RELIABLE = frozenset({"ext2", "ext3", "ext4", "f2fs", "overlay", "xfs"})  # overlay has the times of what is below it
LEAST_SETTLED_S = 120.0
MOUNTINFO = Path("/proc/self/mountinfo")
VM = Path("/proc/sys/vm")
_REALTIME, _ABSTIME, _CANCEL_ON_SET = 0, 1, 2
_FAR_S = 2**33  # in two hundred years


class _TimeSpecs(ctypes.Structure):
    """`struct itimerspec` on 64 bits."""

    _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "at_s", "at_ns")]


class Undisturbed:
    """One reader of both; `close` gives back the descriptors. Blocks for a few microseconds.

    Attributes:
        devices: numbers of the devices whose files' times can be relied on, as of the last question.
        settled_s: a file's change time must be at least so old; None when nothing can be relied on.
    """

    def __init__(self, mountinfo: Path = MOUNTINFO, vm: Path = VM) -> None:
        self.devices: frozenset[int] = frozenset()
        self.settled_s: float | None = None
        self._mountinfo, self._vm = mountinfo, vm
        self._clock: int | None = None
        self._mounts: int | None = None
        self._poll: select.poll | None = None

    def still(self) -> bool:
        """Whether neither has happened since the last time this was asked; the first answer is no."""
        try:
            if self._clock is None or self._mounts is None or self._poll is None:
                self.close()
                self._begin()
                return False
            set_meanwhile, mounted = _was_set(self._clock), bool(self._poll.poll(0))
            if set_meanwhile or mounted:
                self._read()
            return not (set_meanwhile or mounted)
        except (OSError, ValueError, IndexError, AttributeError):
            self.close()
            return False

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give back what it holds; the next answer is no."""
        for handle in (self._clock, self._mounts):
            if handle is not None:
                with contextlib.suppress(OSError):
                    os.close(handle)
        self._clock = self._mounts = self._poll = self.settled_s = None
        self.devices = frozenset()

    def _begin(self) -> None:
        self._mounts = os.open(self._mountinfo, os.O_RDONLY | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._mounts, select.POLLPRI | select.POLLERR)
        self._poll.poll(0)
        self._clock = _timer()
        self._read()

    def _read(self) -> None:
        """What can be relied on from now on; both are watched already."""
        expire, every = (
            int((self._vm / f"dirty_{name}_centisecs").read_text("ascii")) for name in ("expire", "writeback")
        )
        self.settled_s = max(LEAST_SETTLED_S, 4 * (expire + every) / 100) if every > 0 else None
        self.devices = reliable_devices(self._mountinfo.read_text("utf-8", "surrogateescape"))


def reliable_devices(mountinfo: str) -> frozenset[int]:
    """Device numbers of the mounted file systems of RELIABLE.

    Raises:
        ValueError: not the form of proc_pid_mountinfo(5).
    """
    found = set()
    for line in mountinfo.splitlines():
        fields, after = line.split(" "), line.partition(" - ")[2].split(" ")
        if after[0] in RELIABLE:
            major, _, minor = fields[2].partition(":")
            found.add(os.makedev(int(major), int(minor)))
    return frozenset(found)


def _timer() -> int:
    """A timer that is cancelled when the clock is set.

    Raises:
        OSError: this kernel has none.
        AttributeError: this C library has none.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.timerfd_create(_REALTIME, os.O_NONBLOCK | os.O_CLOEXEC)
    if handle < 0:
        raise OSError(ctypes.get_errno(), "timerfd_create")
    at = _TimeSpecs(0, 0, _FAR_S, 0)
    if libc.timerfd_settime(handle, _ABSTIME | _CANCEL_ON_SET, ctypes.byref(at), None) < 0:
        number = ctypes.get_errno()
        os.close(handle)
        raise OSError(number, "timerfd_settime")
    return int(handle)


def _was_set(timer: int) -> bool:
    try:
        os.read(timer, 8)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno != errno.ECANCELED:
            raise
    return True
