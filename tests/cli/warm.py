"""`compliance-agent server WORDS` in a process of its own that is forked from one which has the libraries at hand.

Reading them takes two thirds of what such a command takes. Only what others wrote is read before: each command imports our own
modules itself, so that one which leans on what another has imported is still found.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

LIBRARIES = (
    "asyncpg",
    "click",
    "cryptography.x509",
    "cryptography.x509.verification",
    "h11",
    "joserfc.jwt",
    "nacl.signing",
    "orjson",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.ext.asyncio",
    "structlog",
    "yaml",
    "zstandard",
)
MESSAGE = 1 << 17  # bytes; the environment and the words of a command, as JSON


def _ready(end: socket.socket) -> tuple[dict[str, object], list[int]] | None:
    """In the process that waits: fork for each request, and say how it ended. In a forked one: its request; at the end: none."""
    while True:
        asked, fds, _, _ = socket.recv_fds(end, MESSAGE, 3)
        if not asked:
            return None
        pid = os.fork()
        if pid == 0:
            end.close()
            found: dict[str, object] = json.loads(asked)
            return found, fds
        for fd in fds:
            os.close(fd)
        end.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        end.send(str(os.waitstatus_to_exitcode(status)).encode())


def _serve(number: int) -> None:
    if os.fork():  # nobody's child: tests that hold us to having none run in the same process
        os._exit(0)
    for name in LIBRARIES:
        importlib.import_module(name)
    request = _ready(socket.socket(fileno=number))
    if request is None:
        return
    asked, fds = request
    for target, fd in enumerate(fds):
        os.dup2(fd, target)
        os.close(fd)
    os.environ.clear()
    os.environ.update(asked["env"])  # type: ignore[call-overload]  # it is what `run` sends
    sys.argv = ["compliance-agent", *asked["words"]]  # type: ignore[misc]
    runpy.run_module("compliance_agent", run_name="__main__", alter_sys=True)


@dataclass
class Warm:
    """The process that waits, started with the first command of this one and ended with this one."""

    _end: socket.socket | None = None
    _busy: threading.Lock = field(default_factory=threading.Lock)

    def run(
        self, words: Sequence[str], env: Mapping[str, str], deadline_s: float
    ) -> subprocess.CompletedProcess[bytes] | None:
        """The command, ended; none while another thread's is under way, which would have to be waited for.

        Raises:
            subprocess.TimeoutExpired: it took longer, and was killed.
        """
        if not self._busy.acquire(blocking=False):
            return None
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, Path(os.devnull).open("rb") as nothing:
            try:
                end = self._end = self._end or self._started()
                asked = json.dumps({"words": words, "env": dict(env)}).encode()
                socket.send_fds(end, [asked], [nothing.fileno(), out.fileno(), err.fileno()])
                pid = int(end.recv(64))
                late = not select.select([end], [], [], deadline_s)[0]
                if late:
                    os.kill(pid, signal.SIGKILL)
                status = int(end.recv(64))
            finally:
                self._busy.release()
            out.seek(0)
            err.seek(0)
            if late:
                raise subprocess.TimeoutExpired(list(words), deadline_s, out.read(), err.read())
            return subprocess.CompletedProcess(list(words), status, out.read(), err.read())

    def _started(self) -> socket.socket:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            subprocess.run(
                [sys.executable, "-m", "tests.cli.warm", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                check=True,
            )
        atexit.register(self.close)
        return ours

    def close(self) -> None:
        """Let the process that waits end: nobody asks it any more."""
        if self._end is not None:
            self._end.close()


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
