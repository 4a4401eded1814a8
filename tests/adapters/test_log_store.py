"""Heads only move forward, receipts belong to exact bytes, and what a stop or a damage left is brought together again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from compliance_agent.adapters import log_store
from compliance_agent.adapters.log_store import LogStore
from compliance_agent.core.receipt import LogHead, Proven
from compliance_agent.log.merkle import RootHash
from tests.evidence.conftest import Clinic, bundle, seen

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
ORIGIN = "fake/clinic-1/2026"


@pytest.fixture
def clinic(tmp_path: Path) -> Iterator[Clinic]:
    made = Clinic(tmp_path)
    yield made
    made.close()


@pytest.fixture
def store(clinic: Clinic) -> LogStore:
    return LogStore(clinic.store.database, clinic.evidence)


def head(size: int, origin: str = ORIGIN, root: int = 1) -> LogHead:
    return LogHead(origin, size, RootHash(bytes([root]) * 32), b"note %d" % size)


def deliver(clinic: Clinic, count: int = 1) -> list[Proven]:
    """Recorded, acknowledged, and a receipt for each."""
    stored = clinic.record(count)
    clinic.store.database.write(
        lambda connection: connection.execute(
            "UPDATE evidence SET state = 'uploaded', uploaded_at = ?", (NOW.isoformat(),)
        )
    )
    return [Proven(item.id, item.digest, b"leaf %d" % item.id, b"proof %d" % item.id) for item in stored]


def log_head(clinic: Clinic) -> object:
    """What the next bundle says."""
    stored = clinic.record()[0]
    return json.loads(stored.bundle_path.read_bytes())["log_head"]


def test_a_head_only_moves_forward(store: LogStore) -> None:
    for size in (5, 3, 8, 8, 1):
        store.keep([], [head(size, root=size)], NOW)
    assert store.followed()[ORIGIN].head == head(8, root=8)


def test_the_next_bundle_names_the_head_of_the_newest_year(clinic: Clinic, store: LogStore) -> None:
    assert log_head(clinic) is None
    store.keep([], [head(5)], NOW)
    expected = {"origin": ORIGIN, "size": 5, "root": "01" * 32, "witnessed_at": None}
    assert log_head(clinic) == expected
    store.keep([], [head(1, "fake/clinic-1/2027", 2), head(9)], NOW)
    assert log_head(clinic) == {**expected, "origin": "fake/clinic-1/2027", "size": 1, "root": "02" * 32}


def test_a_log_that_is_not_believed_stays_where_it_was(store: LogStore) -> None:
    store.keep([], [head(5)], NOW)
    store.distrust(ORIGIN, b"theirs", "log_forked", "an-id")
    store.distrust(ORIGIN, b"later", "log_rolled_back", "another-id")
    store.keep([], [head(9)], NOW)
    found = store.followed()[ORIGIN]
    assert (found.head.size, found.code, found.theirs, found.incident) == (5, "log_forked", b"theirs", "an-id")


def test_an_incident_is_unreported_until_its_bundle_is_recorded(clinic: Clinic, store: LogStore) -> None:
    store.keep([], [head(5)], NOW)
    assert store.unreported() == []
    wanted = bundle(1)
    store.distrust(ORIGIN, b"theirs", "log_forked", str(wanted.bundle_id))
    assert [item.code for item in store.unreported()] == ["log_forked"]
    clinic.store.record(wanted, seen(clinic.signer.key_id, 1))
    assert store.unreported() == []


def test_receipts_are_copied_beside_their_bundles_and_counted(clinic: Clinic, store: LogStore) -> None:
    receipts = deliver(clinic, 3)
    assert [bundle_id for _, bundle_id in store.unlogged((-1, 0), 100)] != []
    store.keep(receipts[:2], [head(3)], NOW)
    standing = store.standing()
    assert (standing.receipted, standing.unlogged, standing.oldest_unlogged) == (2, 1, NOW)
    assert len(list(clinic.evidence.rglob("bundle.tlog-proof"))) == 2
    store.keep(receipts[2:], [], NOW)
    assert store.unlogged((-1, 0), 100) == []
    assert store.standing().oldest_unlogged is None
    assert sorted(path.read_bytes() for path in clinic.evidence.rglob("leaf.json")) == [b"leaf 1", b"leaf 2", b"leaf 3"]


def test_unlogged_goes_on_behind_a_place(clinic: Clinic, store: LogStore) -> None:
    deliver(clinic, 5)
    first = store.unlogged((-1, 0), 2)
    assert [place for place, _ in first] == [(0, 1), (0, 2)]
    assert [place for place, _ in store.unlogged(first[-1][0], 100)] == [(0, 3), (0, 4), (0, 5)]


def test_a_receipt_of_other_bytes_is_not_kept(clinic: Clinic, store: LogStore) -> None:
    [receipt] = deliver(clinic)
    store.keep([Proven(receipt.id, "00" * 32, b"leaf", b"proof")], [], NOW)
    assert store.standing().receipted == 0
    assert list(clinic.evidence.rglob("leaf.json")) == []


def test_a_bundle_that_is_given_another_place_loses_its_receipt(clinic: Clinic, store: LogStore) -> None:
    store.keep(deliver(clinic, 2), [], NOW)
    database = clinic.store.database
    database.write(lambda connection: connection.execute("UPDATE evidence SET state = 'pending'"))
    clinic.store.new_epoch("ab" * 32)
    assert clinic.store.rechain(0, 1) == 2
    assert database.read(lambda connection: connection.execute("SELECT count(*) FROM receipts").fetchone()) == (0,)


def test_what_a_stop_left_uncopied_is_copied(clinic: Clinic, store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    receipts = deliver(clinic, 2)
    with monkeypatch.context() as stopped:
        stopped.setattr(LogStore, "replay", lambda self: 0)
        store.keep(receipts, [head(2)], NOW)
    clinic.reopen()
    again = LogStore(clinic.store.database, clinic.evidence)
    assert again.replay() == 2 and again.replay() == 0
    assert len(list(clinic.evidence.rglob("bundle.tlog-proof"))) == 2


def test_a_directory_that_cannot_be_written_is_tried_again(clinic: Clinic, store: LogStore) -> None:
    [receipt] = deliver(clinic)
    [place] = [path.parent for path in clinic.evidence.rglob("bundle.json")]
    (place / "leaf.json").mkdir()
    store.keep([receipt], [head(1)], NOW)
    assert store.standing().receipted == 1 and not (place / "bundle.tlog-proof").exists()
    (place / "leaf.json").rmdir()
    assert store.replay() == 1
    assert (place / "leaf.json").read_bytes() == receipt.leaf


def test_a_bundle_whose_row_is_damaged_has_no_place_in_a_log(clinic: Clinic, store: LogStore) -> None:
    stored = clinic.record()[0]
    found = store.bundle(stored.bundle_id)
    assert found is not None and found[0] == stored.id
    assert (found[1].sha256, found[1].seq, found[1].key_id) == (stored.digest, 1, clinic.signer.key_id)
    clinic.store.database.write(lambda connection: connection.execute("UPDATE evidence SET signature = zeroblob(64)"))
    assert store.bundle(stored.bundle_id) is None
    assert store.bundle("unknown") is None


@pytest.mark.parametrize(
    "damage", ["root = 'xyz'", "origin = 'no origin'", "size = -1", "size = 9223372036854775807", "root = upper(root)"]
)
def test_a_damaged_head_keeps_no_bundle_from_being_recorded(clinic: Clinic, store: LogStore, damage: str) -> None:
    store.keep([], [LogHead(ORIGIN, 3, RootHash(b"\xab" * 32), b"note")], NOW)
    clinic.store.database.write(lambda connection: connection.execute(f"UPDATE log_heads SET {damage}"))
    assert log_head(clinic) is None
    assert store.followed() == {}


def test_after_the_loss_of_rows_no_receipt_goes_to_another_bundle(clinic: Clinic, store: LogStore) -> None:
    """Rows that are taken back from their directories get new ids; receipts kept under the old ones must not match."""
    store.keep(deliver(clinic, 3), [head(3)], NOW)
    database = clinic.store.database
    database.write(lambda connection: connection.execute("DELETE FROM evidence WHERE id > 1"))
    database.write(lambda connection: connection.execute("DELETE FROM chain"))
    clinic.reopen()
    rows = clinic.store.database.read(
        lambda connection: connection.execute(
            "SELECT count(*) FROM receipts r JOIN evidence e ON e.id = r.bundle WHERE e.sha256 != r.sha256"
        ).fetchone()
    )
    assert rows == (0,)


def test_standing_reads_no_bundle(clinic: Clinic, store: LogStore) -> None:
    """Looking for what has no receipt goes over an index: a year of evidence must not be read each minute."""
    plan = clinic.store.database.read(
        lambda connection: connection.execute(f"EXPLAIN QUERY PLAN SELECT count(*) {log_store._UNLOGGED}").fetchall()
    )
    assert any("COVERING INDEX evidence_state" in str(row) for row in plan), plan
