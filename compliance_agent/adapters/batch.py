"""Many paths in one call: a thread costs several times what a look at one file does.

What hangs is still known by its name. The thread says which path it is at, and comes back after a while though more are left, so
that a file that hangs is told from one that is one of many.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from compliance_agent.errors import CannotTell

BATCH_S = 0.5  # a thread comes back after it
Value = TypeVar("Value")


class Batch(Generic[Value]):
    """Some paths, one after the other on one thread, until all are done, time is up or it is stopped.

    Args:
        paths: at least one.
        look: what is done at each; blocks. What it raises as `CannotTell` or `OSError` is that path's value.
    """

    def __init__(self, paths: Sequence[str], look: Callable[[str], Value]) -> None:
        self.found: dict[str, Value | CannotTell] = {}
        self.stuck = self._current = paths[0]
        self._stopped = False
        self._paths, self._look = paths, look

    def hangs_at(self) -> str:
        """What it is at now, as the offload writes it; `stuck` is the same as a path."""
        self.stuck = self._current
        return f"path:{self.stuck}"

    def stop(self) -> dict[str, Value | CannotTell]:
        """Have it do no more than what it is at; what it has found so far."""
        self._stopped = True
        return dict(self.found)

    def work(self) -> None:
        """The whole of it. Blocks."""
        until, found, look = time.monotonic() + BATCH_S, self.found, self._look
        for path in self._paths:
            self._current = path
            try:
                found[path] = look(path)
            except CannotTell as error:
                found[path] = error
            except OSError as error:
                found[path] = not_looked_at(path, error)
            if self._stopped or time.monotonic() > until:
                return


def not_looked_at(path: str, error: OSError) -> CannotTell:
    """What an error of the system says of a path."""
    return CannotTell.from_os_error(error, f"{path}: cannot be looked at ({os.strerror(error.errno or 0)})")
