"""A compliant clinic host: Debian 12, everything the default baseline looks at, as it should be."""

from __future__ import annotations

from compliance_agent.lab.clock import FakeClock
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import apt, chrony, clamav, disks, logs, nft, restic
from compliance_agent.ports import Clock


def healthy_host(seed: int = 0, clock: Clock | None = None) -> FakeHost:
    """A host that passes all checks of the default baseline; the same seed gives the same host."""
    host = FakeHost(clock or FakeClock(), seed=seed)
    host.put("/etc/hostname", f"clinic-{seed}\n")
    host.install("systemctl", "date", "tail", "cat", "readlink", "stat", "uname")
    for part in (chrony, clamav, disks, apt, logs, nft, restic):
        part.provide(host)
    return host
