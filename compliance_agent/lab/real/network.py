"""The lab's own network: one namespace with the compliance server, two time sources and package repositories; hosts join by veth.

Nothing here reaches this machine's network, and the enclosure ends all of it.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import socket
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.enclosure import leave_network
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.row import PUBLISH
from compliance_agent.lab.real.shell import must, until
from compliance_agent.log.tiles import ENTRIES, decode_entries, written

SERVER = "10.77.0.1"
NAMED = "mcp.clinic.example"  # the server, as docs/install.md calls it
SKEWED, SKEWED_BY_S = "10.77.0.2", 30.0  # the second time source
TIME_SOURCE = (
    f"bindaddress {SERVER}", "local stratum 3", "allow 10.77.0.0/24", "cmdport 0", "bindcmdaddress /", "pidfile /run/chronyd.pid",
)  # fmt: skip
SITE = "lab"
DATE = "%a, %d %b %Y %H:%M:%S UTC"


class Network:
    """One bridge, which this process and what it starts stand on too."""

    def __init__(self, scratch: Path, lower: Path) -> None:
        self.log = scratch / "network.log"
        self.data = scratch / "server"
        self.repositories = scratch / "repositories"
        self._services = Machine("services", (lower,), scratch)  # a copy to run programs from; it is not booted
        self._hosts = itertools.count(11)

    def open(self) -> None:
        """Leave this machine's network, make the lab's, and start what stands in it."""
        leave_network()
        self._services.mount()
        # An address of its own: else it takes a host's and changes it when others join, and nobody finds it any more.
        must("ip", "link", "add", "lab", "address", "02:00:00:00:00:01", "type", "bridge")
        for device in ("lo", "lab"):
            must("ip", "link", "set", device, "up")
        for address in (SERVER, SKEWED):
            must("ip", "address", "add", f"{address}/24", "dev", "lab")
        self._start("chroot", str(self._services.root), "chronyd", "-x", "-n", "-u", "root", *TIME_SOURCE)
        self._start(sys.executable, "-m", "compliance_agent.lab.real.skewed", SKEWED, str(SKEWED_BY_S))
        self.repositories.mkdir()
        self._start(
            sys.executable, "-m", "http.server", "--bind", SERVER, "--directory", str(self.repositories), "8000"
        )
        server = (sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(self.data), "--tls")
        known_as = f"MSP_SERVER_PUBLIC_URL=https://{NAMED}:8443"  # in its certificate
        self._start("env", known_as, *server, "--host", SERVER, "--port", "8443")
        if not until(lambda: (self.data / "tls" / "ca.pem").exists() and _listens(8443), 30.0):
            raise Unavailable("lab: the server did not start")

    def join(self, machine: Machine) -> None:
        """Give a booted host an address on the bridge."""
        number = next(self._hosts)
        outside = f"ve{number}"
        must("ip", "link", "add", outside, "type", "veth", "peer", "name", "host0", "netns", str(machine.leader))
        must("ip", "link", "set", outside, "master", "lab", "up")
        machine.must(f"ip address add 10.77.0.{number}/24 dev host0 && ip link set host0 up && ip link set lo up")

    def source(self, host: str) -> str:
        """A repository of a host's own, for what is published is its fault alone; the line with which its apt finds it."""
        Repository(self.repositories / host).publish({"lab-widget": "1.0"})
        return f"deb [trusted=yes] http://{SERVER}:8000/{host}/ stable-security main\n"

    def published(self, host: str, script: str) -> str:
        """Publish for a host what the script's first line asks for, if it does; the rest of it is for the host."""
        first, _, rest = script.partition("\n")
        if not first.startswith(PUBLISH):
            return script
        version, _, kind = first.removeprefix(PUBLISH).partition(" ")
        Repository(self.repositories / host).publish({"lab-widget": version}, kind)
        return rest

    def token(self) -> str:
        """A one-time enrolment token."""
        return must(
            sys.executable, "-m", "compliance_agent", "server", "--data-dir", str(self.data),
            "enrol-token", "--site", SITE, "--client", "lab",
        ).strip()  # fmt: skip

    def log_keys(self) -> list[str]:
        """The files with the verifier keys of the site's logs, from the server's own directory."""
        return [str(path) for path in sorted((self.data / "keys").glob(f"{SITE}-*.vkey"))]

    def entries(self) -> list[bytes]:
        """Every entry of the site's logs, as the server keeps them for everybody who asks."""
        found: list[bytes] = []
        for log in sorted((self.data / "log" / SITE).iterdir()):
            size = int((log / "checkpoint").read_text("utf-8").splitlines()[1])
            tiles = (tile for tile in written(0, size) if tile.level == ENTRIES)
            found += [entry for tile in tiles for entry in decode_entries((log / tile.path).read_bytes(), tile.width)]
        return found

    def _start(self, *words: str) -> None:
        with self.log.open("ab") as out:
            subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


class Repository:
    """An apt repository of security updates, made here; the packages hold one file each."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def publish(self, versions: dict[str, str], kind: str = "") -> None:
        """Offer these versions. Packages of kind `broken` fail while they are configured; a list of kind `old` is dated five days
        back, and one that is `expiring` is good for ten seconds more.
        """
        index = self._directory / "dists" / "stable-security" / "main" / "binary-amd64"
        index.mkdir(parents=True, exist_ok=True)
        (self._directory / "pool").mkdir(exist_ok=True)
        entries = "".join(self._package(name, version, kind == "broken") for name, version in versions.items())
        (index / "Packages").write_text(entries, "utf-8")
        (index / "Packages.gz").write_bytes(gzip.compress(entries.encode(), mtime=0))
        time.sleep(1.1)  # dates in HTTP have whole seconds: apt would take this list for the one it has
        made = datetime.now(UTC) - timedelta(days=5 if kind == "old" else 0)
        lines = [
            "Origin: Debian",
            "Label: Debian-Security",
            "Suite: stable-security",
            "Codename: lab-security",
            f"Date: {made:{DATE}}",
        ]
        if kind == "expiring":
            lines.append(f"Valid-Until: {made + timedelta(seconds=10):{DATE}}")
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
        must("dpkg-deb", "--root-owner-group", "--build", str(made), str(target))
        body = target.read_bytes()
        return (
            f"{control}Filename: pool/{target.name}\nSize: {len(body)}\nSHA256: {hashlib.sha256(body).hexdigest()}\n\n"
        )


def _listens(port: int) -> bool:
    try:
        socket.create_connection((SERVER, port), 1).close()
    except OSError:
        return False
    return True
