"""A process, mount and network namespace around one run of the lab: when its first process ends, however it ends, the kernel ends
every host and server in it and takes every mount and network device away.

What the kernel does not remove are empty control groups and the run's directory. The process outside does that, and a later run
does it for one that was killed. Names carry the id of the process outside, so two labs can run beside each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

PREFIX = "compliance-lab-"
_NEW_MOUNTS, _NEW_PROCESSES, _NEW_NETWORK = 0x0002_0000, 0x2000_0000, 0x4000_0000  # sched.h
_PDEATHSIG = 1  # prctl.h
_ENDING = (signal.SIGINT, signal.SIGTERM)
_LIBC = ctypes.CDLL(None, use_errno=True)


def enclosed(work: Callable[[Path], int], under: Path) -> int:
    """Run `work` inside, with a directory of its own under `under`; its exit status.

    A signal to end is passed on once; what is inside has then no say in when it ends.
    """
    name = f"{PREFIX}{os.getpid()}"
    _remove_leftovers(under)
    scratch = under / name
    scratch.mkdir(parents=True, mode=0o700)
    try:
        _unshare(_NEW_PROCESSES)
        child = os.fork()
        if child == 0:
            _inside(work, scratch)
        for number in _ENDING:
            signal.signal(number, lambda number, _frame: _pass_on(number, child))
        _, status = os.waitpid(child, 0)
        for number in _ENDING:
            signal.signal(number, signal.SIG_IGN)
        return os.waitstatus_to_exitcode(status)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for group in _groups(name):
            _remove_group(group)


def leave_network() -> None:
    """From here on only the lab's own network is in reach."""
    _unshare(_NEW_NETWORK)


def group_of(name: str) -> list[Path]:
    """New control groups for one host, one in each hierarchy that systemd uses.

    Without, hosts would share one tree, and a service would seem to run while another host's does.
    """
    made = [parent / name for parent in _hierarchies()]
    for group in made:
        group.mkdir(exist_ok=True)  # a host that was cut off boots again in its own
    return made


def _inside(work: Callable[[Path], int], scratch: Path) -> None:
    """The first process of the enclosure; never returns."""
    status = 70
    try:
        _LIBC.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        for number in _ENDING:
            signal.signal(number, _interrupted)
        _unshare(_NEW_MOUNTS)
        subprocess.run(["mount", "--make-rprivate", "/"], check=True, timeout=20)
        subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True, timeout=20)
        # systemd-nspawn keeps its own state there, by the names of hosts.
        Path("/run/systemd").mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/run/systemd"], check=True, timeout=20)
        status = work(scratch)
    except KeyboardInterrupt:
        status = 130
    except BaseException:  # whatever it is, this process must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _pass_on(number: int, child: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(child, number)


def _interrupted(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _unshare(what: int) -> None:
    if _LIBC.unshare(what) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"unshare: {os.strerror(number)}")


def _hierarchies() -> list[Path]:
    """This process's own group in the hierarchies that systemd manages."""
    found = []
    for line in Path("/proc/self/cgroup").read_text("ascii").splitlines():
        _, controllers, path = line.split(":", 2)
        mounts = {"": ("unified", "."), "name=systemd": ("systemd",)}.get(controllers, ())
        for mount in mounts:
            group = Path("/sys/fs/cgroup") / mount / path.lstrip("/")
            if (group / "cgroup.procs").exists():
                found.append(group)
                break
    return found


def _groups(pattern: str) -> list[Path]:
    return [group for parent in _hierarchies() for group in parent.glob(f"{pattern}-*")]


def _remove_group(group: Path) -> None:
    for path, _, _ in os.walk(group, topdown=False):
        try:
            Path(path).rmdir()
        except OSError:
            return


def _remove_leftovers(under: Path) -> None:
    """What a run that was killed left behind."""
    for path in (*under.glob(f"{PREFIX}*"), *_groups(f"{PREFIX}*")):
        owner = path.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdecimal() and not Path(f"/proc/{owner}").exists():
            if path.parent == under:
                shutil.rmtree(path, ignore_errors=True)
            else:
                _remove_group(path)
