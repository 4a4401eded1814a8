"""The virtual host's disk after a power cut: what was flushed is there, and of the rest what chance left."""

from __future__ import annotations

import io
import random
import struct
from pathlib import Path

import pytest

from compliance_agent.errors import Unavailable
from compliance_agent.lab.vm.disk import SECTOR, Disk, Loss, Write, recorded, remains

FLUSH, DISCARD = 1, 4


def record(*entries: tuple[int, bytes, int], super_block: bytes | None = None) -> bytes:
    """As qemu's blklogwrites writes it: (sector, data, what it is) each."""
    head = struct.pack("<QQQI", 0x6A736677736872, 1, len(entries), SECTOR) if super_block is None else super_block
    made = head.ljust(SECTOR, b"\0")
    for sector, data, what in entries:
        made += struct.pack("<QQQQ", sector, len(data) // SECTOR, what, 0).ljust(SECTOR, b"\0") + data
    return made


def block(letter: str, sectors: int = 1) -> bytes:
    return letter.encode() * SECTOR * sectors


class Toss(random.Random):
    """Always the same side."""

    def __init__(self, fate: str) -> None:
        super().__init__(1)
        self._fate = fate

    def choice(self, _options: object) -> str:  # type: ignore[override]
        return self._fate


def cut(tmp_path: Path, fate: str, *entries: tuple[int, bytes, int]) -> tuple[bytes, Loss]:
    """What is on a disk of eight sectors after a boot that wrote these and was cut off."""
    disk = Disk(tmp_path / "image", tmp_path)
    disk.content.write_bytes(block("-", 8))
    (tmp_path / "root.qcow2").touch()
    (tmp_path / "root.writes").write_bytes(record(*entries))
    loss = disk.cut_off(Toss(fate))
    return disk.content.read_bytes()[::SECTOR], loss


WRITTEN = ((1, block("a"), 0), (2, block("b", 2), 0), (0, b"", FLUSH), (2, block("c", 2), 0), (5, block("d"), 0))


@pytest.mark.parametrize(
    ("fate", "left", "lost"), [("whole", b"-acc-d--", 0), ("nothing", b"-abb----", 2), ("torn", b"-acb----", 2)]
)
def test_what_was_flushed_stays_and_the_rest_is_tossed_for(tmp_path: Path, fate: str, left: bytes, lost: int) -> None:
    class Torn(Toss):
        def randrange(self, stop: int) -> int:  # type: ignore[override]
            return stop - 1  # all but the last sector

    disk = Disk(tmp_path / "image", tmp_path)
    disk.content.write_bytes(block("-", 8))
    (tmp_path / "root.qcow2").touch()
    (tmp_path / "root.writes").write_bytes(record(*WRITTEN))
    assert disk.cut_off(Torn(fate)) == Loss(pending=2, lost=lost)
    assert disk.content.read_bytes()[::SECTOR] == left
    assert not (tmp_path / "root.qcow2").exists(), "what the guest worked on is gone"


def test_nothing_is_lost_where_everything_was_flushed(tmp_path: Path) -> None:
    assert cut(tmp_path, "nothing", *WRITTEN, (0, b"", FLUSH)) == (b"-acc-d--", Loss(0, 0))


def test_a_later_write_to_the_same_place_wins(tmp_path: Path) -> None:
    assert cut(tmp_path, "whole", (1, block("a"), 0), (1, block("b"), 0))[0] == b"-b------"


def test_an_entry_that_was_being_written_was_never_acknowledged() -> None:
    whole = record(*WRITTEN)
    durable, pending = recorded(io.BytesIO(whole[:-1]))
    assert [write.offset // SECTOR for write in durable] == [1, 2]
    assert [write.offset // SECTOR for write in pending] == [2]
    assert recorded(io.BytesIO(whole + bytes(2 * SECTOR)))[1][-1].offset == 5 * SECTOR, "room that was not written yet"


def test_what_a_guest_gave_back_is_no_write() -> None:
    entry = struct.pack("<QQQQ", 1, 8, DISCARD, 0).ljust(SECTOR, b"\0")
    assert recorded(io.BytesIO(record() + entry)) == ([], [])


def test_a_disk_that_was_never_written_to() -> None:
    assert recorded(io.BytesIO(b"")) == ([], [])


def test_another_kind_of_record_is_refused() -> None:
    with pytest.raises(Unavailable, match="expected dm-log-writes"):
        recorded(io.BytesIO(record(super_block=struct.pack("<QQQI", 1, 1, 0, SECTOR))))


def test_chance_leaves_all_of_it_nothing_or_its_beginning() -> None:
    write = Write(0, 0, 4 * SECTOR)
    left = {sum(piece.size for piece in remains(write, random.Random(seed))) // SECTOR for seed in range(200)}
    assert left == {0, 1, 2, 3, 4}
