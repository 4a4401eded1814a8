"""Run a coroutine as the whole program, and end although something hangs.

`asyncio.run` waits for every task and every thread that is left. A look at a dead disk ignores cancellation, and must not keep
the agent from ending within its ten seconds: what has not ended after a moment is abandoned with the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import Coroutine
from typing import Any, NoReturn, TypeVar

T = TypeVar("T")
PATIENCE_S = 1.0
_ABANDONED: list[asyncio.Task[Any]] = []  # kept, so that nobody mourns them at exit


def run(work: Coroutine[Any, Any, T]) -> T:
    """The coroutine's value. Tasks that ignore their cancellation are abandoned; leave the interpreter with `end` then."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(work)
    finally:
        _end_tasks(loop)
        asyncio.set_event_loop(None)
        if not _ABANDONED:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def _end_tasks(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        _, hanging = loop.run_until_complete(asyncio.wait(left, timeout=PATIENCE_S))
        _ABANDONED.extend(hanging)


def end(status: int) -> NoReturn:
    """Leave with this status. Threads that have not ended after a moment are not waited for."""
    if _ABANDONED:
        _leave(status)
    watchdog = threading.Timer(PATIENCE_S, _leave, [status])
    watchdog.daemon = True
    watchdog.start()
    sys.exit(status)


def _leave(status: int) -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or never there
            stream.flush()
    os._exit(status)


def program(work: Coroutine[Any, Any, None]) -> NoReturn:
    """Run it and leave: with 0, or with the status of its `sys.exit`."""
    try:
        run(work)
    except SystemExit as leaving:
        end(leaving.code if isinstance(leaving.code, int) else 0 if leaving.code is None else 1)
    except KeyboardInterrupt:
        end(130)
    end(0)
