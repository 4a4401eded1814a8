"""Named ways in which a healthy clinic host drifts, by check: what goes wrong, and the reason it must be found for.

Every reason that a check's cases say can be healed needs a drift on which that is shown: here, or as the case's own `scene`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from compliance_agent.checks import registry
from compliance_agent.checks.spec import Check, judge_seen
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import (
    accounts,
    apt,
    auditd,
    chrony,
    clamav,
    logs,
    nft,
    nixos,
    restic,
    sessions,
    sshd,
)


@dataclass(frozen=True)
class Drift:
    """One way to drift: the check that finds it, the reason it gives, and what happens to the host.

    Attributes:
        parameters: of the check, where they differ from its example.
        host: a host that is as it should be, where the healthy Debian one is not the kind that drifts so.
    """

    check: str
    reason: str
    name: str
    happen: Callable[[FakeHost], None]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    host: Callable[[], FakeHost] = healthy_host


def _stopped(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False

    return happen


def _disabled(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False
        host.unit(unit).enabled = "disabled"

    return happen


def _masked(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).active = False
        host.unit(unit).masked = True

    return happen


def _masked_while_running(unit: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.unit(unit).masked = True

    return happen


def _skewed(seconds: float) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.skew_s = seconds

    return happen


def _stuck_forwarder(host: FakeHost) -> None:
    """rsyslog's queue is stuck until it is started afresh."""
    state, unit = host.part(logs.Logs), host.unit(logs.RSYSLOG)
    state.loses = True

    def started() -> None:
        logs.load(host)
        state.loses = False

    unit.started = started


def _old_signatures(host: FakeHost) -> None:
    host.part(clamav.Signatures).built_at = host.now() - timedelta(days=9)


def _no_signatures(host: FakeHost) -> None:
    host.part(clamav.Signatures).loaded = False


def _old_signatures_and_no_updater(host: FakeHost) -> None:
    _old_signatures(host)
    host.unit(clamav.FRESHCLAM).active = False


def _blind_until_restarted(host: FakeHost) -> None:
    signatures, unit = host.part(clamav.Signatures), host.unit(clamav.UNIT)
    signatures.detects = False

    def started() -> None:
        signatures.detects = True

    unit.started = started


def _updates(*names: str, reboots: bool = False) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        for name in names:
            apt.offer(host, name, "99.1-1+deb12u1", reboots=reboots)

    return happen


def _left_unpacked(host: FakeHost) -> None:
    host.part(apt.Packages).unpacked.add("libssl3")


def _lists_of(days: float) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        apt.write_lists(host, host.now() - timedelta(days=days))
        host.put(apt.STAMP, age_s=days * 86_400)

    return happen


def _old_lists_hide_updates(host: FakeHost) -> None:
    _lists_of(5)(host)
    host.part(apt.Packages).mirror["libssl3"] = apt.Offer("3.0.18-1~deb12u1")


def _snapshots_lost(count: int) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        repository = host.part(restic.Repositories).by_place[restic.REPOSITORY]
        del repository.snapshots[-count:]

    return happen


def _snapshots_elsewhere(host: FakeHost) -> None:
    for snapshot in host.part(restic.Repositories).by_place[restic.REPOSITORY].snapshots:
        snapshot.paths = ("/etc",)


def _last_run_failed(host: FakeHost) -> None:
    host.unit(restic.UNIT).failed = True


