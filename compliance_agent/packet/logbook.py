"""The log inside a packet: its checkpoint, its tree rebuilt from its entries, and what the entries say of chains and keys. Pure.

`evidence.book` reads it; here it is held to the packet's scope. Chains are checked over the whole log, so also where a packet
holds a part of them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from compliance_agent.entries.minimum import NAME, Pruned
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.book import Book, Epoch
from compliance_agent.evidence.chains import Row, Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import to_base64
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.tiles import Tile, written
from compliance_agent.packet.content import PacketHost, Scope, moment
from compliance_agent.packet.outside import OLDER, YEAR
from compliance_agent.packet.report import OpenEnd

CHECKPOINT, RETENTION = "log/checkpoint", f"log/{NAME}"


@dataclass(frozen=True)
class Logbook:
    """A log whose checkpoint verified; `book.whole` is False when the tree could not be made again from its entries.

    Attributes:
        tags: that `book` was read with.
        paths: of every file that belongs to the log.
        minimum: records of entries below it were destroyed when their time was over.
    """

    policy: Policy
    verified: Verified
    note: bytes
    book: Book
    tags: Tagger
    paths: set[str]
    minimum: int = 0

    def holds(self, row: Row) -> bool:
        """Whether the head that a record names is a prefix of this log."""
        if row.head_log != self.tags.short(self.origin) or not 0 <= row.head_size <= self.size:
            return False
        return self._root_tag(row.head_size) == row.head_root

    def entries(self, key: str, epoch: int) -> Epoch | None:
        """What it says of the records of a key and epoch."""
        line = self.book.keys.get(key)
        return line.epochs.get(epoch) if line is not None else None

    @functools.cached_property
    def _root_tag(self) -> Callable[[int], bytes]:
        return functools.lru_cache(1_024)(lambda size: self.tags.short(self.book.forest.root(size).hex()))

    @property
    def origin(self) -> str:
        """Its name."""
        return self.verified.checkpoint.origin

    @property
    def size(self) -> int:
        """Its number of entries."""
        return self.verified.checkpoint.size

    @property
    def root(self) -> bytes:
        """As signed."""
        return self.verified.checkpoint.root

    @property
    def public_keys(self) -> set[bytes]:
        """Of the log, as the policy names them."""
        return {key.public for key in self.policy.logs if key.name == self.origin}


@dataclass(frozen=True)
class Head:
    """A checkpoint that verified under a policy."""

    policy: Policy
    verified: Verified
    note: bytes


def open_head(files: Mapping[str, bytes], policy: bytes, room: int, problems: list[Problem]) -> Head | None:
    """The checkpoint of a packet of `room` bytes, None when it does not verify; what is wrong goes to `problems`."""
    try:
        trusted = Policy.parse(policy)
    except BadEvidence as error:
        problems.append(Problem(error.code, "policy", str(error)))
        return None
    try:
        verified = trusted.verify(note := files.get(CHECKPOINT, b""))
        if verified.checkpoint.size > room:
            raise BadEvidence("checkpoint is of more entries than the packet has bytes", code="bad_tile")
    except BadEvidence as error:
        problems.append(Problem(error.code, CHECKPOINT, str(error)))
        return None
    return Head(trusted, verified, note)


def open_log(
    files: Mapping[str, bytes], head: Head, tags: Tagger, problems: list[Problem], now: datetime | None = None
) -> Logbook:
    """The log under that checkpoint; what is wrong goes to `problems`. At `now` no log was pruned at a later time."""
    steps = reading_log(files, head, tags, problems, now)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            log: Logbook = end.value
            return log


def reading_log(
    files: Mapping[str, bytes], head: Head, tags: Tagger, problems: list[Problem], now: datetime | None = None
) -> Generator[None, None, Logbook]:
    """As `open_log`, a file of entries at a time, for whoever has other work between them."""

    def tile(wanted: Tile) -> bytes:
        if (path := f"log/{wanted.path}") not in files:
            raise BadEvidence("is missing", code="missing_file")
        return files[path]

    checkpoint = head.verified.checkpoint
    pruned = _pruned(files, checkpoint, problems, now)
    book = yield from _unnumbered(
        Book.reading(checkpoint, tile, tags, path=lambda wanted: f"log/{wanted.path}", pruned=pruned)
    )
    if book.whole and not book.problems:
        book.forest.lean_on(tile)
    older = _older(files, book)
    problems += [*book.problems, *older]
    tiles = (wanted for wanted in written(0, checkpoint.size) if pruned is None or not pruned.covers(wanted))
    paths = {f"log/{wanted.path}" for wanted in tiles} | {CHECKPOINT} | ({RETENTION} if pruned is not None else set())
    paths |= {path for path in files if _is_of_the_year_before(path)} if not older else set()
    return Logbook(head.policy, head.verified, head.note, book, tags, paths, pruned.minimum if pruned else 0)


def _pruned(
    files: Mapping[str, bytes], checkpoint: Checkpoint, problems: list[Problem], now: datetime | None
) -> Pruned | None:
    """What the log says of entries that are not here any more; one that cannot be believed excuses nothing."""
    if RETENTION not in files:
        return None
    try:
        return Pruned.parse(files[RETENTION]).of(checkpoint.origin, checkpoint.size, now)
    except BadEvidence as error:
        problems.append(Problem(error.code, RETENTION, str(error)))
        return None


def _unnumbered(steps: Generator[int, None, Book]) -> Generator[None, None, Book]:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            book: Book = end.value
            return book
        yield


def _older(files: Mapping[str, bytes], book: Book) -> list[Problem]:
    """The checkpoint of the year before stands here exactly as the first entry binds it."""
    if not book.whole:
        return []
    here = {path: files[path] for path in files if _is_of_the_year_before(path)}
    wrong = [path for path, content in here.items() if to_base64(content) != book.previous]
    if book.previous and not here:
        wrong = ["log/older"]
    return [Problem("wrong_checkpoint", path, "is not what the first entry binds") for path in sorted(wrong)]


def _is_of_the_year_before(path: str) -> bool:
    return path.startswith(OLDER) and path.endswith(YEAR)


# --- what the entries say -----------------------------------------------------------------------------


def chain_problems(scope: Scope, log: Logbook) -> Iterator[Problem]:
    """Every chain of the log that concerns the packet; and every host with a key of the period is in the scope."""
    concerned = {host.key_id: host.host_id for host in scope.hosts}
    yield from log.book.key_problems(concerned)
    for key, line in sorted(log.book.keys.items()):
        if key in concerned:
            continue
        if not line.valid:
            yield Problem("key_not_valid", key, "signed outside the time of its key, by the log's order")
        enrolled, ended = line.event("enrol"), line.ended
        late = enrolled is not None and moment(enrolled[1]) >= scope.end
        early = ended is not None and moment(ended[1]) < scope.start
        if scope.host is None and not late and not early and (line.events or line.first >= 0):
            yield Problem("missing_host", key, "is in the log and not in packet.json")


def completeness(
    scope: Scope, log: Logbook, here: Collection[int], start_of: Callable[[int], str], ends: list[OpenEnd]
) -> Iterator[Problem]:
    """A packet that is no sample, and not of one control, holds of each host a stretch of its chain around the whole period.

    One that was built for an account with dates cannot: the record before the first and the one after the last are of days that the
    account may not see. Such an end is noted. What is missing between two records is missing there too.

    Args:
        scope: of the packet.
        log: of the packet.
        here: the log's index of every record.
        start_of: `timestamp_start` of the record with this index.
        ends: takes the ends that the packet leaves open because of its limits.
    """
    if scope.control is not None or scope.sample is not None:
        return
    for host in scope.hosts:
        every = log.book.keys[host.key_id].indexes if host.key_id in log.book.keys else []
        indexes = [index for index in every if index >= log.minimum or index in here]
        if indexes and indexes[0] < log.minimum:
            yield Problem("bad_retention", RETENTION, f"the record of entry {indexes[0]} of {host.host_id} is here")
        taken = [at for at, index in enumerate(indexes) if index in here]
        for index in indexes[taken[0] : taken[-1]] if taken else ():
            if index not in here:
                yield Problem("missing_record", host.host_id, f"log entry {index} has no record here")
        for end in _open(scope, host, indexes, taken, start_of):
            if scope.limits is not None:
                ends.append(end)
            else:
                yield Problem("missing_record", end.host_id, end.detail)


def _open(
    scope: Scope, host: PacketHost, indexes: Sequence[int], taken: Sequence[int], start_of: Callable[[int], str]
) -> Iterator[OpenEnd]:
    """Where a host's records here do not show that nothing of the period was left out."""
    if not taken:
        if indexes:
            yield OpenEnd(host.host_id, "has records in the log and none here")
        return
    first, last = (moment(start_of(indexes[at])) for at in (taken[0], taken[-1]))
    if taken[0] != 0 and first >= scope.start:
        yield OpenEnd(host.host_id, "what precedes its first record here is of the period")
    if taken[-1] != len(indexes) - 1 and last < scope.end:
        yield OpenEnd(host.host_id, "what follows its last record here may be of the period")


def entry_problem(row: Row, entries: Epoch | None) -> Problem | None:
    """The log holds this record, and no other, at the index of its proof; `entries` are those of its key and epoch."""
    if entries is None or entries.find(row.seq) != (row.at, row.digest):
        return Problem("wrong_leaf", row.bundle_id, "the log holds another entry at this index")
    return None


def head_problems(row: Row, incident: bool, log: Logbook) -> Iterator[Problem]:
    """Every head of this log that a host verified is a prefix of it; else the server showed two logs. A host may say so itself."""
    if incident:
        yield Problem("log_forked", row.bundle_id, "its host holds two checkpoints that contradict each other")
    if row.head_log == log.tags.short(log.origin) and not log.holds(row):
        yield Problem("split_view", row.bundle_id, f"its host verified another log of size {row.head_size}")
