"""What healing remembers: whole round trips, and no more than it needs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.adapters import healing_store
from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.core.gates import Moment
from compliance_agent.errors import NotPermitted
from compliance_agent.models import ActionTaken, Plan, RemediationResult, Step
from compliance_agent.remedies.rollback import PointState, RollbackPoint

AT = Moment(datetime(2026, 11, 22, 12, 0, 0, 123456, tzinfo=UTC), 1_000.5, "boot-a")
PLAN = Plan("toy", (Step("one", {"n": 1, "on": True}), Step("two", {"word": "x"})), True, "t-1", "reboots")
POINT = RollbackPoint(
    "p-0", PLAN, "t-1", ({"a": [1, None]}, "text"), {"on": False}, "b" * 64, AT, ("pending",) * 2, found="off"
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[HealingStore]:
    database = Database(tmp_path / "agent.db", threaded=False, reserve_kb=0)
    yield HealingStore(database)
    database.close()


def ended(outcome: str, point_id: str = "p-0") -> RemediationResult:
    return RemediationResult(check="toy", outcome=outcome, point_id=point_id)


def test_a_point_comes_back_as_it_was(store: HealingStore) -> None:
    store.begin(POINT)
    assert store.open_points() == (POINT,)
    store.mark("p-0", 1, "started")
    store.undoing("p-0", "step_failed")
    (point,) = store.open_points()
    assert point == replace(POINT, stages=("pending", "started"), state="undoing", failure="step_failed")
    assert point.touched


def test_a_closed_point_is_gone_and_its_attempt_has_an_end(store: HealingStore) -> None:
    store.begin(POINT)
    assert store.recall("toy", "t-1", "b" * 64).interrupted
    store.close(POINT, "undone", ended("reverted"), reject=True)
    memory = store.recall("toy", "t-1", "b" * 64)
    assert (store.open_points(), memory.interrupted, memory.rejected) == ((), False, True)
    assert [(item.check, item.target, item.at, item.outcome) for item in memory.history] == [
        ("toy", "t-1", AT, "reverted")
    ]
    assert not store.recall("toy", "t-2", "b" * 64).rejected
    assert not store.recall("toy", "t-1", "c" * 64).rejected
    assert not store.recall("other", "t-1", "b" * 64).rejected


@pytest.mark.parametrize(("state", "kept"), [("kept", False), ("undone", False), ("undo_failed", True)])
def test_what_was_captured_goes_with_its_point(tmp_path: Path, state: PointState, kept: bool) -> None:
    """It may be the text of a file. Not a byte of it stays, unless a person may need it to mend what an undo could not."""
    canary = "JANE-ROE-MRN-0048213"
    database = Database(tmp_path / "agent.db", threaded=False, reserve_kb=0)
    point = replace(POINT, captured=({"content": canary * 500}, {}))
    store = HealingStore(database)
    store.begin(point)
    assert store.open_points() == (point,)
    store.close(point, state, ended("failed"), reject=False)
    database.close()
    files = b"".join(path.read_bytes() for path in tmp_path.iterdir() if path.is_file())
    assert (canary.encode() in files) is kept


def test_a_second_point_while_one_is_open_is_a_mistake(store: HealingStore) -> None:
    store.begin(POINT)
    with pytest.raises(RuntimeError, match="still open"):
        store.begin(replace(POINT, id="p-1"))


def test_an_approval_is_used_up_by_the_cure_it_was_given_for(store: HealingStore) -> None:
    store.approve("toy", "t-1", AT)
    store.approve("toy", "t-2", AT)
    assert store.recall("toy", "t-1", "").approved_at == AT
    store.begin(POINT)
    assert store.recall("toy", "t-1", "").approved_at is None
    assert store.recall("toy", "t-2", "").approved_at == AT


def test_forgiving_one_check_leaves_the_others(store: HealingStore) -> None:
    for number, check in enumerate(("toy", "other")):
        point = replace(POINT, id=f"p-{number}", plan=replace(PLAN, check=check))
        store.begin(point)
        store.close(point, "undone", ended("reverted"), reject=True)
        store.trip(check, AT)
    store.forgive("toy")
    toy, other = (store.recall(check, "t-1", "b" * 64) for check in ("toy", "other"))
    assert (toy.rejected, toy.contended_since, other.rejected, other.contended_since) == (False, None, True, AT)
    assert [item.forgiven for item in toy.history] == [True, False]


def test_it_keeps_what_limits_need_and_prunes_the_rest(store: HealingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(healing_store, "ATTEMPTS_KEPT", 4)
    monkeypatch.setattr(healing_store, "POINTS_KEPT", 3)
    for number in range(10):
        point = replace(POINT, id=f"p-{number}")
        store.begin(point)
        store.close(point, "kept", ended("success", point.id), reject=False)
        store.said(point.id)
    store.begin(replace(POINT, id="p-open"))
    assert len(store.recall("toy", "", "").history) == 4
    assert [point.id for point in store.open_points()] == ["p-open"]
    counts = "SELECT (SELECT count(*) FROM heal_point), (SELECT count(*) FROM heal_step)"
    assert store._db.read(lambda connection: connection.execute(counts).fetchone()) == (3, 6)


def test_times_far_away_are_kept_exactly(store: HealingStore) -> None:
    for year in (1970, 2038, 9999):
        at = Moment(datetime(year, 1, 1, tzinfo=UTC), 0.0, "")
        store.trip("toy", at)
        assert store.recall("toy", "", "").contended_since == at


def test_a_pause_is_kept(store: HealingStore) -> None:
    store.pause()
    store.pause()
    assert store.paused() and store.recall("toy", "", "").paused
    store.resume()
    assert not store.paused()


def test_a_command_may_look_beside_the_agent(store: HealingStore, tmp_path: Path) -> None:
    store.begin(POINT)
    beside = HealingStore.looking(tmp_path / "agent.db")
    assert beside.recall("toy", "t-1", "b" * 64) == store.recall("toy", "t-1", "b" * 64)
    with pytest.raises(NotPermitted):
        beside.pause()
    assert not store.paused()


def test_where_nothing_is_remembered_yet_there_is_nothing_to_see(tmp_path: Path) -> None:
    nowhere = HealingStore.looking(tmp_path / "none" / "agent.db")
    assert nowhere.recall("toy", "", "").history == ()
    assert not (tmp_path / "none").exists()
    database = Database(tmp_path / "agent.db", threaded=False, reserve_kb=0)
    assert HealingStore.looking(tmp_path / "agent.db").paused() is False
    database.close()


def test_how_a_cure_ended_stays_until_it_is_said(store: HealingStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when a hundred others came after it: what was done to a host must not go unsaid."""
    monkeypatch.setattr(healing_store, "POINTS_KEPT", 2)
    first = RemediationResult(
        check="toy", outcome="reverted", pre_state={"unit": "stopped"}, post_state={"unit": "stopped"}, error="timed_out",
        actions=(ActionTaken("start", datetime(2026, 11, 28, tzinfo=UTC), "failed", 1, None, 20, "timed_out"), ActionTaken("stop")),
        reason="step_failed", rollback_available=True, rollback_generation=7, post_result="fail", post_reason="down",
        point_id="p-0",
    )  # fmt: skip
    store.begin(POINT)
    assert store.unsaid() == ()
    store.close(POINT, "undone", first, reject=True)
    for number in range(1, 5):
        point = replace(POINT, id=f"p-{number}")
        store.begin(point)
        store.close(point, "kept", ended("success", point.id), reject=False)
        store.said(point.id)
    assert store.unsaid() == (first,)
    store.said("p-0")
    assert store.unsaid() == ()


def test_only_what_the_power_may_take_back_is_durable_no_sooner_than_the_next_write(tmp_path: Path) -> None:
    """A point that is open again is looked at and recorded by the next start; one that was not begun has nothing to undo by."""
    levels: list[int] = []

    class Watched(Database):
        def _transaction(self, fn: Callable[[sqlite3.Connection], Any]) -> Any:
            levels.append(int(self._live().execute("PRAGMA synchronous").fetchone()[0]))
            return super()._transaction(fn)

    database = Watched(tmp_path / "agent.db", threaded=False, reserve_kb=0)
    store = HealingStore(database)
    levels.clear()
    store.begin(POINT)
    store.mark("p-0", 0, "started")
    store.mark("p-0", 0, "done")
    store.close(POINT, "kept", ended("success"), reject=False)
    assert levels == [2, 2, 1, 1]
    levels.clear()
    store.begin(replace(POINT, id="p-1"))
    store.undoing("p-1", "step_failed")
    store.mark("p-1", 0, "undone")
    store.close(replace(POINT, id="p-1"), "undone", ended("reverted", "p-1"), reject=True)
    store.said("p-0")
    assert levels == [2] * 5
    database.close()
