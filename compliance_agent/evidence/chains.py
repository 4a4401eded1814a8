"""Every host's chain, held in as little memory as it takes: a fixed row for each record, so that a million of them fit.

A row holds a record's place, what links it to its neighbours, and what it says of time and of its log. Digests are kept as 16
bytes of BLAKE2b under a key that is random for each run, so that nobody can prepare two that look alike here.
"""

from __future__ import annotations

import functools
import hashlib
import os
import struct
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from compliance_agent.core.shedding import Mark, is_next
from compliance_agent.evidence.allowlist import NO_PREV
from compliance_agent.evidence.problems import Problem

_ROW = struct.Struct("<q16s16s16s8sqq8sqq8s8sq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NONE = bytes(8)
_NO_OFFSET = -(2**63)


class Row(NamedTuple):
    """One record as it is kept. Tags stand for what they are of; -1 and zeros for "none"."""

    seq: int
    digest: bytes
    prev: bytes
    bundle: bytes
    boot: bytes
    monotonic_ns: int
    created_us: int
    log: bytes  # of the receipt
    at: int  # its index in that log
    head_size: int
    head_log: bytes
    head_root: bytes
    offset: int

    @property
    def offset_us(self) -> int | None:
        """How far off its clock was, by its own measurement."""
        return None if self.offset == _NO_OFFSET else self.offset

    @property
    def bundle_id(self) -> str:
        """As the record spells it."""
        text = self.bundle.hex()
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


class Tagger:
    """Short stand-ins for digests and names; equal ones are of equal things, within one run."""

    def __init__(self) -> None:
        key = os.urandom(32)
        self._long, self._brief = (hashlib.blake2b(digest_size=size, key=key) for size in (16, 8))
        self.short = functools.lru_cache(4_096)(self._short)

    def tag(self, text: str) -> bytes:
        """16 bytes."""
        digest = self._long.copy()
        digest.update(text.encode())
        return digest.digest()

    def _short(self, text: str) -> bytes:
        digest = self._brief.copy()
        digest.update(text.encode())
        return digest.digest()


def microseconds(text: str) -> int:
    """A record's time since 1970."""
    return (datetime.fromisoformat(text) - _EPOCH) // _MICROSECOND


def packed(document: Mapping[str, Any], digest: str, tags: Tagger, receipt: tuple[str, int] | None) -> bytes:
    """The row of a record that verified on its own; `receipt` is the log and index where one verified."""
    clock, head = document["clock"], document["log_head"]
    boot = clock["boot_id"]
    log, index = (_NONE, -1) if receipt is None else (tags.short(receipt[0]), receipt[1])
    size, head_log, head_root = (
        (-1, _NONE, _NONE) if head is None else (head["size"], tags.short(head["origin"]), tags.short(head["root"]))
    )
    return _ROW.pack(
        document["seq"], tags.tag(digest), tags.tag(document["prev"]), bytes.fromhex(document["bundle_id"].replace("-", "")),
        _NONE if boot is None else tags.short(boot), clock["monotonic_ns"], microseconds(document["created_at"]),
        log, index, size, head_log, head_root, _NO_OFFSET if clock["offset_us"] is None else clock["offset_us"],
    )  # fmt: skip


def unpacked(rows: bytes | bytearray, at: int) -> Row:
    """The row at a position."""
    return Row._make(_ROW.unpack_from(rows, at * _ROW.size))


@dataclass
class Chain:
    """All bundles of one key.

    Attributes:
        key_id: SHA-256 of the public key.
        host: label of the host, as its bundles say.
        bundles: how many verified on their own.
        first: lowest place, last: highest.
        epochs: how many.
        head: digest of the last bundle.
        receipted: how many have a receipt that verified.
        shed: place up to which records were let go under a receipt that verified; None when none were.
    """

    key_id: str
    host: str = ""
    bundles: int = 0
    first: tuple[int, int] = (0, 0)
    last: tuple[int, int] = (0, 0)
    epochs: int = 0
    head: str = ""
    receipted: int = 0
    shed: tuple[int, int] | None = None


class Chains:
    """The rows of every key and epoch, as they come; `check` reads them in order."""

    def __init__(self, tags: Tagger) -> None:
        self._tag = tags.tag
        self._rows: dict[tuple[str, int], bytearray] = defaultdict(bytearray)
        self._heads: dict[tuple[str, int], tuple[int, str, str]] = {}
        self.receipted: Counter[str] = Counter()

    def add(self, key_id: str, epoch: int, rows: bytes | bytearray, head: tuple[int, str, str]) -> None:
        """Some records of one key and epoch; `head` is number, digest and host label of the last of them."""
        self._rows[key_id, epoch] += rows
        self._heads[key_id, epoch] = max(head, self._heads.get((key_id, epoch), head))

    def check(
        self, visit: Callable[[str, int, Row], Iterator[Problem]], marks: Mapping[str, Mark] | None = None
    ) -> Iterator[tuple[Chain, list[Problem]]]:
        """Each chain with what is wrong in it.

        Args:
            visit: is shown every record in order and may find more.
            marks: verified, of what was let go of, by key.
        """
        marks = marks or {}
        gone = {key: Gone(mark.place, self._tag(mark.sha256)) for key, mark in marks.items()}
        keys = {key for key, _ in self._rows}
        ends = {key: self._tag(self._heads[key, max(e for k, e in self._rows if k == key)][1]) for key in keys}
        for key_id in sorted(keys):
            epochs = sorted(epoch for key, epoch in self._rows if key == key_id)
            problems: list[Problem] = []
            # A chain begins with nothing before it, or where its host's key took the place of another one.
            starts = {self._tag(NO_PREV), *(end for key, end in ends.items() if key != key_id)}
            starts |= {mark.digest for key, mark in gone.items() if key != key_id}
            links = _Links(starts, problems, gone.get(key_id, NOTHING_GONE))
            for epoch in epochs:
                rows = self._rows[key_id, epoch]
                for at in rows_in_order(rows):
                    row = unpacked(rows, at)
                    if links.follow(epoch, row):
                        problems.extend(visit(key_id, epoch, row))
            seq, digest, host = self._heads[key_id, epochs[-1]]
            if gone and gone.get(key_id, NOTHING_GONE).digest not in self._first_links():
                links.finish()
            shed = marks[key_id].place if key_id in marks else None
            count = sum(len(self._rows[key_id, epoch]) for epoch in epochs) // _ROW.size
            last = (epochs[-1], seq)
            receipted = self.receipted[key_id]
            yield Chain(key_id, host, count, links.first, last, len(epochs), digest, receipted, shed), problems

    def _first_links(self) -> set[bytes]:
        """What the first record of each key follows."""
        firsts = {key: min(epoch for other, epoch in self._rows if other == key) for key, _ in self._rows}
        rows = {key: self._rows[key, epoch] for key, epoch in firsts.items()}
        return {unpacked(held, rows_in_order(held)[0]).prev for held in rows.values()}


def rows_in_order(rows: bytearray) -> list[int]:
    """The positions of the rows by their numbers."""
    seqs = memoryview(rows).cast("q")[:: _ROW.size // 8]
    return sorted(range(len(seqs)), key=seqs.__getitem__)


class Gone(NamedTuple):
    """Up to which place records may be absent, and the tag of the digest of the last of them."""

    place: tuple[int, int]
    digest: bytes


NOTHING_GONE = Gone((-1, 0), b"")


class _Links:
    """Walks one chain from its first record to its last; what does not fit goes to `problems`."""

    def __init__(self, starts: set[bytes], problems: list[Problem], gone: Gone) -> None:
        self.first = (0, 0)
        self._gone = gone
        self._last: Row | None = None
        self._starts = starts
        self._problems = problems
        self._place: tuple[int, int] | None = None
        self._here: dict[bytes, bytes] = {}  # records at this place: digest, bundle id
        self._clocks: dict[bytes, int] = {}

    def follow(self, epoch: int, row: Row) -> bool:
        """Hold a record to the one before; False when it is an exact copy."""
        place = (epoch, row.seq)
        self._last = row
        if place == self._gone.place and row.digest != self._gone.digest:
            self._name("bad_shed", row, f"another record than the mark names is {named(place)}")
        if place == self._place:
            if row.digest in self._here:
                return False
            other = str(uuid.UUID(bytes=next(iter(self._here.values()))))
            self._here[row.digest] = row.bundle
            self._name("duplicate", row, f"{other} and {row.bundle_id} are both {named(place)}")
            return True
        self._link(place, row)
        if row.boot != _NONE:
            if row.monotonic_ns < self._clocks.get(row.boot, 0):
                self._name("clock_ran_back", row, named(place))
            self._clocks[row.boot] = row.monotonic_ns
        self._place, self._here = place, {row.digest: row.bundle}
        return True

    def _link(self, place: tuple[int, int], row: Row) -> None:
        before, (epoch, seq) = self._place, place
        if before is None:
            self.first = place
        if self._was_let_go_before(before, place, row):
            return
        if before is None:
            if seq != 1 or row.prev not in self._starts:
                self._name("missing_start", row, f"the first bundle here is {named(place)}")
        elif before[0] == epoch and before[1] + 1 < seq:
            self._name("missing", row, f"epoch {epoch}: seq {before[1] + 1} to {seq - 1}")
        elif before[0] != epoch and seq != 1:
            self._name("missing", row, f"epoch {epoch}: seq 1 to {seq - 1}")
        elif row.prev not in self._here:
            self._name("broken_link", row, f"{named(place)} does not follow {named(before)}")

    def _was_let_go_before(self, before: tuple[int, int] | None, place: tuple[int, int], row: Row) -> bool:
        """Whether what should stand between the two is what the mark covers."""
        gone = self._gone
        if before is not None and is_next(before, place) and row.prev in self._here:
            return True
        if place <= gone.place:
            return before is None or not (before[0] == place[0] and is_next(before, place))
        return row.prev == gone.digest and is_next(gone.place, place) and (before is None or before <= gone.place)

    def finish(self) -> None:
        """After the last record: a host keeps its newest ones, so a mark at or after the end hides something."""
        if self._last is not None and self._place is not None and self._place <= self._gone.place:
            self._name("bad_shed", self._last, f"nothing is here of what follows {named(self._gone.place)}")

    def _name(self, code: str, row: Row, detail: str) -> None:
        self._problems.append(Problem(code, row.bundle_id, detail))


def named(place: tuple[int, int]) -> str:
    """A place in words."""
    return f"epoch {place[0]} seq {place[1]}"
