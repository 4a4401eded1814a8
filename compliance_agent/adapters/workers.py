"""Work on both cores: a function over batches in forked processes, results in the order of the batches.

    for found in in_order(check, batches, count=2): ...
    with beside(answer) as other: ...  # one process that is asked one thing after the other, while this one does something else

Forked, not spawned: the function and the keys it holds are there already, nothing is imported twice, and most memory is shared.
So both are called before anything starts a thread. A worker ends when its pipe does: by itself when the parent is gone.
Ctrl-C is the parent's: it stops the workers and raises. A worker that dies is a loud stop, never a result less.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import itertools
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from typing import Any, TypeVar

from compliance_agent.errors import AgentError

T = TypeVar("T")
R = TypeVar("R")
AHEAD = 4  # batches a worker has waiting, so that it never waits
_UNTOLD = 16  # results for each worker that may wait for one that takes long


def in_order(work: Callable[[T], R], batches: Iterable[T], *, count: int) -> Iterator[R]:
    """The results, one for each batch.

    Args:
        work: called in the workers; what it raises is raised here.
        batches: pickled to the workers; never more of them at once than the workers have waiting.
        count: workers. With one, where threads run, outside Linux, or for a single batch, the work is done in this process.

    Raises:
        AgentError: code `worker_died`.
    """
    waiting = iter(batches)
    first = next(waiting, None)
    second = next(waiting, None)
    if first is None:
        return
    if second is None or count < 2 or threading.active_count() > 1 or not _forks():
        yield from map(work, itertools.chain([first], () if second is None else [second], waiting))
        return
    pool = _Pool(work, count)
    try:
        yield from pool.run([first, second], waiting)
    finally:
        pool.stop()


class Beside:
    """A process of its own, asked one thing after the other; each answer comes in pieces, in the order of the questions."""

    def __init__(self, end: Any) -> None:
        self._end = end

    def ask(self, question: object) -> None:
        """Ask, and go on with something else; AgentError, code `worker_died`."""
        _spoken(self._end.send, question)

    def answer(self) -> Iterator[bytes]:
        """To the oldest question that was not answered; raises what the process raised, or AgentError, code `worker_died`."""
        while (piece := _good(_spoken(self._end.recv))) is not None:
            yield piece


@contextlib.contextmanager
def beside(answer: Callable[[Any], Iterable[bytes]]) -> Iterator[Beside | None]:
    """A process that answers questions until the block ends; None where there is one core, where threads run, and outside Linux.

    It is gone with its questioner: at the next piece, at once when it is asked nothing. Who works long gives a piece now and then.
    """
    if cores() < 2 or threading.active_count() > 1 or not _forks():
        yield None
        return
    ours, theirs = connection.Pipe()
    pid = _forked(lambda: _serve_pieces(answer, theirs), [ours])
    theirs.close()
    try:
        yield Beside(ours)
    finally:
        ours.close()
        _ended(pid)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _forks() -> bool:
    """Elsewhere a process may have threads that Python does not know of, and a fork of it may hang."""
    return sys.platform == "linux"


class _Pool:
    def __init__(self, work: Callable[[Any], Any], count: int) -> None:
        self._pids: list[int] = []
        self._ends: list[Any] = []  # multiprocessing.connection.Connection, which is generic in some versions
        for _ in range(count):
            ours, theirs = connection.Pipe()
            self._pids.append(_forked(functools.partial(_serve, work, theirs), [*self._ends, ours]))
            theirs.close()
            self._ends.append(ours)

    def run(self, first: list[Any], waiting: Iterator[Any]) -> Iterator[Any]:
        sent, done = 0, 0
        results: dict[int, Any] = {}
        queues: dict[Any, deque[int]] = {end: deque() for end in self._ends}
        held = deque(first)
        exhausted = False
        while not exhausted or held or any(queues.values()):
            for end, queue in sorted(queues.items(), key=lambda item: len(item[1])):
                while len(queue) < AHEAD and not exhausted and sent - done < _UNTOLD * len(queues):
                    batch = held.popleft() if held else next(waiting, None)
                    if batch is None:
                        exhausted = True
                        break
                    _spoken(end.send, batch)
                    queue.append(sent)
                    sent += 1
            ready: list[Any] = connection.wait([end for end, queue in queues.items() if queue])
            for end in ready:
                results[queues[end].popleft()] = _good(_spoken(end.recv))
            while done in results:
                yield results.pop(done)
                done += 1

    def stop(self) -> None:
        for end in self._ends:
            end.close()
        for pid in self._pids:
            _ended(pid)


def _forked(serve: Callable[[], object], ends: Iterable[Any]) -> int:
    """A process that serves, without the ends that are this one's."""
    gc.collect()
    gc.freeze()  # so that a worker's collector does not touch, and thereby copy, what it shares
    try:
        if (pid := os.fork()) == 0:
            for end in ends:
                end.close()
            serve()
        return pid
    finally:
        gc.unfreeze()


def _ended(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(pid, 0)


def _spoken(act: Callable[..., Any], *what: Any) -> Any:
    """Send to a worker or hear from it."""
    try:
        return act(*what)
    except (EOFError, OSError) as error:
        raise AgentError(
            "a worker process died; nothing is claimed of what it had",
            code="worker_died",
            hint="try again; the kernel ends processes where memory runs out",
        ) from error


def _good(heard: tuple[bool, Any]) -> Any:
    good, value = heard
    if not good:
        raise value
    return value


def _serve(work: Callable[[Any], Any], end: Any) -> None:
    """A worker's life; it never returns into the parent's code."""
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        gc.set_threshold(50_000)  # what comes and goes here holds no cycles
        while True:
            batch = end.recv()
            try:
                answer = (True, work(batch))
            except Exception as error:
                answer = (False, error)
            end.send(answer)
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)


def _serve_pieces(answer: Callable[[Any], Iterable[bytes]], end: Any) -> None:
    """As `_serve`, with answers in pieces, each ended by None; Ctrl-C ends it, so that nobody waits for it then."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        while True:
            asked = end.recv()
            try:
                for piece in answer(asked):
                    end.send((True, piece))
                end.send((True, None))
            except Exception as error:
                end.send((False, error))
    except (EOFError, OSError):
        pass
    finally:
        os._exit(0)
