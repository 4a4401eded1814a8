"""Which replica does what beside the requests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


@dataclass(frozen=True)
class Duty:
    """A piece of work that one replica does at a time.

    Attributes:
        holder: id of that replica.
        epoch: one more with each taking; a write that was begun under an older one is refused.
        until: when another may take it, by the database's clock.
    """

    name: str
    holder: str
    epoch: int
    until: datetime


class Tenure(NamedTuple):
    """A duty as somebody holds it: what a write of its holder carries."""

    name: str
    epoch: int


class Figures(NamedTuple):
    """What a replica says of itself, for whoever watches: whole seconds, logs, logs."""

    waiting_s: int = 0  # how long the oldest submission has waited to be verified and written
    still: int = 0  # reasons for which a log stands still there
    unanchored: int = 0  # logs that lack their witnesses or their time stamp


@dataclass(frozen=True)
class Replica:
    """A server process on this database, as it was heard last; gone after `until`."""

    replica_id: str
    until: datetime
    figures: Figures
