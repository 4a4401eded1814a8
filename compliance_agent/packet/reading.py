"""Reads a packet's records where they stand, in the order of its files, and keeps a short row of each.

    reader = Reader(container, files.entries.get(MANIFEST), held, tags)
    for part in spread(reader, stretches.batches(container)): ...

A batch is a stretch of the directory, which is read by whoever judges it, so that what goes between processes is small. Every file
of a batch, a record's or not, is held to what stands before it, to its checksum and to its line of the manifest. While a record is
at hand, so are its lines in the exports: their digests are kept with its row.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from zlib import crc32

from compliance_agent import crypto
from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.alike import Alike, Kind
from compliance_agent.evidence.allowlist import registry
from compliance_agent.evidence.chains import Tagger, packed
from compliance_agent.evidence.problems import CODES, Problem
from compliance_agent.evidence.verify import check_bytes
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.proof import Proof
from compliance_agent.packet import ocsf, oscal, table
from compliance_agent.packet.archive import PARTS, Container, Entry, InOrder, Layout, before, check_crc
from compliance_agent.packet.content import Record, Scope, directory_of
from compliance_agent.packet.due import Due
from compliance_agent.packet.four import BELOW, NAMES, Four
from compliance_agent.packet.manifest import DIGEST_BYTES, MANIFEST, MANIFEST_SIGNATURE, line_of
from compliance_agent.packet.near import Near
from compliance_agent.packet.stretches import Batch, is_record

MAX_PART_BYTES = 65_535
BUNDLE = PARTS[0]
UNLISTED = {MANIFEST, MANIFEST_SIGNATURE}
INSIDE, INCIDENT = 1, 2
_REGION = 1 << 22
_FEW = 1 << 12
_BESIDE = struct.Struct("<QBBII10s32s32s")
_NO_CHECK = 255
_KINDS = 64
_DAY_TO = len("/00000000-0000-0000-0000-000000000000")  # from the end of a record's path
_DAY_FROM = _DAY_TO + len("2026/01/01")


class Beside(NamedTuple):
    """What is kept of a record beside its row.

    Attributes:
        line: where the directory's lines about it begin.
        flags: INSIDE the period; it tells of an INCIDENT.
        check: number of the check that it is about, in `checks()`; _NO_CHECK for none.
        csv_bytes, ocsf_bytes: length of its lines in these exports; lines: digest of the former and the latter together.
        day: of its start, as in its path.
    """

    line: int
    flags: int
    check: int
    csv_bytes: int
    ocsf_bytes: int
    day: bytes
    sha256: bytes
    lines: bytes

    @property
    def about(self) -> str | None:
        """The check that it is about."""
        return None if self.check == _NO_CHECK else checks()[self.check]


@functools.cache
def checks() -> Sequence[str]:
    """The checks, by number."""
    return tuple(registry().checks)


def beside(kept: bytes | bytearray, at: int) -> Beside:
    """What is kept of the record at a position."""
    return Beside._make(_BESIDE.unpack_from(kept, at * _BESIDE.size))


def lines_of(kept: bytes | bytearray) -> Iterator[int]:
    """Where the directory's lines about each record begin."""
    return (line for line, *_ in _BESIDE.iter_unpack(kept))


@dataclass
class Part:
    """What is found in one batch.

    Attributes:
        order: what its files are next to.
        others: files that are no record's.
        broken: what is wrong with the container, which then is no packet.
        listed: the stretch of the manifest that has exactly these files, with these digests; None where it does not.
        rows: by host label, key and epoch: rows, and what is kept beside each.
        stated: what the records of the period say of checks.
        digests: of long files, by path.
        signed: whether the manifest has its signature; None where nobody looked.
    """

    order: InOrder = field(default_factory=InOrder)
    others: list[Entry] = field(default_factory=list)
    broken: str = ""
    found: int = 0
    verified: int = 0
    listed: tuple[int, int] | None = None
    rows: dict[tuple[str, str, int], tuple[bytearray, bytearray]] = field(default_factory=dict)
    stated: oscal.Stated = field(default_factory=oscal.Stated)
    digests: dict[str, str] = field(default_factory=dict)
    signed: bool | None = None
    problems: list[Problem] = field(default_factory=list)


