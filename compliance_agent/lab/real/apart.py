"""The agent in three processes, by the shipped units: what each can do, and what none of them can do alone.

`run` looks and signs as a user of its own, `uplink` has the network, `heal` is root's and is there only when it is asked.
"""

from __future__ import annotations

import json
import shlex
import shutil
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from compliance_agent.lab.real import matrix
from compliance_agent.lab.real.cut_off import cut_before_the_change, cut_before_the_look
from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.install import SETTINGS, prepare
from compliance_agent.lab.real.machine import Machine
from compliance_agent.lab.real.network import SERVER, SITE, Network
from compliance_agent.lab.real.ordered import approved, ordered, rekeyed
from compliance_agent.lab.real.paired import paired
from compliance_agent.lab.real.report import Progress
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import NotSo, lines

RUN, UPLINK, HEAL = (f"compliance-agent-{part}" for part in ("run", "uplink", "heal"))
STATE = "/var/lib/compliance-agent"
CONFIG = "/etc/msp/agent.yaml"
HEAL_SOCKET, ADOPT_SOCKET = (f"/run/compliance-agent/{part}.sock" for part in ("heal", "adopt"))
ADMIN_SOCKET = "/run/compliance-agent/admin/agent.sock"
AS_RUN, AS_UPLINK = (
    f"setpriv --reuid={user} --regid={user} --clear-groups" for user in ("compliance-agent", "compliance-agent-uplink")
)
CHECKS = ("firewall", "patching", "services")
WITHIN_S = 45.0
LOOKS_S = 5.0  # there is one a second
IDLE_S = 30.0  # heal leaves after 10 s
PERMITS = "etc/msp/permits.json"
NEWER = "/root/newer.deb"  # this package, one version later
# Asks the root side as the agent does, without the agent: kind, fields, what follows. Says how it was answered.
ASK = f"""
import asyncio, json, pathlib, sys
from compliance_agent.adapters.heal_host import Root
ask = Root(pathlib.Path("{HEAL_SOCKET}")).ask(sys.argv[1], json.loads(sys.argv[2]), sys.argv[3].encode())
answer = asyncio.run(ask)
print(answer.kind, *(value for value in answer.fields.values() if value is not None))
"""
DROP_IN = "/etc/systemd/logind.conf.d/60-lab.conf"
# A package that was unpacked and whose script has not run; the script writes where the root side itself cannot.
HALF = """set -e
mkdir -p /tmp/half/DEBIAN
printf '%s\\n' 'Package: lab-half' 'Version: 1' 'Architecture: all' 'Maintainer: l <l@l>' 'Description: x' >/tmp/half/DEBIAN/control
printf '#!/bin/sh\\nid -u > /usr/share/lab-half\\n' > /tmp/half/DEBIAN/postinst
chmod 755 /tmp/half/DEBIAN/postinst
dpkg-deb -b /tmp/half /tmp/half.deb
dpkg --unpack /tmp/half.deb
useradd --no-create-home lab-guest
passwd -d lab-guest
"""
Line = dict[str, Any]


def start(machine: Machine, network: Network, tables: tuple[Table, ...], newer: Path) -> Host:
    """Boot, join, enrol in three parts as docs/install.md says, permit what the baseline asks for, and start."""
    machine.mount()
    shutil.copyfile(newer, machine.root / NEWER[1:])
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


def served(machine: Machine, network: Network, newer: Path, progress: Progress) -> tuple[list[Line], dict[str, Any]]:
    """A host of the lab from its start to its evidence."""
    progress.begin(machine.name, "is in three processes")
    chosen = tuple(table for table in matrix.TABLES if table.check in CHECKS)
    host = start(machine, network, chosen, newer)
    progress.say(f"{host.name} runs in three processes")
    return parted(host), host.verified()


def steps() -> tuple[tuple[str, Callable[[Host], bool]], ...]:
    """What has to be so, in this order."""
    return (
        ("looks_as_its_own_user", _looks),
        ("heals_through_the_root_side", _heals),
        ("asks_for_units_over_the_message_bus", _asks),
        ("loads_the_ruleset_through_it", _row_of("firewall:flushed")),
        ("upgrades_packages_through_it", _row_of("patching:security_update")),
        ("cannot_heal_alone", _cannot),
        ("root_side_works_behind_its_walls", _behind_walls),
        ("root_side_refuses_what_root_did_not_permit", _refuses),
        ("delivers_through_uplink", _delivers),
        ("uplink_reads_nothing_and_asks_nobody", _reads_nothing),
        ("uplink_killed", _comes_back),
        ("upgrade_leaves_no_old_code", _upgraded),
        ("root_takes_a_baseline_that_people_ordered", _ordered),
        ("root_follows_the_hosts_key_when_it_gives_way", _rekeyed),
        ("uplink_has_root_follow_no_key", _no_key_by_uplink),
        ("root_side_waits_for_what_people_approved", _approved),
        ("power_lost_before_a_change_is_taken_back", cut_before_the_change),
        ("power_lost_before_the_look_is_finished", cut_before_the_look),
        ("without_a_manager_root_stays_behind_a_pair", lambda host: paired(host, RUN)),
        ("root_side_is_gone_when_idle", _gone),
    )


