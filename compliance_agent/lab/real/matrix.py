"""Every fault that is really done to a host, and what must come of it: the one table of the lab.

`inject`, `restore` and `truth` are shell scripts that run on the host as root. `truth` asks the machine itself, by other means
than the check, whether all is well; the word `healed` of an agent counts only when it agrees. Where a verdict is `unknown` the
probe could not look, and a `pass` recorded meanwhile is a fault of the product. Order matters within a check: a cure that was
rolled back is not tried again, so the rows whose cure fails stand last.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        check: id of the check it is for.
        fault: its name, unique within the check.
        inject: makes it.
        restore: puts the host back; a healed host needs none.
        result: verdict that must be recorded.
        reason: reason of that verdict.
        outcome: how the cure must end; None where none may be tried.
        error: code that must stand beside the outcome; None where nothing may.
        truth: ends with 0 when the fault is gone.
        former: ends with 0 when the host is as the fault left it, after a cure that failed.
        wait_s: longest time until the expected record.
    """

    check: str
    fault: str
    inject: str
    result: str
    reason: str
    outcome: str | None = None
    error: str | None = None
    restore: str = "true"
    truth: str = "true"
    former: str = "true"
    wait_s: float = 45.0

    @property
    def name(self) -> str:
        """`check:fault`."""
        return f"{self.check}:{self.fault}"


def hidden(program: str) -> tuple[str, str]:
    """Scripts that take a program away and give it back."""
    return f"mv {program} {program}.away", f"mv {program}.away {program}"


def unreadable(check: str, program: str, reason: str = "tool_missing") -> Row:
    """The check's own program is gone: it cannot look, so nothing may be said."""
    inject, restore = hidden(program)
    return Row(check, "unreadable", inject, "unknown", reason, restore=restore)


def stopped(check: str, unit: str, reason: str, activator: str = "") -> tuple[Row, ...]:
    """A unit stopped, masked and killed; each has to come back by itself.

    `activator` is the socket that would start it again with the next line that is logged, before anyone could see it down.
    """
    up = f"systemctl is-active {unit} && ! systemctl is-enabled {unit} | grep masked"
    ways = {
        "unit_stopped": f"systemctl stop {activator} {unit}",
        "unit_masked": f"systemctl mask --now {unit}",
        "unit_killed": f"systemctl kill -s KILL {unit}; systemctl stop {activator} {unit}",
    }
    return tuple(Row(check, fault, inject, "fail", reason, "success", truth=up) for fault, inject in ways.items())


PUBLISH = "# done by the lab: publish "
CLAMD = "$(systemctl show -p MainPID --value clamav-daemon)"
_ASK = (
    "python3 -c 'import socket,struct; s=socket.socket(socket.AF_UNIX);"
    ' s.connect("/run/clamav/clamd.ctl"); {}; print(s.recv(200))\''
)
CLAMD_SAYS = _ASK.format('s.send(b"zVERSION\\0")')
# The test file is put together on the host, so that no file of ours is it.
_TEST_FILE = 'b"X5O!P%@AP[4" + bytes([92]) + b"PZX54(P^)7CC)7}" + b"$EIC" + b"AR-STANDARD-ANTIVIRUS-TEST-FILE!$H+H*"'
CLAMD_SCANS = _ASK.format(f's.send(b"zINSTREAM\\0" + struct.pack(">I", 68) + {_TEST_FILE} + bytes(4))')
OLD_SNAPSHOT = """
set -e; export RESTIC_PASSWORD_FILE=/etc/msp/restic.password
restic -q -r /srv/backup/restic --no-cache backup --time "$(date -d '-3 days' '+%Y-%m-%d %H:%M:%S')" /srv/data
restic -q -r /srv/backup/restic --no-cache forget $(restic -r /srv/backup/restic --no-cache snapshots --json |
  python3 -c 'import json,sys; print(" ".join(s["id"] for s in sorted(json.load(sys.stdin), key=lambda s: s["time"])[1:]))')
"""
FRESH_SNAPSHOT = """RESTIC_PASSWORD_FILE=/etc/msp/restic.password restic -r /srv/backup/restic --no-cache snapshots --json |
python3 -c 'import json,sys,time,datetime as d
newest = max(s["time"] for s in json.load(sys.stdin))[:19]
sys.exit(d.datetime.fromisoformat(newest).timestamp() < time.time() - 3600)'"""
DRILL = "/var/lib/compliance-agent/backup-drill.json"
CHECKED = "/var/lib/compliance-agent/backup-check.json"
FAILING_UNIT = "/run/systemd/system/{unit}.d"