def _rules(text: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.part(nft.Ruleset).load(text)

    return happen


def _policy(word: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        for chain in host.part(nft.Ruleset).select("chain", name="input"):
            chain["policy"] = word

    return happen


def _rules_gone(field: str, wanted: str) -> Callable[[FakeHost], None]:
    """Rules whose match names this are deleted."""

    def happen(host: FakeHost) -> None:
        ruleset = host.part(nft.Ruleset)
        ruleset.objects = [
            (kind, item)
            for kind, item in ruleset.objects
            if kind != "rule" or f"'{field}': '{wanted}'" not in repr(item)
        ]

    return happen


def nixos_host() -> FakeHost:
    """A NixOS host with four generations, the newest one running, its package collection of this week."""
    host = FakeHost(FakeClock())
    nixos.provide(host, {number: f"{host.now() - timedelta(days=45 - number):%Y%m%d}" for number in (39, 40, 41, 42)})
    return host


def _generation(selected: int, running: int) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        known = host.part(nixos.Generations)
        known.selected, known.running = selected, running
        nixos.show(host)

    return happen


def _nothing_recorded(host: FakeHost) -> None:
    host.part(auditd.Kernel).rules.clear()
    host.part(auditd.Kernel).enabled = 0


def _audit_rules_by_hand(host: FakeHost) -> None:
    """The file that is loaded is older than the files it is made of; the undo must bring both back."""
    rules = host.part(auditd.Kernel).rules
    rules[:] = [*reversed(rules[1:]), "-w /srv -p r -k looked"]
    host.put(auditd.MADE, "-D\n", mode=0o640)


def _sshd(old: str, new: str) -> Callable[[FakeHost], None]:
    def happen(host: FakeHost) -> None:
        host.put(sshd.DROP_IN, host.files[sshd.DROP_IN].content.decode().replace(old, new))
        _sshd_read(host)

    return happen


def _sshd_read(host: FakeHost) -> None:
    assert sshd.read_files(host)
    host.unit(sshd.UNIT).changed_at = host.now()


def _sshd_policy_gone(host: FakeHost) -> None:
    host.delete(sshd.DROP_IN)
    _sshd_read(host)


def _no_logind_drop_ins(host: FakeHost) -> None:
    host.delete("/etc/systemd/logind.conf.d")
    sessions.read_files(host)


def _nothing_ends(host: FakeHost) -> None:
    _no_logind_drop_ins(host)
    host.delete("/etc/profile.d")


def _services_upside_down(host: FakeHost) -> None:
    host.unit("cron.service").masked = True
    host.unit("cron.service").active = False
    host.service("dbus.service", enabled="disabled")
    host.service("telnet.socket", enabled="disabled")
    host.service("vsftpd.service", active=False)


def _no_passwords(host: FakeHost) -> None:
    for name in ("msp", "frontdesk"):
        accounts.replace(host, "/etc/shadow", f"{name}:{accounts.HASH}:", f"{name}::")


def _sshd_touched(host: FakeHost) -> None:
    host.unit(sshd.UNIT).changed_at = host.now() - timedelta(hours=1)
    host.files[sshd.CONFIG].modified_at = host.now()


def _host_key_open(host: FakeHost) -> None:
    host.files[sshd.HOST_KEYS[2]].mode = 0o640


def from_cases(checks: Iterable[Check]) -> Iterator[Drift]:
    """Drifts that checks bring along in their own files."""
    for check in checks:
        for case in check.cases:
            if case.heals and case.scene is not None:
                verdict = judge_seen(
                    check, check.spec.parameters(**{**check.spec.example, **case.parameters}), case.seen
                )
                yield Drift(check.id, verdict.reason, f"{check.id} {case.name}", case.scene, case.parameters)


NIXOS: dict[str, Any] = {"manager": "nixos", "min_generation": 40}

DRIFTS = (
    Drift("time_sync", "daemon_down", "chrony stopped", _stopped(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony disabled", _disabled(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony masked", _masked(chrony.UNIT)),
    Drift("time_sync", "daemon_down", "chrony masked while it runs", _masked_while_running(chrony.UNIT)),
    Drift("time_sync", "offset_too_large", "clock an hour ahead", _skewed(3600.0)),
    Drift("time_sync", "offset_too_large", "clock ten minutes behind", _skewed(-600.0)),
    Drift("logging", "unit_down", "rsyslog stopped", _stopped(logs.RSYSLOG)),
    Drift("logging", "unit_down", "rsyslog masked", _masked(logs.RSYSLOG)),
    Drift("logging", "unit_down", "journald stopped", _stopped(logs.JOURNALD)),
    Drift("logging", "canary_lost", "rsyslog loses lines", _stuck_forwarder),
    Drift("av_health", "daemon_down", "clamd stopped", _stopped(clamav.UNIT)),
    Drift("av_health", "daemon_down", "clamd masked", _masked(clamav.UNIT)),
    Drift("av_health", "updater_down", "freshclam disabled", _disabled(clamav.FRESHCLAM)),
    Drift("av_health", "signatures_old", "signatures nine days old", _old_signatures),
    Drift("av_health", "signatures_old", "signatures old, updater stopped", _old_signatures_and_no_updater),
    Drift("av_health", "signatures_missing", "no signatures loaded", _no_signatures),
    Drift("av_health", "probe_missed", "clamd lost its signatures", _blind_until_restarted),
    Drift("patching", "security_pending", "two security updates wait", _updates("libssl3", "bash")),
    Drift("patching", "security_pending", "a kernel update waits", _updates("base-files", reboots=True)),
    Drift("patching", "half_installed", "an update unpacked and not set up", _left_unpacked),
    Drift("patching", "lists_stale", "package lists five days old", _lists_of(5)),
    Drift("patching", "lists_stale", "package lists expired", _lists_of(9)),
    Drift("patching", "lists_stale", "old lists hide an update", _old_lists_hide_updates),
    Drift("patching", "generation_behind", "an older generation selected", _generation(39, 39), NIXOS, nixos_host),
    Drift("patching", "generation_not_active", "another generation runs", _generation(42, 41), NIXOS, nixos_host),
    Drift("backup", "snapshot_too_old", "two nights without backup", _snapshots_lost(2)),
    Drift("backup", "snapshot_missing", "all snapshots gone", _snapshots_lost(7)),
    Drift("backup", "path_missing", "data left out of the backup", _snapshots_elsewhere),
    Drift("backup", "last_run_failed", "last backup failed", _last_run_failed),
    Drift("backup", "timer_not_active", "backup timer stopped", _stopped(restic.TIMER)),
    Drift("backup", "timer_not_active", "backup timer disabled", _disabled(restic.TIMER)),
    Drift("firewall", "no_firewall", "ruleset flushed", _rules("flush ruleset")),
    Drift("firewall", "policy_accepts", "policy set to accept", _policy("accept")),
    Drift(
        "firewall", "unexpected_ports", "telnet opened", _rules("add rule inet compliance input tcp dport 23 accept")
    ),
    Drift(
        "firewall",
        "unexpected_ports",
        "one address let in everywhere",
        _rules("add rule inet compliance input ip saddr 203.0.113.9 accept"),
    ),
    Drift("firewall", "ports_missing", "rules for open ports deleted", _rules_gone("protocol", "tcp")),
    Drift("firewall", "replies_blocked", "replies kept out", _rules_gone("key", "state")),
    *(
        Drift("ssh_access", reason, f"sshd: {name}", _sshd(old, new))
        for reason, name, old, new in (
            ("password_login", "passwords on", "PasswordAuthentication no", "PasswordAuthentication yes"),
            ("empty_passwords", "empty passwords", "PermitEmptyPasswords no", "PermitEmptyPasswords yes"),
            ("host_based_login", "another host vouches", "HostbasedAuthentication no", "HostbasedAuthentication yes"),
            ("modes_ignored", "modes of key files ignored", "StrictModes yes", "StrictModes no"),
            ("root_login", "root by key", "PermitRootLogin no", "PermitRootLogin prohibit-password"),
            ("weak_ciphers", "old cipher", "Ciphers ", "Ciphers aes128-cbc,"),
            ("weak_macs", "old code", "MACs ", "MACs hmac-sha1,"),
            ("weak_kex", "old key exchange", "KexAlgorithms ", "KexAlgorithms diffie-hellman-group14-sha256,"),
        )
    ),
    Drift("ssh_access", "password_login", "sshd: policy deleted", _sshd_policy_gone),
    Drift("ssh_access", "daemon_down", "sshd stopped", _stopped(sshd.UNIT)),
    Drift("ssh_access", "host_key_exposed", "sshd: host key open", _host_key_open),
    Drift("ssh_access", "reload_needed", "sshd: files newer", _sshd_touched),
    Drift("accounts", "empty_passwords", "two accounts without a password", _no_passwords),
    Drift("auto_logoff", "shell_not_ended", "no timeout of shells", FAULTS["shell_timeout_gone"].inject),
    Drift(
        "auto_logoff", "shell_changeable", "timeout of shells not read-only", FAULTS["shell_timeout_changeable"].inject
    ),
    Drift("auto_logoff", "session_not_ended", "idle sessions stay open", FAULTS["idle_sessions_stay"].inject),
    Drift("auto_logoff", "session_not_ended", "no drop-ins of logind at all", _no_logind_drop_ins),
    Drift("auto_logoff", "shell_not_ended", "neither shells nor sessions end", _nothing_ends),
    *(
        Drift("services", FAULTS[name].reason, name.replace("_", " "), FAULTS[name].inject)
        for name in ("cron_stopped", "cron_disabled", "telnet_running", "ftp_enabled")
    ),
    *(
        Drift("auditd", FAULTS[name].reason, name.replace("_", " "), FAULTS[name].inject)
        for name in ("auditd_stopped", "auditing_off", "audit_rules_deleted")
    ),
    Drift("auditd", "recording_off", "audit rules deleted and recording off", _nothing_recorded),
    Drift("auditd", "rules_not_loaded", "one audit rule deleted, another loaded by hand", _audit_rules_by_hand),
    Drift("services", "forbidden_running", "everything about services", _services_upside_down),
    Drift("transmission", "key_open", "key of the web service open", FAULTS["tls_key_open"].inject),
    *from_cases(registry().values()),
)
