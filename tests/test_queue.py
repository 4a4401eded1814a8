"""The line of pending bundles: in order, never given up, gone from it only by an acknowledgement."""

from __future__ import annotations

import random
import shutil
import sqlite3
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from compliance_agent.errors import BadEvidence, NoInput
from compliance_agent.evidence import table
from compliance_agent.evidence.store import Stored
from compliance_agent.lab.clock import FakeClock
from compliance_agent.models import QueuedEvidence
from compliance_agent.queue import BACKOFF_BASE_S, BACKOFF_CAP_S, LONGEST_WAIT_S, Gap, OfflineQueue
from tests.evidence.conftest import Clinic


@dataclass
class Line:
    """A clinic host with its queue."""

    clinic: Clinic
    clock: FakeClock
    queue: OfflineQueue

    def restart(self) -> None:
        self.clinic.reopen()
        self.queue = opened(self.clinic, self.clock)

    def sql(self, statement: str, *values: object) -> None:
        self.clinic.store.database.write(lambda connection: connection.execute(statement, values))


def opened(clinic: Clinic, clock: FakeClock) -> OfflineQueue:
    return OfflineQueue(
        clinic.state / "agent.db",
        evidence_dir=clinic.evidence,
        clock=clock,
        rng=random.Random(7),
        database=clinic.store.database,
    )


@pytest.fixture
async def line(tmp_path: Path) -> AsyncIterator[Line]:
    clinic, clock = Clinic(tmp_path), FakeClock()
    made = Line(clinic, clock, opened(clinic, clock))
    yield made
    clinic.close()


def ids(pending: list[QueuedEvidence]) -> list[str]:
    return [item.bundle_id for item in pending]


def names(stored: list[Stored]) -> list[str]:
    return [item.bundle_id for item in stored]


async def test_what_was_recorded_is_pending_already_and_enqueue_finds_it(line: Line) -> None:
    stored = line.clinic.record(3)
    for item in stored:
        assert await line.queue.enqueue(item.bundle_id, item.bundle_path, item.signature_path) == item.id
    pending = await line.queue.get_pending()
    assert ids(pending) == names(stored)
    assert [(item.epoch, item.seq) for item in pending] == [(0, 1), (0, 2), (0, 3)]
    assert [item.bundle_path for item in pending] == [str(item.bundle_path) for item in stored]
    assert ids(await line.queue.get_pending(limit=2)) == names(stored)[:2]


async def test_stats_begin_with_what_the_specification_shows(line: Line) -> None:
    line.clinic.record(2)
    stats = await line.queue.get_stats()
    assert list(stats)[:2] == ["pending", "failed"]
    assert stats["pending"] == 2
    assert stats["oldest_pending"] == "2026-11-22T12:00:00+00:00"
    assert stats["next_attempt_at"] is None


async def test_uploaded_leaves_the_line_and_stays_in_the_record(line: Line) -> None:
    stored = line.clinic.record(2)
    await line.queue.mark_uploaded(stored[0].id, b"ack")
    await line.queue.mark_uploaded(stored[0].id)
    assert ids(await line.queue.get_pending()) == names(stored)[1:]
    line.restart()
    assert (await line.queue.get_stats())["uploaded"] == 1
    assert (
        await line.queue.enqueue(stored[0].bundle_id, stored[0].bundle_path, stored[0].signature_path) == stored[0].id
    )
    assert ids(await line.queue.get_pending()) == names(stored)[1:], "uploaded once is uploaded"
    assert acks_of(line) == [b"ack", None]


def acks_of(line: Line) -> list[bytes | None]:
    """The acknowledgement that each row's bundle has, by their order."""
    query = "SELECT acks.ack FROM evidence LEFT JOIN acks ON acks.sha256 = evidence.ack ORDER BY id"
    return line.clinic.store.database.read(lambda connection: [row[0] for row in connection.execute(query)])


