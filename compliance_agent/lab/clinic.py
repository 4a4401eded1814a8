"""A compliant clinic host: Debian 12, everything the default baseline looks at, as it should be."""

from __future__ import annotations

from compliance_agent.checks import registry
from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import (
    accounts,
    apt,
    auditd,
    chrony,
    clamav,
    disks,
    logs,
    nft,
    oscap,
    restic,
    sessions,
    sockets,
    sshd,
    tls,
)
from compliance_agent.models import Result
from compliance_agent.ports import Clock


def healthy_host(seed: int = 0, clock: Clock | None = None) -> FakeHost:
    """A host that passes every check; the same seed gives the same host."""
    host = FakeHost(clock or FakeClock(), seed=seed)
    host.put("/etc/hostname", f"clinic-{seed}\n")
    host.install("systemctl", "date", "env", "tail", "cat", "readlink", "stat", "uname", "id", "mkdir", "rmdir")
    host.service("cron.service")
    host.service("dbus.service", enabled="static")
    for part in (accounts, auditd, chrony, clamav, disks, apt, logs, nft, oscap, restic, sessions, sockets, sshd, tls):
        part.provide(host)
    for check in registry().values():
        scenes = [case.scene for case in check.cases if case.expect is Result.PASS and case.scene is not None]
        for furnish in scenes[:1]:
            furnish(host)
    return host
