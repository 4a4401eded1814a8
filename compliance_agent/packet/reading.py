"""Reads a packet's records where they stand, in the order of its files, and keeps a short row of each.

    found = contents(container)  # the directory, once: where records begin, and every other file
    for part in spread(Reader(...), found.batches): ...
    kept.add(part)  # rows by host, key and epoch, then in the order of their chains

A batch is a stretch of the directory; whoever judges it reads it again, so that what goes between processes is a few numbers. Every
file of a batch, a record's or not, is held to what stands before it, to its checksum and to its line of the manifest.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import struct
from array import array
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, overload

from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.chains import Row, Tagger, packed, rows_in_order, unpacked
from compliance_agent.evidence.problems import CODES, Problem
from compliance_agent.evidence.verify import check_bytes
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf, verify_inclusion
from compliance_agent.log.proof import Proof
from compliance_agent.packet.archive import Container, Entry, check_crc, in_order
from compliance_agent.packet.content import Record, Scope, directory_of
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, line

PARTS = ("bundle.json", "bundle.sig", "leaf.json", "bundle.tlog-proof")
PER_BATCH = 256  # files
MAX_OTHERS = 1_000_000  # files that are no record's
MAX_PART_BYTES = 65_535
_LINE_MORE = len(line("0" * 64, ""))
_RECORD = re.compile(r"evidence/[^/]+/\d{4}/\d\d/\d\d/[^/]+")
_UNLISTED = {MANIFEST, MANIFEST_SIGNATURE}
_KEPT = struct.Struct("<IB")  # number of the record in the packet's order, and flags
_INSIDE, _INCIDENT = 1, 2
_REGION = 1 << 22


class Batch(NamedTuple):
    """Lines of the directory from `start` to `end`; number of the first record, and where its files are in the manifest."""

    start: int
    end: int
    record: int
    listed: int


@dataclass
class Contents:
    """What is kept of a packet's directory.

    Attributes:
        others: every file that is no record's.
        records: where the directory's lines about each record begin.
        listed: how long the manifest is.
    """

    others: dict[str, Entry] = field(default_factory=dict)
    records: array[int] = field(default_factory=lambda: array("Q"))
    batches: list[Batch] = field(default_factory=list)
    listed: int = 0


def contents(container: Container) -> Contents:
    """Walk the directory, once; BadEvidence, code `bad_container`, where it is not as a packet is written."""
    found = Contents()
    start, first, listed, count = container.directory, 0, 0, 0
    directory, is_record = "", False
    for entry in in_order(container):
        above = entry.name.rpartition("/")[0]
        if above != directory or not is_record:
            if count >= PER_BATCH:
                found.batches.append(Batch(start, entry.line, first, listed))
                start, first, listed, count = entry.line, len(found.records), found.listed, 0
            directory, is_record = above, _RECORD.fullmatch(above) is not None
            if is_record:
                found.records.append(entry.line)
        if not is_record:
            found.others[entry.name] = entry
            if len(found.others) > MAX_OTHERS:
                raise BadEvidence("packet: it holds too many files that are no record's", code="bad_container")
        if entry.name not in _UNLISTED:
            found.listed += _LINE_MORE + len(entry.name)
        count += 1
    if count:
        found.batches.append(Batch(start, container.end, first, listed))
    return found


class Files(Mapping[str, bytes]):
    """The files that are no record's, each read when it is asked for."""

    def __init__(self, container: Container, others: Mapping[str, Entry]) -> None:
        self._container, self.entries = container, others

    def __getitem__(self, path: str) -> bytes:
        return self._container.content(self.entries[path])

    def __contains__(self, path: object) -> bool:
        return path in self.entries

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)


