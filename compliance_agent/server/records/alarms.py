"""Alerts: something began or ended that a person should know of. Ids, words and counts only, never a text from a host."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

KINDS = {
    "fork": "a host's records contradict each other",
    "log_still": "a log stands still",
    "unsequenced": "records wait for their place in the log",
    "unanchored": "checkpoints lack their witnesses or their time stamp",
    "unverified": "evidence waits to be verified",
    "silent_hosts": "hosts are silent",
    "test": "a test, nothing is wrong",
}
BY_HAND = frozenset({"fork", "test"})  # what does not end by itself: acknowledging it ends it
CRITICAL = frozenset({"fork", "log_still"})


@dataclass(frozen=True)
class Cause:
    """What an alert is about: while one of a cause is open, no other is.

    Attributes:
        kind: of KINDS.
        site_id: the clinic, None for the whole server.
        key_id: the host's key, None for more than one host.
    """

    kind: str
    site_id: str | None = None
    key_id: str | None = None

    @property
    def id(self) -> str:
        """One line that names it."""
        return "/".join((self.kind, self.site_id or "", self.key_id or ""))


@dataclass(frozen=True)
class Alert:
    """One alert: from when to when, and who has seen it.

    Attributes:
        alert_id: random; the same in everything that is sent of it.
        count: how many it is about, where that is a number: hosts, records, seconds.
    """

    alert_id: str
    cause: Cause
    count: int
    opened_at: datetime
    closed_at: datetime | None = None
    acked_at: datetime | None = None
    acked_by: str | None = None


@dataclass(frozen=True)
class Delivery:
    """One thing to send through one channel. Its id stays the same however often it is tried.

    Attributes:
        number: order of decision.
        transition: `open` or `close`.
    """

    number: int
    channel: str
    transition: str
    alert: Alert
    tries: int = 0

    @property
    def id(self) -> str:
        """By which a receiver knows what it has had already."""
        return f"{self.alert.alert_id}-{self.transition}"
