"""Between which two moments a record came to be, by what witnesses said of its log; read from the files as they are served.

Not before: the newest time that the log held when the record named its head. Not after: the earliest time at which a witness had
signed a tree with the record's entry. Looked for in the entries that stand next to it, so a bound may be wider here than the one
that a packet's verifier finds in the whole log, and never narrower. Time stamps (RFC 3161) are left to that verifier.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.entries.interval import SECOND_US, Timeline
from compliance_agent.errors import AgentError, BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.merkle import RootHash, verify_consistency
from compliance_agent.log.tiles import FULL
from compliance_agent.log.tree import TileTree

NEAR = 4  # tiles of entries that are looked through, on either side
TOLERANCE = timedelta(seconds=2)  # what a clock may be off
Entries = Callable[[int], list[bytes]]  # of one tile of entries, by its number
Seen = Callable[[bytes], tuple[Checkpoint, list[datetime]]]  # a checkpoint of this log and when witnesses signed it


@dataclass(frozen=True)
class Interval:
    """The two moments, None where nothing shows one, and what the record says itself."""

    not_before: datetime | None = None
    not_after: datetime | None = None
    claimed: datetime | None = None

    @property
    def width(self) -> timedelta | None:
        """How far apart they are."""
        return self.not_after - self.not_before if self.not_before and self.not_after else None

    @property
    def outside(self) -> bool:
        """Whether the record was dated wrongly."""
        if self.claimed is None:
            return False
        early = self.not_before is not None and self.claimed < self.not_before - TOLERANCE
        return early or (self.not_after is not None and self.claimed > self.not_after + TOLERANCE)


@dataclass(frozen=True)
class Moments:
    """What a served log shows of time.

    Attributes:
        tree: as its tiles show it.
        root: as its checkpoint says.
        entries: reads a tile of entries.
        seen: verifies a checkpoint; BadEvidence for one that is not of this log.
    """

    tree: TileTree
    root: bytes
    entries: Entries
    seen: Seen

    def interval(self, index: int, document: Mapping[str, Any], served: Iterable[datetime]) -> Interval:
        """Of the record whose entry has this index; `served` is when witnesses signed the checkpoint that is served."""
        said, shown = list[tuple[int, int]](), [(self.tree.size, _micros(at)) for at in served]
        head = _head(document)
        if head is not None and self._holds(*head):
            said += [(at, max(times)) for at, _, times in self._times(range(head[0] - 1, -1, -1))][:1]
        for _, size, times in self._times(range(index + 1, self.tree.size)):
            if size > index:
                shown += [(size, time) for time in times]
                break
        line = Timeline(said, shown)
        before = line.not_before(head[0]) if head is not None else None
        return Interval(_moment(before), _moment(line.not_after(index)), _claimed(document))

    def _holds(self, size: int, root: bytes) -> bool:
        """Whether the tree that is served begins with this one."""
        try:
            path = self.tree.consistency(size)
            verify_consistency(size, self.tree.size, path, RootHash(root), RootHash(self.root))
        except AgentError:
            return False
        return True

    def _times(self, indexes: range) -> Iterator[tuple[int, int, list[int]]]:
        """(index, size, times) of the entries that hold times, in this order, as far as is looked."""
        tiles: dict[int, list[bytes]] = {}
        for index in indexes:
            number, at = divmod(index, FULL)
            if number not in tiles:
                if len(tiles) == NEAR:
                    return
                try:
                    tiles[number] = self.entries(number)
                except AgentError:
                    return
            leaf = tiles[number][at] if at < len(tiles[number]) else b""
            found = self._time(index, leaf) if b'"kind":"time"' in leaf else None
            if found is not None:
                yield index, *found

    def _time(self, index: int, leaf: bytes) -> tuple[int, list[int]] | None:
        try:
            checkpoint, times = self.seen(from_base64(str(json.loads(leaf)["checkpoint"]), "checkpoint", "bad_entry"))
        except (BadEvidence, ValueError, KeyError, TypeError):
            return None
        if not times or checkpoint.size > index or not self._holds(checkpoint.size, checkpoint.root):
            return None
        return checkpoint.size, [_micros(at) for at in times]


def _head(document: Mapping[str, Any]) -> tuple[int, bytes] | None:
    """Size and root of the tree that a record names."""
    head = document.get("log_head")
    try:
        return (int(head["size"]), bytes.fromhex(head["root"])) if isinstance(head, dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _claimed(document: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(document.get("created_at"))).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * SECOND_US


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros / SECOND_US, UTC)
