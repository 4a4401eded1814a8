"""What the lab asks of programs: scripts on its hosts, programs of this machine, and waiting for what either brings."""

from __future__ import annotations

import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Protocol

from compliance_agent.errors import Unavailable

PAUSE_S = 0.3  # between looks at a machine that is under way, which nobody can be told of


class Ended(Protocol):
    """How a script ended; `subprocess.CompletedProcess[str]` is one."""

    @property
    def returncode(self) -> int: ...
    @property
    def stdout(self) -> str: ...
    @property
    def stderr(self) -> str: ...


class Shell(ABC):
    """A host that runs scripts as root.

    Attributes:
        name: of the host.
        kind: what it is, in words.
    """

    name: str
    kind: str

    @abstractmethod
    def run(self, script: str, *, timeout_s: float = 60.0) -> Ended:
        """A shell script inside, as root."""

    def sh(self, script: str, *, timeout_s: float = 60.0) -> str:
        """Its output, however it ended."""
        return self.run(script, timeout_s=timeout_s).stdout

    def must(self, script: str, *, timeout_s: float = 60.0) -> str:
        """Its output; a script of the lab that fails is a fault of the lab.

        Raises:
            Unavailable: it failed.
        """
        return _good(self.run(script, timeout_s=timeout_s), f"{self.kind} {self.name}: `{script[:120]}`")


def must(*words: str, timeout_s: float = 60.0) -> str:
    """The output of a program of this machine that has to end with status 0.

    Raises:
        Unavailable: it did not.
    """
    done = subprocess.run(
        words, capture_output=True, text=True, check=False, timeout=timeout_s, stdin=subprocess.DEVNULL
    )
    return _good(done, f"lab: {' '.join(words)[:160]}")


def until(holds: Callable[[], bool], seconds: float) -> bool:
    """Whether it came to hold in time."""
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            return False
        time.sleep(PAUSE_S)
    return True


def _good(done: Ended, what: str) -> str:
    if done.returncode != 0:
        raise Unavailable(f"{what} ended with {done.returncode}: {done.stderr[-400:]}")
    return done.stdout
