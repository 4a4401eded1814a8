"""Digests that are kept: whatever happens to a file, an old digest never stands for its new bytes.

Every fault here fools a reader that trusts size and modification time; those that also fool a reader of change times are held by
the settled rule, by `Undisturbed` or by the full reading, and beside each is shown that it does fool when that is taken away.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.adapters import file_digests
from compliance_agent.adapters.file_digests import FULL_S, FileDigests
from compliance_agent.adapters.undisturbed import Undisturbed
from compliance_agent.errors import CannotTell

HOUR_NS = 3_600 * 10**9
OLD, NEW = b"right bytes\n", b"wrong bytes\n"


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class World(Undisturbed):
    """A kernel's word that a test can choose."""

    def __init__(self, device: int) -> None:
        super().__init__()
        self.devices, self.settled_s, self.disturbed = frozenset({device}), 120.0, False

    def still(self) -> bool:
        was, self.disturbed = self.disturbed, False
        return not was


class Scene:
    """One file, and a host's digests at a time of the test's choosing."""

    def __init__(self, place: Path, *, ahead_ns: int = HOUR_NS) -> None:
        self.path = place / "file"
        self.path.write_bytes(OLD)
        self.world = World(self.path.stat().st_dev)
        self.boot_s = 1_000.0
        self.digests = FileDigests(lambda: time.time_ns() + ahead_ns, lambda: self.boot_s, self.world)

    def look(self) -> tuple[str | None, bool]:
        """Digest, and whether it was kept."""
        self.digests.begin()
        found = self.digests.of(str(self.path), 1_000)
        return found.sha256, found.kept

    def later(self, change: Callable[[], object], *, mtime: bool = True) -> None:
        """Change the file at a moment that its file system tells from the one before, and set its modification time back."""
        before = self.path.stat()
        while True:
            change()
            if mtime:
                os.utime(self.path, ns=(before.st_atime_ns, before.st_mtime_ns))
            if self.path.stat().st_ctime_ns != before.st_ctime_ns:
                break


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    made = Scene(tmp_path)
    assert made.look() == (digest(OLD), False)
    assert made.look() == (digest(OLD), True)  # so each test below begins with a digest that is kept
    return made


def test_same_size_and_modification_time_do_not_hide_a_change(scene: Scene) -> None:
    scene.later(lambda: scene.path.write_bytes(NEW))
    assert scene.path.stat().st_size == len(OLD)
    assert scene.look() == (digest(NEW), False)


def test_another_file_under_the_same_number_is_another_file(scene: Scene, tmp_path: Path) -> None:
    """Removed and made anew; most file systems then give the same inode number."""
    times = scene.path.stat()

    def again() -> None:
        scene.path.unlink()
        scene.path.write_bytes(NEW)
        os.utime(scene.path, ns=(times.st_atime_ns, times.st_mtime_ns))

    scene.later(again, mtime=False)
    assert scene.look() == (digest(NEW), False)


def test_another_file_put_in_its_place_is_another_file(scene: Scene, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(NEW)
    info = scene.path.stat()
    os.utime(other, ns=(info.st_atime_ns, info.st_mtime_ns))
    other.rename(scene.path)
    assert scene.look() == (digest(NEW), False)


def test_a_mode_that_changed_is_told_though_the_bytes_did_not(scene: Scene) -> None:
    scene.path.chmod(0o666)
    scene.digests.begin()
    assert scene.digests.of(str(scene.path), 1_000).mode == 0o666


def coarse(info: os.stat_result) -> tuple[int, ...]:
    """As a file system with times of two seconds would tell, all within the same two."""
    return (info.st_dev, info.st_ino, info.st_size)


@pytest.mark.parametrize("settled_s", [120.0, 0.0])
def test_a_change_within_the_granularity_of_the_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settled_s: float
) -> None:
    """Right after the look, same size, same times: seen because a file that was touched just now is not kept."""
    monkeypatch.setattr(file_digests, "_touched", coarse)
    scene = Scene(tmp_path, ahead_ns=0)
    scene.world.settled_s = settled_s
    assert scene.look() == (digest(OLD), False)
    scene.path.write_bytes(NEW)
    fooled = settled_s == 0.0
    assert scene.look() == ((digest(OLD), True) if fooled else (digest(NEW), False))


