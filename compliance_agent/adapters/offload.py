"""Blocking calls on daemon threads, each with a deadline that holds even when the kernel does not answer.

A read from a dead disk or a lost network mount cannot be interrupted. So each call has a thread to itself; when its
deadline passes, the thread is abandoned, never awaited: the interpreter can still exit, and no shared pool of workers
is used up. As long as an abandoned call has not come back, calls for the same object are refused at once, so one dead
mount costs one thread. A thread that came back waits a moment for the next call, for a look at a host is hundreds of
them and a new thread costs several times what most of them do.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from compliance_agent.errors import CannotTell

Value = TypeVar("Value")
MOST_ABANDONED = 16
LINGER_S = 0.05  # what a thread waits for its next call; nothing is left of a look soon after it


class _Job(Generic[Value]):
    """One call. `lock` orders the only race there is: it finishes while it is being given up."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.finished = False
        self.abandoned = False
        self.key = ""  # of what it hung at when it was given up
        self.value: list[Value] = []
        self.error: BaseException | None = None


class Offload:
    """Runs blocking calls for one host; `abandoned` says how many have not come back."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._given_up: dict[str, int] = {}
        self._idle: list[SimpleQueue[Callable[[], None]]] = []  # of threads that wait

    @property
    def abandoned(self) -> int:
        """Threads that hang beyond their deadline, now."""
        with self._lock:
            return sum(self._given_up.values())

    @property
    def hanging(self) -> frozenset[str]:
        """The objects at which they hang."""
        with self._lock:
            return frozenset(self._given_up)

    async def call(
        self,
        key: str | Callable[[], str],
        timeout_s: float,
        work: Callable[[], Value],
        *,
        late: Callable[[Value], None] | None = None,
        after: Callable[[], None] | None = None,
    ) -> Value:
        """The value of `work()`, computed on another thread.

        Args:
            key: the object that might hang, such as `path:/mnt/x`; a function where the work has several, one after the other.
            timeout_s: seconds to wait for it.
            work: the blocking call; what it raises is raised here.
            late: is given a value that nobody waits for any more, on another thread.
            after: is called on the thread that has worked, when its value or error is handed over; nobody waits for it.

        Raises:
            CannotTell: `timed_out`, at once when an earlier call for this object still hangs; `io_error` without a
            thread.
        """
        what = key if isinstance(key, str) else key()
        with self._lock:
            if what in self._given_up or sum(self._given_up.values()) >= MOST_ABANDONED:
                raise CannotTell("timed_out", f"{what}: an earlier call has not come back yet")
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[bool] = loop.create_future()  # whether it came in time
        job: _Job[Value] = _Job()
        try:
            body = functools.partial(self._body, job, work, late, loop, ready)
            self._hand(body if after is None else functools.partial(_one_after_the_other, body, after))
        except RuntimeError as error:
            raise CannotTell("io_error", "no thread to be had", errno_name="EAGAIN") from error
        timer = loop.call_later(timeout_s, _tell, ready, False)
        try:  # not wait_for: Python 3.11's loses a cancel that comes with the value
            if not await ready and self._give_up(key, job):
                raise CannotTell("timed_out", f"{job.key}: no answer within {timeout_s} s")
        except asyncio.CancelledError:
            # The value may have come in this very moment; `late` may block, so it gets a thread here too.
            if not self._give_up(key, job) and job.value and late is not None:
                threading.Thread(target=late, args=(job.value.pop(),), daemon=True).start()
            raise
        finally:
            timer.cancel()
        if job.error is not None:
            raise job.error
        return job.value[0]

    def _hand(self, task: Callable[[], None]) -> None:
        """Have a thread that waits, or else a new one, do it."""
        with self._lock:
            inbox = self._idle.pop() if self._idle else None
        if inbox is None:
            threading.Thread(target=self._serve, args=(task,), daemon=True, name="host-io").start()
        else:
            inbox.put(task)

    def _serve(self, task: Callable[[], None]) -> None:
        """A thread's life: the task it was made for, and those that come before it has waited in vain."""
        inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        while True:
            task()
            with self._lock:
                self._idle.append(inbox)
            try:
                task = inbox.get(timeout=LINGER_S)
            except Empty:
                with self._lock:
                    if inbox in self._idle:
                        self._idle.remove(inbox)
                        return
                task = inbox.get()  # it was chosen in this very moment

    def _give_up(self, key: str | Callable[[], str], job: _Job[Value]) -> bool:
        """Abandon the call, unless it finished first."""
        with job.lock:
            if job.finished:
                return False
            job.abandoned = True
            job.key = key if isinstance(key, str) else key()
            with self._lock:
                self._given_up[job.key] = self._given_up.get(job.key, 0) + 1
            return True

    def _body(
        self,
        job: _Job[Value],
        work: Callable[[], Value],
        late: Callable[[Value], None] | None,
        loop: asyncio.AbstractEventLoop,
        ready: asyncio.Future[bool],
    ) -> None:
        try:
            job.value.append(work())
        except BaseException as error:
            job.error = error
        with job.lock:
            job.finished = True
            if not job.abandoned:
                try:
                    loop.call_soon_threadsafe(_tell, ready, True)
                    return
                except RuntimeError:  # the loop is closed: nobody waits
                    pass
            else:
                self._come_back(job.key)
        if job.value and late is not None:
            late(job.value.pop())

    def _come_back(self, key: str) -> None:
        with self._lock:
            self._given_up[key] -= 1
            if not self._given_up[key]:
                del self._given_up[key]


def _tell(ready: asyncio.Future[bool], in_time: bool) -> None:
    if not ready.done():
        ready.set_result(in_time)


def _one_after_the_other(first: Callable[[], None], second: Callable[[], None]) -> None:
    first()
    second()
