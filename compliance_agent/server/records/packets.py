"""Packets that people asked for: what of, how far they are, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from compliance_agent.server.records.people import Dates

OPEN = ("waiting", "running")


@dataclass(frozen=True)
class PacketJob:
    """A packet while it is built, and for a while after.

    Attributes:
        person_id: who asked, and alone sees it.
        days: the period.
        dates: the days that the person may see; None is all.
        control, host: the only ones, where they were asked for.
        state: waiting, running, done, failed, cancelled or gone.
        stage: what is being done; `at` of `total` of it.
        holder, until: the replica that builds it, and until when it is believed to.
        tries: how often one began.
        code: why it failed.
        here: the replica whose data directory has the files; None where every replica finds them in the database.
        records, problems: in the packet, and what its own verifier names.
        sample: of one that is a sample, the canonical JSON of how it is drawn (`packet.sampling.Drawing`).
        size, sha256, report_size, report_sha256: of the two files; no report where its size is 0.
    """

    job_id: str
    site_id: str
    person_id: str
    days: Dates
    asked_at: datetime
    dates: Dates | None = None
    control: str | None = None
    host: str | None = None
    state: str = "waiting"
    stage: str = ""
    at: int = 0
    total: int = 0
    holder: str | None = None
    until: datetime | None = None
    tries: int = 0
    code: str = ""
    ended_at: datetime | None = None
    records: int = 0
    problems: int = 0
    size: int = 0
    sha256: str = ""
    report_size: int = 0
    report_sha256: str = ""
    sample: str | None = None

    @property
    def open(self) -> bool:
        """Whether it still goes on."""
        return self.state in OPEN
