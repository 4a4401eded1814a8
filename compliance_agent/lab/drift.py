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
from datetime import timedelta

from compliance_agent.core.nftables import TABLE
from compliance_agent.lab import drift_access  # noqa: F401 - its faults register themselves
from compliance_agent.lab.fault import FAULTS, register
from compliance_agent.lab.host import FakeHost, Node
from compliance_agent.lab.programs import apt, chrony, clamav, disks, logs, nft, restic

__all__ = ["FAULTS", "choose"]


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


# -- time_sync


@register("time_sync", "daemon_down", "now", "chronyd is stopped")
def _chrony_stopped(host: FakeHost) -> None:
    host.unit(chrony.UNIT).active = False


@register("time_sync", "daemon_down", "now", "chronyd is stopped and will not start at boot")
def _chrony_disabled(host: FakeHost) -> None:
    unit = host.unit(chrony.UNIT)
    unit.active, unit.enabled = False, "disabled"


@register("time_sync", "offset_too_large", "window", "somebody set the clock by hand")
def _clock_skewed(host: FakeHost) -> None:
    host.skew_s = host.rng.choice((-1, 1)) * host.rng.uniform(60.0, 3000.0)


@register("time_sync", "not_synchronised", "person", "no time server answers any more")
def _time_source_lost(host: FakeHost) -> None:
    host.part(chrony.TimeSource).reachable = False


# -- firewall


@register("firewall", "no_firewall", "now", "somebody ran nft flush ruleset")
def _firewall_flushed(host: FakeHost) -> None:
    host.part(nft.Ruleset).apply([{"flush": {"ruleset": None}}])


@register("firewall", "unexpected_ports", "now", "a port was opened for a test and forgotten")
def _firewall_port_opened(host: FakeHost) -> None:
    port = host.rng.choice((21, 23, 445, 3306, 3389, 5900, 8080))
    host.part(nft.Ruleset).load(f"add rule {' '.join(TABLE)} input tcp dport {port} accept\n")


@register("firewall", "policy_accepts", "now", "the input policy was set to accept")
def _firewall_policy_accept(host: FakeHost) -> None:
    family, table = TABLE
    chain = host.part(nft.Ruleset).select("chain", family=family, table=table, name="input")[0]
    chain["policy"] = "accept"


# -- av_health


@register("av_health", "daemon_down", "now", "the virus scanner is stopped")
def _av_stopped(host: FakeHost) -> None:
    host.unit(clamav.UNIT).active = False


@register("av_health", "signatures_old", "now", "the virus signatures have not been updated for days")
def _av_signatures_old(host: FakeHost) -> None:
    host.part(clamav.Signatures).built_at = host.now() - timedelta(days=host.rng.randint(4, 90))


@register("av_health", "updater_down", "now", "the signature updater is stopped")
def _av_updater_stopped(host: FakeHost) -> None:
    host.unit(clamav.FRESHCLAM).active = False


@register("av_health", "probe_missed", "now", "the virus scanner runs and finds nothing until it is restarted")
def _av_blind(host: FakeHost) -> None:
    signatures, unit = host.part(clamav.Signatures), host.unit(clamav.UNIT)
    signatures.detects = False

    def started() -> None:
        signatures.detects = True

    unit.started = started


# -- backup


@register("backup", "snapshot_too_old", "now", "no backup has been taken for days")
def _backup_stale(host: FakeHost) -> None:
    by = timedelta(days=host.rng.randint(2, 30))
    for snapshot in host.part(restic.Repositories).by_place[restic.REPOSITORY].snapshots:
        snapshot.time -= by


@register("backup", "timer_not_active", "now", "the timer of the nightly backup is stopped")
def _backup_timer_stopped(host: FakeHost) -> None:
    host.unit(restic.TIMER).active = False


@register("backup", "check_failed", "person", "the weekly check found the repository damaged")
def _backup_damaged(host: FakeHost) -> None:
    host.part(restic.Repositories).by_place[restic.REPOSITORY].damaged = True
    restic.record(host, "check", days_ago=0.1, good=False)


@register("backup", "drill_too_old", "person", "nobody has tried to restore anything for months")
def _restore_drill_overdue(host: FakeHost) -> None:
    restic.record(host, "drill", days_ago=host.rng.randint(100, 400), size=1_048_576)


# -- logging


@register("logging", "unit_down", "now", "rsyslogd is stopped")
def _logging_stopped(host: FakeHost) -> None:
    host.unit(logs.RSYSLOG).active = False


@register("logging", "canary_lost", "now", "rsyslogd runs and writes nothing until it is restarted")
def _log_canary_lost(host: FakeHost) -> None:
    state, unit = host.part(logs.Logs), host.unit(logs.RSYSLOG)
    state.loses = True

    def started() -> None:
        logs.load(host)
        state.loses = False

    unit.started = started


# -- patching


@register("patching", "security_pending", "window", "a security update has been published")
def _security_update_pending(host: FakeHost) -> None:
    name, version = host.rng.choice((("libssl3", "3.0.19-1~deb12u1"), ("openssh-server", "1:9.2p1-2+deb12u8")))
    apt.offer(host, name, version)


@register("patching", "lists_stale", "window", "the package lists have not been refreshed for days")
def _package_lists_stale(host: FakeHost) -> None:
    made_at = host.now() - timedelta(days=host.rng.randint(4, 6))
    apt.write_lists(host, made_at)
    host.files[apt.STAMP].modified_at = made_at


@register("patching", "reboot_overdue", "person", "a kernel update has waited for a restart for weeks")
def _reboot_overdue(host: FakeHost) -> None:
    since = host.now() - timedelta(days=host.rng.randint(15, 60))
    host.place("/run/reboot-required", Node(content=b"*** System restart required ***\n", modified_at=since))


# -- encryption


@register("encryption", "mount_not_encrypted", "person", "patient data were moved to a disk in the clear")
def _volume_unencrypted(host: FakeHost) -> None:
    state = host.part(disks.Disks)
    for device in state.walk():
        device.mountpoints = [point for point in device.mountpoints if point != "/srv"]
    part = disks.Device("sdb1", "part", 400 * disks.GIB, "ext4", ["/srv"])
    state.devices.append(disks.Device("sdb", "disk", 400 * disks.GIB, children=[part]))


@register("encryption", "swap_not_encrypted", "person", "a swap partition in the clear was added")
def _swap_unencrypted(host: FakeHost) -> None:
    part = disks.Device("sdb2", "part", 8 * disks.GIB, "swap", ["[SWAP]"])
    host.part(disks.Disks).devices.append(disks.Device("sdb", "disk", 8 * disks.GIB, children=[part]))


@register(
    "encryption", "too_many_key_slots", "person", "one key after the other was added to the disk and none removed"
)
def _key_slots_many(host: FakeHost) -> None:
    for device in host.part(disks.Disks).walk():
        if device.luks is not None:
            device.luks = disks.luks2(slots=host.rng.randint(6, 16))
