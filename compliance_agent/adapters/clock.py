"""The real clock, and what the kernel says of it."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import os
import time
from datetime import UTC, datetime

from compliance_agent.errors import CannotTell
from compliance_agent.models import ClockState

STA_UNSYNC = 0x0040
STA_NANO = 0x2000
TIME_ERROR = 5
BOOT_ID = "/proc/sys/kernel/random/boot_id"
# Only a name for people: who disciplines the clock shows in the check of the clock, by asking that daemon.
DAEMONS = (
    ("chrony", "/run/chrony/chronyd.pid"),
    ("timesyncd", "/run/systemd/timesync/synchronized"),
    ("ntpd", "/run/ntpd.pid"),
)


class SystemClock:
    """Time as this machine has it."""

    def now(self) -> datetime:
        return datetime.now(UTC)

    def monotonic(self) -> float:
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class _Timex(ctypes.Structure):
    """`struct timex` of adjtimex(2), as glibc and musl have it on 64 bits."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),  # more than enough for what follows
    ]


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def kernel_clock() -> tuple[bool | None, int | None]:
    """Whether the kernel's clock is disciplined, and the remaining offset in microseconds (positive: this host is
    ahead).

    Both are None where the kernel may not be asked (some containers); the offset also when nobody disciplines the
    clock.
    """
    timex = _Timex()
    state = _libc().adjtimex(ctypes.byref(timex))
    if state < 0:
        return None, None
    if state == TIME_ERROR or timex.status & STA_UNSYNC:
        return False, None
    # What is still to be added to the clock, hence the sign.
    return True, -(timex.offset // 1000 if timex.status & STA_NANO else timex.offset)


def read_clock_state(boot_id: str = BOOT_ID) -> ClockState:
    """What this host's kernel says of its clock, without a wait: nothing of it stands on a disk.

    Raises:
        CannotTell: the boot id cannot be read.
    """
    try:
        handle = os.open(boot_id, os.O_RDONLY | os.O_CLOEXEC)
        try:
            boot = os.read(handle, 64).decode("ascii").strip()
        finally:
            os.close(handle)
    except (OSError, UnicodeDecodeError) as error:
        number = error if isinstance(error, OSError) else OSError(0, "not text")
        raise CannotTell.from_os_error(number, f"{boot_id}: cannot be read") from error
    synchronized, offset_us = kernel_clock()
    running = next((name for name, sign in DAEMONS if os.path.lexists(sign)), None)
    source = running or ("kernel" if synchronized else "unknown")
    return ClockState(source, synchronized, offset_us, None, boot, time.monotonic_ns())
