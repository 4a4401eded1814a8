"""Exceptions that people recorded at the server: words of closed lists and ids, an approver, and an end."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class RecordedException:
    """One exception.

    Attributes:
        key_id: of the one host that it is about; None is every host of the site.
        reason, measure: why it is accepted, and what is done instead (words of `services.exceptions`).
        reference: of the document, in the provider's own books, that says both in full.
        approver, approver_id: who recorded it, by name and by id.
        withdrawn_at, withdrawn_by: when it ended early, and by whom.
        people: how many had to approve it, by the rule of its site when it was recorded.
        seconded_at, seconded_by, seconded_by_id: when another person approved it, and who.
    """

    exception_id: str
    site_id: str
    key_id: str | None
    check: str
    reason: str
    measure: str
    reference: str
    approver: str
    approver_id: str
    created_at: datetime
    expires_at: datetime
    withdrawn_at: datetime | None = None
    withdrawn_by: str | None = None
    people: int = 1
    seconded_at: datetime | None = None
    seconded_by: str | None = None
    seconded_by_id: str | None = None

    @property
    def since(self) -> datetime | None:
        """From when it counts; None while a second person has not approved it."""
        return self.created_at if self.people == 1 else self.seconded_at

    def open(self, now: datetime) -> bool:
        """Whether it has not ended: it counts, or waits for a second person."""
        return self.withdrawn_at is None and self.created_at <= now < self.expires_at

    def stands(self, now: datetime) -> bool:
        """Whether it counts at this time."""
        return self.open(now) and self.since is not None and self.since <= now

    def state(self, now: datetime) -> str:
        """`waiting` (for a second person), `stands`, `withdrawn` or `expired`."""
        if self.withdrawn_at is not None:
            return "withdrawn"
        if not self.open(now):
            return "expired"
        return "stands" if self.stands(now) else "waiting"

    def about(self, key_id: str, check: str) -> bool:
        """Whether it is about this check of this host; the caller has the host's site."""
        return self.check == check and self.key_id in {None, key_id}
