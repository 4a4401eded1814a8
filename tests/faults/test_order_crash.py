"""Killed (SIGKILL) before any write of taking an order: it is done at most once, and its end is said exactly once."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import sys
from pathlib import Path

import pytest

from tests.faults.driver import Call, calls, inject, judge, run, sample

POINTS = int(os.environ.get("CRASH_POINTS", "30")) // 2


class Bench:
    """A host's state before the order, copied for each run."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root / "strace.log"

    def argv(self, place: Path) -> list[str]:
        return [sys.executable, "-m", "tests.faults.ordering", "--root", str(place)]

    def fresh(self) -> Path:
        place = self.root / "host"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        return place

    def points(self, argv: list[str], place: Path) -> list[Call]:
        """Every write of the state, and of what is done, from when the agent runs."""
        ran, writes = calls(argv, self.log, place)
        assert (ran.status, ran.lines) == (0, ("S", "D")), ran.errors
        return writes[len(writes) // 4 :]  # before that the empty state is made

    def wrong(self, place: Path) -> list[str]:
        """Run it to its end; what is wrong then."""
        again = run(self.argv(place))
        if (again.status, again.lines) != (0, ("S", "D")):
            return [f"does not go on: exit {again.status}, {again.errors[-300:]}"]
        acts = len((place / "acts").read_text().splitlines()) if (place / "acts").exists() else 0
        with sqlite3.connect(place / "state" / "agent.db") as connection:
            bodies = [json.loads(row[0]) for row in connection.execute("SELECT body FROM evidence ORDER BY id")]
        ends = [
            item["error"] for item in bodies if item["kind"] == "order" and item["outcome"] in {"success", "failed"}
        ]
        found = judge(place / "state", [])
        if len(ends) != 1:
            found.append(f"its end is said {len(ends)} times: {ends}")
        if acts > 1:
            found.append(f"done {acts} times")
        if acts == 0 and ends != ["order_interrupted"]:
            found.append(f"not done, and said to have ended as {ends}")
        return found


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("orders"))


@pytest.mark.timeout(400)
def test_killed_anywhere_it_is_done_at_most_once_and_said_once(bench: Bench) -> None:
    place = bench.fresh()
    found = sample(bench.points(bench.argv(place), place), POINTS)
    killed, when = 0, set()
    for call in found:
        ran = inject(bench.argv(place := bench.fresh()), call, "signal=KILL", bench.log)
        killed += ran.status == 137
        when.add((place / "acts").exists())
        assert bench.wrong(place) == [], (call, ran.lines)
    assert killed >= 0.9 * len(found)
    assert when == {True, False}, "some before it was done, some after"


MUTANT = """
from pathlib import Path
import sys
from compliance_agent.adapters.order_store import OrderStore
from tests.faults import ordering
begin = OrderStore.begin
def act_first(self, taken, counter, *, stops=None):
    ordering.act(Path(sys.argv[-1]))
    return begin(self, taken, counter, stops=stops)
OrderStore.begin = act_first
drive = ordering.drive
act = ordering.act
ordering.main()
"""


def test_acting_before_it_is_written_down_would_be_found(bench: Bench) -> None:
    """The planted fault: killed right after it acted, the next run acts again."""
    place = bench.fresh()
    argv = [sys.executable, "-c", MUTANT, "--root", str(place)]
    _, writes = calls(argv, bench.log, place)
    acted = next(at for at, call in enumerate(writes) if call.name == "write" and _is_act(writes, at))
    place = bench.fresh()
    ran = inject(argv, writes[acted + 2], "signal=KILL", bench.log)
    assert ran.status == 137, ran.errors
    assert len((place / "acts").read_text().splitlines()) == 1
    assert [problem for problem in bench.wrong(place) if problem.startswith("done")] == ["done 2 times"]


def _is_act(writes: list[Call], at: int) -> bool:
    """The line in `acts`: opened, written and synced by itself."""
    return [call.name for call in writes[at - 1 : at + 2]] == ["openat", "write", "fsync"] and at > len(writes) // 3