@dataclass(frozen=True)
class Held:
    """What every record of a packet is held to.

    Attributes:
        keys: raw public keys by key id.
        note, checkpoint: of the packet's log; None where it does not verify, and then no record counts as verified.
        manifest: key and signature of a long one; None leaves it to the caller.
    """

    keys: Mapping[str, bytes]
    scope: Scope | None
    note: bytes
    checkpoint: Checkpoint | None
    manifest: tuple[bytes, bytes] | None = None


class Reader:
    """Judges the files of a batch; called in a process of its own, so all it needs is in here."""

    def __init__(self, container: Container, manifest: Entry | None, held: Held, tags: Tagger) -> None:
        self._container, self._manifest, self._held, self._tags = container, manifest, held, tags
        self._numbers = {check: number for number, check in enumerate(checks())}
        self._alike = Alike(registry())
        self._due = None if held.scope is None else Due(held.scope)
        self._receipts = None if held.checkpoint is None else Near(held.note, held.checkpoint)
        self._kinds: dict[Kind, _Same] = {}

    def __call__(self, batch: Batch) -> Part:
        part, lines = Part(), list[str]()
        try:
            directories = self._directories(batch, part)
        except BadEvidence as error:
            part.broken = str(error)
            return part
        last = directories[-1]
        held = self._bytes_of(_begin(directories[0]), last.end if isinstance(last, Four) else last[-1].end)
        for entries in directories:
            if isinstance(entries, Four):
                files, listed, digest = self._files_of_four(entries, held, part)
                lines += listed
                self._record(entries.directory, entries.line, files, digest, part)
                continue
            files, digests = self._files(entries, held, part)
            lines += [f"{digest}  {name}\n" for name, digest in digests.items() if name not in UNLISTED]
            directory = entries[0].above
            if is_record(directory):
                self._record(directory, entries[0].line, files, digests.get(f"{directory}/{BUNDLE}", ""), part)
            else:
                part.others += entries
        part.listed = self._listed("".join(lines).encode("ascii"))
        return part

    def _directories(self, batch: Batch, part: Part) -> list[Four | list[Entry]]:
        """The files of a batch by the directory they stand in, held to each other."""
        found: list[Four | list[Entry]] = []
        held, order, at, above = self._container.read(batch.start, batch.end - batch.start), part.order, 0, ""
        while at < batch.end - batch.start:
            four = Four.at(held, at, batch.start + at)
            if (
                four is not None
                and four.directory != above
                and max(four.sizes) <= MAX_PART_BYTES
                and is_record(four.directory)
            ):
                order.follow_record(four.directory, NAMES[0], NAMES[-1], (len(NAMES), four.offsets[0], four.end))
                found.append(four)
                at, above = at + four.length, ""
                continue
            entry = next(self._container.entries(batch.start + at, batch.end, together=_FEW))
            if order.follow(entry) != above or not found or isinstance(found[-1], Four):
                found.append([])
                above = entry.above
            if isinstance(last := found[-1], list):
                last.append(entry)
            at += entry.line_length
        return found

    def _files_of_four(
        self, four: Four, held: tuple[bytes, int], part: Part
    ) -> tuple[dict[str, bytes], list[str], str]:
        """Bytes by name, lines of the manifest, and the digest of the record; the files are held as in `_files`."""
        files: dict[str, bytes] = {}
        lines: list[str] = []
        directory, (whole, start) = four.directory, held
        at, above, of_bundle = four.offsets[0] - start, directory.encode("ascii"), ""
        if at < 0:
            whole, at = self._container.read(four.offsets[0], four.end - four.offsets[0]), 0
        for name, below, crc, size in zip(NAMES, BELOW, four.crcs, four.sizes, strict=True):
            path = above + below
            begins = at + Layout.LOCAL + len(path)
            ends = begins + size
            raw = whole[begins:ends]
            if crc32(raw) != crc or whole[at:begins] != before(path, size, crc):
                problem = "what stands before it is not as a packet is written, or its checksum is of other bytes"
                part.problems.append(Problem("bad_container", f"{directory}/{name}", problem))
            digest = hashlib.sha256(raw).hexdigest()
            lines.append(f"{digest}  {directory}/{name}\n")
            if name == BUNDLE:
                of_bundle = digest
            files[name], at = raw, ends
        return files, lines, of_bundle

    def _bytes_of(self, start: int, end: int) -> tuple[bytes, int]:
        """The bytes of a batch and where they begin; none where there are too many to be held."""
        return (self._container.read(start, end - start), start) if end - start <= _REGION else (b"", end)

    def _files(
        self, entries: Sequence[Entry], held: tuple[bytes, int], part: Part
    ) -> tuple[dict[str, bytes], dict[str, str]]:
        """Bytes by name, digests by path; each held to what stands before it and to its checksum."""
        files: dict[str, bytes] = {}
        digests: dict[str, str] = {}
        above = entries[0].name.rfind("/") + 1
        for entry in entries:
            name, header, whole, at = entry.name, entry.before, held[0], entry.offset - held[1]
            if at < 0 or entry.size > MAX_PART_BYTES:
                whole, at = self._container.read(entry.offset, len(header) + min(entry.size, MAX_PART_BYTES)), 0
            starts = at + len(header)
            raw = whole[starts : starts + min(entry.size, MAX_PART_BYTES)]
            try:
                if not whole.startswith(header, at):
                    raise BadEvidence("what stands before it is not as a packet is written", code="bad_container")
                if entry.size > MAX_PART_BYTES:
                    files[name[above:]], digests[name] = b"", self._long(entry, part)
                    continue
                check_crc(entry, raw)
            except BadEvidence as error:
                part.problems.append(Problem(error.code, name, str(error)))
            files[name[above:]], digests[name] = raw, hashlib.sha256(raw).hexdigest()
        return files, digests

    def _listed(self, lines: bytes) -> tuple[int, int] | None:
        """Where the manifest has these lines, None where it does not."""
        if self._manifest is None:
            return None
        if not lines:
            return self._manifest.start, self._manifest.start
        read, first = self._container.read, lines[DIGEST_BYTES : lines.index(b"\n")]
        start = line_of(read, self._manifest.start, self._manifest.end, first)
        return (start, start + len(lines)) if read(start, len(lines)) == lines else None

    def _long(self, entry: Entry, part: Part) -> str:
        """The digest of a long file, held to its checksum; nobody needs that of the manifest, which has a signature instead."""
        if entry.name == MANIFEST and self._held.manifest is not None:
            part.signed = crypto.verify_chunks(*self._held.manifest, lambda: self._container.chunks(entry))
            check_crc(entry, self._container.chunks(entry))
            return ""
        digest = hashlib.sha256()

        def pieces() -> Iterator[bytes]:
            for chunk in self._container.chunks(entry):
                digest.update(chunk)
                yield chunk

        try:
            check_crc(entry, pieces())
        finally:
            part.digests[entry.name] = digest.hexdigest()
        return digest.hexdigest()

    def _record(self, directory: str, line: int, files: Mapping[str, bytes], digest: str, part: Part) -> None:
        part.found += 1
        for name in files.keys() - PARTS:
            part.problems.append(Problem("extra_file", f"{directory}/{name}"))
        try:
            for name in PARTS:
                if name not in files:
                    raise BadEvidence("is missing from a record", code="missing_file")
            record = self._judged(directory, files, digest)
            part.verified += self._held.checkpoint is not None
        except BadEvidence as error:
            part.problems.append(Problem(error.code, directory, str(error)))
            return
        self._keep(record, line, part)

    def _judged(self, directory: str, files: Mapping[str, bytes], digest: str) -> Record:
        """One record on its own, and in the log."""
        body, signature, leaf, receipt = [files[name] for name in PARTS]
        if not all((body, signature, leaf, receipt)):
            raise BadEvidence(CODES["unreadable"], code="unreadable")
        document = check_bytes(body, signature, self._held.keys, self._alike)
        scope = self._held.scope
        if directory_of(document) != directory or (scope and document["site_id"] != scope.site_id):
            raise BadEvidence("stands under another name, or is of another site", code="misplaced")
        key = document["host"]["key_id"]
        if leaf != bundle_leaf(key, document["epoch"], document["seq"], document["prev"], digest, signature):
            raise BadEvidence("leaf.json is not the entry of this record", code="wrong_leaf")
        index = Proof.parse(receipt).index if self._receipts is None else self._receipts.index(receipt, leaf)
        return Record(document, body, signature, leaf, index, digest, directory)

    def _keep(self, record: Record, line: int, part: Part) -> None:
        """Its row, and what is kept beside it."""
        document, scope, log = record.document, self._held.scope, self._held.checkpoint
        same, digest, flags, check, csv, events = self._same(document), record.digest, 0, _NO_CHECK, b"", b""
        if scope is not None and scope.holds(document):
            flags, check, csv, events = INSIDE, same.check, same.csv(record), same.ocsf(record)
            part.stated.take(record)
        rows, kept = part.rows.get(same.chain) or part.rows.setdefault(same.chain, (bytearray(), bytearray()))
        rows += packed(document, digest, self._tags, None if log is None else (log.origin, record.index))
        kept += _BESIDE.pack(
            line, flags | same.flags, check, len(csv), len(events), record.directory[-_DAY_FROM:-_DAY_TO].encode("ascii"),
            bytes.fromhex(digest), hashlib.sha256(csv + events).digest(),
        )  # fmt: skip

    def _same(self, document: Mapping[str, Any]) -> _Same:
        """What holds for every record that is like this one, which was read last."""
        kind = self._alike.kind
        found = None if kind is None else self._kinds.get(kind)
        if found is None:
            about, host = oscal.own_check(document), document["host"]
            found = _Same(
                (host["id"], host["key_id"], document["epoch"]),
                INCIDENT * (document["incident"] is not None),
                _NO_CHECK if about is None else self._numbers[about],
                _nothing if self._due is None else table.writer(document, self._due),
                ocsf.writer(document),
            )
            if kind is not None:
                if len(self._kinds) >= _KINDS:
                    self._kinds.clear()
                self._kinds[kind] = found
        return found


class _Same(NamedTuple):
    """Of records that are alike: their chain, their part of the flags, the number of their check, and what writes their lines."""

    chain: tuple[str, str, int]
    flags: int
    check: int
    csv: Callable[[Record], bytes]
    ocsf: Callable[[Record], bytes]


def _nothing(_: Record) -> bytes:
    return b""


def _begin(entries: Four | list[Entry]) -> int:
    return entries.offsets[0] if isinstance(entries, Four) else entries[0].offset


def read_record(container: Container, line: int) -> Record:
    """A record that verified, read again; `line` is where the directory's lines about it begin."""
    _, group = next(itertools.groupby(container.entries(line, together=_FEW), lambda entry: entry.above))
    return record_of({entry.name.rpartition("/")[2]: container.content(entry) for entry in group})


def lines_again(container: Container, line: int, due: Due) -> tuple[bytes, bytes]:
    """What such a record has in the table and in the events."""
    record = read_record(container, line)
    return table.line(record, due), ocsf.of(record)


def record_of(files: Mapping[str, bytes]) -> Record:
    """The record that these files are, by name."""
    body, signature, leaf, receipt = (files[name] for name in PARTS)
    return Record(json.loads(body), body, signature, leaf, Proof.parse(receipt).index)