def parted(host: Host) -> list[Line]:
    """Take the steps, and stop the agent."""
    taken = lines((name, partial(step, host)) for name, step in steps())
    host.machine.must(f"systemctl stop {RUN}")
    return taken


def _pid(host: Host, unit: str) -> str:
    """Of its process, 0 where there is none."""
    return host.machine.sh(f"systemctl show --value --property=MainPID {unit}").strip()


def _user_of(host: Host, unit: str) -> str:
    return host.machine.sh(f"stat -c %U /proc/{_pid(host, unit)}").strip()


def _looks(host: Host) -> bool:
    """READY=1 is what `systemctl start` waited for, after the first look; its walls let it see enough to pass its three checks."""
    told = ("systemctl", "show", "--value", "--property=StatusText", RUN)
    passes = until(lambda: "3 pass" in host.machine.sh(" ".join(told)), WITHIN_S)
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


def _asks(host: Host) -> bool:
    """Without `systemctl` it looks as before: with none to ask, or by that program alone, `services` would be unknown."""
    before = len(host.bundles("services"))
    host.machine.must("mv /usr/bin/systemctl /usr/bin/systemctl.away")
    time.sleep(LOOKS_S)  # looks of a real agent, by its own clock
    host.machine.must("mv /usr/bin/systemctl.away /usr/bin/systemctl")
    return not any(bundle["result"] == "unknown" for bundle in host.bundles("services")[before:]) and _looks(host)


def _row_of(name: str) -> Callable[[Host], bool]:
    """A row of the lab's table, with all that is asked of it where one process does everything."""
    (row,) = [row for row in matrix.ROWS if row.name == name]
    return lambda host: not host.do(row).differences


def _ask(host: Host, kind: str, blob: str = "", **fields: object) -> str:
    """How the root side answers the agent's user."""
    permits = json.loads((host.machine.root / PERMITS).read_text("utf-8"))
    words = shlex.join((kind, json.dumps({"cure": "lab-1", "baseline": permits["baseline"], **fields}), blob))
    return host.machine.sh(f"{AS_RUN} /usr/lib/compliance-agent/bin/python3 -I -c {shlex.quote(ASK)} {words}").strip()


def _behind_walls(host: Host) -> bool:
    """What no check of this host needs, permitted by root: done, and taken back. A package's script may write anywhere.

    The agent is down meanwhile: it would set up the package as well, and the two would wait for one lock.
    """
    host.machine.must(f"systemctl stop {RUN}")
    permits = json.loads((host.machine.root / PERMITS).read_text("utf-8"))
    permits["files"][DROP_IN], permits["may"] = [{"line": "[Login]"}], ["accounts", "apt", "logind"]
    (host.machine.root / PERMITS).write_text(json.dumps(permits), "utf-8")
    host.machine.must(HALF)
    shadow = "getent shadow lab-guest"
    before = host.machine.sh(shadow)
    asked: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("mkdir", "", {"path": DROP_IN.rpartition("/")[0]}),
        ("write", "[Login]\n", {"path": DROP_IN, "mode": 0o644}),
        ("logind", "", {}),
        ("remove", "", {"path": DROP_IN}),
        ("rmdir", "", {"path": DROP_IN.rpartition("/")[0]}),
        ("account", "", {"verb": "lock", "name": "lab-guest"}),
        ("account", "", {"verb": "unlock", "name": "lab-guest"}),
        ("account_day", "", {"name": "lab-guest", "day": int(before.split(":")[2])}),
        ("finish", "", {}),
    )
    answers = [f"{kind}: {_ask(host, kind, blob, **fields)}" for kind, blob, fields in asked]
    other = [answer for answer in answers if not answer.endswith(": done 0")]
    same = host.machine.sh(shadow) == before and host.machine.sh("cat /usr/share/lab-half").strip() == "0"
    own = host.machine.run("journalctl --no-pager -q -u compliance-agent-act | grep -q .").returncode == 0
    host.machine.must("compliance-agent baseline permit")
    host.machine.must(f"systemctl start {RUN}", timeout_s=120)
    if other:
        raise NotSo("; ".join(other))
    return same and own


