"""Puts the agent on a lab host as its users do: a wheel of this tree and its locked, hash-checked requirements in a virtual
environment, the shipped baseline, an enrolment with a one-time token, a service.

Only what would make a run long is changed in the baseline and the settings: intervals, cooldown and budget.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import SERVER, Network
from compliance_agent.lab.real.recipe import fit_out
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.real.shell import must

BASELINE = "etc/msp/baseline.yaml"
SLOW_S = 300.0  # for what fetches or compiles
PREFIX = "usr/lib/compliance-agent"
SETTINGS = {
    "mcp_poll_interval_sec": "1", "healing_cooldown_sec": "0", "healing_budget_per_hour": "1000", "flap_limit": "100",
    "maintenance_window_start": '"00:00"', "maintenance_window_end": '"23:59"',
    "leases": "false",  # rows make cures fail on purpose, and after one no other host of the site might try the same
}  # fmt: skip
OPPONENT = {
    "healing_cooldown_sec": "0",
    "mcp_poll_interval_sec": "1",
    "leases": "false",
}  # budget and flap limit as shipped


def clinic(base: Path, scratch: Path) -> Path:
    """A layer over the root file system: a clinic's host, no agent yet and no host's state."""
    machine = Machine("layer", (base,), scratch)
    machine.mount()
    fit_out(machine.root)
    machine.unmount()
    return machine.upper


def agent(tree: Path, base: Path, scratch: Path) -> Path:
    """A layer that holds the agent alone: a wheel of this tree and its locked requirements in a virtual environment, compiled.

    Raises:
        Unavailable: it could not be built or installed.
    """
    machine = Machine("agent", (base,), scratch)
    machine.mount()
    must("chroot", str(machine.root), "python3", "-m", "venv", "--without-pip", f"/{PREFIX}", timeout_s=SLOW_S)
    _fill(tree, machine.root, scratch / "wheel")
    machine.unmount()
    return machine.upper


def _fill(tree: Path, root: Path, made: Path) -> None:
    pinned = next((str(path) for path in sorted((tree / ".tools").glob("uv-*/bin/uv"))), None)
    uv = os.environ.get("UV") or pinned or shutil.which("uv")
    if uv is None:
        raise Unavailable("make lab: no installer in .tools; start it with ./run lab")
    must(uv, "build", "--quiet", "--wheel", "--out-dir", str(made), str(tree), timeout_s=SLOW_S)
    version = next((root / PREFIX / "lib").glob("python3.*")).name.removeprefix("python")
    target = ["--python", sys.executable, "--python-version", version, "--prefix", str(root / PREFIX)]
    add = (uv, "pip", "install", "--quiet", *target)
    must(*add, "--require-hashes", "-r", str(tree / "requirements" / "agent.txt"), timeout_s=SLOW_S)
    must(*add, "--no-deps", str(next(made.glob("*.whl"))), timeout_s=SLOW_S)
    compiled = ("-m", "compileall", "-q", "-j", "2", f"/{PREFIX}/lib")
    must("chroot", str(root), f"/{PREFIX}/bin/python3", *compiled, timeout_s=SLOW_S)


def baseline(tables: Sequence[Table]) -> str:
    """The shipped baseline of the checks that these tables have faults for, looked at every second or so."""
    shipped = yaml.safe_load(
        (resources.files("compliance_agent") / "baselines" / "clinic-linux.yaml").read_text("utf-8")
    )
    shipped["checks"] = {
        table.check: {**(table.entry or shipped["checks"][table.check]), "interval_s": table.interval_s}
        for table in tables
    }
    return yaml.safe_dump(shipped)


def furnish(machine: Machine, table: Table) -> None:
    """What this check looks at, and a baseline that lists it alone: others would slow it down."""
    (machine.root / BASELINE).write_text(baseline((table,)), "utf-8")
    machine.must(f"set -e\n{table.setup}", timeout_s=120)


def install(machine: Machine, network: Network, first: Table, settings: dict[str, str]) -> None:
    """Furnish a booted host that has joined the network for its first check; configure, enrol and start its agent."""
    root = machine.root
    (root / "etc/apt/sources.list").write_text(network.source(machine.name), "utf-8")
    token = root / "root" / "token"
    token.touch(mode=0o600)
    token.write_text(network.token() + "\n", "utf-8")
    furnish(machine, first)
    enrolled = machine.must(
        f"compliance-agent enrol --server https://{SERVER}:8443 --token-file /root/token --host-id {machine.name}"
        " --state-dir /var/lib/compliance-agent"
    )
    said = enrolled + "".join(f"{name}: {value}\n" for name, value in settings.items())
    (root / "etc/msp/agent.yaml").write_text(said, "utf-8")
    machine.must("systemctl daemon-reload && systemctl start compliance-agent")
