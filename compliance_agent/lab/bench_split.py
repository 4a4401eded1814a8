"""P9: what the agent in three processes takes while idle, by the shipped units in a booted host that is enrolled.

    python -m compliance_agent.lab.bench_split SECONDS [shipped]

All 16 checks every 60 s, or at their shipped intervals, in audit mode; delivery to the lab's server through `uplink`. One JSON
object: of each unit the process (0: none runs), its share of memory and its processor time a minute over SECONDS, after two minutes
that are not counted; `same` says that it was one process all the time.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import yaml

from compliance_agent.lab.bench_probe import every_check
from compliance_agent.lab.real import apart, install, matrix, recipe
from compliance_agent.lab.real.enclosure import enclosed
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import Network
from compliance_agent.lab.real.rows import openscap

UNITS = (*(f"compliance-agent-{part}" for part in ("run", "uplink", "heal", "adopt")),)
SETTLE_S = 130.0
ASK = """
import json, subprocess, sys
from compliance_agent.lab.bench_probe import cpu_of_pid, pss_of
found = {}
for unit in sys.argv[1:]:
    shown = subprocess.run(("systemctl", "show", "-P", "MainPID", unit), check=True, capture_output=True, text=True)
    pid = int(shown.stdout or 0)
    found[unit] = {"pid": pid, "pss": pss_of(pid) if pid else 0, "cpu_s": cpu_of_pid(pid) if pid else 0.0}
print(json.dumps(found))
"""


def idle(machine: Machine, seconds: float, interval_s: int | None) -> dict[str, Any]:
    """Of each unit, over so many seconds; `interval_s` as of `every_check`."""
    baseline = {"version": "2026.11.1", "mode": "audit", "checks": every_check(machine.root, interval_s)}
    (machine.root / install.BASELINE).write_text(yaml.safe_dump(baseline), "utf-8")
    machine.must(openscap.TABLE.setup)
    config = machine.root / apart.CONFIG[1:]
    own = [line for line in config.read_text("utf-8").splitlines() if not line.startswith("mcp_poll_interval_sec")]
    config.write_text("\n".join(own) + "\n", "utf-8")
    machine.must(f"systemctl restart {apart.RUN}", timeout_s=120)
    time.sleep(SETTLE_S)  # a first round is not idle
    before = _asked(machine)
    time.sleep(seconds)  # real time is what is measured
    after = _asked(machine)
    minutes = seconds / 60
    return {
        unit: {
            **one,
            "cpu_s_a_minute": (one["cpu_s"] - before[unit]["cpu_s"]) / minutes,
            "same": one["pid"] == before[unit]["pid"],
        }
        for unit, one in after.items()
    }


def _asked(machine: Machine) -> dict[str, Any]:
    (machine.root / "root" / "ask.py").write_text(ASK, "utf-8")
    found: dict[str, Any] = json.loads(
        machine.must(f"/usr/lib/compliance-agent/bin/python3 -I /root/ask.py {' '.join(UNITS)}")
    )
    return found


def _inside(scratch: Path, seconds: float, interval_s: int | None) -> int:
    base = recipe.root_filesystem()
    package = install.package(Path(__file__).resolve().parents[2], scratch)
    agent, clinic = install.agent(package, base, scratch), install.clinic(base, scratch)
    network = Network(scratch, base)
    network.open()
    machine = Machine("split", (agent, clinic, base), scratch)
    apart.start(machine, network, tuple(table for table in matrix.TABLES if table.check in apart.CHECKS), package)
    print(json.dumps(idle(machine, seconds, interval_s)))
    return 0


if __name__ == "__main__":
    recipe.check_machine()
    often = None if sys.argv[2:] == ["shipped"] else 60
    sys.exit(enclosed(lambda scratch: _inside(scratch, float(sys.argv[1]), often), recipe.cache_directory()))
