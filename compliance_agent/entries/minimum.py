"""What a log says about entries that it no longer serves: `retention.json` beside its checkpoint. Pure.

Entries below the minimum index were destroyed because their time was over. Entry bundles wholly below it are served no more (C2SP
tlog-tiles, "Pruning"); all hash tiles are, so that the tree, every proof and every receipt stay checkable. The file is a statement
of the server and not signed: what it may say is limited, so that it cannot excuse entries that must still be there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from compliance_agent.core.retention import RULE, kept_until
from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.log.tiles import ENTRIES, FULL, Tile

NAME = "retention.json"
SCHEMA = "compliance-agent/log-retention/v1"
MAX_BYTES = 4_096
CLOCKS = timedelta(days=2)  # a server's may be ahead of ours
_FIELDS: Mapping[str, type] = {"minimum_index": int, "origin": str, "policy": str, "pruned_at": str, "schema": str}


@dataclass(frozen=True)
class Pruned:
    """The minimum index of a log, and when it got there."""

    origin: str
    minimum: int
    pruned_at: datetime

    @property
    def first_served(self) -> int:
        """The first entry that is in a file still: bundles of 256 go as a whole."""
        return self.minimum // FULL * FULL

    def covers(self, tile: Tile) -> bool:
        """Whether this is an entry bundle that is served no more."""
        return tile.level == ENTRIES and tile.index < self.minimum // FULL

    def encode(self) -> bytes:
        """The file."""
        at = self.pruned_at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        said = {
            "minimum_index": self.minimum,
            "origin": self.origin,
            "policy": RULE,
            "pruned_at": at,
            "schema": SCHEMA,
        }
        return json.dumps(said, sort_keys=True, indent=1).encode("ascii") + b"\n"

    @classmethod
    def parse(cls, raw: bytes) -> Pruned:
        """The statement; code `bad_retention` when it is none, or when it says that a log was pruned before its time."""
        try:
            said = read_json(raw, limit_bytes=MAX_BYTES)
            if not isinstance(said, dict) or said.keys() != _FIELDS.keys() or said["schema"] != SCHEMA:
                raise BadEvidence("is not a statement of this form", code="bad_retention")
            if any(type(said[name]) is not kind for name, kind in _FIELDS.items()):
                raise BadEvidence("has a field of another type", code="bad_retention")
            found = cls(said["origin"], said["minimum_index"], datetime.fromisoformat(said["pruned_at"]))
            year = int(found.origin.rpartition("/")[2])
            early = found.pruned_at.astimezone(UTC).date() <= kept_until(date(year, 1, 1))
        except (DocumentError, ValueError, OverflowError) as error:
            raise BadEvidence(f"{NAME}: {error}", code="bad_retention") from error
        except BadEvidence as error:
            raise BadEvidence(f"{NAME}: {error}", code="bad_retention") from error
        if found.minimum < 0 or early:
            raise BadEvidence(f"{NAME}: entries of {year} were not old enough", code="bad_retention")
        return found

    def of(self, origin: str, size: int, now: datetime | None = None) -> Pruned:
        """This, when it is about that log, no larger than it, and of no time after `now`; code `bad_retention`."""
        if self.origin != origin or self.minimum > size:
            raise BadEvidence(f"{NAME}: is of another log", code="bad_retention")
        if now is not None and self.pruned_at > now + CLOCKS:
            raise BadEvidence(f"{NAME}: says {self.pruned_at:%Y-%m-%d}, a day that is to come", code="bad_retention")
        return self
