"""What systemd and dpkg do to the shipped service: reload, kill, hang, stop, removal. Each is a line with what had to come of it.

Only the times are changed, by a drop-in: the watchdog and its grace in seconds, so that a hang is over soon.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import lines

UNIT = "compliance-agent"
CONFIG = "/etc/msp/agent.yaml"
STATE = "/var/lib/compliance-agent"
WATCHDOG_S = 4
WITHIN_S = 45.0
DROP_IN = f"""
set -e
mkdir -p /run/systemd/system/{UNIT}.service.d
printf '[Service]\\nWatchdogSec={WATCHDOG_S}\\nTimeoutAbortSec=2\\nRestartSec=1\\n' > /run/systemd/system/{UNIT}.service.d/lab.conf
systemctl daemon-reload
systemctl restart {UNIT}
"""
# The API key comes from the service manager alone: its file is where the agent does not look, and no setting names it.
BY_CREDENTIAL = f"""
set -e
cp {CONFIG} /run/agent.yaml
mv {STATE}/keys/api-key /root/api-key
sed -i '/^mcp_api_key_file:/d' {CONFIG}
printf '[Service]\\nLoadCredential=mcp_api_key:/root/api-key\\n' > /run/systemd/system/{UNIT}.service.d/credential.conf
systemctl daemon-reload
systemctl restart {UNIT}
compliance-agent pause testing
compliance-agent resume
"""
BY_FILE = f"""
set -e
rm /run/systemd/system/{UNIT}.service.d/credential.conf
mv /root/api-key {STATE}/keys/api-key
cp /run/agent.yaml {CONFIG}
systemctl daemon-reload
systemctl restart {UNIT}
"""
Line = dict[str, Any]


def lived(host: Host) -> list[Line]:
    """Everything that can be done to a service that goes on afterwards, in this order."""
    steps: tuple[tuple[str, Callable[[Host], bool]], ...] = (
        ("ready_and_watched", _ready),
        ("reload", _reloads),
        ("reload_of_what_cannot_be_used", _keeps_the_old),
        ("key_by_credential", _takes_its_key_as_a_credential),
        ("killed", _comes_back_from_a_kill),
        ("hangs", _is_ended_when_it_hangs),
        ("stop", _stops),
    )
    return lines((name, partial(step, host)) for name, step in steps)


def removed(host: Host) -> list[Line]:
    """The package purged, which is the last thing that happens to a host."""
    evidence = f"find {STATE}/evidence {STATE}/keys -type f | sort | xargs sha256sum | sha256sum"
    before = host.machine.must(evidence)
    gone = host.machine.run(f"dpkg --purge {UNIT}", timeout_s=120).returncode == 0
    left = host.machine.run(
        f"test -e /usr/lib/{UNIT} || test -e /usr/bin/{UNIT} || test -e /lib/systemd/system/{UNIT}.service"
    )
    kept = host.machine.sh(evidence) == before and host.machine.run(f"test -e {CONFIG}").returncode == 0
    return [{"step": "purge", "ok": gone and left.returncode != 0 and kept}]


def _property(host: Host, name: str) -> str:
    return host.machine.sh(f"systemctl show --value --property={name} {UNIT}").strip()


def _logged(host: Host, event: str, since: str) -> bool:
    """Whether the service said this since then."""
    return event in host.machine.sh(f"journalctl --no-pager -o cat -u {UNIT} --since @{since}")


def _now(host: Host) -> str:
    return host.machine.sh("date +%s").strip()


def _ready_now(host: Host) -> bool:
    """It is up by its own word, which it gives after its first look."""
    return _property(host, "ActiveState") == "active" and "checks" in _property(host, "StatusText")


def _runs_anew(host: Host, pid: str) -> bool:
    """Another process, and it is ready."""
    return until(lambda: _property(host, "MainPID") not in {pid, "0"} and _ready_now(host), WITHIN_S)


def _ready(host: Host) -> bool:
    """It told systemd so itself; the shipped watchdog is on."""
    shipped = _property(host, "Type") == "notify" and _property(host, "WatchdogUSec") == "1min"
    host.machine.must(DROP_IN, timeout_s=120)
    return shipped and _ready_now(host)


def _reloads(host: Host) -> bool:
    since, pid = _now(host), _property(host, "MainPID")
    host.machine.must(f"printf 'log_level: DEBUG\\n' >> {CONFIG}; systemctl reload {UNIT}")
    return until(lambda: _logged(host, "config.reloaded", since), WITHIN_S) and _property(host, "MainPID") == pid


def _keeps_the_old(host: Host) -> bool:
    since, pid = _now(host), _property(host, "MainPID")
    host.machine.must(f"cp {CONFIG} /run/agent.yaml; printf 'log_levle: DEBUG\\n' >> {CONFIG}; systemctl reload {UNIT}")
    refused = until(lambda: _logged(host, "config.refused", since), WITHIN_S)
    host.machine.must(f"cp /run/agent.yaml {CONFIG}")
    return refused and _property(host, "MainPID") == pid and _property(host, "ActiveState") == "active"


def _takes_its_key_as_a_credential(host: Host) -> bool:
    """`LoadCredential=`: what it records then is delivered with it."""
    before = set(host.paths())
    host.machine.must(BY_CREDENTIAL, timeout_s=120)

    def delivered() -> bool:
        more = set(host.paths()) - before
        return len(more) > 1 and all((path.parent / "bundle.tlog-proof").exists() for path in more)

    well = until(delivered, WITHIN_S)
    host.machine.must(BY_FILE, timeout_s=120)
    return well


def _comes_back_from_a_kill(host: Host) -> bool:
    pid = _property(host, "MainPID")
    host.machine.must(f"systemctl kill --signal=KILL {UNIT}")
    return _runs_anew(host, pid)


def _is_ended_when_it_hangs(host: Host) -> bool:
    """A stopped process does nothing at all; only the watchdog can see that."""
    pid, since = _property(host, "MainPID"), _now(host)
    host.machine.must(f"kill -STOP {pid}")
    anew = _runs_anew(host, pid)
    said = host.machine.sh(f"journalctl --no-pager -o cat --since @{since} _PID=1")
    return anew and f"{UNIT}.service: Watchdog timeout" in said


def _stops(host: Host) -> bool:
    """In order: not killed, and nothing failed. It is started again for what follows."""
    host.machine.must(f"systemctl stop {UNIT}")
    well = _property(host, "Result") == "success" and _property(host, "ActiveState") == "inactive"
    host.machine.must(f"systemctl start {UNIT}", timeout_s=120)
    return well
