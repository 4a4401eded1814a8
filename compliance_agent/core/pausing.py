"""A pause that a person at the host asked for: heal nothing for a while, for a reason of a closed list, and go on by itself.

Looking, recording and delivering go on all the time. A pause by signed order is another one, and ends by signed order.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from compliance_agent.core.gates import Moment
from compliance_agent.dataclass import dataclass

REASONS = {
    "maintenance": "planned work on this host",
    "incident": "something is being looked into, and must stay as it is",
    "patient_care": "the host must not be disturbed while it is needed at the patient",
    "vendor_work": "a vendor is working on what runs here",
    "testing": "a change is being tried out",
}
DEFAULT_S, LONGEST_S = 4 * 3_600, 72 * 3_600


@dataclass(frozen=True)
class Pause:
    """One pause.

    Attributes:
        reason: key of REASONS.
        uid: the local user who asked for it, as the kernel says.
        since: when.
        seconds: how long it lasts.
    """

    reason: str
    uid: int
    since: Moment
    seconds: int

    def left_s(self, now: Moment) -> float:
        """Seconds until it ends by itself; 0 when it is over."""
        return max(0.0, self.seconds - self.since.age_s(now))

    @property
    def until(self) -> datetime:
        """When it ends, by the wall clock of when it was asked for."""
        return self.since.wall + timedelta(seconds=self.seconds)
