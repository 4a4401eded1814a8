"""What ends idle sessions: bash reading /etc/profile, logind 252 with its drop-ins, dconf of a desktop."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from compliance_agent.lab.host import Call, FakeHost, Unit, said
from compliance_agent.ports import Ran

SHELL_FILE = "/etc/profile.d/00-compliance-tmout.sh"
LOGIND_FILE = "/etc/systemd/logind.conf.d/50-compliance.conf"
LOGIND = "systemd-logind.service"
FOREVER = 2**64 - 1
PROFILE = """if [ -d /etc/profile.d ]; then
  for i in /etc/profile.d/*.sh; do
    if [ -r $i ]; then
      . $i
    fi
  done
  unset i
fi
"""
UNITS = {"": 1, "s": 1, "min": 60, "m": 60, "h": 3600}


@dataclass
class Sessions:
    """What is in force.

    Attributes:
        idle_usec: logind's own value, as it read it last.
        knows_idle: logind is new enough to end idle sessions.
        dconf: settings of the desktop, as `dconf read` prints them.
    """

    idle_usec: int = FOREVER
    knows_idle: bool = True
    dconf: dict[str, str] = field(default_factory=dict)


def provide(host: FakeHost) -> None:
    """Have idle shells and sessions end after ten minutes, on a host without a desktop."""
    host.put("/etc/profile", PROFILE)
    host.put(SHELL_FILE, "TMOUT=600\nreadonly TMOUT\nexport TMOUT\n")
    host.put("/etc/systemd/logind.conf", "[Login]\n#StopIdleSessionSec=infinity\n")
    host.put(LOGIND_FILE, "[Login]\nStopIdleSessionSec=600\n")
    host.install("bash", "busctl", "dconf")
    host.units_table[LOGIND] = Unit(enabled="static", reloaded=lambda: read_files(host))
    read_files(host)


def read_files(host: FakeHost) -> None:
    """Logind takes its value from the files; the last one wins."""
    found = FOREVER
    paths = ["/etc/systemd/logind.conf", *sorted(p for p in host.files if p.startswith("/etc/systemd/logind.conf.d/"))]
    for path in paths:
        for match in re.finditer(
            r"^StopIdleSessionSec=(\d+)(s|min|m|h|)$", host.open_file(path).decode(), re.MULTILINE
        ):
            found = int(match[1]) * UNITS[match[2]] * 1_000_000
    host.part(Sessions).idle_usec = found


def bash(call: Call) -> Ran:
    """`bash --noprofile --norc -c '... . /etc/profile ...; declare -p TMOUT || echo unset'`."""
    if "declare -p TMOUT" not in call.argv[-1]:
        return said("", 127, err="bash: simulated for one question only\n")
    value, readonly, exported = "", False, False
    for path in sorted(p for p in call.host.files if re.fullmatch(r"/etc/profile\.d/[^/]+\.sh", p)):
        for line in call.host.open_file(path).decode("utf-8", "replace").splitlines():
            found = re.search(r"(?:^|\s)TMOUT=(\d+)$", line)
            value = found[1] if found and not readonly else value
            readonly = readonly or re.search(r"^(readonly|declare -r|typeset -r) TMOUT", line) is not None
            exported = exported or "export TMOUT" in line
    flags = f"{'r' if readonly else ''}{'x' if exported else ''}" or "-"
    return said(f'declare -{flags} TMOUT="{value}"\n' if value else "unset\n")


def busctl(call: Call) -> Ran:
    """`busctl get-property SERVICE PATH INTERFACE StopIdleSessionUSec`."""
    state = call.host.part(Sessions)
    if not call.host.has_service_manager or not call.host.is_active(LOGIND):
        return said("", 1, err="Failed to get property: Connection refused\n")
    if call.argv[-1] != "StopIdleSessionUSec" or not state.knows_idle:
        return said("", 1, err=f"Failed to get property {call.argv[-1]}: Unknown interface or property.\n")
    return said(f"t {state.idle_usec}\n")


def dconf(call: Call) -> Ran:
    """`dconf read KEY`."""
    value = call.host.part(Sessions).dconf.get(call.argv[-1])
    return said(f"{value}\n" if value is not None else "")


PROGRAMS = {"bash": bash, "busctl": busctl, "dconf": dconf}
