"""A log by its own files: its tree made again from its entries, every tile held against it, and what the entries say. Pure.

    book = Book.read(checkpoint, read_tile, tags)

Nothing is believed because a tile says so. Each key's entries are followed as they come (`seq` without a hole, `prev` the digest of
the one before, between enrolment and revocation); of each entry some 120 bytes stay.
"""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from compliance_agent.documents import read_json
from compliance_agent.entries import act
from compliance_agent.entries.minimum import Pruned
from compliance_agent.entries.rotation import read_leaf
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.allowlist import NO_PREV, instant
from compliance_agent.evidence.chains import Tagger, named
from compliance_agent.evidence.forest import Forest
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.tiles import ENTRIES, TILE_BYTES, Tile, decode_entries, written

ReadTile = Callable[[Tile], bytes]
_PLACE = {"key": str, "epoch": int, "seq": int}
_FIELDS: dict[str, dict[str, type]] = {
    "bundle": {**_PLACE, "prev": str, "bundle_sha256": str},
    "fork": _PLACE,
    "key": {"key": str, "event": str, "at": str},
    "shard": {"origin": str},
    "time": {"checkpoint": str, "tokens": list},
}
_BUNDLE = re.compile(
    rb'\{"bundle_sha256":"([0-9a-f]{64})","epoch":(0|[1-9][0-9]{0,14}),"key":"([0-9a-f]{64})","kind":"bundle",'
    rb'"prev":"([0-9a-f]{64})","seq":([1-9][0-9]{0,14}),"sig":"[A-Za-z0-9+/]{86}==","v":1\}'
)


class Leaf(NamedTuple):
    """What the log says of a record: its digest, its place, and the digest of the one before."""

    digest: str
    epoch: int
    prev: str
    seq: int


@dataclass
class Epoch:
    """The records of one key and epoch that the log has: numbers, tags of their digests, indexes; in the log's order."""

    seqs: array[int] = field(default_factory=lambda: array("q"))
    digests: bytearray = field(default_factory=bytearray)
    indexes: array[int] = field(default_factory=lambda: array("q"))

    def find(self, seq: int) -> tuple[int, bytes] | None:
        """Index and tag of the record of this number."""
        at = bisect_left(self.seqs, seq)
        if at == len(self.seqs) or self.seqs[at] != seq:
            return None
        return self.indexes[at], bytes(self.digests[16 * at : 16 * at + 16])


@dataclass
class KeyLine:
    """All that the log says of one key.

    Attributes:
        events: (index, event, time) of its enrolment, rotation and revocation; a key that took another's place is enrolled by that.
        after: place and digest of the record that its first one follows, where it took another key's place.
        until: place and digest of its last record, as the rotation to another key names it.
        first: index of its first record; last: of its last.
        problems: code and detail.
    """

    epochs: dict[int, Epoch] = field(default_factory=dict)
    events: list[tuple[int, str, str]] = field(default_factory=list)
    first: int = -1
    last: int = -1
    problems: list[tuple[str, str]] = field(default_factory=list)
    after: tuple[tuple[int, int], str] | None = None
    until: tuple[tuple[int, int], str] | None = None
    _place: tuple[int, int] = (0, 0)
    _digest: str = ""

    def follow(self, index: int, leaf: Leaf, tag: bytes, begins: bool) -> None:
        """Its next record."""
        digest, epoch, prev, seq = leaf
        place = (epoch, seq)
        if self.first < 0:
            self.first = index
            if self.after is not None:
                if epoch <= self.after[0][0] or seq != 1 or prev != self.after[1]:
                    self.problems.append(
                        ("broken_link", f"{named(place)} does not follow the key that it took the place of")
                    )
            elif begins and (seq != 1 or prev != NO_PREV):
                self.problems.append(("missing_start", f"the log begins with {named(place)}"))
        else:
            before = self._place
            follows = seq == (before[1] + 1 if epoch == before[0] else 1)
            if epoch < before[0] or not follows:
                self.problems.append(("missing", f"log entry {index}: {named(place)} after {named(before)}"))
            elif prev != self._digest:
                text = f"log entry {index}: {named(place)} does not name the record before it"
                self.problems.append(("broken_link", text))
        self.last, self._place, self._digest = index, place, digest
        records = self.epochs.get(epoch)
        if records is None:
            records = self.epochs[epoch] = Epoch()
        records.seqs.append(seq)
        records.digests += tag
        records.indexes.append(index)

    def event(self, name: str) -> tuple[int, str] | None:
        """Index and time of the first such event."""
        return next(((index, at) for index, event, at in self.events if event == name), None)

    @property
    def ended(self) -> tuple[int, str] | None:
        """Index and time of the first event that ended it; a later one opens no time in between."""
        return min(filter(None, (self.event("rotate"), self.event("revoke"))), default=None)

    @property
    def indexes(self) -> list[int]:
        """Of all its records, in the log's order."""
        return sorted(index for epoch in self.epochs.values() for index in epoch.indexes)

    @property
    def valid(self) -> bool:
        """Whether every record stands between the key's enrolment and its revocation or rotation."""
        enrolled, ended = self.event("enrol"), self.ended
        if self.first < 0:
            return True
        return not (enrolled and self.first < enrolled[0]) and not (ended and self.last > ended[0])

    def rotate(self, index: int, at: str, last: tuple[tuple[int, int], str], new: KeyLine) -> None:
        """Another key takes this one's place after its last record."""
        if self.ended or new.events or new.first >= 0:
            self.problems.append(
                ("key_not_valid", f"log entry {index}: a rotation from or to a key that had its end or its start")
            )
            return
        if self.first >= 0 and (self._place, self._digest) != last:
            self.problems.append(
                ("missing", f"log entry {index}: the rotation names {named(last[0])} as the last record")
            )
        self.until, new.after = last, last
        self.events.append((index, "rotate", at))
        new.events.append((index, "enrol", at))