def test_a_page_that_a_program_goes_on_writing_to(tmp_path: Path) -> None:
    """The kernel sets the change time at the first write to a mapped page, and not at those before it is written back."""
    scene = Scene(tmp_path, ahead_ns=0)
    with scene.path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as page:
        page[:1] = b"R"
        assert scene.look() == (digest(b"R" + OLD[1:]), False)
        page[:1] = b"W"
        assert scene.look() == (digest(b"W" + OLD[1:]), False)


@pytest.mark.parametrize("disturbed", [True, False])
def test_a_clock_that_was_set_or_a_mount_has_everything_read(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, disturbed: bool
) -> None:
    """The clock set back, the file changed at the very time it had: all that the kernel says of it is as before."""
    as_before = file_digests._touched(scene.path.stat())
    monkeypatch.setattr(file_digests, "_touched", lambda _info: as_before)
    scene.path.write_bytes(NEW)
    scene.world.disturbed = disturbed
    assert scene.look() == ((digest(NEW), False) if disturbed else (digest(OLD), True))


@pytest.mark.parametrize(("age_s", "read"), [(FULL_S - 1, False), (FULL_S, True), (-1.0, True)])
def test_every_byte_is_read_at_least_every_15_minutes(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, age_s: float, read: bool
) -> None:
    """Bytes written to the device below the file system touch no file; nothing but the reading shows them."""
    as_before = file_digests._touched(scene.path.stat())
    monkeypatch.setattr(file_digests, "_touched", lambda _info: as_before)
    scene.path.write_bytes(NEW)
    scene.boot_s += age_s
    assert FULL_S == 15 * 60
    assert scene.look() == ((digest(NEW), False) if read else (digest(OLD), True))


def test_being_used_does_not_make_a_digest_younger(scene: Scene) -> None:
    for _ in range(15):
        assert scene.look()[1]
        scene.boot_s += 60
    assert scene.look() == (digest(OLD), False)


@pytest.mark.parametrize("settled_s", [None, 7_200.0])
def test_a_file_that_was_touched_too_lately_is_read_each_time(tmp_path: Path, settled_s: float | None) -> None:
    scene = Scene(tmp_path)
    scene.world.settled_s = settled_s
    assert [scene.look()[1] for _ in range(3)] == [False] * 3


def test_a_file_of_the_future_is_read_each_time(tmp_path: Path) -> None:
    """The clock was set back after it was written."""
    scene = Scene(tmp_path, ahead_ns=-HOUR_NS)
    assert [scene.look()[1] for _ in range(3)] == [False] * 3


def test_file_systems_whose_times_are_made_elsewhere_are_read_each_time(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.world.devices = frozenset()
    assert [scene.look()[1] for _ in range(3)] == [False] * 3


def test_what_was_read_before_a_disturbance_is_not_kept_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that hung over it comes back late, on a thread that was given up."""
    scene, read = Scene(tmp_path), os.read

    def slow(handle: int, size: int) -> bytes:
        monkeypatch.setattr(os, "read", read)
        scene.world.disturbed = True
        scene.digests.begin()
        return read(handle, size)

    monkeypatch.setattr(os, "read", slow)
    scene.digests.of(str(scene.path), 1_000)
    assert scene.look() == (digest(OLD), False)


@pytest.mark.parametrize("what", ["grows", "shrinks", "goes", "swapped"])
def test_a_file_that_changes_while_it_is_read_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    scene, read = Scene(tmp_path), os.read
    (tmp_path / "other").write_bytes(OLD)

    def meanwhile(handle: int, size: int) -> bytes:
        piece = read(handle, size)
        monkeypatch.setattr(os, "read", read)
        if what == "goes":
            scene.path.unlink()
        elif what == "swapped":
            (tmp_path / "other").rename(scene.path)
        else:
            scene.path.write_bytes(OLD * 2 if what == "grows" else b"")
        return piece

    monkeypatch.setattr(os, "read", meanwhile)
    with pytest.raises(CannotTell) as caught:
        scene.digests.of(str(scene.path), 1_000)
    assert caught.value.reason == "unparsable"


def test_no_more_digests_are_kept_than_a_host_has_room_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_digests, "MOST_KEPT", 1)
    first, scene.path = scene.path, scene.path.with_name("another")
    scene.path.write_bytes(NEW)
    assert [scene.look()[1] for _ in range(2)] == [False] * 2
    scene.path = first
    assert scene.look() == (digest(OLD), True)


def test_whoever_asks_has_everything_read_anew(scene: Scene) -> None:
    scene.digests.forget()
    assert scene.look() == (digest(OLD), False)
    scene.digests.close()
    assert scene.digests._kept == {}