@dataclass
class Part:
    """What is found in one batch.

    Attributes:
        listed: the manifest has exactly these files, with these digests.
        rows: by host label, key and epoch: rows, and what is kept beside each.
    """

    found: int = 0
    verified: int = 0
    listed: bool = True
    rows: dict[tuple[str, str, int], tuple[bytearray, bytearray]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """What every record of a packet is held to.

    Attributes:
        keys: raw public keys by key id.
        note, checkpoint: of the packet's log; None where it does not verify, and then no record counts as verified.
    """

    keys: Mapping[str, bytes]
    scope: Scope | None
    note: bytes
    checkpoint: Checkpoint | None


class Reader:
    """Judges the files of a batch; called in a process of its own, so all it needs is in here."""

    def __init__(self, container: Container, manifest: Entry | None, held: Held, tags: Tagger) -> None:
        self._container, self._manifest, self._held, self._tags = container, manifest, held, tags

    def __call__(self, batch: Batch) -> Part:
        part, number, lines = Part(), batch.record, bytearray()
        entries = list(self._container.entries(batch.start, batch.end))
        content = _Region(self._container, entries[0].offset, entries[-1].end)
        for directory, group in itertools.groupby(entries, lambda entry: entry.name.rpartition("/")[0]):
            files: dict[str, bytes] = {}
            for entry in group:
                raw, digest = self._read(content, entry, part)
                files[entry.name.rpartition("/")[2]] = raw
                if entry.name not in _UNLISTED:
                    lines += line(digest, entry.name)
            if _RECORD.fullmatch(directory):
                self._record(directory, files, number, part)
                number += 1
        start = -1 if self._manifest is None else self._manifest.start + batch.listed
        part.listed = start >= 0 and self._container.read(start, len(lines)) == lines
        return part

    def _read(self, content: _Region, entry: Entry, part: Part) -> tuple[bytes, str]:
        """Bytes and digest of a file; of a long one the digest alone."""
        try:
            if content.read(entry.offset, entry.start - entry.offset) != entry.before:
                raise BadEvidence("what stands before it is not as a packet is written", code="bad_container")
            if entry.size > MAX_PART_BYTES:
                return b"", self._long(entry)
            raw = content.read(entry.start, entry.size)
            check_crc(entry, raw)
        except BadEvidence as error:
            part.problems.append(Problem(error.code, entry.name, str(error)))
            raw = content.read(entry.start, min(entry.size, MAX_PART_BYTES))
        return raw, hashlib.sha256(raw).hexdigest()

    def _long(self, entry: Entry) -> str:
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            for chunk in self._container.chunks(entry):
                digest.update(chunk)
                yield chunk

        check_crc(entry, pieces())
        return digest.hexdigest()

    def _record(self, directory: str, files: Mapping[str, bytes], number: int, part: Part) -> None:
        part.found += 1
        for name in files.keys() - PARTS:
            part.problems.append(Problem("extra_file", f"{directory}/{name}"))
        try:
            for name in PARTS:
                if name not in files:
                    raise BadEvidence("is missing from a record", code="missing_file")
            record = self._judged(directory, files)
            part.verified += self._held.checkpoint is not None
        except BadEvidence as error:
            part.problems.append(Problem(error.code, directory, str(error)))
            return
        document, scope, log = record.document, self._held.scope, self._held.checkpoint
        receipt = None if log is None else (log.origin, record.index)
        flags = _INSIDE * bool(scope and scope.holds(document)) | _INCIDENT * (document["incident"] is not None)
        place = (document["host"]["id"], document["host"]["key_id"], document["epoch"])
        rows, kept = part.rows.setdefault(place, (bytearray(), bytearray()))
        rows += packed(document, hashlib.sha256(record.body).hexdigest(), self._tags, receipt)
        kept += _KEPT.pack(number, flags)

    def _judged(self, directory: str, files: Mapping[str, bytes]) -> Record:
        """One record on its own, and in the log."""
        body, signature, leaf, receipt = (files[name] for name in PARTS)
        if not all((body, signature, leaf, receipt)):
            raise BadEvidence(CODES["unreadable"], code="unreadable")
        document = check_bytes(body, signature, self._held.keys)
        scope = self._held.scope
        if directory_of(document) != directory or (scope and document["site_id"] != scope.site_id):
            raise BadEvidence("stands under another name, or is of another site", code="misplaced")
        key, digest = document["host"]["key_id"], hashlib.sha256(body).hexdigest()
        if leaf != bundle_leaf(key, document["epoch"], document["seq"], document["prev"], digest, signature):
            raise BadEvidence("leaf.json is not the entry of this record", code="wrong_leaf")
        proof = Proof.parse(receipt)
        if self._held.checkpoint is not None:
            self._included(proof, leaf, self._held.checkpoint)
        return Record(document, body, signature, leaf, proof.index)

    def _included(self, proof: Proof, leaf: bytes, log: Checkpoint) -> None:
        """The proof leads from this entry to the checkpoint of this packet."""
        if proof.checkpoint != self._held.note:
            raise BadEvidence("receipt is under another checkpoint than log/checkpoint", code="wrong_checkpoint")
        verify_inclusion(hash_leaf(leaf), proof.index, log.size, proof.path, log.root)


class _Region:
    """A stretch of the file, read at once where it is short."""

    def __init__(self, container: Container, start: int, end: int) -> None:
        self._read, self._start = container.read, start
        self._held = container.read(start, end - start) if end - start <= _REGION else None

    def read(self, at: int, length: int) -> bytes:
        if self._held is None:
            return self._read(at, length)
        return self._held[at - self._start : at - self._start + length]


class Kept:
    """The rows of all records that verified, and each record again when it is asked for.

    Args:
        container: the packet.
        lines: where the directory's lines about each record begin.
    """

    def __init__(self, container: Container, lines: array[int]) -> None:
        self._container, self._lines = container, lines
        self._rows: dict[tuple[str, str, int], tuple[bytearray, bytearray]] = defaultdict(
            lambda: (bytearray(), bytearray())
        )

    def add(self, part: Part) -> None:
        """Take up what was found in a batch."""
        for place, (rows, kept) in part.rows.items():
            self._rows[place][0].extend(rows)
            self._rows[place][1].extend(kept)

    def rows(self) -> Iterator[tuple[str, int, Row, int, bool]]:
        """Key, epoch, row, number and whether it tells of an incident, key by key in the order of each chain."""
        for place in sorted(self._rows, key=lambda place: (place[1], place[2], place[0])):
            rows, kept = self._rows[place]
            for at in rows_in_order(rows):
                number, flags = _KEPT.unpack_from(kept, at * _KEPT.size)
                yield place[1], place[2], unpacked(rows, at), number, bool(flags & _INCIDENT)

    def directory(self, number: int) -> str:
        """Where a record stands."""
        return self._files(number)[0].name.rpartition("/")[0]

    def record(self, number: int) -> Record:
        """A record that verified, read again."""
        entries = self._files(number)
        content = _Region(self._container, entries[0].offset, entries[-1].end)
        files = {entry.name.rpartition("/")[2]: content.read(entry.start, entry.size) for entry in entries}
        body, signature, leaf, receipt = (files[name] for name in PARTS)
        return Record(json.loads(body), body, signature, leaf, Proof.parse(receipt).index)

    def _files(self, number: int) -> list[Entry]:
        """Of a record: from its first line to that of the next record, or to where another directory begins."""
        start = self._lines[number]
        end = self._container.end if number + 1 == len(self._lines) else self._lines[number + 1]
        grouped = itertools.groupby(self._container.entries(start, end), lambda entry: entry.name.rpartition("/")[0])
        return list(next(grouped)[1])

    @property
    def records(self) -> Records:
        """All of them, in the packet's order, with those of the period apart."""
        inside = array("I")
        for place in sorted(self._rows):
            rows, kept = self._rows[place]
            for at in rows_in_order(rows):
                number, flags = _KEPT.unpack_from(kept, at * _KEPT.size)
                if flags & _INSIDE:
                    inside.append(number)
        everything = sorted(number for _, kept in self._rows.values() for number, _ in _KEPT.iter_unpack(kept))
        return Records(self, array("I", everything), _Lazy(self, inside))


class _Lazy(Sequence[Record]):
    """Records by number, each read when it is looked at, none of them held."""

    def __init__(self, kept: Kept, numbers: array[int]) -> None:
        self._kept, self._numbers = kept, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | Sequence[Record]:
        if isinstance(at, slice):
            return _Lazy(self._kept, self._numbers[at])
        return self._kept.record(self._numbers[at])


class Records(_Lazy):
    """All records; `in_period` are those of the period, host by host in the order of their chains."""

    def __init__(self, kept: Kept, numbers: array[int], in_period: Sequence[Record]) -> None:
        super().__init__(kept, numbers)
        self.in_period = in_period


class Marked(Collection[int]):
    """Some of the numbers below a size, a byte for each."""

    def __init__(self, size: int) -> None:
        self._marks = bytearray(size)

    def mark(self, number: int) -> None:
        """Take up one."""
        if 0 <= number < len(self._marks):
            self._marks[number] = 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._marks) and self._marks[number] == 1

    def __iter__(self) -> Iterator[int]:
        return (number for number, mark in enumerate(self._marks) if mark)

    def __len__(self) -> int:
        return self._marks.count(1)


def same(chunks: Iterable[bytes], made: Iterable[bytes]) -> bool:
    """Whether both are the same bytes, however they are cut."""
    pieces, held = iter(made), bytearray()
    for chunk in chunks:
        while len(held) < len(chunk) and (piece := next(pieces, None)) is not None:
            held += piece
        if not held.startswith(chunk):
            return False
        del held[: len(chunk)]
    return not held and next(filter(None, pieces), None) is None