def _refuses(host: Host) -> bool:
    """Whoever owns the agent's user cannot make root write a unit or a user, stop what is needed, or install anything."""
    asked: tuple[tuple[str, str, dict[str, object]], ...] = (
        ("write", "x:0:0::/:/bin/sh\n", {"path": "/etc/passwd", "mode": 0o644}),
        ("write", "[Service]\n", {"path": "/etc/systemd/system/x.service", "mode": 0o644}),
        ("unit", "", {"verb": "stop", "unit": "cron.service"}),
        ("upgrade", "", {"manager": "dnf", "packages": []}),
        ("account", "", {"verb": "unlock", "name": "root"}),
    )
    answers = [f"{kind}: {_ask(host, kind, blob, **fields)}" for kind, blob, fields in asked]
    other = [answer for answer in answers if not answer.endswith(": refused not_permitted_here")]
    if other:
        raise NotSo("; ".join(other))
    return True


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
    """As uplink's user: no key of others, no record, no memory of the agent, and neither root's side nor the agent to be asked."""
    keys = host.machine.must(f"find {STATE}/keys {STATE}/agent.db -type f").split()
    pid = _pid(host, RUN)
    closed = (*keys, "/etc/shadow", f"/proc/{pid}/mem", f"/proc/{pid}/environ")
    open_to_it = [path for path in closed if host.machine.run(f"{AS_UPLINK} head -c 1 {path}").returncode == 0]
    acts = (f"kill -CONT {pid}", f"touch {STATE}/x", f"touch {STATE}/keys/x", "touch /etc/msp/x")
    done = [act for act in acts if host.machine.run(f"{AS_UPLINK} {act}").returncode == 0]
    answered = [path for path in (HEAL_SOCKET, ADOPT_SOCKET, ADMIN_SOCKET) if not _is_shut(host, path)]
    there = host.machine.run(" && ".join(f"test -e {path}" for path in (*closed, ADMIN_SOCKET))).returncode == 0
    if open_to_it or done or answered:
        raise NotSo(" ".join((*open_to_it, *done, *answered)))
    return there and any(path.endswith("signing-key.pem") for path in keys)


def _is_shut(host: Host, path: str) -> bool:
    """Whether the kernel keeps uplink's user from this socket."""
    asked = f"import socket; socket.socket(socket.AF_UNIX).connect('{path}')"
    return "PermissionError" in host.machine.run(f'{AS_UPLINK} python3 -c "{asked}"').stderr


def _comes_back(host: Host) -> bool:
    """Killed in the middle of its work: a new record is delivered by its successor."""
    host.machine.must(f"systemctl kill --signal=KILL {UPLINK}")
    return _cured(host) and until(lambda: _delivered(host), WITHIN_S)


def _upgraded(host: Host) -> bool:
    """While the root side is up: each process is another one, of the new code, and together they heal and deliver."""
    well = _cured(host)
    former, code = [_pid(host, unit) for unit in (RUN, UPLINK, HEAL)], host.bundles()[-1]["agent"]["sha256"]
    host.machine.must(f"dpkg --install {NEWER}", timeout_s=120)
    anew = [_pid(host, unit) for unit in (RUN, UPLINK, HEAL)]
    well = well and "0" not in former and not set(former) & set(anew) - {"0"} and _cured(host)
    return well and host.bundles()[-1]["agent"]["sha256"] != code and until(lambda: _delivered(host), WITHIN_S)


def _ordered(host: Host) -> bool:
    """And the agent goes on with it, cures included."""
    return ordered(host, AS_RUN) and _looks(host) and _cured(host)


def _rekeyed(host: Host) -> bool:
    """And the agent goes on under its new key, cures and deliveries included."""
    return rekeyed(host, AS_RUN) and _looks(host) and _cured(host) and until(lambda: _delivered(host), WITHIN_S)


def _no_key_by_uplink(host: Host) -> bool:
    """Uplink's user does not come as far as being refused a statement, and cannot write what root knows."""
    before = (host.machine.root / "etc/msp/adopt.json").read_bytes()
    asked = f"import socket; socket.socket(socket.AF_UNIX).connect('{ADOPT_SOCKET}')"
    asks = host.machine.run(f'{AS_UPLINK} python3 -c "{asked}"')
    places = (
        "/etc/msp/adopt.json",
        "/var/lib/compliance-agent-adopt/gone.json",
        "/var/lib/compliance-agent-adopt/state.json",
    )
    writes = [host.machine.run(f"{AS_UPLINK} sh -c 'echo >>{place}'") for place in places]
    there = host.machine.run(" && ".join(f"test -e {place}" for place in places)).returncode == 0
    same = (host.machine.root / "etc/msp/adopt.json").read_bytes() == before
    return there and same and all(one.returncode != 0 for one in writes) and "PermissionError" in asks.stderr


def _approved(host: Host) -> bool:
    return approved(host, AS_RUN, lambda cure: _ask(host, "finish", cure=cure)) and _cured(host)


def _gone(host: Host) -> bool:
    def idle() -> bool:
        return host.machine.sh(f"systemctl show --value --property=ActiveState {HEAL}").strip() == "inactive"

    return until(idle, IDLE_S)
