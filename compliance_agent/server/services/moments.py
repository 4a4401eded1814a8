"""Between which two moments a record came to be, by what others said of its log; read from the files as they are served.

Not before: the newest time that the log held when the record named its head. Not after: the earliest time at which somebody had
signed a tree with the record's entry. Somebody is a witness of the policy, or the time-stamping authority that is configured
(RFC 3161). Looked for in the entries that stand next to the record's, so a bound may be wider here than the one that a packet's
verifier finds in the whole log, and never narrower; where the search ends before the log does, the bound says so.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from compliance_agent.entries.interval import SECOND_US, Timeline
from compliance_agent.errors import AgentError, BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64, to_base64
from compliance_agent.log.merkle import HASH_BYTES, RootHash, verify_consistency
from compliance_agent.log.tiles import FULL
from compliance_agent.log.tree import TileReader, TileTree

NEAR = 64  # tiles of entries that are looked through, on either side
NEAR_REMOTE = 8  # the same where each waits for a network
TOLERANCE = timedelta(seconds=2)  # what a clock may be off
Entries = Callable[[int], list[bytes]]  # of one tile of entries, by its number
Seen = Callable[[bytes], tuple[Checkpoint, list[datetime]]]  # a checkpoint of this log and when witnesses signed it
Stamped = Callable[[bytes, bytes], datetime]  # a token over a note: its time; AgentError where it does not verify
Head = tuple[int, bytes]  # size and root of the tree that a record names


class Time(NamedTuple):
    """An entry that holds times: its place and bytes, the note in it, the entries under that note, and the times (us)."""

    place: int
    leaf: bytes
    note: bytes
    size: int
    times: tuple[int, ...]


@dataclass(frozen=True)
class Bound:
    """One end of an interval.

    Attributes:
        at: None where nothing shows it.
        why: code of why it is not there, or may be wider than it need be; empty when neither.
        entry: the entry that holds it; None when the served checkpoint does.
        stamps: time stamps that verified; unchecked: those that nothing here verifies.
        refused: entries of kind `time` that were met and do not hold.
        looked: entries that were looked through.
    """

    at: datetime | None = None
    why: str = ""
    entry: Time | None = None
    stamps: int = 0
    unchecked: int = 0
    refused: int = 0
    looked: int = 0


@dataclass(frozen=True)
class Interval:
    """The two ends, and what the record says itself."""

    before: Bound = Bound()
    after: Bound = Bound()
    claimed: datetime | None = None

    @property
    def not_before(self) -> datetime | None:
        """Where it begins."""
        return self.before.at

    @property
    def not_after(self) -> datetime | None:
        """Where it ends."""
        return self.after.at

    @property
    def width(self) -> timedelta | None:
        """How far apart they are."""
        return self.not_after - self.not_before if self.not_before and self.not_after else None

    @property
    def refused(self) -> int:
        """Entries that were met and do not hold."""
        return self.before.refused + self.after.refused

    @property
    def outside(self) -> bool:
        """Whether the record was dated wrongly."""
        if self.claimed is None:
            return False
        early = self.not_before is not None and self.claimed < self.not_before - TOLERANCE
        return early or (self.not_after is not None and self.claimed > self.not_after + TOLERANCE)


@dataclass
class _Look:
    """What was met on the way."""

    why: str = "no_time"
    stamps: int = 0
    unchecked: int = 0
    refused: int = 0
    looked: int = 0

    def bound(self, at: int | None, entry: Time | None, *, why: str = "") -> Bound:
        return Bound(_moment(at), why, entry, self.stamps, self.unchecked, self.refused, self.looked)


@dataclass(frozen=True)
class Moments:
    """What a served log shows of time.

    Attributes:
        tree: as its tiles show it.
        root: as its checkpoint says.
        read: reads a tile of hashes.
        entries: reads a tile of entries.
        seen: verifies a checkpoint; BadEvidence for one that is not of this log.
        stamped: verifies a time stamp; None where no authority is configured.
        near: tiles that are looked through, on either side.
    """

    tree: TileTree
    root: bytes
    read: TileReader
    entries: Entries
    seen: Seen
    stamped: Stamped | None = None
    near: int = NEAR

    def before(self, document: Mapping[str, Any]) -> Bound:
        """The lower end for this record, if the head that it names is of this log."""
        head = head_of(document)
        if head is None:
            return Bound(why="no_head")
        try:
            if not self.holds(*head):
                return Bound(why="other_head")
        except AgentError:
            return Bound(why="unreadable")
        look = _Look()
        found = next(self._times(range(head[0] - 1, -1, -1), look), None)
        if found is None:
            return look.bound(None, None, why=look.why)
        return look.bound(Timeline([(found.place, max(found.times))]).not_before(head[0]), found)

    def after(self, index: int, served: Iterable[datetime]) -> Bound:
        """The upper end for the record with this entry; `served` is when the checkpoint that is served was signed."""
        look = _Look()
        entry = next((one for one in self._times(range(index + 1, self.tree.size), look) if one.size > index), None)
        shown = [(entry.size, time) for time in entry.times] if entry is not None else []
        line = Timeline(shown=[*shown, *((self.tree.size, _micros(at)) for at in served)])
        at = line.not_after(index)
        return look.bound(at, entry, why="" if entry is not None or (at and look.why == "no_time") else look.why)

    def proof(self, index: int, document: Mapping[str, Any], earlier: Moments) -> bytes:
        """What a visitor's browser checks both ends with (docs/protocol.md, `times.json`): by witnesses, else by time stamps.

        Args:
            index: of the record's entry in this log.
            earlier: the log whose head the record names.
        """
        head, before = head_of(document), earlier._for_browser(lambda log: log.before(document))
        after = self._for_browser(lambda log: log.after(index, ()))
        said: dict[str, Any] = {"v": 1, "before": None, "after": None}
        if before.entry is not None and head is not None:
            tree = TileTree(head[0], earlier.narrower)
            path = tree.inclusion(before.entry.place)
            said["before"] = {**_path(path), "index": before.entry.place, "leaf": to_base64(before.entry.leaf)}
        if after.entry is not None:
            path = TileTree(after.entry.size, self.narrower).inclusion(index)
            tokens = json.loads(after.entry.leaf)["tokens"]
            said["after"] = {**_path(path), "checkpoint": to_base64(after.entry.note), "tokens": tokens}
        ends = (("before", before), ("after", after))
        why = {name: "stamps_only" if one.unchecked and one.entry is None else one.why for name, one in ends}
        return json.dumps({**said, "why": why}, sort_keys=True, separators=(",", ":")).encode("ascii")

    def _for_browser(self, look: Callable[[Moments], Bound]) -> Bound:
        """A witness's word first: a visitor may know the witnesses and no authority."""
        found = look(replace(self, stamped=None))
        return found if found.entry is not None or self.stamped is None else look(self)

    def narrower(self, level: int, index: int, width: int) -> bytes:
        """A tile of a smaller tree, from the one that is there now, which it begins."""
        there = min(FULL, (self.tree.size >> 8 * level) - index * FULL)
        return self.read(level, index, there)[: width * HASH_BYTES]

    def holds(self, size: int, root: bytes) -> bool:
        """Whether the tree that is served begins with this one; AgentError when its tiles cannot be read."""
        try:
            path = self.tree.consistency(size)
            verify_consistency(size, self.tree.size, path, RootHash(root), RootHash(self.root))
        except BadEvidence as error:
            if error.code == "bad_tile":
                raise
            return False
        return True

    def _times(self, indexes: range, look: _Look) -> Iterator[Time]:
        """The entries that hold times, in this order, as far as is looked; `look` says why it ended."""
        tiles: dict[int, list[bytes]] = {}
        for index in indexes:
            number, at = divmod(index, FULL)
            if number not in tiles and len(tiles) == self.near:
                look.why = "stopped"
                return
            try:
                if number not in tiles:
                    tiles[number] = self.entries(number)
                leaf = tiles[number][at] if at < len(tiles[number]) else b""
                found = self._time(index, leaf, look) if b'"kind":"time"' in leaf else None
            except AgentError as error:
                look.why = "pruned" if error.code == "pruned" else "unreadable"
                return
            look.looked += 1
            if found is not None and found.times:
                yield found

    def _time(self, index: int, leaf: bytes, look: _Look) -> Time | None:
        try:
            said = json.loads(leaf)
            note = from_base64(str(said["checkpoint"]), "checkpoint", "bad_entry")
            tokens = [from_base64(str(one), "token", "bad_entry") for one in said["tokens"]]
            checkpoint, times = self.seen(note)
        except (BadEvidence, ValueError, KeyError, TypeError):
            look.refused += 1
            return None
        if checkpoint.size > index or not self.holds(checkpoint.size, checkpoint.root):
            look.refused += 1
            return None
        times = [*times, *self._stamped(tokens, note, look)]
        return Time(index, leaf, note, checkpoint.size, tuple(map(_micros, times)))

    def _stamped(self, tokens: Iterable[bytes], note: bytes, look: _Look) -> Iterator[datetime]:
        for token in tokens:
            try:
                if self.stamped is None:
                    raise BadEvidence("no authority is configured", code="no_authority")
                at = self.stamped(token, note)
            except AgentError:  # of an authority that was configured before, perhaps
                look.unchecked += 1
            else:
                look.stamps += 1
                yield at


def interval(document: Mapping[str, Any], before: Bound, after: Bound) -> Interval:
    """The interval of this record between two ends."""
    return Interval(before, after, _claimed(document))


def head_of(document: Mapping[str, Any]) -> Head | None:
    """Size and root of the tree that a record names."""
    head = document.get("log_head")
    try:
        return (int(head["size"]), bytes.fromhex(head["root"])) if isinstance(head, dict) else None
    except (ValueError, KeyError, TypeError):
        return None


def _path(path: Iterable[bytes]) -> dict[str, list[str]]:
    return {"path": [to_base64(one) for one in path]}


def _claimed(document: Mapping[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(document.get("created_at"))).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


def _micros(at: datetime) -> int:
    return int(at.timestamp()) * SECOND_US


def _moment(micros: int | None) -> datetime | None:
    return None if micros is None else datetime.fromtimestamp(micros / SECOND_US, UTC)
