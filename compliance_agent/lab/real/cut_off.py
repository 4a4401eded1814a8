"""The power goes in the middle of a cure on a host in three processes, and comes back: all of them start anew.

All processes of the host end at once (`Machine.cut`), between what root made durable as found and the look that would end the cure;
then the host boots, and the agent starts with it. What a disk loses at a power cut is not part of it: that is the virtual host's.
"""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from compliance_agent.lab.real.host import Host
from compliance_agent.lab.real.shell import until
from compliance_agent.lab.real.step import NotSo

HELD = "sleep 3603"  # nobody else sleeps as long
AT_HELD = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -q 'sleep 360[3]'"
STATE = "var/lib/compliance-agent"
Recorded = tuple[tuple[str, str | None, bool], ...]
WITHIN_S = 60.0
LOOKS_S = 20.0  # for something that must not come


@dataclass(frozen=True)
class Cut:
    """One of them.

    Attributes:
        check: whose cure it is.
        program: of root's side, in whose place `script` stands until the power goes; `$real` is the program itself.
        fault: what makes the agent begin the cure.
        left: ends with 0 when the host is, before the power goes, as the cure is to leave it.
        recorded: outcome, error and `recovered` of the cures recorded after the boot, and of no other.
        truth: ends with 0 when the host is as it should be in the end.
    """

    check: str
    program: str
    script: str
    fault: str
    left: str
    recorded: Recorded
    truth: str


_NFT = "nft list table inet compliance"
BEFORE_THE_CHANGE = Cut(
    "firewall", "/usr/sbin/nft", f'[ "$1" != -f ] || {HELD}', "nft flush ruleset", f"! {_NFT}",
    (("reverted", "interrupted", True), ("success", None, False)), f"{_NFT} | grep -q 'policy drop'",
)  # fmt: skip
_CRON = "systemctl is-active cron && systemctl is-enabled cron"
BEFORE_THE_LOOK = Cut(
    "services", "/usr/bin/systemctl", f'case "$*" in *start*cron*) $real "$@"; {HELD} ;; esac', "systemctl stop cron",
    _CRON, (("success", None, True),), _CRON,
)  # fmt: skip


def cut_before_the_change(host: Host) -> bool:
    """Root had kept what it found and changed nothing yet: taken back, said so, and healed anew."""
    return _cut(host, BEFORE_THE_CHANGE)


def cut_before_the_look(host: Host) -> bool:
    """Root had done all of it and nobody had looked: looked at, said so, and not done a second time."""
    return _cut(host, BEFORE_THE_LOOK)


def _cut(host: Host, cut: Cut) -> bool:
    machine, away = host.machine, f"{cut.program}.away"
    machine.must("systemctl enable compliance-agent-run")
    known = {bundle["bundle_id"] for bundle in host.bundles()}
    (machine.root / f"{cut.program[1:]}.lab").write_text(
        f'#!/bin/sh\nreal={away}\n{cut.script}\nexec $real "$@"\n', "utf-8"
    )
    # Exchanged at once: the agent never finds the program missing.
    machine.must(f"chmod 755 {cut.program}.lab && cp -p {cut.program} {away} && mv {cut.program}.lab {cut.program}")
    machine.must(cut.fault)
    held = until(lambda: machine.run(AT_HELD).returncode == 0, WITHIN_S)
    left = machine.run(cut.left).returncode == 0
    machine.cut()
    begun = open_points(host)
    (machine.root / away[1:]).replace(machine.root / cut.program[1:])
    host.again()

    def said() -> Recorded:
        new = [one for one in host.bundles(cut.check) if one["bundle_id"] not in known and one["kind"] == "remediation"]
        return tuple((one["outcome"], one["error"], one["recovered"]) for one in new)

    until(lambda: said() == cut.recorded, WITHIN_S)
    until(lambda: len(said()) > len(cut.recorded), LOOKS_S)  # nothing is done twice
    truth = machine.run(cut.truth).returncode == 0
    found = {"held": held, "left": left, "begun": begun, "recorded": said(), "truth": truth, "open": open_points(host)}
    wanted = {"held": True, "left": True, "begun": 1, "recorded": cut.recorded, "truth": True, "open": 0}
    if found != wanted:
        raise NotSo(f"{found}")
    return True


def open_points(host: Host) -> int:
    """Rollback points that stand open, by a copy of the agent's own database."""
    with closing(sqlite3.connect(copied(host))) as connection:
        (count,) = connection.execute("SELECT count(*) FROM heal_point WHERE state = 'open'").fetchone()
    return int(count)


def copied(host: Host) -> Path:
    """A copy of the agent's database as it stands: to open the file itself would leave it changed."""
    for end in ("", "-wal"):
        there, here = (path / f"agent.db{end}" for path in (host.machine.root / STATE, host.machine.directory))
        here.unlink(missing_ok=True)
        if there.exists():
            shutil.copyfile(there, here)
    return host.machine.directory / "agent.db"
