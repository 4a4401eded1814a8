"""The log inside a packet: its checkpoint, its tree rebuilt from its entries, and what the entries say of chains and keys. Pure.

`evidence.book` reads it; here it is held to the packet's scope. Chains are checked over the whole log, so also where a packet
holds a part of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compliance_agent.errors import BadEvidence
from compliance_agent.evidence.book import Book
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.fields import to_base64
from compliance_agent.log.policy import Policy, Verified
from compliance_agent.log.tiles import Tile, written
from compliance_agent.packet.content import Record, Scope, moment
from compliance_agent.packet.outside import OLDER, YEAR

CHECKPOINT = "log/checkpoint"


@dataclass(frozen=True)
class Logbook:
    """A log whose checkpoint verified; `book.whole` is False when the tree could not be made again from its entries.

    Attributes:
        tags: that `book` was read with.
        paths: of every file that belongs to the log.
    """

    policy: Policy
    verified: Verified
    note: bytes
    book: Book
    tags: Tagger
    paths: set[str]

    def head_holds(self, document: Mapping[str, Any]) -> bool:
        """Whether the head that a record names is a prefix of this log."""
        head = document["log_head"]
        if head is None or head["origin"] != self.origin or head["size"] > self.size:
            return False
        return self.book.forest.root(head["size"]).hex() == str(head["root"])

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


def open_log(files: Mapping[str, bytes], policy: bytes, problems: list[Problem]) -> Logbook | None:
    """The log of a packet, None when its checkpoint does not verify; what is wrong goes to `problems`."""
    try:
        trusted = Policy.parse(policy)
    except BadEvidence as error:
        problems.append(Problem(error.code, "policy", str(error)))
        return None
    try:
        verified = trusted.verify(files.get(CHECKPOINT, b""))
        checkpoint = verified.checkpoint
        if checkpoint.size > sum(map(len, files.values())):
            raise BadEvidence("checkpoint is of more entries than the packet has bytes", code="bad_tile")
    except BadEvidence as error:
        problems.append(Problem(error.code, CHECKPOINT, str(error)))
        return None

    def tile(wanted: Tile) -> bytes:
        if (path := f"log/{wanted.path}") not in files:
            raise BadEvidence("is missing", code="missing_file")
        return files[path]

    tags = Tagger()
    book = Book.read(checkpoint, tile, tags, path=lambda wanted: f"log/{wanted.path}")
    older = _older(files, book)
    problems += [*book.problems, *older]
    paths = {f"log/{wanted.path}" for wanted in written(0, checkpoint.size)} | {CHECKPOINT}
    paths |= {path for path in files if _is_of_the_year_before(path)} if not older else set()
    return Logbook(trusted, verified, files[CHECKPOINT], book, tags, paths)


def _older(files: Mapping[str, bytes], book: Book) -> list[Problem]:
    """The checkpoint of the year before stands here exactly as the first entry binds it."""
    if not book.whole:
        return []
    here = {path: content for path, content in files.items() if _is_of_the_year_before(path)}
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


def completeness(scope: Scope, log: Logbook, records: Sequence[Record]) -> Iterator[Problem]:
    """A packet that was not asked for one control holds, of each host, a stretch of its chain around the whole period."""
    if scope.control is not None:
        return
    here = {record.index: record for record in records}
    for host in scope.hosts:
        indexes = log.book.keys[host.key_id].indexes if host.key_id in log.book.keys else []
        taken = [at for at in indexes if at in here]
        if indexes and not taken:
            yield Problem("missing_record", host.host_id, "has records in the log and none here")
        if not taken:
            continue
        for at in indexes[indexes.index(taken[0]) : indexes.index(taken[-1])]:
            if at not in here:
                yield Problem("missing_record", host.host_id, f"log entry {at} has no record here")
        first, last = (moment(here[at].document["timestamp_start"]) for at in (taken[0], taken[-1]))
        if taken[0] != indexes[0] and first >= scope.start:
            yield Problem("missing_record", host.host_id, "what precedes its first record here is of the period")
        if taken[-1] != indexes[-1] and last < scope.end:
            yield Problem("missing_record", host.host_id, "what follows its last record here may be of the period")


def head_problems(records: Sequence[Record], log: Logbook) -> Iterator[Problem]:
    """Every head of this log that a host verified is a prefix of it; else the server showed two logs. A host may say so itself."""
    for record in records if log.book.whole else []:
        if record.document["incident"] is not None:
            yield Problem("log_forked", record.directory, "its host holds two checkpoints that contradict each other")
        head = record.document["log_head"]
        if head is None or head["origin"] != log.origin:
            continue
        if not log.head_holds(record.document):
            yield Problem("split_view", record.directory, f"its host verified another log of size {head['size']}")