@dataclass
class Book:
    """A log that was read; `whole` means that the entries make the tree which the checkpoint signs.

    Attributes:
        first: the first entry that was read; those before it were destroyed, and their hashes alone are known.
        previous: the last checkpoint of the year before as the first entry binds it (base64), None when there is none.
        times: (index, entry) of each entry of kind `time`.
        acts: of each act about an exception.
        problems: what is wrong with files and entries; what is wrong with one key is with the key.
    """

    checkpoint: Checkpoint
    forest: Forest
    whole: bool
    first: int = 0
    keys: dict[str, KeyLine] = field(default_factory=dict)
    previous: str | None = None
    times: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    acts: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @classmethod
    def read(
        cls,
        checkpoint: Checkpoint,
        tile: ReadTile,
        tags: Tagger,
        *,
        path: Callable[[Tile], str] = lambda tile: tile.path,
        progress: Callable[[int], None] | None = None,
        pruned: Pruned | None = None,
    ) -> Book:
        """Read every entry and tile of the tree of this checkpoint, whose signature is for the caller.

        Args:
            checkpoint: the tree.
            tile: gives a file; raises BadEvidence for one that is not there.
            tags: of this run.
            path: how a file is called in problems.
            progress: told how many entries are done.
            pruned: what the log says of entries that it serves no more; their hashes come from the tiles, which must
                give the signed root all the same.
        """
        steps = cls.reading(checkpoint, tile, tags, path=path, pruned=pruned)
        while True:
            try:
                done = next(steps)
            except StopIteration as end:
                book: Book = end.value
                return book
            if progress is not None:
                progress(done)

    @classmethod
    def reading(
        cls,
        checkpoint: Checkpoint,
        tile: ReadTile,
        tags: Tagger,
        *,
        path: Callable[[Tile], str] = lambda tile: tile.path,
        pruned: Pruned | None = None,
    ) -> Generator[int, None, Book]:
        """As `read`, a file of entries at a time, for whoever has other work between them; gives how many entries are done."""
        book = cls(checkpoint, Forest(), whole=False, first=pruned.first_served if pruned else 0)
        forest, unread = book.forest, False
        for wanted in written(0, checkpoint.size):
            if pruned is not None and pruned.covers(wanted):
                if len(level_0 := _or_none(tile, Tile(0, wanted.index)) or b"") != TILE_BYTES:
                    book.problems.append(Problem("bad_tile", path(Tile(0, wanted.index)), "is missing or damaged"))
                    unread = True
                forest.grow(level_0)
            elif wanted.level == ENTRIES:
                try:
                    entries = decode_entries(tile(wanted), wanted.width)
                except BadEvidence as error:
                    book.problems.append(Problem(error.code, path(wanted), str(error)))
                    unread = True
                    continue
                forest.grow(b"".join(map(hash_leaf, entries)))
                for at, entry in enumerate(entries, wanted.index * 256):
                    book._take(at, entry, tags)
                yield forest.size
        if unread:
            return book
        book.whole = book.forest.root(checkpoint.size) == checkpoint.root
        if not book.whole:
            detail = "the entries do not make the tree that the checkpoint signs"
            book.problems.append(Problem("bad_tile", path(Tile(ENTRIES, 0)), detail))
            return book
        for wanted in written(0, checkpoint.size):
            if wanted.level != ENTRIES and _or_none(tile, wanted) != book.forest.tile(wanted):
                book.problems.append(Problem("bad_tile", path(wanted), "is not the tile that the entries make"))
        return book

    def _take(self, index: int, entry: bytes, tags: Tagger) -> None:
        quick = _BUNDLE.fullmatch(entry) if index else None
        if quick:
            digest, epoch, key, prev, seq = quick.groups()
            self._bundle(index, key.decode(), Leaf(digest.decode(), int(epoch), prev.decode(), int(seq)), tags)
            return
        try:
            leaf = _leaf(entry)
            shard = leaf["kind"] == "shard"
            if shard != (index == 0) or (shard and leaf["origin"] != self.checkpoint.origin):
                raise BadEvidence("begins a log in its middle, or another one")
        except (DocumentError, BadEvidence, ValueError, OverflowError):
            self.problems.append(Problem("bad_entry", f"log entry {index}", "is not an entry of this log"))
            return
        match leaf["kind"]:
            case "shard":
                self.previous = leaf.get("previous") or None
            case "bundle":
                said = Leaf(leaf["bundle_sha256"], leaf["epoch"], leaf["prev"], leaf["seq"])
                self._bundle(index, leaf["key"], said, tags)
            case "key" if leaf["event"] == "rotate":
                self._rotation(index, leaf)
            case "key":
                self._line(leaf["key"]).events.append((index, leaf["event"], leaf["at"]))
            case "fork":
                place = named((leaf["epoch"], leaf["seq"]))
                text = f"log entry {index}: two signed records for {place}"
                self._line(leaf["key"]).problems.append(("fork", text))
            case "time":
                self.times.append((index, leaf))
            case "act" if leaf["act"] in act.ABOUT_EXCEPTIONS:
                self.acts.append((index, leaf))

    def _rotation(self, index: int, leaf: Mapping[str, Any]) -> None:
        try:
            said = read_leaf(leaf)
        except BadEvidence as error:
            self.problems.append(Problem(error.code, f"log entry {index}", str(error)))
            return
        last = ((said.epoch, said.seq), said.digest)
        self._line(said.old_key).rotate(index, leaf["at"], last, self._line(said.new_key))

    def _bundle(self, index: int, key: str, leaf: Leaf, tags: Tagger) -> None:
        self._line(key).follow(index, leaf, tags.tag(leaf.digest), self.previous is None and not self.first)

    def _line(self, key: str) -> KeyLine:
        line = self.keys.get(key)
        if line is None:
            line = self.keys[key] = KeyLine()
        return line

    def key_problems(self, names: Mapping[str, str] | None = None) -> Iterator[Problem]:
        """What is wrong with the chains of the keys in `names`, under those names; None: of every key, under its id."""
        for key, line in sorted(self.keys.items()):
            if names is None or key in names:
                where = key if names is None else names[key]
                yield from (Problem(code, where, detail) for code, detail in line.problems)
                if not line.valid:
                    detail = "signed outside the time of its key, by the log's order"
                    yield Problem("key_not_valid", where, detail)


def _or_none(tile: ReadTile, wanted: Tile) -> bytes | None:
    try:
        return tile(wanted)
    except BadEvidence:
        return None


def _leaf(entry: bytes) -> dict[str, Any]:
    """An entry of a kind that is known here has its fields; one of a later kind is left alone."""
    leaf = read_json(entry)
    if not isinstance(leaf, dict) or not isinstance(leaf.get("kind"), str):
        raise BadEvidence("is not an object of a kind")
    for name, kind in _FIELDS.get(leaf["kind"], {}).items():
        if type(leaf.get(name)) is not kind:
            raise BadEvidence(f"has no {name}")
    if leaf["kind"] == "key":
        instant(leaf["at"], "at")
    if leaf["kind"] == act.KIND:
        act.check(leaf)
    return leaf
