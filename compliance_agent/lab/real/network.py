"""The lab's own network: one namespace with the compliance server, a time source and a package repository; hosts join by veth.

Nothing here reaches this machine's network. Processes are ended by their ids.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.machine import Machine

SERVER = "10.77.0.1"
SITE = "lab"


class Network:
    """One bridge in a namespace of its own; `close` ends all of it."""

    def __init__(self, scratch: Path, lower: Path) -> None:
        self.name = f"compliance-lab-{os.getpid()}"
        self.scratch = scratch
        self.data = scratch / "server"
        self.repository = scratch / "repository"
        self._services = Machine("services", (lower,), scratch)  # a copy to run programs from; it is not booted
        self._processes: list[subprocess.Popen[bytes]] = []
        self._hosts = 10

    def open(self) -> None:
        """Make the namespace and start what stands in it."""
        self._services.mount()
        _must("ip", "netns", "add", self.name)
        self._ip("link", "add", "lab", "type", "bridge")
        self._ip("address", "add", f"{SERVER}/24", "dev", "lab")
        for device in ("lo", "lab"):
            self._ip("link", "set", device, "up")
        self._time_source(SERVER)
        Repository(self.repository).publish({"lab-widget": "1.0"})
        self._start(sys.executable, "-m", "http.server", "--bind", SERVER, "--directory", str(self.repository), "8000")
        server = (sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(self.data), "--tls")
        self._start(*server, "--host", SERVER, "--port", "8443")
        _until(lambda: (self.data / "tls" / "ca.pem").exists() and self._listens(8443), "the server did not start")

    def join(self, machine: Machine) -> None:
        """Give a booted host an address on the bridge."""
        self._hosts += 1
        outside = f"ve{self._hosts}"
        self._ip("link", "add", outside, "type", "veth", "peer", "name", "host0", "netns", str(machine.leader))
        self._ip("link", "set", outside, "master", "lab", "up")
        machine.must(f"ip address add 10.77.0.{self._hosts}/24 dev host0 && ip link set host0 up && ip link set lo up")

    def token(self) -> str:
        """A one-time enrolment token."""
        return _must(
            sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(self.data),
            "enrol-token", "--site", SITE, "--client", "lab",
        ).strip()  # fmt: skip

    def log_keys(self) -> list[str]:
        """The files with the verifier keys of the site's logs, from the server's own directory."""
        return [str(path) for path in sorted((self.data / "keys").glob(f"{SITE}-*.vkey"))]

    def close(self) -> None:
        """End every process and the namespace."""
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            if process.poll() is None:
                process.kill()
        subprocess.run(["ip", "netns", "delete", self.name], check=False, capture_output=True, timeout=20)
        self._services.close()

    def _ip(self, *words: str) -> None:
        _must("ip", "-n", self.name, *words)

    def _start(self, *words: str, environment: dict[str, str] | None = None) -> None:
        with (self.scratch / "network.log").open("ab") as out:
            self._processes.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.name, *words],
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out, env={**os.environ, **(environment or {})},
                )
            )  # fmt: skip

    def _time_source(self, address: str) -> None:
        """A chronyd from the lab's own root file system; it serves time and sets no clock."""
        config = (
            f"bindaddress {address}", "local stratum 3", "allow 10.77.0.0/24", "cmdport 0", "bindcmdaddress /",
            f"pidfile /run/chronyd-{address}.pid",
        )  # fmt: skip
        self._start("chroot", str(self._services.root), "chronyd", "-x", "-n", "-u", "root", *config)

    def _listens(self, port: int) -> bool:
        probe = "import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)"
        command = ["ip", "netns", "exec", self.name, sys.executable, "-c", probe, SERVER, str(port)]
        return subprocess.run(command, check=False, capture_output=True, timeout=20).returncode == 0


class Repository:
    """An apt repository of security updates, made here; the packages hold one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def publish(self, versions: dict[str, str], *, broken: bool = False, age: timedelta = timedelta()) -> None:
        """Offer these versions. `broken` packages fail while they are configured; `age` dates the list back."""
        index = self._directory / "dists" / "stable-security" / "main" / "binary-amd64"
        index.mkdir(parents=True, exist_ok=True)
        (self._directory / "pool").mkdir(exist_ok=True)
        entries = "".join(self._package(name, version, broken) for name, version in versions.items())
        (index / "Packages").write_text(entries, "utf-8")
        (index / "Packages.gz").write_bytes(gzip.compress(entries.encode(), mtime=0))
        made = f"{datetime.now(UTC) - age:%a, %d %b %Y %H:%M:%S} UTC"
        lines = [
            "Origin: Debian",
            "Label: Debian-Security",
            "Suite: stable-security",
            "Codename: lab-security",
            f"Date: {made}",
        ]
        lines += ["Architectures: amd64", "Components: main", "SHA256:"]
        for name in ("Packages", "Packages.gz"):
            body = (index / name).read_bytes()
            lines.append(f" {hashlib.sha256(body).hexdigest()} {len(body)} main/binary-amd64/{name}")
        (index.parent.parent / "Release").write_text("\n".join(lines) + "\n", "utf-8")

    def _package(self, name: str, version: str, broken: bool) -> str:
        made = self._directory / "build" / f"{name}-{version}"
        (made / "DEBIAN").mkdir(parents=True, exist_ok=True)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: lab <lab@localhost>\nDescription: lab\n"
        (made / "DEBIAN" / "control").write_text(control, "utf-8")
        script = made / "DEBIAN" / "postinst"
        script.write_text(f"#!/bin/sh\nexit {int(broken)}\n", "utf-8")
        script.chmod(0o755)
        target = self._directory / "pool" / f"{name}_{version}_all.deb"
        _must("dpkg-deb", "--root-owner-group", "--build", str(made), str(target))
        body = target.read_bytes()
        return (
            f"{control}Filename: pool/{target.name}\nSize: {len(body)}\nSHA256: {hashlib.sha256(body).hexdigest()}\n\n"
        )


def _must(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Unavailable(f"lab: {' '.join(words)[:160]} ended with {done.returncode}: {done.stderr[-300:]}")
    return done.stdout


def _until(holds: Callable[[], bool], problem: str, seconds: float = 30.0) -> None:
    ends = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > ends:
            raise Unavailable(f"lab: {problem}")
        time.sleep(0.2)
