"""What the packet of a large site costs: 100 hosts and a month, built and verified by the command as a person runs it.

The records are those of `viewer_seed`: an hourly heartbeat with every check, and one change a day.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from compliance_agent.errors import Unavailable
from compliance_agent.lab.bench_verify import Ran, run
from compliance_agent.lab.viewer_seed import DAYS, END, Size, made

MONTH = Size(sites=1, hosts=100, bundles=75_000, cycle=125)
MOST_S = 30.0


def reported(packet: Path) -> tuple[Ran, Path]:
    """The report of it on paper, by `packet report`, which verifies it first.

    Raises:
        Unavailable: the command did not end as it should.
    """
    out = packet.with_suffix(".pdf")
    ran = run("packet", "report", str(packet), "--out", str(out), "--json")
    if ran.status:
        raise Unavailable(f"bench: packet report ends in {ran.status}: {ran.said[-500:]}")
    return ran, out


def built(directory: Path, size: Size = MONTH) -> tuple[Ran, Path]:
    """The packet of the whole site, by `packet build`, which verifies it; the records are kept for the next run.

    Raises:
        Unavailable: the command did not end as it should.
    """
    asyncio.run(made(directory / "server", size))
    out = directory / "packet.zip"
    first, last = ((END - timedelta(days=DAYS)).date(), END.date())
    words = ("--data-dir", str(directory / "server"), "--site", "clinic-00", "--from", str(first), "--to", str(last))
    ran = run("packet", "build", *words, "--out", str(out), "--json")
    if ran.status:
        raise Unavailable(f"bench: packet build ends in {ran.status}: {ran.said[-500:]}")
    return ran, out
