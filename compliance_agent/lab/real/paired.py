"""The agent without a service manager of its own: it gives up root, and root's side stays behind a socket pair (pair.py)."""

from __future__ import annotations

import json
from functools import partial

from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.network import SITE
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import NotSo

UNIT, STATE, CONFIG = "lab-pair", "/var/lib/lab-pair", "/etc/msp/lab-pair.yaml"
USER = "compliance-agent"
TO_READ = 1 << 2 | 1 << 12  # CAP_DAC_READ_SEARCH and CAP_NET_ADMIN, as a mask
WITHIN_S = 45.0


def paired(host: Host, run: str) -> bool:
    """Started by root in the foreground, it looks as its own user, heals through the pair, and ends with either of the two.

    Args:
        host: in three processes, with what root permitted.
        run: the unit that is stopped meanwhile.
    """
    machine = host.machine
    machine.must(f"systemctl stop {run}")
    machine.must(f"install -d -o {USER} -g {USER} -m 700 {STATE}")
    own = f"client_id: lab\nsite_id: {SITE}\nhost_id: {machine.name}\nstate_dir: {STATE}\nmcp_poll_interval_sec: 10\n"
    (machine.root / CONFIG[1:]).write_text(own, "utf-8")
    for end in ("agent", "root side"):
        machine.must(f"systemd-run --quiet --unit={UNIT} compliance-agent run --give-up-root --config {CONFIG}")
        root_side, agent = _two(host)
        _is_walled(host, agent)
        if end == "agent":
            _heals(host)
        machine.must(f"kill -KILL {agent if end == 'agent' else root_side}")
        if not until(partial(_gone, host, agent, root_side), WITHIN_S):
            raise NotSo(f"the {end} was killed and the other went on")
        machine.sh(f"systemctl reset-failed {UNIT}")
    machine.must(f"systemctl start {run}", timeout_s=120)
    return True


def _two(host: Host) -> tuple[str, str]:
    """The processes of the root side and of its agent."""
    found: list[str] = []

    def both() -> bool:
        main = host.machine.sh(f"systemctl show --value --property=MainPID {UNIT}").strip()
        found[:] = [main, *host.machine.sh(f"pgrep --parent {main} --full 'compliance_agent run'").split()]
        return len(found) == 2

    if not until(both, WITHIN_S):
        raise NotSo(f"expected a root side and its agent, found {len(found)} processes")
    return found[0], found[1]


def _is_walled(host: Host, agent: str) -> None:
    """Another user, and no more of root's rights than reading takes, now or ever."""

    def rights() -> dict[str, str]:
        lines = host.machine.sh(f"cat /proc/{agent}/status").splitlines()
        return dict(line.split(":\t", 1) for line in lines if ":\t" in line)

    def walled() -> bool:
        now = rights()
        masks = {int(now.get(name, "-1"), 16) for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb")}
        return masks == {TO_READ} and now.get("NoNewPrivs") == "1" and "0" not in now.get("Uid", "0").split()

    if not until(walled, WITHIN_S):
        raise NotSo(json.dumps(rights()))


def _heals(host: Host) -> None:
    """A needed unit that was stopped comes back, by the root side, with a signed record."""

    def recorded() -> bool:
        paths = (host.machine.root / STATE[1:] / "evidence").rglob("bundle.json")
        said = (json.loads(path.read_bytes()) for path in paths)
        return any((bundle["check"], bundle["outcome"]) == ("services", "success") for bundle in said)

    def looked() -> bool:
        return any((host.machine.root / STATE[1:] / "evidence").rglob("bundle.json"))

    if not until(looked, WITHIN_S):
        raise NotSo("the agent has recorded nothing")
    host.machine.must("systemctl stop cron")
    healed = until(recorded, WITHIN_S) and host.machine.run("systemctl is-active cron").returncode == 0
    journal = host.machine.sh(f"journalctl --no-pager -o cat -u {UNIT}")
    if not healed or "heal.done row=unit" not in journal:
        raise NotSo(journal[-400:])


def _gone(host: Host, *processes: str) -> bool:
    return all(host.machine.run(f"kill -0 {pid}").returncode != 0 for pid in processes)
