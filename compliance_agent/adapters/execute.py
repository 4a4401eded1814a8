"""Programs, run so that none of them can hang, flood or outlive us: the only place that starts a process.

- A program is a name, looked up in fixed directories of the system, never in `PATH`; what others may write is not
started. - It gets its arguments as a list (there is no shell), a fixed environment, `/` as its directory and a session
of its own. - Its output is read as it comes and limited; beyond the limit, or the deadline, its whole process group is
killed. - A killed process that does not end (it hangs in the kernel) is left behind and watched; until it is gone, the
program is not
  started again. So at most one process of a kind is ever left, unless several were started at the same moment.
- What a program leaves in its process group when it ends is killed too, so a grandchild that keeps a pipe open delays
nobody.
  One that made a session of its own gets away; the agent's service unit ends those.

Exit is seen through a pidfd and reaped here, because asyncio's child watchers lose exits before Python 3.13 (cpython
#87744).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import signal
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from compliance_agent.adapters.offload import Offload
from compliance_agent.errors import CannotTell
from compliance_agent.ports import ENVIRONMENT, Ran

DIRECTORIES = ("/usr/sbin", "/usr/bin", "/sbin", "/bin", "/run/current-system/sw/bin")
FIXED_ENVIRONMENT = {"LC_ALL": "C", "LANG": "C", "TZ": "UTC", "DEBIAN_FRONTEND": "noninteractive"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
KILL_WAIT_S = 1.0  # how long a killed process may take to end before it is left behind
PIECE_BYTES = 65_536
POLL_S = 0.02  # between looks at a process where the kernel has no pidfd


def find_program(name: str, directories: Sequence[str]) -> str:
    """The path of a program that nobody but root (or this user) may have written. Blocks; its first bytes are read, so
    that a disk that does not answer stops this call and not the one that starts the program.

    Raises:
        CannotTell: `tool_missing`, `not_permitted`, or the errno of looking.
    """
    for directory in directories:
        path = f"{directory}/{name}"
        try:
            info = Path(path).stat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise CannotTell.from_os_error(error, f"{path}: cannot be looked at") from error
        if not stat.S_ISREG(info.st_mode) or not info.st_mode & 0o111:
            continue
        if not (_safe(info) and _safe(Path(directory).stat())):
            raise CannotTell("not_permitted", f"{path}: others may write to it, so it is not started")
        with contextlib.suppress(OSError):  # a program may be executable and not readable
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                os.pread(handle, 64, 0)
            finally:
                os.close(handle)
        return path
    raise CannotTell("tool_missing", f"{name}: not in {', '.join(directories)}")


def _safe(info: os.stat_result) -> bool:
    by_group = info.st_mode & 0o020 and info.st_gid != 0
    return info.st_uid in {0, os.geteuid()} and not by_group and not info.st_mode & 0o002


class Programs:
    """Runs programs for one host. `left_behind` says which ones could not be ended."""

    def __init__(self, offload: Offload, directories: Sequence[str] = DIRECTORIES) -> None:
        self._offload = offload
        self._directories = tuple(directories)
        self._left: dict[str, list[_Child]] = {}

    @property
    def left_behind(self) -> Mapping[str, int]:
        """Killed processes that have not ended, by program."""
        for name in list(self._left):
            self._reap(name)
        return {name: len(children) for name, children in self._left.items()}

    async def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        limit_bytes: int = 4_194_304,
        env: Mapping[str, str] | None = None,
        gentle_s: float = 0.0,
    ) -> Ran:
        """Run a program to its end. A program that a signal ended has the exit status 128 + its number, as in a shell.

        Args:
            argv: name and arguments.
            timeout_s: from now until its end.
            stdin: its whole standard input.
            limit_bytes: for standard output and standard error together.
            env: further variables, of `ports.ENVIRONMENT` only.
            gentle_s: between SIGTERM and SIGKILL at the deadline; 0 kills at once.

        Raises:
            CannotTell: `tool_missing`, `not_permitted`, `timed_out`, `output_too_large` or `io_error`.
            RuntimeError: a wrong call: a path in place of a name, a NUL in an argument, an undeclared variable.
        """
        name = argv[0] if argv else ""
        if not NAME.fullmatch(name) or any("\0" in word for word in argv):
            raise RuntimeError("a program is given by its name, and no argument may hold a NUL")
        if undeclared := set(env or {}) - ENVIRONMENT:
            raise RuntimeError(f"undeclared environment variables: {sorted(undeclared)}")
        until = asyncio.get_running_loop().time() + timeout_s
        await self._wait_for_left(name)
        child = await self._offload.call(
            f"program:{name}", timeout_s, lambda: self._start(argv, env or {}, bool(stdin)), late=_Child.end
        )
        exchange = _Exchange(child, stdin, limit_bytes)
        try:
            return await exchange.result(until - asyncio.get_running_loop().time())
        except CannotTell:
            await self._end(exchange, gentle_s)
            raise
        finally:
            exchange.close()
            if not child.reaped:
                self._leave(child)

    def _start(self, argv: Sequence[str], env: Mapping[str, str], with_stdin: bool) -> _Child:
        path = find_program(argv[0], self._directories)
        environment = {"PATH": ":".join(self._directories), **FIXED_ENVIRONMENT, **env}
        try:
            popen = subprocess.Popen(
                list(argv),
                executable=path,
                env=environment,
                cwd="/",
                stdin=subprocess.PIPE if with_stdin else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
            )
        except FileNotFoundError as error:
            raise CannotTell("tool_missing", f"{argv[0]}: it, or what runs it, is not there") from error
        except OSError as error:
            raise CannotTell.from_os_error(error, f"{argv[0]}: cannot be started") from error
        return _Child(argv[0], popen)

    async def _end(self, exchange: _Exchange, gentle_s: float) -> None:
        """Stop a program that broke a limit: ask, then kill, and wait a bounded time."""
        if gentle_s > 0:
            exchange.child.signal(signal.SIGTERM)
            await exchange.ended(gentle_s)
        exchange.child.signal(signal.SIGKILL)
        await exchange.ended(KILL_WAIT_S)

    def _leave(self, child: _Child) -> None:
        child.signal(signal.SIGKILL)
        if not child.reap():
            self._left.setdefault(child.name, []).append(child)

    def _reap(self, name: str) -> bool:
        """Whether none is left of this program."""
        still = [child for child in self._left.get(name, []) if not child.reap()]
        if still:
            self._left[name] = still
        else:
            self._left.pop(name, None)
        return not still

    async def _wait_for_left(self, name: str) -> None:
        """One that was killed a moment ago, when a check was cancelled, is given that moment."""
        for _ in range(10):
            if self._reap(name):
                return
            await asyncio.sleep(POLL_S)
        raise CannotTell("timed_out", f"{name}: an earlier one was killed and has not ended yet")


class _Child:
    """One process, its group, and its pidfd where the kernel has one."""

    def __init__(self, name: str, popen: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.popen = popen
        self.reaped = False
        self.pidfd: int | None = None
        with contextlib.suppress(OSError, AttributeError):
            self.pidfd = os.pidfd_open(popen.pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole group. Only before reaping: until then the number cannot be another group's."""
        if not self.reaped:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.popen.pid, number)

    def has_ended(self) -> bool:
        """Whether the process itself has ended; it stays a zombie, and its group number stays ours."""
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        try:
            return self.reaped or os.waitid(os.P_PID, self.popen.pid, flags) is not None
        except ChildProcessError:  # somebody else reaped it
            return True

    def reap(self) -> bool:
        """Take the exit status if the process has ended; say whether it has."""
        if not self.reaped and self.has_ended():
            self.signal(signal.SIGKILL)
            self.popen.wait()
            self.reaped = True
            self.close()
        return self.reaped

    def close(self) -> None:
        """Close our ends of the pipes, and the pidfd."""
        for pipe in (self.popen.stdin, self.popen.stdout, self.popen.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if self.pidfd is not None:
            os.close(self.pidfd)
            self.pidfd = None

    def end(self) -> None:
        """For a process that started after its deadline, on the thread that started it: kill it and wait, however long."""
        self.signal(signal.SIGKILL)
        self.popen.wait()
        self.reaped = True
        self.close()


class _Exchange:
    """The talk with one child: feeds it, reads it, sees its end. All on the event loop, nothing blocks."""

    def __init__(self, child: _Child, stdin: bytes, limit_bytes: int) -> None:
        self.child = child
        self._loop = asyncio.get_running_loop()
        self._limit = limit_bytes
        self._to_write = memoryview(stdin)
        self._read: dict[int, bytearray] = {}
        self._done: asyncio.Future[None] = self._loop.create_future()
        self._has_ended = asyncio.Event()
        self._poll: asyncio.TimerHandle | None = None
        for pipe in (child.popen.stdout, child.popen.stderr):
            assert pipe is not None  # noqa: S101 - asked for above
            os.set_blocking(pipe.fileno(), False)
            self._read[pipe.fileno()] = bytearray()
            self._loop.add_reader(pipe.fileno(), self._readable, pipe.fileno())
        if child.popen.stdin is not None:
            os.set_blocking(child.popen.stdin.fileno(), False)
            self._loop.add_writer(child.popen.stdin.fileno(), self._writable, child.popen.stdin)
        if child.pidfd is not None:
            self._loop.add_reader(child.pidfd, self._look_for_end)
        else:
            self._look_for_end()

    async def result(self, timeout_s: float) -> Ran:
        """What it printed and how it ended.

        Raises:
            CannotTell: `timed_out` or `output_too_large`; it is still to be killed.
        """
        await asyncio.wait([self._done], timeout=max(0.0, timeout_s))
        if not self._done.done():
            raise CannotTell("timed_out", f"{self.child.name}: did not end in time")
        self._done.result()
        self.child.signal(signal.SIGKILL)
        for handle in self._read:
            self._drain(handle)
        out, err = (bytes(piece) for piece in self._read.values())
        self._close_readers()
        self.child.reap()
        status = self.child.popen.returncode
        return Ran(status if status >= 0 else 128 - status, out, err)

    async def ended(self, timeout_s: float) -> None:
        """Wait until it has ended, at most so long; nothing that it still prints is kept."""
        self._close_readers()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._has_ended.wait()

    def close(self) -> None:
        """Take everything off the event loop."""
        self._close_readers()
        self._stop_writing()
        if self._poll is not None:
            self._poll.cancel()
        if self.child.pidfd is not None:
            self._loop.remove_reader(self.child.pidfd)
        if self._done.done() and not self._done.cancelled():
            self._done.exception()

    def _readable(self, handle: int) -> None:
        try:
            piece = os.read(handle, PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        if not piece:
            self._loop.remove_reader(handle)
            return
        self._keep(handle, piece)

    def _keep(self, handle: int, piece: bytes) -> None:
        self._read[handle] += piece
        if sum(map(len, self._read.values())) > self._limit and not self._done.done():
            message = f"{self.child.name}: more than {self._limit} bytes"
            self._done.set_exception(CannotTell("output_too_large", message))
            self._close_readers()

    def _drain(self, handle: int) -> None:
        """What is in the pipe when the process has ended is all it wrote; its killed group adds nothing to wait for.

        Raises:
            CannotTell: `output_too_large`.
        """
        while True:
            try:
                piece = os.read(handle, PIECE_BYTES)
            except OSError:
                return
            if not piece:
                return
            self._read[handle] += piece
            if sum(map(len, self._read.values())) > self._limit:
                raise CannotTell("output_too_large", f"{self.child.name}: more than {self._limit} bytes")

    def _writable(self, pipe: object) -> None:
        try:
            written = os.write(self._stdin_handle(), self._to_write[:PIECE_BYTES])
        except BlockingIOError:
            return
        except OSError as error:
            # A program need not read all it is given; what it makes of that is in its exit status.
            if error.errno not in {errno.EPIPE, errno.ECONNRESET}:
                raise
            written = len(self._to_write)
        self._to_write = self._to_write[written:]
        if not self._to_write:
            self._stop_writing()

    def _stdin_handle(self) -> int:
        assert self.child.popen.stdin is not None  # noqa: S101 - a writer is only added for one
        return self.child.popen.stdin.fileno()

    def _stop_writing(self) -> None:
        pipe = self.child.popen.stdin
        if pipe is not None and not pipe.closed:
            self._loop.remove_writer(pipe.fileno())
            with contextlib.suppress(OSError):
                pipe.close()

    def _close_readers(self) -> None:
        for handle in self._read:
            self._loop.remove_reader(handle)

    def _look_for_end(self) -> None:
        if not self.child.has_ended():
            self._poll = self._loop.call_later(POLL_S, self._look_for_end) if self.child.pidfd is None else None
            return
        if self.child.pidfd is not None:
            self._loop.remove_reader(self.child.pidfd)
        self._has_ended.set()
        if not self._done.done():
            self._done.set_result(None)