async def test_what_acknowledges_many_is_kept_once_and_as_long_as_one_of_them(line: Line) -> None:
    stored = line.clinic.record(3)
    for item, ack in zip(stored, (b"first", b"both", b"both"), strict=True):
        await line.queue.mark_uploaded(item.id, ack)
    assert acks_of(line) == [b"first", b"both", b"both"]

    def kept(connection: sqlite3.Connection) -> list[bytes]:
        return [row[0] for row in connection.execute("SELECT ack FROM acks ORDER BY rowid")]

    database = line.clinic.store.database
    assert database.read(kept) == [b"first", b"both"]
    for item, left in zip(stored, ([b"both"], [b"both"], []), strict=True):
        database.write(lambda connection, row=item.id: table.remove_uploaded(connection, [row]))  # type: ignore[misc]
        assert database.read(kept) == left


async def test_while_the_oldest_waits_nothing_is_ready(line: Line) -> None:
    """The server wants the chain in order: later bundles cannot overtake."""
    stored = line.clinic.record(2)
    await line.queue.increment_retry(stored[0].id, "unavailable", retry_after_s=30)
    assert await line.queue.get_pending() == []
    line.clinic.record()
    assert await line.queue.get_pending() == []
    line.clock.advance(29.9)
    assert await line.queue.get_pending() == []
    line.clock.advance(0.2)
    pending = await line.queue.get_pending()
    assert len(pending) == 3
    assert (pending[0].retry_count, pending[0].last_error) == (1, "unavailable")


async def test_success_ends_the_wait(line: Line) -> None:
    stored = line.clinic.record(2)
    await line.queue.increment_retry(stored[0].id, "unavailable", retry_after_s=1_000)
    await line.queue.mark_uploaded(stored[0].id)
    assert ids(await line.queue.get_pending()) == names(stored)[1:]


async def waits(line: Line, tries: int) -> list[float]:
    """Seconds the queue waits after each failed try."""
    item, found = line.clinic.record()[0], []
    for _ in range(tries):
        before = line.clock.monotonic()
        await line.queue.increment_retry(item.id, "unavailable")
        while not await line.queue.get_pending():
            line.clock.advance(1)
        found.append(line.clock.monotonic() - before)
    return found


async def test_waits_grow_with_full_jitter_up_to_the_cap(line: Line) -> None:
    found = await waits(line, 30)
    for number, seconds in enumerate(found):
        assert seconds <= min(BACKOFF_CAP_S, BACKOFF_BASE_S * 2**number) + 1
    assert max(found[12:]) > BACKOFF_CAP_S / 2, "the cap is reached"
    assert len(set(found)) > 20, "jitter"


async def test_nothing_is_ever_given_up(line: Line) -> None:
    """`failed` is said after max_retries, and the bundle is still tried."""
    await waits(line, 12)
    stats = await line.queue.get_stats()
    assert (stats["pending"], stats["failed"]) == (1, 1)
    assert len(await line.queue.get_pending()) == 1


async def test_attempts_and_the_wait_survive_a_restart(line: Line) -> None:
    stored = line.clinic.record()
    await line.queue.increment_retry(stored[0].id, "unavailable", retry_after_s=100)
    line.restart()
    assert await line.queue.get_pending() == []
    assert (await line.queue.get_stats())["next_attempt_at"] == "2026-11-22T12:01:40+00:00"
    line.clock.advance(101)
    assert [item.retry_count for item in await line.queue.get_pending()] == [1]


async def test_a_clock_that_was_set_back_does_not_stop_delivery(line: Line) -> None:
    """Restarted in 1970: the wait from before the restart is at most one longest wait."""
    stored = line.clinic.record()
    await line.queue.increment_retry(stored[0].id, "unavailable", retry_after_s=100)
    line.clock.step(-400 * 86_400)
    line.restart()
    line.clock.advance(LONGEST_WAIT_S + 1)
    assert len(await line.queue.get_pending()) == 1


async def test_an_error_text_is_never_kept(line: Line) -> None:
    stored = line.clinic.record()
    await line.queue.increment_retry(stored[0].id, "no such file: /home/jane")
    line.clock.advance(60)
    assert [item.last_error for item in await line.queue.get_pending()] == ["error"]


async def test_missing_files_are_made_from_the_row(line: Line) -> None:
    """Where the specification marks a bundle without files as uploaded, it is delivered here."""
    stored = line.clinic.record(2)
    body = stored[0].bundle_path.read_bytes()
    shutil.rmtree(stored[0].bundle_path.parent)
    stored[1].bundle_path.write_bytes(b"{}")
    pending = await line.queue.get_pending()
    assert ids(pending) == names(stored)
    assert Path(pending[0].bundle_path).read_bytes() == body
    assert Path(pending[1].bundle_path).read_bytes() != b"{}"


