"""What people promoted to a rule of the planner, and how often a cure has worked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class Worked(NamedTuple):
    """How the cures of one finding have ended at a site, as its hosts' records say.

    Attributes:
        ordered: orders to cure that check which people approved and signed, and which the host says succeeded.
        applied: cures that were begun.
        passed: of these, the check passed when it was looked at again.
        undone: of these, what was done was taken back.
    """

    ordered: int = 0
    applied: int = 0
    passed: int = 0
    undone: int = 0


@dataclass(frozen=True)
class PlanRule:
    """A rule of one site, about one finding.

    Attributes:
        runbook, runbook_sha256: the cure that was promoted; another text of it is another cure.
        ordered, applied, passed, undone: as `Worked` was when somebody promoted it.
    """

    site_id: str
    check: str
    reason: str
    runbook: str
    runbook_sha256: str
    ordered: int
    applied: int
    passed: int
    undone: int
    promoted_by: str
    promoted_at: datetime
