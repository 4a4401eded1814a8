"""Synthetic drift: everything that goes wrong on a clinic host, by name, for demos and tests.

A fault changes the state of a `FakeHost` as the real mishap would, never what a check says. `reason` is what the check
must find it for, `cure` what becomes of it: `now` (the agent heals it at any time), `window` (in the maintenance
window) or `person`. How bad it is (how far a clock is off, how old a snapshot) comes from the host's own seeded
randomness.

    FAULTS["chrony_stopped"].inject(host)
    for name in choose(random.Random(7), 3): FAULTS[name].inject(host)
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

from compliance_agent.core.nftables import TABLE
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.lab.programs import apt, chrony, clamav, disks, logs, nft, restic, sshd

Cure = Literal["now", "window", "person"]


@dataclass(frozen=True)
class Fault:
    """One way to drift.

    Attributes:
        name: token for the command line.
        check: the check that must find it.
        reason: what it must be found for.
        title: what happens, as a sentence.
        cure: when the agent heals it, or that a person has to.
        inject: makes it happen.
    """

    name: str
    check: str
    reason: str
    title: str
    cure: Cure
    inject: Callable[[FakeHost], None]

    @property
    def heals(self) -> bool:
        """The agent heals it at any time of day, by itself."""
        return self.cure == "now"


FAULTS: dict[str, Fault] = {}


def choose(rng: random.Random, count: int = 1, *, heals: bool = False) -> list[str]:
    """So many different faults, each of another check while there are checks left; the same rng gives the same choice.

    Args:
        rng: source of the choice.
        count: how many; at most all there are.
        heals: only faults that the agent heals at any time.
    """
    left = [fault for fault in FAULTS.values() if fault.heals or not heals]
    chosen: list[str] = []
    while left and len(chosen) < count:
        used = {FAULTS[name].check for name in chosen}
        fresh = [fault for fault in left if fault.check not in used] or left
        fault = rng.choice(fresh)
        left.remove(fault)
        chosen.append(fault.name)
    return chosen


def _fault(check: str, reason: str, cure: Cure, title: str) -> Callable[[Callable[[FakeHost], None]], None]:
    """Register a function under its own name."""

    def register(inject: Callable[[FakeHost], None]) -> None:
        name = inject.__name__.strip("_")
        FAULTS[name] = Fault(name, check, reason, title, cure, inject)

    return register


# -- time_sync


@_fault("time_sync", "daemon_down", "now", "chronyd is stopped")
def _chrony_stopped(host: FakeHost) -> None:
    host.unit(chrony.UNIT).active = False


@_fault("time_sync", "daemon_down", "now", "chronyd is stopped and will not start at boot")
def _chrony_disabled(host: FakeHost) -> None:
    unit = host.unit(chrony.UNIT)
    unit.active, unit.enabled = False, "disabled"


@_fault("time_sync", "offset_too_large", "window", "somebody set the clock by hand")
def _clock_skewed(host: FakeHost) -> None:
    host.skew_s = host.rng.choice((-1, 1)) * host.rng.uniform(60.0, 3000.0)


@_fault("time_sync", "not_synchronised", "person", "no time server answers any more")
def _time_source_lost(host: FakeHost) -> None:
    host.part(chrony.TimeSource).reachable = False


# -- firewall


@_fault("firewall", "no_firewall", "now", "somebody ran nft flush ruleset")
def _firewall_flushed(host: FakeHost) -> None:
    host.part(nft.Ruleset).apply([{"flush": {"ruleset": None}}])


@_fault("firewall", "unexpected_ports", "now", "a port was opened for a test and forgotten")
def _firewall_port_opened(host: FakeHost) -> None:
    port = host.rng.choice((21, 23, 445, 3306, 3389, 5900, 8080))
    host.part(nft.Ruleset).load(f"add rule {' '.join(TABLE)} input tcp dport {port} accept\n")


@_fault("firewall", "policy_accepts", "now", "the input policy was set to accept")
def _firewall_policy_accept(host: FakeHost) -> None:
    family, table = TABLE
    chain = host.part(nft.Ruleset).select("chain", family=family, table=table, name="input")[0]
    chain["policy"] = "accept"


# -- av_health


@_fault("av_health", "daemon_down", "now", "the virus scanner is stopped")
def _av_stopped(host: FakeHost) -> None:
    host.unit(clamav.UNIT).active = False


@_fault("av_health", "signatures_old", "now", "the virus signatures have not been updated for days")
def _av_signatures_old(host: FakeHost) -> None:
    host.part(clamav.Signatures).built_at = host.now() - timedelta(days=host.rng.randint(4, 90))


@_fault("av_health", "updater_down", "now", "the signature updater is stopped")
def _av_updater_stopped(host: FakeHost) -> None:
    host.unit(clamav.FRESHCLAM).active = False


@_fault("av_health", "probe_missed", "now", "the virus scanner runs and finds nothing until it is restarted")
def _av_blind(host: FakeHost) -> None:
    signatures, unit = host.part(clamav.Signatures), host.unit(clamav.UNIT)
    signatures.detects = False

    def started() -> None:
        signatures.detects = True

    unit.started = started


# -- backup


@_fault("backup", "snapshot_too_old", "now", "no backup has been taken for days")
def _backup_stale(host: FakeHost) -> None:
    by = timedelta(days=host.rng.randint(2, 30))
    for snapshot in host.part(restic.Repositories).by_place[restic.REPOSITORY].snapshots:
        snapshot.time -= by


@_fault("backup", "timer_not_active", "now", "the timer of the nightly backup is stopped")
def _backup_timer_stopped(host: FakeHost) -> None:
    host.unit(restic.TIMER).active = False


@_fault("backup", "check_failed", "person", "the weekly check found the repository damaged")
def _backup_damaged(host: FakeHost) -> None:
    host.part(restic.Repositories).by_place[restic.REPOSITORY].damaged = True
    restic.record(host, "check", days_ago=0.1, good=False)


@_fault("backup", "drill_too_old", "person", "nobody has tried to restore anything for months")
def _restore_drill_overdue(host: FakeHost) -> None:
    restic.record(host, "drill", days_ago=host.rng.randint(100, 400), size=1_048_576)


# -- logging


@_fault("logging", "unit_down", "now", "rsyslogd is stopped")
def _logging_stopped(host: FakeHost) -> None:
    host.unit(logs.RSYSLOG).active = False


@_fault("logging", "canary_lost", "now", "rsyslogd runs and writes nothing until it is restarted")
def _log_canary_lost(host: FakeHost) -> None:
    state, unit = host.part(logs.Logs), host.unit(logs.RSYSLOG)
    state.loses = True

    def started() -> None:
        logs.load(host)
        state.loses = False

    unit.started = started


# -- patching


@_fault("patching", "security_pending", "window", "a security update has been published")
def _security_update_pending(host: FakeHost) -> None:
    name, version = host.rng.choice((("libssl3", "3.0.19-1~deb12u1"), ("openssh-server", "1:9.2p1-2+deb12u8")))
    apt.offer(host, name, version)


@_fault("patching", "lists_stale", "window", "the package lists have not been refreshed for days")
def _package_lists_stale(host: FakeHost) -> None:
    made_at = host.now() - timedelta(days=host.rng.randint(4, 6))
    apt.write_lists(host, made_at)
    host.files[apt.STAMP].modified_at = made_at


@_fault("patching", "reboot_overdue", "person", "a kernel update has waited for a restart for weeks")
def _reboot_overdue(host: FakeHost) -> None:
    since = host.now() - timedelta(days=host.rng.randint(15, 60))
    host.place("/run/reboot-required", Node(content=b"*** System restart required ***\n", modified_at=since))


# -- encryption


@_fault("encryption", "mount_not_encrypted", "person", "patient data were moved to a disk in the clear")
def _volume_unencrypted(host: FakeHost) -> None:
    state = host.part(disks.Disks)
    for device in state.walk():
        device.mountpoints = [point for point in device.mountpoints if point != "/srv"]
    part = disks.Device("sdb1", "part", 400 * disks.GIB, "ext4", ["/srv"])
    state.devices.append(disks.Device("sdb", "disk", 400 * disks.GIB, children=[part]))


@_fault("encryption", "swap_not_encrypted", "person", "a swap partition in the clear was added")
def _swap_unencrypted(host: FakeHost) -> None:
    part = disks.Device("sdb2", "part", 8 * disks.GIB, "swap", ["[SWAP]"])
    host.part(disks.Disks).devices.append(disks.Device("sdb", "disk", 8 * disks.GIB, children=[part]))


@_fault("encryption", "too_many_key_slots", "person", "one key after the other was added to the disk and none removed")
def _key_slots_many(host: FakeHost) -> None:
    for device in host.part(disks.Disks).walk():
        if device.luks is not None:
            device.luks = disks.luks2(slots=host.rng.randint(6, 16))


# -- ssh_access


def _ssh_setting(host: FakeHost, old: str, new: str) -> None:
    """Change the drop-in of the SSH daemon and have the daemon read it."""
    text = host.files[sshd.DROP_IN].content.decode()
    host.put(sshd.DROP_IN, text.replace(old, new))
    sshd.read_files(host)
    host.unit(sshd.UNIT).changed_at = host.now()


@_fault("ssh_access", "password_login", "now", "somebody turned password logins on again")
def _ssh_passwords_on(host: FakeHost) -> None:
    _ssh_setting(host, "PasswordAuthentication no", "PasswordAuthentication yes")


@_fault("ssh_access", "root_login", "now", "root may log in directly")
def _ssh_root_login(host: FakeHost) -> None:
    _ssh_setting(host, "PermitRootLogin no", "PermitRootLogin yes")


@_fault("ssh_access", "weak_ciphers", "now", "an old cipher was allowed for an old device")
def _ssh_old_cipher(host: FakeHost) -> None:
    _ssh_setting(host, "Ciphers ", f"Ciphers {host.rng.choice(('aes128-cbc', 'aes256-cbc', '3des-cbc'))},")


@_fault("ssh_access", "host_key_exposed", "now", "a private key of the SSH daemon can be read by everybody")
def _ssh_host_key_open(host: FakeHost) -> None:
    host.files[host.rng.choice(sshd.HOST_KEYS)].mode = 0o644


@_fault("ssh_access", "reload_needed", "now", "the SSH daemon still goes by settings that were taken back since")
def _ssh_not_reloaded(host: FakeHost) -> None:
    _ssh_setting(host, "PasswordAuthentication no", "PasswordAuthentication yes")
    host.unit(sshd.UNIT).changed_at = host.now() - timedelta(hours=1)
    text = host.files[sshd.DROP_IN].content.decode().replace("PasswordAuthentication yes", "PasswordAuthentication no")
    host.put(sshd.DROP_IN, text)


@_fault("ssh_access", "match_relaxes", "person", "password logins were let in for one network")
def _ssh_match_block(host: FakeHost) -> None:
    text = "Match Address 10.0.0.0/8\n    PasswordAuthentication yes\n"
    host.put("/etc/ssh/sshd_config.d/50-branch.conf", text)
    host.unit(sshd.UNIT).changed_at = host.now()
