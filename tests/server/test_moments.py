"""Between which moments a record came to be, from a log as it is served: what witnesses signed counts, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import BadEvidence, BadReply, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.server.services import moments as moments_module
from compliance_agent.server.services.moments import NEAR, Bound, Interval, Moments, interval
from compliance_agent.web.proofs import NO_BEGINNING, NO_END, when

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

        def read(*at: int) -> bytes:
            return held[Tile(*at)]

        return Moments(TileTree(edge.size, read), bytes(edge.root()), read, entries, seen)

    def interval(self, index: int, document: dict[str, Any], served: Iterable[datetime] = ()) -> Interval:
        """Of the record with this entry."""
        return between(self.moments(), index, document, served)


def between(moments: Moments, index: int, document: dict[str, Any], served: Iterable[datetime] = ()) -> Interval:
    return interval(document, moments.before(document), moments.after(index, served))


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


def ends(found: Interval) -> tuple[datetime | None, datetime | None]:
    return found.not_before, found.not_after


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
    found = log.interval(22, record(log, 21), [NOON + timedelta(hours=9)])
    assert ends(found) == (NOON - timedelta(hours=1), NOON + timedelta(minutes=1) + SECOND)
    assert (found.claimed, found.before.why, found.after.why) == (NOON, "", "")
    assert found.width == timedelta(hours=1, minutes=1, seconds=1) and not found.outside
    assert when(found).sentence == "A stretch of 1 h 1 min, by witnesses of the log."


def test_without_an_entry_the_served_checkpoint_shows_the_end(log: Log) -> None:
    log.leaves = log.leaves[:24]
    found = log.interval(22, record(log, 20), [NOON + timedelta(hours=9), NOON + timedelta(hours=8)])
    assert (found.not_before, found.not_after) == (None, NOON + timedelta(hours=8) + SECOND), "its head holds no time"
    assert ends(log.interval(22, record(log, None))) == (None, None)


@pytest.mark.parametrize("planted", ["root", "forged", "garbage", "early"])
def test_a_time_that_is_not_of_this_log_counts_for_nothing(log: Log, planted: str) -> None:
    bad = {
        "root": time_leaf(log.note(24, NOON, root="ab" * 32), []),
        "forged": time_leaf(b'{"forged":1}', []),
        "garbage": b'{"kind":"time"',
        "early": time_leaf(log.note(29, NOON), []),  # of a size that the tree did not have when the entry was made
    }
    log.leaves[24] = bad[planted]
    found = log.interval(22, record(log, 21))
    assert (found.not_after, found.refused) == (None, 1)
    assert "1 time entry near it did not hold" in when(found).sentence


def test_a_head_that_is_not_of_this_log_shows_no_beginning(log: Log) -> None:
    heads: list[Any] = [{"size": 21, "root": "ab" * 32}, {"size": 99, "root": "ab" * 32}, {"size": "x"}, [], "head"]
    for head in heads:
        found = log.interval(22, {**record(log, 21), "log_head": head})
        assert found.not_before is None and found.before.why in {"other_head", "no_head"}


def test_where_the_search_stops_it_is_said(log: Log) -> None:
    """A log that goes on further than is looked, on either side: no bound is not `nothing holds one`."""
    log.leaves[24] = b'{"kind":"bundle"}'
    last = log.add(FULL * 3)
    log.add_time(last, NOON + timedelta(days=1))
    asked: list[int] = []
    right = log.moments().entries

    def entries(number: int) -> list[bytes]:
        asked.append(number)
        return right(number)

    moments = replace(log.moments(), entries=entries, near=2)
    found = between(moments, 22, record(log, last))
    assert ends(found) == (None, None)
    assert (found.before.why, found.after.why) == ("stopped", "stopped")
    assert asked == [last // FULL, last // FULL - 1, 0, 1]
    said = when(found)
    assert (said.state, said.sentence.count("stopped after")) == ("could not tell", 2)
    assert f"{found.after.looked:,} entries" in said.sentence and found.after.looked == 2 * FULL - 23
    served = between(moments, 22, record(log, 21), [NOON + timedelta(hours=1)])
    assert served.not_after == NOON + timedelta(hours=1) + SECOND and served.after.why == "stopped"
    assert "may not be the earliest" in when(served).sentence
    assert ends(between(replace(moments, near=NEAR), 22, record(log, last)))[1] == NOON + timedelta(days=1) + SECOND


@pytest.mark.parametrize("code", ["pruned", "no_input"])
def test_what_cannot_be_read_is_no_absence(log: Log, code: str) -> None:
    def missing(number: int) -> list[bytes]:
        raise NoInput("no such file", code=code)

    found = between(replace(log.moments(), entries=missing), 22, record(log, 21))
    assert ends(found) == (None, None)
    assert {found.before.why, found.after.why} == {"pruned" if code == "pruned" else "unreadable"}
    assert when(found).state == "could not tell"


# --- time stamps ----------------------------------------------------------------------------------


def stamped(token: bytes, note: bytes) -> datetime:
    """A token is a time and the note it is over."""
    at, _, over = token.partition(b" ")
    if over != note:
        raise BadReply("not over this note", code="bad_time_stamp")
    return datetime.fromisoformat(at.decode())


def token(at: datetime, note: bytes) -> bytes:
    return at.isoformat().encode() + b" " + note


def test_time_stamps_bound_where_no_witness_does(log: Log) -> None:
    """RFC 3161 alone: the same two ends, and they are named; one that is over another note counts for nothing, and is said."""
    first = log.note(20)
    log.leaves[20] = time_leaf(first, [token(NOON - timedelta(minutes=5), first)])
    then = log.note(24)
    log.leaves[24] = time_leaf(then, [token(NOON + SECOND, then), token(NOON - timedelta(days=9), first)])
    document = record(log, 21)
    found = between(replace(log.moments(), stamped=stamped), 22, document)
    assert ends(found) == (NOON - timedelta(minutes=5), NOON + 2 * SECOND)
    assert (found.before.stamps, found.after.stamps, found.after.unchecked) == (1, 1, 1)
    assert when(found).state == "verified"
    assert "2 time stamps (RFC 3161) among them" in when(found).sentence
    assert "1 time stamp (RFC 3161) verified under no configured authority" in when(found).sentence
    without = between(log.moments(), 22, document)
    assert ends(without) == (None, None) and (without.before.unchecked, without.after.unchecked) == (1, 2)
    assert when(without).state == "could not tell"


def test_the_latest_before_and_the_earliest_after_of_witness_and_authority(log: Log) -> None:
    first = log.note(20, NOON - timedelta(hours=1))
    log.leaves[20] = time_leaf(first, [token(NOON - timedelta(minutes=59), first)])
    then = log.note(24, NOON + timedelta(minutes=1))
    log.leaves[24] = time_leaf(then, [token(NOON + timedelta(minutes=2), then)])
    found = between(replace(log.moments(), stamped=stamped), 22, record(log, 21))
    assert ends(found) == (NOON - timedelta(minutes=59), NOON + timedelta(minutes=1) + SECOND)


# --- what it says ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("shift", "outside"), [(-3_603, True), (-3_601, False), (62, False), (64, True)])
def test_a_record_that_was_dated_wrongly_is_said(log: Log, shift: int, outside: bool) -> None:
    found = log.interval(22, record(log, 21, NOON + timedelta(seconds=shift)), [])
    assert found.outside is outside
    assert (when(found).state == "wrong") is outside


@pytest.mark.parametrize(
    ("before", "after", "claimed", "state"),
    [
        (None, None, NOON, "could not tell"),
        (NOON, None, NOON, "could not tell"),
        (None, NOON, NOON, "could not tell"),
        (NOON, NOON, NOON, "verified"),
        (NOON, NOON + timedelta(days=3), NOON, "verified"),
        (NOON, NOON, None, "could not tell"),
        (NOON + SECOND, NOON, NOON, "wrong"),
    ],
)
def test_a_bound_that_nothing_shows_is_said(
    before: datetime | None, after: datetime | None, claimed: datetime | None, state: str
) -> None:
    assert when(Interval(Bound(before), Bound(after), claimed)).state == state


def test_every_reason_has_its_sentence() -> None:
    source = inspect.getsource(moments_module)
    codes = set(re.findall(r'why(?:=| = |: str = )"([a-z_]+)"', source)) | {"pruned", "unreadable"}
    assert {"no_head", "stopped", "no_time"} <= codes
    assert codes - {"no_head", "other_head"} == set(NO_END)
    assert codes == set(NO_BEGINNING)
