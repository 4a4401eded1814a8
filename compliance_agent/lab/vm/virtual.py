"""One virtual machine: qemu with an emulated processor, started, cut off and ended by its process id.

Killing qemu is the power cut: what the guest had in memory is gone, and of what its root disk had taken only what it was told to
keep is sure to stay (`disk`). It stands in the lab's network; commands go through a virtio port (`runner`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.shell import PAUSE_S, Shell
from compliance_agent.lab.vm.disk import Disk, Loss
from compliance_agent.lab.vm.image import Image

NEEDED = {"qemu-system-x86_64": "qemu-system-x86", "qemu-img": "qemu-utils", "mke2fs": "e2fsprogs"}
BOOT_S = 150.0
MEMORY_MB = 768
KERNEL = (
    "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 mitigations=off panic=0 init=/usr/local/sbin/lab-boot"
    " modprobe.blacklist=kvm_amd,kvm_intel,ata_piix,ata_generic,pcspkr,evdev"  # no such device is needed
)


def missing() -> list[str]:
    """Packages that have to be installed before a machine can be started here."""
    return sorted(package for tool, package in NEEDED.items() if shutil.which(tool) is None)


@dataclass(frozen=True)
class Ran:
    """How a script ended inside."""

    returncode: int
    stdout: str
    stderr: str


class Virtual(Shell):
    """A host with a kernel, a clock and disks of its own.

    Args:
        name: of the host.
        image: what it boots from; it is not changed.
        disks: more disks, by serial, as (file, read-only).
        scratch: for its layer, console and socket.
    """

    kind = "virtual host"

    def __init__(self, name: str, image: Image, disks: dict[str, tuple[Path, bool]], scratch: Path) -> None:
        self.name = name
        self.directory = scratch / name
        self.boots = 0
        self._image, self._disks = image, disks
        self._root = Disk(image.disk, self.directory)
        self.losses: list[Loss] = []
        self._qemu: subprocess.Popen[bytes] | None = None
        self._line: socket.socket | None = None
        self._held = b""
        self._asked = 0

    def prepare(self) -> None:
        """Its own copy of the image."""
        self.directory.mkdir(parents=True)
        self._root.prepare()

    def boot(self, *words: str) -> float:
        """Start it, and wait until it is up; seconds that took. `words` are further parameters of its kernel.

        Raises:
            Unavailable: it did not come up in time.
        """
        started = time.monotonic()
        self.start(*words)
        while (left := started + BOOT_S - time.monotonic()) > 0 and self.running:
            with contextlib.suppress(Unavailable):
                if self.sh("systemctl is-system-running --wait", timeout_s=left).strip() in {"running", "degraded"}:
                    return round(time.monotonic() - started, 1)
                time.sleep(PAUSE_S)
        raise Unavailable(f"virtual host {self.name} was not up within {BOOT_S:.0f} s: {self.console()[-600:]}")

    def start(self, *words: str) -> None:
        """Switch it on."""
        self.boots += 1
        for left_over in (self._port, self.directory / "console"):  # what was said before is not said now
            left_over.unlink(missing_ok=True)
        with (self.directory / "qemu.log").open("ab") as log:
            self._qemu = subprocess.Popen(
                self._command(words), stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self._line, self._held = None, b""

    @property
    def running(self) -> bool:
        """Whether it is switched on."""
        return self._qemu is not None and self._qemu.poll() is None

    def cut(self) -> None:
        """The power goes, now."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._qemu is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._qemu.pid, signal.SIGKILL)
            self._qemu.wait(20)
            self._qemu = None
            self.losses.append(self._root.cut_off(random.Random(self.boots)))

    def run(self, script: str, *, timeout_s: float = 60.0) -> Ran:
        """A shell script inside, as root.

        Raises:
            Unavailable: the machine did not answer.
        """
        return self._told({"script": script, "timeout_s": timeout_s}, timeout_s)

    def names(self, pattern: str) -> list[str]:
        """The files inside that a pattern names.

        Raises:
            Unavailable: the machine did not answer.
        """
        return self._told({"names": pattern}, 60.0).stdout.split()

    def _told(self, question: dict[str, object], timeout_s: float) -> Ran:
        self._asked += 1
        asked = {"id": self._asked, **question}
        ends = time.monotonic() + timeout_s + 3.0
        try:
            line = self._connected(ends)
            line.settimeout(max(0.1, ends - time.monotonic()))
            line.sendall(json.dumps(asked).encode() + b"\n")
            while True:
                said = self._answer(line, ends)
                if said.get("id") == self._asked:  # answers to what was given up are passed over
                    return Ran(int(said["status"]), _text(said["out"]), _text(said["err"]))
        except OSError as error:  # a timeout is one
            raise Unavailable(
                f"virtual host {self.name}: no answer to `{str(question)[:120]}`; {self.console()[-300:]}"
            ) from error

    def console(self) -> str:
        """What it wrote on its serial line since it was switched on last."""
        try:
            return (self.directory / "console").read_text("utf-8", "replace")
        except OSError:
            return ""

    # Parts

    @property
    def _port(self) -> Path:
        return self.directory / "port"

    def _command(self, words: Sequence[str]) -> list[str]:
        command = [
            "nice", "-n", "-5",  # before the hosts beside it, for it has the longest way to go
            "qemu-system-x86_64", "-accel", "tcg,thread=multi", "-smp", "2", "-m", str(MEMORY_MB), "-nodefaults",
            "-no-user-config", "-display", "none", "-no-reboot", "-rtc", "base=utc", "-serial", f"file:{self.directory}/console",
            "-kernel", str(self._image.kernel), "-initrd", str(self._image.initrd), "-append", " ".join((KERNEL, *words)),
            "-device", "virtio-rng-pci", "-device", "virtio-serial-pci",
            "-chardev", f"socket,id=runner,path={self._port},server=on,wait=off",
            "-device", "virtserialport,chardev=runner,name=lab.runner",
            "-netdev", "user,id=net,net=10.0.2.0/24", "-device", "virtio-net-pci,netdev=net",
        ]  # fmt: skip
        command += self._root.switched_on()
        for serial, (path, read_only) in self._disks.items():
            command += _drive(serial, path, read_only=read_only)
        return command

    def _connected(self, ends: float) -> socket.socket:
        while self._line is None:
            line = socket.socket(socket.AF_UNIX)
            try:
                line.connect(str(self._port))
                self._line = line
            except OSError as error:
                line.close()
                if time.monotonic() > ends or not self.running:
                    raise TimeoutError("the machine's port is not there") from error
                time.sleep(PAUSE_S)
        return self._line

    def _answer(self, line: socket.socket, ends: float) -> dict[str, Any]:
        while b"\n" not in self._held:
            left = ends - time.monotonic()
            if left <= 0:
                raise TimeoutError("the machine did not answer")
            line.settimeout(left)
            piece = line.recv(1 << 20)
            if not piece:
                raise TimeoutError("the machine is switched off")
            self._held += piece
        raw, _, self._held = self._held.partition(b"\n")
        try:
            said = json.loads(raw)
        except ValueError:
            return {}
        return said if isinstance(said, dict) else {}


def _drive(serial: str, path: Path, *, read_only: bool) -> list[str]:
    mode = "on" if read_only else "off"
    return [
        "-drive", f"if=none,id={serial},file={path},format=raw,cache=writeback,readonly={mode}",
        "-device", f"virtio-blk-pci,drive={serial},serial={serial}",
    ]  # fmt: skip


def _text(encoded: str) -> str:
    return base64.b64decode(encoded).decode("utf-8", "replace")
