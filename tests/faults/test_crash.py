"""Killed at any write, with any write failing, or cut off from power: nothing promised is lost, no number is used twice.

Sampled so that the whole file takes about a minute; `CRASH_POINTS=1000 CRASH_STATES=20000 pytest tests/faults` looks at all.
Each harness has its planted fault: a database with `synchronous=NORMAL` must lose evidence in the same simulation, and a
judge that sees a missing row must say so.
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.faults.driver import DOCUMENTED, Call, Ran, calls, command, inject, judge, run, sample
from tests.faults.powercut import TRACED, Disk, Operation, changing, operations

POINTS = int(os.environ.get("CRASH_POINTS", "30"))
STATES = int(os.environ.get("CRASH_STATES", "2000"))
COUNT = 2


@pytest.fixture(scope="module")
def points(tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """Every write-class call of a first run that records COUNT bundles."""
    root = tmp_path_factory.mktemp("points")
    ran, found = calls(command(root / "state", COUNT), root / "log", root / "state")
    assert (ran.status, len(ran.said("P"))) == (0, COUNT)
    assert {"pwrite64", "fdatasync", "fsync", "rename", "openat", "unlink", "mkdir"} <= {call.name for call in found}
    assert len(found) > 100
    return found


def test_the_judge_sees_a_lost_row(tmp_path: Path) -> None:
    """The planted fault for everything below."""
    state = tmp_path / "state"
    ran = run(command(state, 3))
    assert judge(state, ran.said("P")) == []
    with sqlite3.connect(state / "agent.db") as connection:
        [(lost,)] = connection.execute("SELECT bundle_id FROM evidence WHERE seq = 2").fetchall()
        connection.execute("DELETE FROM evidence WHERE seq = 2")
    connection.close()
    [copy] = (state / "evidence").rglob(lost)  # a directory that is left would mend its row
    shutil.rmtree(copy)
    assert judge(state, ran.said("P"))


def test_killed_before_each_write(points: list[Call], tmp_path: Path) -> None:
    """R2, the part up to the promise: the kill lands before the call, so that all of them cover before and after."""
    killed = 0
    for number, call in enumerate(sample(points, POINTS)):
        state = tmp_path / str(number)
        ran = inject(command(state, COUNT), call, "signal=KILL", tmp_path / "log")
        killed += ran.status == 137
        assert judge(state, ran.said("P")) == [], call
    assert killed >= 0.95 * min(POINTS, len(points))


def test_a_killed_run_goes_on(points: list[Call], tmp_path: Path) -> None:
    """The next run numbers on from where the killed one was, with the real program."""
    state = tmp_path / "state"
    promised: list[str] = []
    for call in sample(points, 6):
        promised += inject(command(state, COUNT), call, "signal=KILL", tmp_path / "log").said("P")
    ran = run(command(state, COUNT))
    promised += ran.said("P")
    assert ran.status == 0
    assert judge(state, promised) == []


ERRORS = ("EIO", "ENOSPC", "EDQUOT", "EROFS", "EMFILE")


def test_each_write_fails_once(points: list[Call], tmp_path: Path) -> None:
    """R3: refused or kept, never half; a documented exit status, no traceback; the next run goes on."""
    for number, call in enumerate(sample(points, POINTS)):
        state = tmp_path / str(number)
        ran = inject(command(state, COUNT), call, f"error={ERRORS[number % len(ERRORS)]}", tmp_path / "log")
        _ended_well(ran, call)
        again = run(command(state, 1)) if number % 3 == 0 else None
        promised = ran.said("P") + (again.said("P") if again else [])
        if again is not None:
            assert (again.status, len(again.said("P"))) == (0, 1), (call, again.errors)
        # A database that could not be created whole begins again, and says so by a new epoch.
        assert judge(state, promised, chain_may_start_anew=not ran.said("P")) == [], (call, ran)


def _ended_well(ran: Ran, call: Call) -> None:
    assert ran.status in DOCUMENTED, (call, ran)
    assert "Traceback" not in ran.errors, (call, ran.errors)


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_every_write_fails_from_some_point_on(points: list[Call], tmp_path: Path, error: str) -> None:
    """A disk that fills up, or dies: what was promised before stays, nothing more is promised."""
    writes = [call for call in points if call.name == "pwrite64"]
    for number, call in enumerate(sample(writes, 4)):
        state = tmp_path / str(number)
        ran = inject(command(state, COUNT), Call(call.name, call.number), f"error={error}", tmp_path / "log")
        _ended_well(ran, call)
        assert judge(state, ran.said("P"), chain_may_start_anew=not ran.said("P")) == [], (call, ran)


# Power cut


def recorded(root: Path, count: int, program: Sequence[str] | None = None) -> list[Operation]:
    """Every write-class call of a run, with its bytes."""
    argv = [*program, *command(root / "state", count)[3:]] if program else command(root / "state", count)
    log = root / "log"
    ran = run(["strace", "-f", "-qq", "-xx", "-s", "100000", "-o", str(log), "-e", f"trace={TRACED}", *argv])
    assert (ran.status, len(ran.said("P"))) == (0, count), ran.errors
    return list(operations(log))


@dataclass
class Cuts:
    """What so many power cuts did: distinct states, those of them after the first promise, and those that lost something."""

    distinct: int = 0
    after_promise: int = 0
    losses: int = 0


def cut(done: Sequence[Operation], root: Path, scratch: Path, states: int, *, database_only: bool) -> Cuts:
    """Cut the recorded run off at random places, seeded, and open what is left with the real code."""
    rng, found, seen = random.Random(20261122 + database_only), Cuts(), set[tuple[str, int]]()
    for _pass in range(8):
        disk, position = Disk(root / "state"), 0
        for place in sorted(rng.choices(changing(done, root / "state"), k=states)):
            for operation in done[position:place]:
                disk.do(operation)
            position = place
            state = (disk.survive(scratch / "state", rng), len(disk.promised))
            if state not in seen and found.distinct < states:
                seen.add(state)
                found.distinct += 1
                found.after_promise += bool(disk.promised)
                found.losses += bool(lost(scratch / "state", disk.promised, database_only=database_only))
            shutil.rmtree(scratch / "state")
    return found


def lost(state: Path, promised: Sequence[str], *, database_only: bool) -> list[str]:
    """What is wrong with one state; with `database_only`, the directories are gone as well."""
    if database_only:
        shutil.rmtree(state / "evidence", ignore_errors=True)
    return judge(state, promised, chain_may_start_anew=not promised, directories=not database_only)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """In memory where there is such a place: the states are small and many."""
    memory = Path("/dev/shm")
    path = memory / f"powercut-{os.getpid()}" if os.access(memory, os.W_OK) else tmp_path / "scratch"
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir()
    return path


@pytest.mark.parametrize("database_only", [False, True], ids=["with directories", "database alone"])
def test_no_power_cut_loses_what_was_promised(tmp_path: Path, scratch: Path, database_only: bool) -> None:
    """R1. The directories are a second copy; the database must not need it."""
    found = cut(recorded(tmp_path, 16), tmp_path, scratch, STATES // 2, database_only=database_only)
    shutil.rmtree(scratch)
    assert found.losses == 0
    assert found.distinct > STATES // 4
    assert found.after_promise > found.distinct // 2


def test_the_normal_mutant_loses_evidence_in_the_same_simulation(tmp_path: Path, scratch: Path) -> None:
    """The planted fault: without FULL, SIGKILL tests see nothing and a power cut loses promised evidence."""
    program = [
        sys.executable,
        "-c",
        "from compliance_agent.adapters.database import Database; Database.synchronous = 'NORMAL'\n"
        "from compliance_agent.lab.crash_driver import main; main()",
    ]
    found = cut(recorded(tmp_path, 6, program), tmp_path, scratch, 60, database_only=True)
    shutil.rmtree(scratch)
    assert found.after_promise > 20
    assert found.losses > 10
