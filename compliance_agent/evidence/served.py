"""A log as a server shows it now: fetched whole, rebuilt, and held against an older checkpoint that somebody kept.

    book = read_log(get, policy, tags)         # `get` gives a file below the log's address, None when there is none
    held_to_older(book, older, policy)         # the same log, only longer

What a log alone can show is shown; whether the records are what their entries say needs the records.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compliance_agent.core.receipt import read_note
from compliance_agent.core.shedding import Mark
from compliance_agent.entries.minimum import NAME, Pruned
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.book import Book
from compliance_agent.evidence.chains import Row, Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.stamped import Said, Stamps, read_times
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.tiles import Tile

Get = Callable[[str], bytes | None]


@dataclass
class ServedLog:
    """A log that was fetched and rebuilt; `said` is what third parties say of its time.

    Attributes:
        note: the signed checkpoint, to be kept and held against the next one.
        problems: everything that the log alone shows to be wrong.
    """

    note: bytes
    verified: Verified
    book: Book
    said: Said
    problems: list[Problem]

    @property
    def origin(self) -> str:
        """Its name."""
        return self.verified.checkpoint.origin

    def as_document(self) -> dict[str, Any]:
        """Part of the JSON of `verify --json`."""
        return {
            "origin": self.origin,
            "size": self.verified.checkpoint.size,
            "root": self.verified.checkpoint.root.hex(),
            "keys": len(self.book.keys),
            "destroyed_below": self.book.first,
            "cosignatures": self.said.cosignatures,
            "tokens": self.said.tokens,
            "tokens_unchecked": self.said.tokens_unchecked,
        }


def read_log(
    get: Get,
    policy: Policy,
    tags: Tagger,
    stamps: Stamps | None = None,
    progress: Callable[[int], None] | None = None,
    now: datetime | None = None,
) -> ServedLog:
    """Fetch a log and check all that it can show by itself; at `now` no log was pruned at a later time.

    Raises:
        BadEvidence: its checkpoint is not there, or does not verify.
    """
    note = get("checkpoint")
    if note is None:
        raise BadEvidence("log: it serves no checkpoint", code="no_checkpoint")
    verified = policy.verify(note)
    read_note(note)

    def tile(wanted: Tile) -> bytes:
        content = get(wanted.path)
        if content is None:
            raise BadEvidence("the log does not serve it", code="no_tile")
        return content

    pruned, problems = _pruned(get(NAME), verified, now)
    book = Book.read(verified.checkpoint, tile, tags, progress=progress, pruned=pruned)
    said = Said()
    problems += book.problems
    if book.whole:
        said = read_times(book, policy, stamps)
        problems += [*book.key_problems(), *said.problems]
    said.cosigned(verified)
    if not verified.quorum_met:
        problems.append(Problem("no_quorum", "checkpoint", "it lacks the cosignatures that the policy asks for"))
    return ServedLog(note, verified, book, said, problems)


def _pruned(raw: bytes | None, verified: Verified, now: datetime | None) -> tuple[Pruned | None, list[Problem]]:
    """What the log says of entries that it serves no more; one that cannot be believed excuses nothing."""
    if raw is None:
        return None, []
    try:
        return Pruned.parse(raw).of(verified.checkpoint.origin, verified.checkpoint.size, now), []
    except BadEvidence as error:
        return None, [Problem(error.code, NAME, str(error))]


def held_to_older(log: ServedLog, older: bytes, policy: Policy) -> Iterator[Problem]:
    """A checkpoint that somebody kept: the log must be that one with entries appended.

    Raises:
        BadEvidence: it is not a checkpoint that a trusted log signed.
    """
    kept, book = policy.verify(older).checkpoint, log.book
    if kept.origin != log.origin:
        raise BadEvidence(f"older checkpoint: is of {kept.origin}, not of {log.origin}", code="foreign_log")
    now = book.checkpoint
    if kept.size > now.size:
        detail = f"it has {now.size} entries, and signed {kept.size} before"
        yield Problem("log_rolled_back", log.origin, detail)
    elif (kept.size == now.size and kept.root != now.root) or (book.whole and book.forest.root(kept.size) != kept.root):
        detail = f"its first {kept.size} entries are not those that it signed before"
        yield Problem("log_forked", log.origin, detail)
    elif not book.whole and kept.size != now.size:
        yield Problem("bad_tile", log.origin, "cannot be held against the older checkpoint")


def ended_before(older: ServedLog, newer: ServedLog) -> Iterator[Problem]:
    """Keys that had their end in the log of an earlier year, and sign in this one."""
    for key, line in sorted(older.book.keys.items()):
        there = newer.book.keys.get(key)
        if older.book.whole and newer.book.whole and line.ended and there is not None and there.first >= 0:
            detail = f"log entry {there.first} of {newer.origin}: its key ended in {older.origin}"
            yield Problem("key_not_valid", key, detail)


class Held:
    """Records that are at hand, held against logs that were read."""

    def __init__(self, logs: Sequence[ServedLog], tags: Tagger) -> None:
        self._books = {tags.short(log.origin): log.book for log in logs if log.book.whole}
        self._tags = tags
        self._seen: dict[tuple[str, int], array[int]] = defaultdict(lambda: array("q"))

    def find(self, key_id: str, epoch: int, row: Row) -> tuple[tuple[bytes, int] | None, Problem | None]:
        """Log and index of this record; what is wrong when no log has it."""
        self._seen[key_id, epoch].append(row.seq)
        wrong = Problem("not_logged", row.bundle_id, "the log has no entry at its place")
        for log, book in self._books.items():
            line = book.keys.get(key_id)
            found = line.epochs[epoch].find(row.seq) if line is not None and epoch in line.epochs else None
            if found is not None and found[1] == row.digest:
                return (log, found[0]), None
            if found is not None:
                wrong = Problem("wrong_leaf", row.bundle_id, f"log entry {found[0]} is of another record at its place")
        if wrong.code == "not_logged":
            return self._destroyed(row, wrong)
        return None, wrong

    def _destroyed(self, row: Row, wrong: Problem) -> tuple[tuple[bytes, int] | None, Problem | None]:
        """Where a log serves its first entries no more, a receipt that verified says that this record had one of them."""
        book = self._books.get(row.log) if row.at >= 0 else None
        if book is not None and row.at < book.first:
            return (row.log, row.at), None
        first = max((book.first for book in self._books.values()), default=0)
        if first:
            detail = f"{wrong.detail}; those below {first} were destroyed, and no receipt says that it had one of them"
            return None, Problem("not_logged", row.bundle_id, detail)
        return None, wrong

    def head(self, row: Row) -> bool | None:
        """Whether the head that a record names is one of its log; None when it names none, or another log's."""
        book = self._books.get(row.head_log)
        if row.head_size < 0 or book is None:
            return None
        if row.head_size > book.forest.size:
            return False
        return self._tags.short(book.forest.root(row.head_size).hex()) == row.head_root

    def missing(self, marks: Mapping[str, Mark]) -> Iterator[Problem]:
        """Records that a log has of hosts that are at hand, and that are neither at hand nor were let go, in stretches."""
        keys = {key_id for key_id, _ in self._seen}
        for book in self._books.values():
            for key_id in sorted(keys & book.keys.keys()):
                for epoch, there in sorted(book.keys[key_id].epochs.items()):
                    here = set(self._seen.get((key_id, epoch), ()))
                    gone = marks[key_id].place if key_id in marks else (-1, 0)
                    absent = (seq for seq in there.seqs if seq not in here and (epoch, seq) > gone)
                    for first, last in _stretches(absent):
                        yield Problem("missing_record", key_id, f"the log has epoch {epoch}: seq {first} to {last}")


def _stretches(numbers: Iterable[int]) -> Iterator[tuple[int, int]]:
    first = last = None
    for number in numbers:
        if first is None or last is None or number != last + 1:
            if first is not None and last is not None:
                yield first, last
            first = number
        last = number
    if first is not None and last is not None:
        yield first, last
