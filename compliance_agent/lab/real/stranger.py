"""A host that has never seen the agent, set up by the words of docs/install.md alone; then upgraded, and back, with a full queue.

The lines of that page are run as they stand there. Only its server is brought under the name that the page gives it.
"""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compliance_agent.lab.real import matrix
from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.install import give
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import NAMED, SERVER, Network
from compliance_agent.lab.real.report import Progress
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import lines

UNIT = "compliance-agent"
WITHIN_S = 60.0
INSTALLS_S = 180.0
ROUND_S = 90.0  # more than one round of the shipped settings, which is when a server that was away is asked again
WAITING = 40  # records that no server has, before the upgrade
# What a person asks of the running agent, and what it records of that; asked at once, for a command takes longer than its answer.
PAUSES = """
import socket, sys
for turn in range(int(sys.argv[1]) // 2):
    for page, body in (("pause", '{"reason": "maintenance", "seconds": 600}'), ("resume", "")):
        asking = socket.socket(socket.AF_UNIX)
        asking.settimeout(20)
        asking.connect("/run/compliance-agent/admin/agent.sock")
        head = f"POST /{page} HTTP/1.1\\r\\nHost: agent\\r\\nConnection: close\\r\\nContent-Length: {len(body)}\\r\\n\\r\\n"
        asking.sendall((head + body).encode())
        answer = b"".join(iter(lambda: asking.recv(65536), b""))
        if answer.split()[1] != b"200":
            sys.exit(answer.decode())
"""
Line = dict[str, Any]


def commands(page: str) -> list[str]:
    """The lines that root types, from the first block of a page."""
    block = page.partition("```console\n")[2].partition("```")[0]
    return [line.removeprefix("# ") for line in block.splitlines() if line.startswith("# ")]


@dataclass(frozen=True)
class Stranger:
    """The host, what is installed on it, and what comes one version later."""

    host: Host
    network: Network
    page: str
    package: Path
    newer: Path

    def steps(self) -> tuple[tuple[str, Callable[[], bool]], ...]:
        """What has to be so, in this order."""
        return (
            ("quick_path", self._typed),
            ("quick_path_heals", self._heals),
            ("upgrade_with_a_full_queue", self._upgraded),
            ("downgrade_with_a_full_queue", self._downgraded),
            ("delivered_once", self._delivered),
        )

    def _ends(self, line: str) -> int:
        """The exit status of a line that root types."""
        return self.host.machine.run(f"cd /root && {line}", timeout_s=INSTALLS_S).returncode

    def _typed(self) -> bool:
        """Each line ends well, and then the agent is up by its own word. A proposal has findings, for no container passes all."""
        typed = commands(self.page)
        ended = [self._ends(line) for line in typed]
        well = [code == 0 or (code == 1 and "baseline init" in line) for code, line in zip(ended, typed, strict=True)]
        status = self.host.machine.sh(f"systemctl show --property=ActiveState,StatusText {UNIT}")
        return len(typed) > 3 and all(well) and "ActiveState=active" in status and "checks" in status

    def _heals(self) -> bool:
        """A unit that the proposed baseline needs is stopped, and is back, with a record."""
        self.host.machine.must("systemctl stop cron")
        healed = until(lambda: any(one["outcome"] == "success" for one in self.host.bundles("services")), WITHIN_S)
        return healed and self.host.machine.run("systemctl is-active cron").returncode == 0

    def _upgraded(self) -> bool:
        """Cut off from its server, with records that wait: another code runs, and they wait on."""
        self.host.machine.must("ip link set host0 down")
        before, code = self._recorded(WAITING), self._code()
        place = give(self.newer, self.host.machine)
        return self._installed(f"apt install {place}", before) and self._code() != code

    def _downgraded(self) -> bool:
        """And back, with what the newer one recorded as well."""
        before, code = self._recorded(2), self._code()
        place = give(self.package, self.host.machine)
        return self._installed(f"apt install -y --allow-downgrades {place}", before) and self._code() != code

    def _installed(self, command: str, before: set[str]) -> bool:
        """Done well, by another process, which has everything that waited still waiting."""
        pid, waited = self._pid(), self._waiting()
        well = self._ends(command) == 0 and until(lambda: self._pid() not in {pid, "0"}, WITHIN_S)
        kept = before <= {path.parent.name for path in self.host.paths()}
        return well and kept and waited >= WAITING and self._waiting() >= waited

    def _delivered(self) -> bool:
        """The server is there again: every record comes through by itself, and is in its log once."""
        self.host.machine.must("ip link set host0 up")
        leaves = [path.with_name("leaf.json") for path in self.host.paths()]
        through = until(lambda: all(leaf.exists() for leaf in leaves), ROUND_S)
        entries = self.network.entries()
        return through and len(leaves) > WAITING and all(entries.count(leaf.read_bytes()) == 1 for leaf in leaves)

    def _recorded(self, more: int) -> set[str]:
        """The names of all records, once there are so many more."""
        before = len(self.host.paths())
        self.host.machine.must(f"python3 -c {shlex.quote(PAUSES)} {more}", timeout_s=INSTALLS_S)
        until(lambda: len(self.host.paths()) >= before + more, WITHIN_S)
        return {path.parent.name for path in self.host.paths()}

    def _status(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.host.machine.must("compliance-agent status --json"))
        return told

    def _waiting(self) -> int:
        return int(self._status()["queue"]["pending"])

    def _code(self) -> str:
        """The digest of the code that the last record names."""
        self._recorded(2)
        return str(self.host.bundles()[-1]["agent"]["sha256"])

    def _pid(self) -> str:
        return self.host.machine.sh(f"systemctl show --value --property=MainPID {UNIT}").strip()


def served(
    machine: Machine, network: Network, page: str, package: Path, newer: Path, progress: Progress
) -> tuple[list[Line], dict[str, Any]]:
    """A host of the lab from its start to its evidence."""
    progress.begin(machine.name, "is set up by the page, upgraded and downgraded")
    (table,) = (table for table in matrix.TABLES if table.check == "services")
    host = start(machine, network, table, package)
    progress.say(f"{host.name} has never seen the agent")
    return lines(Stranger(host, network, page, package, newer).steps()), host.verified()


def start(machine: Machine, network: Network, table: Table, package: Path) -> Host:
    """Boot, join, and lay out what the page takes for granted: the package, a token, and a server of that name."""
    machine.mount()
    machine.boot()
    network.join(machine)
    (machine.root / "etc/apt/sources.list").write_text(network.source(machine.name), "utf-8")
    with (machine.root / "etc/hosts").open("a", encoding="ascii") as hosts:
        hosts.write(f"{SERVER} {NAMED}\n")
    token = machine.root / "root/token"
    token.touch(mode=0o600)
    token.write_text(network.token() + "\n", "utf-8")
    made = machine.root / "root/dist"
    made.mkdir()
    shutil.copyfile(package, made / package.name)
    machine.must(f"set -e\napt-get -q update\n{table.setup}", timeout_s=120)
    return Host(machine, network, (table,))
