"""How long records are kept: what a backup holds, holds, and what was destroyed when its time was over."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True)
class Durable:
    """How much of a log a verified backup holds: entries below `size`, each with its record."""

    site_id: str
    year: int
    origin: str
    size: int


@dataclass(frozen=True)
class Hold:
    """Nothing of this site, or of its hosts with this label, is destroyed while it stands; `reason_id` names the matter."""

    site_id: str
    host_id: str | None
    reason_id: str
    added_at: datetime
    released_at: datetime | None = None


@dataclass(frozen=True)
class Minimum:
    """The first entry of a log that is kept, and when everything below it was destroyed."""

    index: int
    pruned_at: datetime


@dataclass(frozen=True)
class LoggedRecord:
    """An entry of a log with what must be known to decide how long it is kept.

    Attributes:
        host_id: the label of its key's host; None for an entry of no host.
        kind: `bundle`, `fork`, or `entry` for one without a record here.
        number: of the record's row in its table; None without one.
        body: the record's bytes, empty when they were destroyed; None without a record.
        created_at: as the record says; received_at: of the record, or when its entry was decided.
    """

    index: int
    host_id: str | None
    kind: str
    number: int | None
    body: bytes | None
    created_at: str
    received_at: datetime