@pytest.mark.parametrize("column", ["body", "signature"])
async def test_a_flipped_bit_in_a_row_is_mended_from_its_directory(line: Line, column: str) -> None:
    stored = line.clinic.record(3)
    line.sql(f"UPDATE evidence SET {column} = zeroblob(64) WHERE id = ?", stored[1].id)
    assert ids(await line.queue.get_pending()) == names(stored)
    assert await line.queue.gaps() == []


@pytest.mark.parametrize("column", ["body", "signature", "sha256"])
async def test_a_damaged_row_is_set_aside_kept_and_counted(line: Line, column: str) -> None:
    """Forged evidence must not be delivered, and the gap is named."""
    stored = line.clinic.record(3)
    shutil.rmtree(stored[1].bundle_path.parent)
    line.sql(
        f"UPDATE evidence SET {column} = CAST('x' AS {'TEXT' if column == 'sha256' else 'BLOB'}) WHERE id = ?",
        stored[1].id,
    )
    assert ids(await line.queue.get_pending()) == [stored[0].bundle_id, stored[2].bundle_id]
    assert (await line.queue.get_stats())["damaged"] == 1
    assert await line.queue.gaps() == [Gap(0, 2, 2)]


async def test_the_server_can_ask_for_more(line: Line) -> None:
    """Restored from a backup, the server knows less than it acknowledged."""
    stored = line.clinic.record(4)
    for item in stored:
        await line.queue.mark_uploaded(item.id)
    assert await line.queue.requeue_from(0, 3) == 2
    assert ids(await line.queue.get_pending()) == names(stored)[2:]


async def test_a_later_epoch_comes_later(line: Line) -> None:
    first = line.clinic.record(2)
    line.clinic.store.new_epoch("e" * 64)
    second = line.clinic.record(2)
    assert ids(await line.queue.get_pending()) == names(first) + names(second)


def foreign(tmp_path: Path, body: bytes = b'{"test": "data"}') -> tuple[Path, Path]:
    files = tmp_path / "some.json", tmp_path / "some.sig"
    files[0].write_bytes(body)
    files[1].write_bytes(b"sig")
    return files


async def test_a_bundle_that_is_not_recorded_here_is_taken_in_durably(line: Line, tmp_path: Path) -> None:
    files = foreign(tmp_path)
    first = await line.queue.enqueue("../../etc/x", *files)
    assert await line.queue.enqueue("../../etc/x", *files) == first
    pending = await line.queue.get_pending()
    assert [pending[0].bundle_path, pending[0].signature_path] == [str(files[0]), str(files[1])]
    for file in files:
        file.unlink()
    line.restart()
    pending = await line.queue.get_pending()
    assert Path(pending[0].bundle_path).read_bytes() == b'{"test": "data"}'
    assert Path(pending[0].bundle_path).is_relative_to(line.clinic.evidence)


async def test_files_that_are_not_there_are_refused(line: Line, tmp_path: Path) -> None:
    with pytest.raises(NoInput):
        await line.queue.enqueue("x", tmp_path / "a", tmp_path / "b")


async def test_a_second_bundle_for_one_place_is_refused(line: Line, tmp_path: Path) -> None:
    """A copy of this host that ran elsewhere: its bundle does not replace ours."""
    line.clinic.record()
    twin = Clinic(tmp_path / "twin")
    twin.close()
    shutil.copyfile(line.clinic.signer.path, twin.signer.path)
    shutil.rmtree(twin.state)
    twin = Clinic(tmp_path / "twin", number=50)
    other = twin.record()[0]
    twin.close()
    with pytest.raises(BadEvidence) as caught:
        await line.queue.enqueue(other.bundle_id, other.bundle_path, other.signature_path)
    assert caught.value.code == "fork"
    assert len(await line.queue.get_pending()) == 1


async def test_an_ack_that_does_not_fit_on_a_full_disk_is_given_up_before_the_mark(line: Line) -> None:
    stored = line.clinic.record()

    def full(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    line.clinic.store.database.read(full)
    await line.queue.mark_uploaded(stored[0].id, bytes(200_000))
    assert (await line.queue.get_stats())["uploaded"] == 1
