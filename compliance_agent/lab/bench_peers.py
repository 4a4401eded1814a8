"""`BENCH=agent`: the agent beside monit, cf-agent, puppet agent, systemctl, nft and httpx in one booted host, in one run.

The host is the lab's, with a layer of the peers (from this machine's own apt) and one of the agent's package. `bench_probe`
measures in it; `rows` makes ratios of what it measured and holds them against the goals (pure).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from compliance_agent.errors import Unavailable
from compliance_agent.lab.real import install, recipe
from compliance_agent.lab.real.enclosure import enclosed
from compliance_agent.lab.real.machine import Machine

PEERS = (
    "monit", "cfengine3", "puppet-agent", "python3-httpx", "python3-aiohttp", "python3-pydantic", "python3-cryptography",
)  # fmt: skip
TREE = Path(__file__).resolve().parents[2]
PYTHON = "/usr/lib/compliance-agent/bin/python3"
DURABLE, CURES = "srv/durable", 30  # a part of the host's tree that syncs, unlike the rest of it; cures of each kind
IDLE_S, SHORTEST_S = 130.0, 120.0  # in less than two cycles of a minute nothing may have been done at all
_INSTALL = """
set -e
printf '#!/bin/sh\\nexit 101\\n' >/usr/sbin/policy-rc.d
chmod 755 /usr/sbin/policy-rc.d
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends PACKAGES
rm -f /usr/sbin/policy-rc.d /etc/apt/sources.list /etc/apt/sources.list.d/* /var/cache/apt/archives/*.deb
rm -rf /var/lib/apt/lists/*
"""
HEALED_WITHIN_S = {"file": 0.025, "ruleset": 0.025, "service": 0.1}
Row = tuple[str, float, str, str, bool | None]  # name, value, unit, goal, whether it holds


def measure(idle_s: float = IDLE_S) -> dict[str, Any]:
    """What `bench_probe` measured in a host that is booted for it and gone afterwards.

    Raises:
        Unavailable: no host can be booted here, or the probe failed.
    """
    recipe.check_machine()
    with tempfile.TemporaryDirectory(prefix="compliance-bench-") as outside:
        found = Path(outside) / "figures.json"
        status = enclosed(lambda scratch: _inside(scratch, found, idle_s), recipe.cache_directory())
        if status != 0 or not found.exists():
            raise Unavailable(f"bench agent: the run in the host ended with {status}")
        figures: dict[str, Any] = json.loads(found.read_text("ascii"))
        return figures


def _inside(scratch: Path, found: Path, idle_s: float) -> int:
    base = recipe.root_filesystem()
    peers, clinic = _peers(base, scratch), install.clinic(base, scratch)
    agent = install.agent(install.package(TREE, scratch), base, scratch)
    machine = Machine("bench", (agent, clinic, peers, base), scratch)
    machine.mount()
    book = machine.root / "var/lib/dpkg/status"
    each = [layer / "var/lib/dpkg/status" for layer in (base, peers, clinic, agent)]
    book.write_text(one_book([path.read_text("utf-8") for path in each if path.exists()]), "utf-8")
    durable = scratch / "durable"
    for directory in (durable, machine.root / DURABLE):
        directory.mkdir(parents=True)
    subprocess.run(("mount", "--bind", str(durable), str(machine.root / DURABLE)), check=True, timeout=20)
    machine.boot()
    place = f"/root/{found.name}"
    healed = _watched(machine, place, f"bench_heal {place} /{DURABLE} {rounds()}", 60.0 + 200.0 * rounds())
    repaired = _watched(machine, place, f"bench_repair {place} /{DURABLE}", 200.0)
    figures = _watched(machine, place, f"bench_probe {place} {idle_s:g}", 800 + 3 * idle_s)
    found.write_text(json.dumps({**figures, "healed_s": healed, "repaired_s": repaired}), "ascii")
    return 0


def _watched(machine: Machine, place: str, module: str, within_s: float) -> dict[str, Any]:
    """What a module of the lab left in the file `place` in the host; each figure goes to standard error as it comes."""
    file = machine.root / place[1:]
    file.write_text("{}", "ascii")
    ended, said, failed = threading.Event(), dict[str, Any](), list[Exception]()

    def run() -> None:
        try:
            machine.must(f"{PYTHON} -I -m compliance_agent.lab.{module}", timeout_s=within_s)
        except Exception as error:
            failed.append(error)
        ended.set()

    threading.Thread(target=run, daemon=True).start()
    while True:
        over = ended.wait(1.0)
        figures: dict[str, Any] = json.loads(file.read_text("ascii"))
        for name, value in figures.items():
            if said.get(name) != value:
                newest = value[-1] if isinstance(value, list) else value
                sys.stderr.write(f"{name}: {json.dumps(newest)}\n")
        said = figures
        if over:
            break
    if failed:
        raise failed[0]
    return figures


def _peers(base: Path, scratch: Path) -> Path:
    """A layer with the peers, installed by the system's own tool from where this machine gets its packages."""
    machine = Machine("peers", (base,), scratch)
    machine.mount()
    shutil.copytree("/etc/apt", machine.root / "etc/apt", dirs_exist_ok=True)
    shutil.copy("/etc/resolv.conf", machine.root / "etc/resolv.conf")
    subprocess.run(("mount", "-t", "proc", "proc", str(machine.root / "proc")), check=True, timeout=20)
    script = _INSTALL.replace("PACKAGES", " ".join(PEERS))
    done = subprocess.run(
        ("chroot", str(machine.root), "/bin/sh", "-c", script), capture_output=True, text=True, check=False, timeout=600
    )  # the script is the constant above
    if done.returncode != 0:
        raise Unavailable(f"bench agent: the peers could not be installed: {done.stderr[-400:]}")
    machine.unmount()
    return machine.upper


def one_book(books: Sequence[str]) -> str:
    """The packages of every layer in one of dpkg's `status` files, a later one's word before an earlier one's.

    The topmost layer's would hide what the others installed, and a check that finds more lists of files than packages ends there.
    """
    found = dict[str, str]()
    for entry in (entry for book in books for entry in book.split("\n\n") if entry.strip()):
        fields = dict(
            line.split(": ", 1) for line in entry.splitlines() if line.startswith(("Package: ", "Architecture: "))
        )
        found[f"{fields['Package']}:{fields.get('Architecture')}"] = entry.strip("\n")
    return "".join(f"{entry}\n\n" for entry in found.values())


def rows(seen: Mapping[str, Any]) -> list[Row]:
    """Each row of the goals that was measured, as a ratio to its peer of the same run.

    Raises:
        Unavailable: a check found something wrong with the very work it was measured by.
    """
    if wrong := {check: verdict for check, verdict in seen["verdicts"].items() if verdict != "pass"}:
        raise Unavailable(f"bench agent: expected the measured checks to pass, found {wrong}")
    cycle, monit, cf = seen["cycle_s"], seen["monit_w1_s"], seen["cf_agent_w1_s"]
    made = [
        ("monit, a cycle of W1, CPU", monit * 1e3, "ms", "", None),
        ("cf-agent, W1, CPU", cf * 1e3, "ms", "", None),
        ("ours, a whole cycle of W1, W2 and W3, signed and durable, CPU", cycle * 1e3, "ms", "", None),
        ("the same, wall", seen["cycle_wall_s"] * 1e3, "ms", "", None),
        _most("P1: ours / monit's W1", cycle / monit, 0.75),
        _most("P1: ours / cf-agent's W1", cycle / cf, 1 / 15),
        ("the same where nothing has changed, CPU", seen["unchanged_s"] * 1e3, "ms", "", None),
        ("the same, wall", seen["unchanged_wall_s"] * 1e3, "ms", "", None),
        _most("P2: unchanged / monit's W1", seen["unchanged_s"] / monit, 0.2),
        ("20 units' states, ours, CPU", seen["units_s"] * 1e3, "ms", "", None),
        _most("P4: / 20 systemctl by asyncio", seen["units_s"] / seen["systemctl_s"], 1 / 300),
        ("the ruleset, ours, CPU", seen["ruleset_s"] * 1e3, "ms", "", None),
        _most("P5: / nft by asyncio", seen["ruleset_s"] / seen["nft_s"], 0.2),
        _most("P5: unchanged / nft by asyncio", seen["ruleset_same_s"] / seen["nft_s"], 1 / 500),
        *_repaired(seen["repaired_s"]),
        *_healed(seen["healed_s"]),
        *_idle(seen["idle"]),
        ("upload of 2 KB on a kept connection, ours, CPU", seen["upload_s"] * 1e3, "ms", "", None),
        _most("P11: / httpx on a kept connection", seen["upload_s"] / seen["httpx_s"], 0.3),
        ("import of the agent, CPU", seen["import_s"] * 1e3, "ms", "", None),
        _most("P12: / import of aiohttp, pydantic and cryptography", seen["import_s"] / seen["peer_import_s"], 0.35),
        _most("P12: --help / python3 -c pass", seen["help_s"] / seen["python_s"], 3),
    ]
    return made


def _repaired(spent: Mapping[str, float]) -> list[Row]:
    """P6."""
    ours = spent["agent"] + spent["programs"]
    return [
        ("10 of 200 modes found, repaired and recorded, ours, CPU", ours * 1e3, "ms", "", None),
        ("of it programs that were started", spent["programs"] * 1e3, "ms", "", None),
        ("the same repaired by cf-agent, CPU", spent["cf-agent"] * 1e3, "ms", "", None),
        _most("P6: ours / cf-agent's", ours / spent["cf-agent"], 0.15),
    ]


def _healed(healed: Mapping[str, Sequence[float]]) -> list[Row]:
    """P7, of as many cures as there were; 19 of 20 took at most what p95 says."""
    made: list[Row] = []
    for kind, seconds in healed.items():
        spent = sorted(seconds)
        middle, most = spent[(len(spent) - 1) // 2], spent[-(-95 * len(spent) // 100) - 1]
        goal_s = HEALED_WITHIN_S.get(kind)
        made.append((f"P7: drift to cure, durable, {kind}, p50 of {len(spent)}", middle * 1e3, "ms", "", None))
        goal, holds = ("", None) if goal_s is None else (f"{goal_s * 1e3:g} ms", most <= goal_s)
        made.append((f"P7: the same, {kind}, p95", most * 1e3, "ms", goal, holds))
    return made


def _idle(idle: Mapping[str, Any]) -> list[Row]:
    """P8 and P10; none where it was not asked for. A peer that did not live is left out, and a goal by it is no one's."""
    if not idle:
        return []
    processes = {name: one for name, one in idle.items() if isinstance(one, Mapping) and "pss" in one}
    made: list[Row] = []
    for name, one in processes.items():
        holds = one["pss"] <= 32e6 if name == "run" else None
        made.append((f"P8: {name}, idle, PSS", one["pss"] / 1e6, "MB", "32 MB" if name == "run" else "", holds))
        made.append((f"    {name}, CPU a minute", one["cpu_s_a_minute"] * 1e3, "ms", "", None))
    if idle["seconds"] >= SHORTEST_S and {"run", "monit"} <= processes.keys():
        ours, monit = (processes[name]["cpu_s_a_minute"] for name in ("run", "monit"))
        made.append(
            _most(f"P10: {idle['checks']} checks a minute / monit's one", ours / monit if monit else float("inf"), 1.0)
        )
    if idle.get("own_cpu_s_a_minute") is not None:
        made.append(("    of it the agent's own process", idle["own_cpu_s_a_minute"] * 1e3, "ms", "", None))
        made.append(("    one evaluation by oscap, which openscap starts", idle["oscap_s"] * 1e3, "ms", "", None))
    return made


def _most(name: str, ratio: float, goal: float) -> Row:
    return (name, ratio, "x", f"{goal:.3g} x", ratio <= goal)


def rounds() -> int:
    """How many drifts of each kind are cured; BENCH_ROUNDS says otherwise."""
    return int(os.environ.get("BENCH_ROUNDS") or CURES)


def idle_s() -> float:
    """How long the idle processes are watched; BENCH_IDLE_S says otherwise, 0 leaves it out."""
    return float(os.environ.get("BENCH_IDLE_S") or IDLE_S)
