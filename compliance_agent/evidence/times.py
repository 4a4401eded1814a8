"""Between which two moments each record came to be, and what its own clock says against that.

Not before: the latest time that the tree holds whose root the record names as the last one it saw. Not after: the earliest time at
which a tree with its entry had been seen. Outside of that a record was dated wrongly, and that is a problem; a clock that was off,
or that was set back between two records, is only flagged, because honest hosts have such clocks too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.entries.interval import SECOND_US, Timeline
from compliance_agent.evidence.chains import Row, named
from compliance_agent.evidence.problems import FLAGS, Problem

TOLERANCE_US = 2 * SECOND_US  # what a clock may be off before it is flagged (EVIDENCE: |offset| > 2 s)
OFFSET_LIMIT_US = 2 * SECOND_US
FLAGS_KEPT = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def text_of(time_us: int | None) -> str | None:
    """A time as records spell it; None stays None."""
    return None if time_us is None else (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@dataclass
class Times:
    """The intervals of all records, counted; each one is kept only when that was asked for.

    Attributes:
        lines: what is proven of time, by the tag of the log.
        each: keep every interval.
        unknown: records by what nothing shows: `both`, `before`, `after` or `none`.
        widest: width and record of the widest interval with two ends.
        flags: how often each; the first of them in `flagged`.
    """

    lines: Mapping[bytes, Timeline]
    each: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    widest: tuple[int, str] | None = None
    flags: Counter[str] = field(default_factory=Counter)
    flagged: list[Problem] = field(default_factory=list)
    kept: list[tuple[str, int | None, int | None, int]] = field(default_factory=list)
    _chain: str = ""
    _created: int = 0
    _first: tuple[str, int, Row] | None = None

    def visit(
        self, key_id: str, epoch: int, row: Row, entry: tuple[bytes, int] | None, head_holds: bool
    ) -> Iterator[Problem]:
        """A record in the order of its chain; `entry` is its log and index, `head_holds` that the head it names is of its log."""
        line = self.lines.get(row.head_log)
        before = line.not_before(row.head_size) if line is not None and head_holds else None
        log, index = entry or (b"", None)
        line = self.lines.get(log)
        after = line.not_after(index) if line is not None and index is not None else None
        self._count(row, before, after)
        self._flag(key_id, epoch, row)
        if before is not None and after is not None and before > after:
            yield Problem(
                "times_contradict", row.bundle_id, f"not before {text_of(before)}, not after {text_of(after)}"
            )
        elif before is not None and row.created_us < before - TOLERANCE_US:
            said = f"says {text_of(row.created_us)}, and cannot be older than {text_of(before)}"
            yield Problem("backdated", row.bundle_id, said)
        elif after is not None and row.created_us > after + TOLERANCE_US:
            said = f"says {text_of(row.created_us)}, and was in the log by {text_of(after)}"
            yield Problem("postdated", row.bundle_id, said)

    def _count(self, row: Row, before: int | None, after: int | None) -> None:
        if self.each:
            self.kept.append((row.bundle_id, before, after, row.created_us))
        if before is None or after is None:
            self.counts["none" if before is after else "after_only" if before is None else "before_only"] += 1
            return
        self.counts["both"] += 1
        if self.widest is None or after - before > self.widest[0]:
            self.widest = (after - before, row.bundle_id)

    def _flag(self, key_id: str, epoch: int, row: Row) -> None:
        if self._first is None:
            self._first = (key_id, epoch, row)
        if self._chain == key_id and row.created_us < self._created:
            self._set_back(epoch, row)
        self._chain, self._created = key_id, row.created_us
        if row.offset_us is not None and abs(row.offset_us) > OFFSET_LIMIT_US:
            detail = f"its clock was {row.offset_us} us off, by its own measurement"
            self._add(Problem("clock_off", row.bundle_id, detail))

    def _set_back(self, epoch: int, row: Row) -> None:
        detail = f"{named((epoch, row.seq))} is dated before the record before it"
        self._add(Problem("clock_set_back", row.bundle_id, detail))

    def _add(self, flag: Problem) -> None:
        self.flags[flag.code] += 1
        if len(self.flagged) < FLAGS_KEPT:
            self.flagged.append(flag)

    def join(self, later: Times) -> None:
        """Take up what was counted apart of records that come after these."""
        if later._first is None:
            return
        key_id, epoch, row = later._first
        if self._chain == key_id and row.created_us < self._created:
            self._set_back(epoch, row)
        self.counts += later.counts
        self.flags += later.flags
        self.flagged = [*self.flagged, *later.flagged][:FLAGS_KEPT]
        self.kept += later.kept
        if later.widest is not None and (self.widest is None or later.widest[0] > self.widest[0]):
            self.widest = later.widest
        self._first = self._first or later._first
        self._chain, self._created = later._chain, later._created

    def as_document(self) -> dict[str, Any]:
        """Part of the JSON of `verify --json`."""
        found: dict[str, Any] = {
            "both": self.counts["both"],
            "not_before_only": self.counts["before_only"],
            "not_after_only": self.counts["after_only"],
            "unknown": self.counts["none"],
            "widest_us": None if self.widest is None else self.widest[0],
            "widest_bundle": None if self.widest is None else self.widest[1],
            "flags": [{"code": item.code, "where": item.where, "detail": item.detail} for item in self.flagged],
            "flag_counts": {code: self.flags[code] for code in FLAGS},
        }
        if self.each:
            found["records"] = [
                {
                    "bundle_id": bundle,
                    "not_before": text_of(before),
                    "not_after": text_of(after),
                    "created_at": text_of(at),
                }
                for bundle, before, after, at in self.kept
            ]
        return found
