"""One thread that runs what it is given, in order. It never keeps the process from ending: a disk may hang for minutes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from compliance_agent.errors import StorageError

T = TypeVar("T")
Job = tuple[Callable[[], Any], asyncio.AbstractEventLoop, "asyncio.Future[Any]"]


class WriterThread:
    """Started by its first call, ended by `close`."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False
        self._mutex = threading.Lock()

    async def call(self, fn: Callable[[], T]) -> T:
        """The value of `fn()`, run on the thread. A cancelled caller leaves it running to its end.

        Raises:
            StorageError: closed.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        with self._mutex:
            if self._closed:
                raise StorageError("database is closed", code="storage_closed")
            if self._thread is None:
                self._thread = threading.Thread(target=_work, args=(self._jobs,), name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put((fn, loop, future))
        return await future

    def close(self, timeout_s: float) -> None:
        """Let what was given before finish, for so long at most."""
        with self._mutex:
            self._closed = True
            self._jobs.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout_s)


def _work(jobs: queue.SimpleQueue[Job | None]) -> None:
    while (job := jobs.get()) is not None:
        fn, loop, future = job
        try:
            tell = functools.partial(_tell, future, fn(), None)
        except BaseException as error:
            tell = functools.partial(_tell, future, None, error)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            loop.call_soon_threadsafe(tell)
        del job, fn, loop, future, tell  # keep nothing alive while waiting


def _tell(future: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if future.done():  # its caller was cancelled
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)