def failing(unit: str) -> tuple[str, str]:
    """Scripts that let every start of a unit fail, and end that."""
    place = FAILING_UNIT.format(unit=unit)
    make = f"mkdir -p {place} && printf '[Service]\\nExecStart=\\nExecStart=/bin/false\\nRestart=no\\n' >{place}/z.conf"
    return (
        f"{make} && systemctl daemon-reload",
        f"rm -r {place}; systemctl daemon-reload; systemctl reset-failed {unit}",
    )


def dated(path: str, days: int, ok: str = "true") -> str:
    """A script that writes the record of a check or drill."""
    form = f'{{"time":"%s","bytes":9,"digest_ok":{ok}}}'
    return f"printf '{form}' \"$(date -u -d '-{days} days' +%Y-%m-%dT%H:%M:%S.000000Z)\" >{path}"


def follow(source: str) -> str:
    """A script that lets the time daemon follow this source and no other."""
    return f"sed -i 's/^server [0-9.]*/server {source}/' /etc/chrony/chrony.conf; systemctl restart chrony"


_RSYSLOG_FAILS, _RSYSLOG_WORKS = failing("rsyslog.service")
_CLAMD_FAILS, _CLAMD_WORKS = failing("clamav-daemon.service")
_BACKUP_FAILS, _BACKUP_WORKS = failing("restic-backup.service")
_NFT = "nft list table inet compliance | grep -q 'policy drop'"

