"""Work in other processes is the same work: every result, in order, or a loud stop; and nobody is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent.adapters import workers
from compliance_agent.adapters.workers import beside, in_order
from compliance_agent.errors import AgentError


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads of an earlier test's calls have a moment left; where one runs, nothing is forked. One that stays idle, as that of a
    database which nobody closed, does not count here."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(0.05 if thread.daemon else 10)
    everybody, left = threading.active_count, threading.active_count() - 1
    monkeypatch.setattr(threading, "active_count", lambda: everybody() - left)


def children() -> set[str]:
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError):  # that thread has ended since it was listed
            found |= set((task / "children").read_text("ascii").split())
    return found


def slow_first(number: int) -> tuple[int, int]:
    """The first batches take longest, so that results arrive out of order."""
    total = sum(range(200_000 if number < 4 else 10))
    return number, total and os.getpid()


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("batches", [0, 1, 2, 57, 400])
def test_results_come_in_the_order_of_the_batches(count: int, batches: int) -> None:
    before = children()
    found = list(in_order(slow_first, range(batches), count=count))
    assert [number for number, _ in found] == list(range(batches))
    spread = count > 1 and batches > 1
    assert (os.getpid() in {pid for _, pid in found}) == (not spread and batches > 0)
    assert children() == before


def test_large_batches_and_results_do_not_block_each_other() -> None:
    blob = b"x" * 40_000
    found = list(in_order(lambda item: item * 8, (blob for _ in range(60)), count=2))
    assert found == [blob * 8] * 60


@pytest.mark.parametrize("count", [1, 2])
def test_batches_are_taken_as_they_are_needed(count: int) -> None:
    """A million names are never held at once, in workers or in this process."""
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            assert taken < 1_000, "they are all taken"
            yield taken

    results = in_order(lambda number: number, endless(), count=count)
    assert [next(results) for _ in range(10)] == list(range(1, 11))
    results.close()  # type: ignore[attr-defined]
    assert taken < 60


def test_what_a_worker_raises_is_raised_here() -> None:
    def refuse(number: int) -> int:
        if number == 30:
            raise PermissionError("thirty")
        return number

    before = children()
    with pytest.raises(PermissionError, match="thirty"):
        list(in_order(refuse, range(100), count=2))
    assert children() == before


def test_a_worker_that_dies_is_a_loud_stop() -> None:
    parent = os.getpid()

    def die(number: int) -> int:
        if number == 30:
            assert os.getpid() != parent, "nothing was forked"
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    before = children()
    with pytest.raises(AgentError, match="worker process died"):
        list(in_order(die, range(100), count=2))
    assert children() == before


def test_a_process_with_threads_is_not_forked() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert set(in_order(lambda _: os.getpid(), range(20), count=2)) == {os.getpid()}
    finally:
        done.set()
        thread.join()


PROGRAM = """
import os, sys, time
from compliance_agent.adapters.workers import in_order
from compliance_agent.errors import AgentError
def work(n):
    if n == 0:
        return os.getpid()
    time.sleep(60)
for pid in in_order(work, range(100), count=2):
    print(pid, flush=True)
"""


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_nobody_is_left_after_ctrl_c_or_a_kill(how: signal.Signals) -> None:
    """Ctrl-C goes to the whole group, as a terminal sends it; a kill to the parent alone."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    assert process.stdout is not None
    worker = int(process.stdout.readline())
    family = {worker, *map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text("ascii").split())}
    if how == signal.SIGINT:
        os.killpg(process.pid, how)
        assert process.wait(10) != 0
        assert not any(_alive(pid) for pid in family)
    else:
        process.kill()
        process.wait(10)
        for pid in family:  # asleep over its batch; it sees the end of its pipe after it
            os.kill(pid, signal.SIGTERM)
    process.communicate()


def _alive(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state == "Z":
            return False
    return True


def spelled(word: str) -> Iterator[bytes]:
    """In pieces; one word is refused on the way, another kills."""
    for letter in word:
        yield letter.encode()
    if word == "bad":
        raise PermissionError(word)
    if word == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    yield str(os.getpid()).encode()


def test_answers_come_in_the_order_of_the_questions_while_one_goes_on() -> None:
    before = children()
    with beside(spelled) as other:
        assert other is not None
        for word in ("one", "bad", "two"):
            other.ask(word)
        first = list(other.answer())
        assert first[:-1] == [b"o", b"n", b"e"] and int(first[-1]) != os.getpid()
        with pytest.raises(PermissionError, match="bad"):
            list(other.answer())
        assert list(other.answer())[:-1] == [b"t", b"w", b"o"]
    assert children() == before


def test_one_that_dies_on_the_way_gave_no_answer() -> None:
    before = children()
    with beside(spelled) as other:
        assert other is not None
        other.ask("die")
        with pytest.raises(AgentError, match="worker process died") as died:
            list(other.answer())
        assert died.value.code == "worker_died"
    assert children() == before


def test_beside_a_thread_nobody_is_forked() -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        with beside(spelled) as other:
            assert other is None
    finally:
        done.set()
        thread.join()


def test_elsewhere_than_on_linux_it_is_the_same_work_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.delattr(os, "sched_getaffinity")
    assert workers.cores() >= 1
    assert set(in_order(lambda _: os.getpid(), range(20), count=2)) == {os.getpid()}
