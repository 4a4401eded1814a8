"""Between which moments a record came to be, from a log as it is served: what witnesses signed counts, and nothing else."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.server.services.moments import NEAR, Interval, Moments
from compliance_agent.web.proofs import when

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@dataclass
class Log:
    """Entries in memory; a checkpoint is its size and root as JSON, with the times at which witnesses signed it."""

    leaves: list[bytes]

    def note(self, size: int, *times: datetime, root: str | None = None) -> bytes:
        said = root or root_of(self.leaves[:size]).hex()
        return json.dumps({"size": size, "root": said, "times": [at.isoformat() for at in times]}).encode()

    def add_time(self, size: int, *times: datetime, root: str | None = None) -> int:
        """An entry that holds when witnesses signed the tree of this size; its index."""
        self.leaves.append(time_leaf(self.note(size, *times, root=root), []))
        return len(self.leaves) - 1

    def add(self, count: int) -> int:
        """So many records; the index of the last."""
        self.leaves += [b'{"kind":"bundle","n":%d}' % at for at in range(len(self.leaves), len(self.leaves) + count)]
        return len(self.leaves) - 1

    def moments(self) -> Moments:
        edge, tiles = Edge().grow([hash_leaf(leaf) for leaf in self.leaves])
        held = dict(tiles)

        def entries(number: int) -> list[bytes]:
            return self.leaves[number * FULL : (number + 1) * FULL]

        return Moments(TileTree(edge.size, lambda *at: held[Tile(*at)]), bytes(edge.root()), entries, seen)


def root_of(leaves: list[bytes]) -> bytes:
    return bytes(Edge().grow([hash_leaf(leaf) for leaf in leaves])[0].root())


def seen(note: bytes) -> tuple[Checkpoint, list[datetime]]:
    said = json.loads(note)
    if "forged" in said:
        raise BadEvidence("forged", code="bad_note")
    times = [datetime.fromisoformat(at) for at in said["times"]]
    return Checkpoint("log", said["size"], bytes.fromhex(said["root"])), times  # type: ignore[arg-type]


def record(log: Log, head: int | None, at: datetime = NOON) -> dict[str, Any]:
    named = None if head is None else {"size": head, "root": root_of(log.leaves[:head]).hex()}
    return {"created_at": at.isoformat(), "log_head": named}


@pytest.fixture
def log() -> Log:
    """Twenty entries, signed by a witness an hour before noon, says entry 20; the record at 22; once more a minute after noon."""
    made = Log([])
    made.add(20)
    made.add_time(20, NOON - timedelta(hours=1))
    made.add(3)
    made.add_time(24, NOON + timedelta(minutes=1))
    made.add(5)
    return made


def test_between_what_its_head_holds_and_the_next_tree_that_was_seen(log: Log) -> None:
    found = log.moments().interval(22, record(log, 21), [NOON + timedelta(hours=9)])
    assert found == Interval(NOON - timedelta(hours=1), NOON + timedelta(minutes=1) + SECOND, NOON)
    assert found.width == timedelta(hours=1, minutes=1, seconds=1) and not found.outside
    assert when(found).sentence == "A stretch of 1 h 1 min, by witnesses of the log."


def test_without_an_entry_the_served_checkpoint_shows_the_end(log: Log) -> None:
    log.leaves = log.leaves[:24]
    found = log.moments().interval(22, record(log, 20), [NOON + timedelta(hours=9), NOON + timedelta(hours=8)])
    assert (found.not_before, found.not_after) == (None, NOON + timedelta(hours=8) + SECOND), "its head holds no time"
    assert log.moments().interval(22, record(log, None), []) == Interval(None, None, NOON)


@pytest.mark.parametrize("planted", ["root", "forged", "garbage", "early"])
def test_a_time_that_is_not_of_this_log_counts_for_nothing(log: Log, planted: str) -> None:
    bad = {
        "root": time_leaf(log.note(24, NOON, root="ab" * 32), []),
        "forged": time_leaf(b'{"forged":1}', []),
        "garbage": b'{"kind":"time"',
        "early": time_leaf(log.note(29, NOON), []),  # of a size that the tree did not have when the entry was made
    }
    log.leaves[24] = bad[planted]
    assert log.moments().interval(22, record(log, 21), []).not_after is None


def test_a_head_that_is_not_of_this_log_shows_no_beginning(log: Log) -> None:
    heads: list[Any] = [{"size": 21, "root": "ab" * 32}, {"size": 99, "root": "ab" * 32}, {"size": "x"}, [], "head"]
    for head in heads:
        assert log.moments().interval(22, {**record(log, 21), "log_head": head}, []).not_before is None


def test_no_more_than_the_entries_next_to_it_are_looked_through(log: Log) -> None:
    last = log.add(FULL * NEAR)
    log.add_time(last, NOON + timedelta(days=1))
    asked: list[int] = []
    moments, right = log.moments(), log.moments().entries

    def entries(number: int) -> list[bytes]:
        asked.append(number)
        return right(number)

    log.leaves[24] = b'{"kind":"bundle"}'
    moments = replace(log.moments(), entries=entries)
    assert moments.interval(22, record(log, None), []).not_after is None
    assert asked == list(range(NEAR))

    def missing(number: int) -> list[bytes]:
        raise NoInput("no such file", code="missing")

    assert replace(moments, entries=missing).interval(22, record(log, None), []) == Interval(None, None, NOON)


@pytest.mark.parametrize(("shift", "outside"), [(-3_603, True), (-3_601, False), (62, False), (64, True)])
def test_a_record_that_was_dated_wrongly_is_said(log: Log, shift: int, outside: bool) -> None:
    found = log.moments().interval(22, record(log, 21, NOON + timedelta(seconds=shift)), [])
    assert found.outside is outside
    assert (when(found).state == "wrong") is outside


@pytest.mark.parametrize(
    ("interval", "state"),
    [(Interval(), "could not tell"), (Interval(NOON), "could not tell"), (Interval(None, NOON), "could not tell"),
     (Interval(NOON, NOON), "verified"), (Interval(NOON, NOON + timedelta(days=3)), "verified")],
)  # fmt: skip
def test_a_bound_that_nothing_shows_is_said(interval: Interval, state: str) -> None:
    assert when(interval).state == state