ROWS: tuple[Row, ...] = (
    # firewall
    Row("firewall", "flushed", "nft flush ruleset", "fail", "no_firewall", "success", truth=_NFT),
    Row(
        "firewall", "port_opened", "nft insert rule inet compliance input tcp dport 3389 accept",
        "fail", "unexpected_ports", "success", truth=f"{_NFT} && ! nft list ruleset | grep 3389",
    ),
    Row(
        "firewall", "policy_altered",
        "nft delete table inet compliance; nft add table inet x; nft add chain inet x y"
        " '{ type filter hook input priority 0; policy accept; }'",
        "fail", "policy_accepts", "success", truth=_NFT, restore="nft delete table inet x",
    ),
    unreadable("firewall", "/usr/sbin/nft"),
    Row(
        "firewall", "load_fails",
        "nft list ruleset >/run/lab.nft; nft flush ruleset; mv /usr/sbin/nft /usr/sbin/nft.away; printf '#!/bin/sh\\n"
        "[ \"$1\" = -f ] && exit 1\\nexec /usr/sbin/nft.away \"$@\"\\n' >/usr/sbin/nft; chmod 755 /usr/sbin/nft",
        "fail", "no_firewall", "failed", "load_failed", restore="mv /usr/sbin/nft.away /usr/sbin/nft; nft -f /run/lab.nft",
        former="[ -z \"$(nft.away list ruleset)\" ]",
    ),
    # logging
    *stopped("logging", "rsyslog.service", "unit_down", "syslog.socket"),
    Row(
        "logging", "forwarder_hangs", "kill -STOP $(systemctl show -p MainPID --value rsyslog)", "fail", "canary_lost", "success",
        truth="logger -t lab back && sleep 1 && grep -q 'lab: back' /var/log/syslog",
    ),
    unreadable("logging", "/usr/bin/journalctl"),
    Row(
        "logging", "canary_lost", "echo '*.* stop' >/etc/rsyslog.d/00-lab.conf && systemctl restart rsyslog",
        "fail", "canary_lost", "reverted", "check_fail", restore="rm /etc/rsyslog.d/00-lab.conf; systemctl restart rsyslog",
        former="systemctl is-active rsyslog",
    ),
    Row(
        "logging", "start_fails", f"{_RSYSLOG_FAILS}; systemctl stop syslog.socket rsyslog", "fail", "unit_down",
        "reverted", "unit_start_failed", restore=f"{_RSYSLOG_WORKS}; systemctl start rsyslog",
        former="! systemctl is-active rsyslog",
    ),
    # av_health
    *stopped("av_health", "clamav-daemon.service", "daemon_down"),
    Row(
        "av_health", "updater_stopped", "systemctl stop clamav-freshclam", "fail", "updater_down", "success",
        truth="systemctl is-active clamav-freshclam",
    ),
    Row(
        "av_health", "signatures_old", "lab-signatures 5", "fail", "signatures_old", "success",
        truth=f"{CLAMD_SAYS} | grep -q \"$(date -u '+%b %e')\"",
    ),
    Row(
        "av_health", "blind", "lab-signatures 0 other; lab-signatures 0 eicar keep", "fail", "probe_missed", "success",
        truth=f"{CLAMD_SCANS} | grep -q FOUND",
    ),
    Row("av_health", "unreadable", f"kill -STOP {CLAMD}", "unknown", "timed_out", restore=f"kill -CONT {CLAMD}"),
    Row(
        "av_health", "start_fails", f"{_CLAMD_FAILS}; systemctl stop clamav-daemon", "fail", "daemon_down",
        "reverted", "unit_not_active", restore=f"{_CLAMD_WORKS}; systemctl start clamav-daemon",
        former="! systemctl is-active clamav-daemon",
    ),
    # time_sync: the kernel's clock is the machine's, so a host here follows its source and may not set the clock (chronyd -x).
    Row(
        "time_sync", "no_source", follow("10.77.0.9"), "fail", "not_synchronised", "alert", "no_cure", restore=follow("10.77.0.1"),
    ),
    unreadable("time_sync", "/usr/bin/chronyc"),
    # patching
    Row(
        "patching", "package_lock_held",
        f"{PUBLISH}1.1\napt-get -q update; setsid python3 -c 'import fcntl,time; f=open(\"/var/lib/dpkg/lock-frontend\",\"w\");"
        " fcntl.lockf(f,fcntl.LOCK_EX); time.sleep(600)' >/dev/null 2>&1 & echo $! >/run/lab-lock; sleep 1",
        "fail", "security_pending", "deferred", "package_manager_busy", restore="kill $(cat /run/lab-lock)",
    ),
    Row(
        "patching", "security_update", f"{PUBLISH}1.2\napt-get -q update", "fail", "security_pending", "success",
        truth="dpkg-query -W -f '${Version}' lab-widget | grep -qx 1.2", wait_s=90,
    ),
    unreadable("patching", "/usr/bin/apt"),
    Row(
        "patching", "install_fails", f"{PUBLISH}1.3 broken\napt-get -q update", "fail", "security_pending", "failed",
        "not_reversible", restore=f"{PUBLISH}1.4\napt-get -q update; apt-get -q -y install lab-widget", wait_s=90,
    ),
    # backup
    Row("backup", "snapshot_old", OLD_SNAPSHOT, "fail", "snapshot_too_old", "success", truth=FRESH_SNAPSHOT, wait_s=60),
    Row(
        "backup", "timer_stopped", "systemctl stop restic-backup.timer", "fail", "timer_not_active", "success",
        truth="systemctl is-active restic-backup.timer",
    ),
    Row(
        "backup", "repository_damaged", dated(CHECKED, 0, "false"), "fail", "check_failed", "alert", "no_cure",
        restore=dated(CHECKED, 0),
    ),
    Row(
        "backup", "restore_broken", dated(DRILL, 0, "false"), "fail", "drill_failed", "alert", "no_cure",
        restore=dated(DRILL, 0),
    ),
    Row("backup", "drill_old", dated(DRILL, 200), "fail", "drill_too_old", "alert", "no_cure", restore=dated(DRILL, 0)),
    Row(
        "backup", "repository_gone", "mv /srv/backup/restic /srv/backup/away", "unknown", "repository_missing",
        restore="mv /srv/backup/away /srv/backup/restic",
    ),
    Row(
        "backup", "wrong_password", "cp -p /etc/msp/restic.password /root/right && echo wrong >/etc/msp/restic.password",
        "unknown", "wrong_password", restore="cp -p /root/right /etc/msp/restic.password",
    ),
    Row("backup", "record_corrupt", f"echo '{{' >{DRILL}", "unknown", "unparsable", restore=dated(DRILL, 0)),
    unreadable("backup", "/usr/bin/restic"),
    Row(
        "backup", "run_fails", f"{_BACKUP_FAILS}\n{OLD_SNAPSHOT}", "fail", "snapshot_too_old", "reverted", "unit_start_failed",
        restore=f"{_BACKUP_WORKS}; systemctl start restic-backup.service", wait_s=60,
    ),
    # encryption: there is no dm-crypt in a container; what is not encrypted has to be said, and is for people.
    Row("encryption", "not_encrypted", "true", "fail", "mount_missing", "alert", "no_cure"),
    unreadable("encryption", "/usr/bin/lsblk"),
)  # fmt: skip


def chosen(only: tuple[str, ...]) -> tuple[Row, ...]:
    """The rows that `CHECK` or `CHECK:FAULT` name; all of them for none.

    Raises:
        ValueError: a name fits no row.
    """
    for name in only:
        if not any(name in {row.check, row.name} for row in ROWS):
            raise ValueError(f"no row {name!r}; there are {', '.join(row.name for row in ROWS)}")
    return tuple(row for row in ROWS if not only or row.check in only or row.name in only)
