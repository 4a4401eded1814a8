"""One booted host: an overlay over the cached root file system, systemd as its first process, a control group of its own.

Nothing is asked of a service manager outside, so it works in a container too. Nothing here is undone: the enclosure is what ends
(`enclosure.py`), and every host and mount with it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.enclosure import group_of
from compliance_agent.lab.real.shell import PAUSE_S, Shell

BOOT_S = 90.0
PATH = "/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"


class Machine(Shell):
    """A Debian host of its own network, process table and file system; the kernel (and its clock) is this machine's."""

    kind = "lab host"

    def __init__(self, name: str, lower: Sequence[Path], scratch: Path) -> None:
        self.name = name
        self.directory = scratch / name
        self.root = self.directory / "root"
        self.upper = self.directory / "upper"  # what differs from the layers below
        self._lower = lower
        self._nspawn: subprocess.Popen[bytes] | None = None
        self.leader = 0

    def mount(self) -> None:
        """The copy: only what the host changes takes room."""
        self.root.mkdir(parents=True)
        mount_over(self._lower, self.root, self.upper)

    def unmount(self) -> None:
        """Give up the mounted copy; its layer of changes stays."""
        subprocess.run(["umount", "--recursive", str(self.root)], check=True, timeout=60)

    def boot(self) -> None:
        """Start systemd there and wait until it is up.

        Raises:
            Unavailable: it did not come up in time.
        """
        command = (
            "systemd-nspawn", "--boot", "--register=no", "--keep-unit", "--private-network", "--console=pipe", "--quiet",
            f"--machine={self.name}", f"--directory={self.root}",
        )  # fmt: skip
        joined = "".join(
            f"echo $$ >{group}/cgroup.procs && " for group in group_of(f"{self.directory.parent.name}-{self.name}")
        )
        with (self.directory / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                ("/bin/sh", "-c", f'{joined}exec "$@"', "sh", *command),
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + BOOT_S
        while time.monotonic() < ends and self._nspawn.poll() is None:
            self.leader = self.leader or _child_of(self._nspawn.pid)
            if self.leader and self.sh("systemctl is-system-running").strip() in {"running", "degraded"}:
                return
            time.sleep(PAUSE_S)
        said = (self.directory / "console").read_text("utf-8", "replace")[-400:]
        raise Unavailable(f"lab host {self.name} did not boot within {BOOT_S:.0f} s: {said}")

    def cut(self) -> None:
        """End every process of it at once, as when the power goes. What they wrote stays: the kernel, and its caches, are this
        machine's, so a disk that loses what was not synced is for the virtual host alone.
        """
        if self._nspawn is None:
            raise RuntimeError("not booted")
        os.kill(self.leader, signal.SIGKILL)  # the first process of its table: the kernel ends the others with it
        self._nspawn.wait(30)
        self.leader = 0

    def run(self, script: str, *, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """A shell script inside, as root."""
        command = ["nsenter", "-t", str(self.leader), "-m", "-u", "-i", "-n", "-p", "--", "/bin/sh", "-c", script]
        environment = {"PATH": PATH, "LC_ALL": "C.UTF-8", "HOME": "/root"}
        return subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=timeout_s, env=environment, stdin=subprocess.DEVNULL
        )  # fmt: skip


def mount_over(lower: Sequence[Path], root: Path, upper: Path) -> None:
    """Mount at `root` what is in `lower`; changes go to `upper`.

    `volatile`: nothing here has to survive a power cut, and package tools sync after every file.
    """
    work = upper.with_name(f"{upper.name}.work")
    for directory in (upper, work):
        directory.mkdir(parents=True)
    layers = ":".join(str(path) for path in lower)
    options = f"lowerdir={layers},upperdir={upper},workdir={work},volatile"
    subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, str(root)], check=True, timeout=20)


def _child_of(pid: int) -> int:
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii").split()
    except OSError:
        return 0
    found = [int(word) for word in words if Path(f"/proc/{word}/comm").read_text("ascii").strip() == "systemd"]
    return found[0] if found else 0
