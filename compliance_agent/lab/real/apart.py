"""The agent in three processes, by the shipped units: what each can do, and what none of them can do alone.

`run` looks and signs as a user of its own, `uplink` has the network, `heal` is root's and is there only when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.install import SETTINGS, prepare
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import SERVER, SITE, Network
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.real.shell import until

RUN, UPLINK, HEAL = (f"compliance-agent-{part}" for part in ("run", "uplink", "heal"))
STATE = "/var/lib/compliance-agent"
CONFIG = "/etc/msp/agent.yaml"
HEAL_SOCKET = "/run/compliance-agent/heal.sock"
AS_RUN, AS_UPLINK = (
    f"setpriv --reuid={user} --regid={user} --clear-groups" for user in ("compliance-agent", "compliance-agent-uplink")
)
WITHIN_S = 45.0
IDLE_S = 30.0  # heal leaves after 10 s
Line = dict[str, Any]


def start(machine: Machine, network: Network, tables: tuple[Table, ...]) -> Host:
    """Boot, join, enrol in three parts as docs/install.md says, permit what the baseline asks for, and start."""
    machine.mount()
    machine.boot()
    network.join(machine)
    prepare(machine, network, tables)
    own = f"host_id: {machine.name}\nsite_id: {SITE}\nclient_id: lab\nprivileges: split\n"
    (machine.root / CONFIG[1:]).write_text(own, "utf-8")
    enrolled = machine.must(
        f"compliance-agent enrol --server https://{SERVER}:8443 --token-file /root/token --config {CONFIG}"
    )
    more = "".join(f"{name}: {value}\n" for name, value in SETTINGS.items())
    (machine.root / CONFIG[1:]).write_text(enrolled + more, "utf-8")
    machine.must("compliance-agent baseline permit")
    machine.must(f"systemctl start {RUN}", timeout_s=120)
    return Host(machine, network, tables, AS_RUN)


def parted(host: Host) -> list[Line]:
    """What has to be so, in this order."""
    steps: tuple[tuple[str, Callable[[Host], bool]], ...] = (
        ("looks_as_its_own_user", _looks),
        ("heals_through_the_root_side", _heals),
        ("cannot_heal_alone", _cannot),
        ("delivers_through_uplink", _delivers),
        ("uplink_reads_nothing_and_asks_nobody", _reads_nothing),
        ("uplink_killed", _comes_back),
        ("root_side_is_gone_when_idle", _gone),
    )
    lines = [{"step": name, "ok": step(host)} for name, step in steps]
    host.machine.must(f"systemctl stop {RUN}")
    return lines


def _user_of(host: Host, unit: str) -> str:
    pid = host.machine.sh(f"systemctl show --value --property=MainPID {unit}").strip()
    return host.machine.sh(f"stat -c %U /proc/{pid}").strip()


def _looks(host: Host) -> bool:
    """READY=1 is what `systemctl start` waited for, after the first look; its walls let it see enough to pass both checks."""
    told = ("systemctl", "show", "--value", "--property=StatusText", RUN)
    passes = until(lambda: "2 pass" in host.machine.sh(" ".join(told)), WITHIN_S)
    return passes and _user_of(host, RUN) == "compliance-agent"


def _cured(host: Host) -> bool:
    """Cron is stopped, and comes back by a recorded cure."""
    before = len(host.bundles("services"))
    host.machine.must("systemctl stop cron")

    def recorded() -> bool:
        return any(bundle["outcome"] == "success" for bundle in host.bundles("services")[before:])

    return until(recorded, WITHIN_S) and host.machine.run("systemctl is-active cron").returncode == 0


def _heals(host: Host) -> bool:
    since = host.machine.sh("date +%s").strip()
    return _cured(host) and "heal.done" in host.machine.sh(f"journalctl --no-pager -o cat -u {HEAL} --since @{since}")


def _cannot(host: Host) -> bool:
    """The agent's user may not start a unit by itself, nor write a file of the system."""
    started = host.machine.run(f"{AS_RUN} systemctl --no-ask-password restart cron")
    written = host.machine.run(f"{AS_RUN} sh -c 'echo >> /etc/passwd'")
    return started.returncode != 0 and written.returncode != 0


def _delivered(host: Host) -> bool:
    return bool(host.paths()) and all((path.parent / "bundle.tlog-proof").exists() for path in host.paths())


def _delivers(host: Host) -> bool:
    """With receipts; and the process that signs has no way to the network itself."""
    families = host.machine.sh(f"systemctl show --value --property=RestrictAddressFamilies {RUN}").split()
    walled = sorted(families) == ["AF_NETLINK", "AF_UNIX"]
    return until(lambda: _delivered(host), WITHIN_S) and walled and _user_of(host, UPLINK) == UPLINK


def _reads_nothing(host: Host) -> bool:
    """As uplink's user: the agent's files are closed, and so is the root side."""
    closed = (f"{STATE}/agent.db", f"{STATE}/keys/signing-key.pem", "/etc/shadow")
    read = [host.machine.run(f"{AS_UPLINK} head -c 1 {path}") for path in closed]
    there = host.machine.run(" && ".join(f"test -e {path}" for path in closed))
    asked = f"import socket; socket.socket(socket.AF_UNIX).connect('{HEAL_SOCKET}')"
    asks = host.machine.run(f'{AS_UPLINK} python3 -c "{asked}"')
    return there.returncode == 0 and all(one.returncode != 0 for one in read) and "PermissionError" in asks.stderr


def _comes_back(host: Host) -> bool:
    """Killed in the middle of its work: a new record is delivered by its successor."""
    host.machine.must(f"systemctl kill --signal=KILL {UPLINK}")
    return _cured(host) and until(lambda: _delivered(host), WITHIN_S)


def _gone(host: Host) -> bool:
    def idle() -> bool:
        return host.machine.sh(f"systemctl show --value --property=ActiveState {HEAL}").strip() == "inactive"

    return until(idle, IDLE_S)
