"""The rows of the virtual host in a run of the lab: its disks made, the agent installed, every fault done, evidence verified."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from compliance_agent.lab.real.judge import Judged
from compliance_agent.lab.real.network import Network
from compliance_agent.lab.real.report import Progress
from compliance_agent.lab.real.row import Table
from compliance_agent.lab.vm.disk import Loss
from compliance_agent.lab.vm.host import VirtualHost
from compliance_agent.lab.vm.image import Image
from compliance_agent.lab.vm.place import DATA_MB, SWAP_MB, agent_disk, blank
from compliance_agent.lab.vm.row import Cut
from compliance_agent.lab.vm.virtual import Virtual


def lines(tables: Sequence[Table]) -> int:
    """How many lines of the table they give; a cure that is cut off may give two."""
    return sum(1 + (isinstance(row, Cut) and row.then is not None) for table in tables for row in table.rows)


def prepared(made: Image, agent: Path, scratch: Path) -> Virtual:
    """A machine that can be switched on, with what the layer of the agent holds."""
    disks = {
        "agent": (agent_disk(agent, scratch), True),
        "data": (blank(scratch / "data.img", DATA_MB), False),
        "swap": (blank(scratch / "swap.img", SWAP_MB), False),
    }
    virtual = Virtual("clinic-vm", made, disks, scratch)
    virtual.prepare()
    return virtual


def done(
    virtual: Virtual, tables: Sequence[Table], network: Network, progress: Progress, logs: Path
) -> tuple[list[Judged], dict[str, Any]]:
    """Every row of these tables, judged, and the host's evidence."""
    host = VirtualHost(virtual, network, progress.say)
    progress.begin(host.name, "boots")
    host.start()
    judged: list[Judged] = []
    for table in tables:
        host.turn_to(table)
        for row in table.rows:
            progress.begin(host.name, row.name)
            begun = datetime.now(UTC)
            for line in host.do(table, row):
                progress.end(host.name, line)
                judged.append(line)
                if line.differences:
                    logs.mkdir(parents=True, exist_ok=True)
                    kept = logs / f"vm-{line.row.check}-{line.row.fault}.log"
                    kept.write_text(host.trail(line.row, begun), "utf-8")
                    progress.say(f"{line.row.name}: records and journal in {kept}")
    try:
        return judged, forgetful(virtual.losses, host.verified(), progress)
    finally:
        virtual.cut()


def forgetful(losses: Sequence[Loss], told: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """The host's evidence, if its disk lost something when the power was cut: else no cut has shown anything."""
    pending, lost = sum(loss.pending for loss in losses), sum(loss.lost for loss in losses)
    progress.say(
        f"{told['host']}: {len(losses)} power cuts; of {pending} writes that the disk was not yet told to keep, {lost} lost or torn"
    )
    if not losses or lost:
        return told
    return {**told, "ok": False, "problems": [*told["problems"], "no power cut lost a write"]}
