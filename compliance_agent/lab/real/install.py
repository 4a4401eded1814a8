"""Puts the agent on a lab host as its users do: the Debian package of this tree, the shipped baseline, an enrolment with a one-time
token, the shipped service.

Only what would make a run long is changed in the baseline and the settings: intervals, cooldown and budget.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import SERVER, Network
from compliance_agent.lab.real.recipe import fit_out
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.real.shell import must

BASELINE = "etc/msp/baseline.yaml"
SLOW_S = 300.0  # for what fetches or compiles
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


def package(tree: Path, scratch: Path) -> Path:
    """The Debian package of this tree.

    Raises:
        Unavailable: it could not be built.
    """
    place = scratch / "package"
    # Compressed little: it is unpacked a moment later.
    must(str(tree / "run"), "deb", "--level", "0", "--out", str(place), timeout_s=SLOW_S)
    (made,) = place.glob("*.deb")
    return made


def newer(built: Path) -> Path:
    """The same package one version later, with code that has another digest; for upgrades, and back."""
    tree = built.parent / "newer"
    must("dpkg-deb", "--raw-extract", str(built), str(tree))
    (code,) = tree.glob("usr/lib/compliance-agent/lib/*/site-packages/compliance_agent/__init__.py")
    former = code.read_bytes()
    code.write_bytes(former + b"# one version later\n")
    control, sums = tree / "DEBIAN/control", tree / "DEBIAN/md5sums"
    control.write_text(control.read_text("utf-8").replace("\nVersion: ", "\nVersion: 1:", 1), "utf-8")
    before, after = (hashlib.md5(text, usedforsecurity=False).hexdigest() for text in (former, code.read_bytes()))
    sums.write_text(sums.read_text("utf-8").replace(before, after, 1), "utf-8")
    made = built.parent / f"{built.stem}-newer.deb"
    must("dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(made), timeout_s=SLOW_S)
    shutil.rmtree(tree)
    return made


def agent(built: Path, base: Path, scratch: Path) -> Path:
    """A layer that holds the agent alone, installed by dpkg.

    Raises:
        Unavailable: it could not be installed.
    """
    machine = Machine("agent", (base,), scratch)
    machine.mount()
    place = give(built, machine)
    must("chroot", str(machine.root), "dpkg", "--install", place, timeout_s=SLOW_S)
    (machine.root / place[1:]).unlink()
    machine.unmount()
    return machine.upper


def give(file: Path, machine: Machine) -> str:
    """Put a file where root of the host finds it; its path there."""
    shutil.copyfile(file, machine.root / "root" / file.name)
    return f"/root/{file.name}"


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


def prepare(machine: Machine, network: Network, tables: Sequence[Table]) -> None:
    """Furnish a booted host that has joined the network for these checks, and give it a token to enrol with."""
    root = machine.root
    (root / "etc/apt/sources.list").write_text(network.source(machine.name), "utf-8")
    token = root / "root" / "token"
    token.touch(mode=0o600)
    token.write_text(network.token() + "\n", "utf-8")
    for table in tables:
        furnish(machine, table)
    if len(tables) > 1:  # that of one check stands there already, with what its setup has pinned in it
        (root / BASELINE).write_text(baseline(tables), "utf-8")


def install(machine: Machine, network: Network, first: Table, settings: dict[str, str]) -> None:
    """Furnish a booted host that has joined the network for its first check; configure, enrol and start its agent."""
    prepare(machine, network, (first,))
    enrolled = machine.must(
        f"compliance-agent enrol --server https://{SERVER}:8443 --token-file /root/token --host-id {machine.name}"
        " --state-dir /var/lib/compliance-agent"
    )
    said = enrolled + "".join(f"{name}: {value}\n" for name, value in settings.items())
    (machine.root / "etc/msp/agent.yaml").write_text(said, "utf-8")
    machine.must("systemctl daemon-reload && systemctl start compliance-agent")
