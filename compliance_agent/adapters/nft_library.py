"""The firewall's rules listed by nft's own library in this process: a start of the program costs ten times as much.

`libnftables` answers with the same bytes as `nft -s -j list ruleset`, which is the same library behind a command line. What is not
an answer without a complaint is None, and the program is asked: it says why. A library is not a program, though:

- It may hang, so its caller gives it a thread that can be left (`offload.py`).
- It may end the process: it leaves when memory is out or its socket cannot be had, and a rule that it does not know may crash it.
  So a mark stands in a file of the agent while it works. A process that finds the mark set by one that is gone does not use the
  library until the next boot. Nor is it used where the file cannot be had, or another process has it.

It is loaded at the first question and stays as it was then until the agent is started again, as every library does.

What was made for a question is given back after its answer, by `tidy`: it has a socket, and whoever closes one is kept by the
kernel until nothing uses any more what the last transaction took away, which is some 10 to 20 ms, just when a table was deleted.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compliance_agent.ports import Ran

SONAME = "libnftables.so.1"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_STATELESS, _JSON = 1 << 2, 1 << 4  # NFT_CTX_OUTPUT_*
_ID_BYTES = 36
_IDLE, _AT_WORK = b"-", b"+"
TIDY_S = 0.25  # a question waits so long for what the one before is giving back


class NftLibrary:
    """The library, and the mark of one agent.

    Args:
        mark: file of the mark; made when it is not there.
        load: gives the library; its functions are those of libnftables(3).
        boot_id: file with the id of this boot.
    """

    def __init__(self, mark: Path, load: Callable[[], Any] | None = None, boot_id: Path = BOOT_ID) -> None:
        self._path, self._load, self._boot_id = mark, load if load is not None else _loaded, boot_id
        self._lock = threading.Lock()
        self._handle: int | None = None
        self._mark: mmap.mmap | None = None
        self._library: Any = None
        self._former: Any = None  # made for the last question
        self._usable: bool | None = None

    def list_ruleset(self, limit_bytes: int) -> Ran | None:
        """What `nft -s -j list ruleset` would say; None when the program has to be asked. Blocks, once it is loaded for 0.4 ms. To
        be followed by `tidy`.

        Args:
            limit_bytes: an answer that is longer is the program's to refuse.
        """
        if not self._lock.acquire(timeout=TIDY_S):  # an earlier call hangs in it
            return None
        try:
            if self._usable is None:
                self._usable = self._begin()
            return self._listed(limit_bytes) if self._usable else None
        finally:
            self._lock.release()

    def tidy(self) -> None:
        """Give back what was made for the last question, unless somebody is in the library. Blocks, perhaps for some 20 ms."""
        if self._lock.acquire(blocking=False):
            try:
                self._give_back()
            finally:
                self._lock.release()

    def close(self) -> None:
        """Give back the mark; it is not used any more."""
        if not self._lock.acquire(blocking=False):
            return  # the mark stays for the call that hangs
        try:
            self._usable = False
            self._give_back()
            if self._mark is not None:
                self._mark.close()
            if self._handle is not None:
                os.close(self._handle)
            self._handle = self._mark = None
        finally:
            self._lock.release()

    def _begin(self) -> bool:
        try:
            boot = self._boot_id.read_bytes()[:_ID_BYTES]
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
            self._handle = handle
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            crashed = os.pread(handle, _ID_BYTES + 1, 0) == boot + _AT_WORK
            if crashed or len(boot) != _ID_BYTES:
                return False
            os.pwrite(handle, boot + _IDLE, 0)
            self._mark = mmap.mmap(handle, _ID_BYTES + 1)  # outlives this process, and costs no call
            self._library = self._load()
        except (OSError, ValueError, AttributeError):
            return False
        return True

    def _listed(self, limit_bytes: int) -> Ran | None:
        assert self._mark is not None  # noqa: S101  it is usable
        library = self._library
        self._give_back()
        self._mark[_ID_BYTES:] = _AT_WORK
        context = self._former = library.nft_ctx_new(0)
        out = None
        # Anew each time: it has no rules of before.
        if context and library.nft_ctx_buffer_output(context) == 0 and library.nft_ctx_buffer_error(context) == 0:
            library.nft_ctx_output_set_flags(context, _STATELESS | _JSON)
            if library.nft_run_cmd_from_buffer(context, b"list ruleset") == 0:
                out = library.nft_ctx_get_output_buffer(context)
                out = None if library.nft_ctx_get_error_buffer(context) else out
        self._mark[_ID_BYTES:] = _IDLE
        return Ran(0, out, b"") if out and len(out) <= limit_bytes else None

    def _give_back(self) -> None:
        former, self._former = self._former, None
        if former and self._mark is not None:
            self._mark[_ID_BYTES:] = _AT_WORK
            self._library.nft_ctx_free(former)
            self._mark[_ID_BYTES:] = _IDLE

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            self.close()


def _loaded() -> Any:
    """The system's library.

    Raises:
        OSError: there is none.
        AttributeError: it is another one.
    """
    library = ctypes.CDLL(SONAME)
    library.nft_ctx_new.argtypes, library.nft_ctx_new.restype = [ctypes.c_uint32], ctypes.c_void_p
    for name in ("buffer_output", "buffer_error", "get_output_buffer", "get_error_buffer", "free"):
        getattr(library, f"nft_ctx_{name}").argtypes = [ctypes.c_void_p]
    for name in ("get_output_buffer", "get_error_buffer"):
        getattr(library, f"nft_ctx_{name}").restype = ctypes.c_char_p
    library.nft_ctx_free.restype = None
    library.nft_ctx_output_set_flags.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.nft_ctx_output_set_flags.restype = None
    library.nft_run_cmd_from_buffer.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
    return library
