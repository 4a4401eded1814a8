"""The kernel's word on clocks and mounts, and what is not taken for it."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from compliance_agent.adapters import undisturbed
from compliance_agent.adapters.undisturbed import Undisturbed, reliable_devices

MOUNTED = """\
22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:5 / /proc rw - proc proc rw
24 22 0:33 / /srv rw - btrfs /dev/vdb rw
25 22 0:34 / /mnt/a\\040b rw - nfs4 server:/x rw
26 22 8:1 / /home rw shared:2 master:1 - xfs /dev/sda1 rw
"""
IN_A_NAMESPACE = """
import subprocess
from compliance_agent.adapters.undisturbed import Undisturbed
world = Undisturbed()
said = [world.still(), world.still()]
subprocess.run(("mount", "-t", "tmpfs", "none", "/mnt"), check=True)
said += [world.still(), world.still()]
subprocess.run(("umount", "/mnt"), check=True)
print(said + [world.still(), world.still()])
"""


@pytest.fixture
def vm(tmp_path: Path) -> Path:
    (tmp_path / "dirty_expire_centisecs").write_text("3000\n")
    (tmp_path / "dirty_writeback_centisecs").write_text("500\n")
    return tmp_path


def test_the_first_answer_is_no_and_then_it_is_still(vm: Path) -> None:
    world = Undisturbed(vm=vm)
    try:
        assert [world.still() for _ in range(3)] == [False, True, True]
        assert (world.settled_s, bool(world.devices)) == (140.0, True)
        world.close()
        assert (world.settled_s, bool(world.devices)) == (None, False)
        assert [world.still() for _ in range(2)] == [False, True]
    finally:
        world.close()


def test_a_clock_that_was_set_is_told_once(vm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel cancels the timer, also when the clock was set back again since."""
    world, read = Undisturbed(vm=vm), os.read

    def cancelled(_handle: int, _size: int) -> bytes:
        monkeypatch.setattr(os, "read", read)
        raise OSError(errno.ECANCELED, "cancelled")

    try:
        assert [world.still() for _ in range(2)] == [False, True]
        monkeypatch.setattr(os, "read", cancelled)
        assert [world.still() for _ in range(2)] == [False, True]
    finally:
        world.close()


def test_a_mount_is_told_once() -> None:
    """With a real mount, in a namespace of its own."""
    unshare = ("unshare", "--mount", *(("--user", "--map-root-user") if os.geteuid() else ()))
    if subprocess.run((*unshare, "true"), capture_output=True, check=False).returncode:
        pytest.skip("no mount namespace to be had here")
    done = subprocess.run((*unshare, sys.executable, "-c", IN_A_NAMESPACE), capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[False, True, False, True, False, True]"


@pytest.mark.parametrize("what", ["mountinfo", "vm", "timer", "library", "broken"])
def test_what_cannot_be_had_is_never_still(vm: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    table = vm / "mountinfo"
    table.write_text("no such form - ext4\n" if what == "broken" else MOUNTED)
    if what == "vm":
        (vm / "dirty_expire_centisecs").unlink()

    def refused() -> int:
        raise AttributeError if what == "library" else OSError(errno.EPERM, "refused")

    if what in {"timer", "library"}:
        monkeypatch.setattr(undisturbed, "_timer", refused)
    world = Undisturbed(
        table if what == "broken" else vm / "none" if what == "mountinfo" else undisturbed.MOUNTINFO, vm
    )
    before = len(list(Path("/proc/self/fd").iterdir()))
    assert [world.still() for _ in range(3)] == [False] * 3
    assert world.settled_s is None
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_where_pages_are_never_written_back_nothing_is_settled(vm: Path) -> None:
    (vm / "dirty_writeback_centisecs").write_text("0\n")
    world = Undisturbed(vm=vm)
    world.still()
    assert world.settled_s is None
    world.close()


def test_the_longer_pages_may_wait_the_longer_nothing_is_settled(vm: Path) -> None:
    (vm / "dirty_expire_centisecs").write_text("60000\n")
    world = Undisturbed(vm=vm)
    world.still()
    assert world.settled_s == 4 * 605
    world.close()


def test_only_file_systems_that_keep_times_themselves_are_relied_on() -> None:
    assert reliable_devices(MOUNTED) == {os.makedev(254, 0), os.makedev(8, 1)}
    with pytest.raises((ValueError, IndexError)):
        reliable_devices("no such form - ext4")
