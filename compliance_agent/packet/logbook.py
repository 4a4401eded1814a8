"""The log inside a packet: its checkpoint, its tree rebuilt from its entries, and what the entries say of chains and keys. Pure.

The tree is not believed to be what its tiles say: it is made again from the entries, held against the signed root, and every tile
against it. Chains are checked over the whole log, so also where a packet holds a part of them.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from compliance_agent.documents import read_json
from compliance_agent.errors import BadEvidence, DocumentError
from compliance_agent.evidence.allowlist import NO_PREV
from compliance_agent.evidence.problems import Problem
from compliance_agent.log.fields import to_base64
from compliance_agent.log.merkle import HASH_BYTES, RootHash, hash_leaf
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import ENTRIES, Tile, decode_entries, written
from compliance_agent.log.tree import Edge, TileTree
from compliance_agent.packet.content import Record, Scope, moment

CHECKPOINT = "log/checkpoint"
_PLACE = {"key": str, "epoch": int, "seq": int}
_FIELDS: dict[str, dict[str, type]] = {
    "bundle": {**_PLACE, "prev": str, "bundle_sha256": str},
    "fork": _PLACE,
    "key": {"key": str, "event": str, "at": str},
    "shard": {"origin": str},
}


@dataclass(frozen=True)
class Logbook:
    """A log whose checkpoint verified; without entries when the tree could not be made again from them.

    Attributes:
        leaves: (index, entry) for each entry that can be read.
        paths: of every file that belongs to the log.
    """

    policy: Policy
    note: bytes
    origin: str
    size: int
    root: RootHash
    entries: list[bytes]
    leaves: list[tuple[int, Mapping[str, Any]]]
    tiles: Mapping[Tile, bytes]
    paths: set[str]

    @property
    def public_keys(self) -> set[bytes]:
        """Of the log, as the policy names them."""
        return {key.public for key in self.policy.logs if key.name == self.origin}

    def root_at(self, size: int) -> bytes:
        """The root of the first `size` entries."""

        def read(level: int, index: int, width: int) -> bytes:
            grown = Tile(level, index, min(256, (self.size >> 8 * level) - index * 256))
            return self.tiles[grown][: width * HASH_BYTES]

        return TileTree(size, read).root()


def open_log(files: Mapping[str, bytes], policy: bytes, problems: list[Problem]) -> Logbook | None:
    """The log of a packet, None when its checkpoint does not verify; what is wrong goes to `problems`."""
    try:
        trusted = Policy.parse(policy)
    except BadEvidence as error:
        problems.append(Problem(error.code, "policy", str(error)))
        return None
    try:
        checkpoint = trusted.verify(files.get(CHECKPOINT, b"")).checkpoint
        if checkpoint.size > sum(map(len, files.values())):
            raise BadEvidence("checkpoint is of more entries than the packet has bytes", code="bad_tile")
    except BadEvidence as error:
        problems.append(Problem(error.code, CHECKPOINT, str(error)))
        return None
    paths = {f"log/{tile.path}" for tile in written(0, checkpoint.size)} | {CHECKPOINT}
    entries, wrong = _entries(files, checkpoint.size)
    edge, hashes = Edge().grow(map(hash_leaf, entries))
    tiles = dict(hashes)
    if not wrong and edge.root() != checkpoint.root:
        wrong = [Problem("bad_tile", "log/tile/entries", "the entries do not make the tree that the checkpoint signs")]
    for tile in written(0, checkpoint.size):
        path = f"log/{tile.path}"
        if tile.level != ENTRIES and not wrong and files.get(path) != tiles[tile]:
            problems.append(Problem("bad_tile", path, "is not the tile that the entries make"))
    problems += wrong
    entries = [] if wrong else entries
    leaves, unread = _leaves(entries, checkpoint.origin)
    older = _older(files, leaves)
    problems += [*unread, *older]
    paths |= {path for path in files if path.startswith("log/older/")} if not older else set()
    return Logbook(
        trusted, files[CHECKPOINT], checkpoint.origin, checkpoint.size, checkpoint.root, entries, leaves, tiles, paths
    )


def _entries(files: Mapping[str, bytes], size: int) -> tuple[list[bytes], list[Problem]]:
    entries: list[bytes] = []
    problems = []
    for tile in written(0, size):
        if tile.level == ENTRIES:
            path = f"log/{tile.path}"
            try:
                if path not in files:
                    raise BadEvidence("is missing", code="missing_file")
                entries += decode_entries(files[path], tile.width)
            except BadEvidence as error:
                problems.append(Problem(error.code, path, str(error)))
    return entries, problems


def _leaves(entries: Sequence[bytes], origin: str) -> tuple[list[tuple[int, Mapping[str, Any]]], list[Problem]]:
    leaves: list[tuple[int, Mapping[str, Any]]] = []
    problems = []
    for index, entry in enumerate(entries):
        try:
            leaf = _leaf(entry)
            shard = leaf["kind"] == "shard"
            if shard != (index == 0) or (shard and leaf["origin"] != origin):
                raise BadEvidence("begins a log in its middle, or another one")
            leaves.append((index, leaf))
        except (DocumentError, BadEvidence, ValueError, OverflowError):
            problems.append(Problem("bad_entry", f"log entry {index}", "is not an entry of this log"))
    return leaves, problems


def _leaf(entry: bytes) -> dict[str, Any]:
    """An entry of a kind that is known here has its fields; one of a later kind is left alone."""
    leaf = read_json(entry)
    if not isinstance(leaf, dict) or not isinstance(leaf.get("kind"), str):
        raise BadEvidence("is not an object of a kind")
    for name, kind in _FIELDS.get(leaf["kind"], {}).items():
        if type(leaf.get(name)) is not kind:
            raise BadEvidence(f"has no {name}")
    if leaf["kind"] == "key":
        moment(leaf["at"])
    return leaf


def _older(files: Mapping[str, bytes], leaves: Sequence[tuple[int, Mapping[str, Any]]]) -> list[Problem]:
    """The checkpoint of the year before stands here exactly as the first entry binds it."""
    here = {path: content for path, content in files.items() if path.startswith("log/older/")}
    if not leaves or leaves[0][0] != 0:
        return []
    bound = leaves[0][1].get("previous")
    wrong = [path for path, content in here.items() if to_base64(content) != bound]
    if bound and not here:
        wrong = ["log/older"]
    return [Problem("wrong_checkpoint", path, "is not what the first entry binds") for path in sorted(wrong)]


# --- what the entries say -----------------------------------------------------------------------------


def chain_problems(scope: Scope, log: Logbook) -> Iterator[Problem]:
    """Every chain of the log that concerns the packet: without a hole, in order, under a key that was valid there."""
    concerned = {host.key_id: host.host_id for host in scope.hosts}
    begins = bool(log.leaves) and not log.leaves[0][1].get("previous")
    for key, leaves in _by_key(log, "bundle").items():
        if key in concerned:
            yield from _links(concerned[key], leaves, begins)
    for key, leaves in _by_key(log, "fork").items():
        for index, leaf in leaves if key in concerned else []:
            place = f"epoch {leaf['epoch']} seq {leaf['seq']}"
            yield Problem("fork", concerned[key], f"log entry {index}: two signed records for {place}")
    yield from _key_problems(scope, log, concerned)


def _by_key(log: Logbook, kind: str) -> dict[str, list[tuple[int, Mapping[str, Any]]]]:
    found: dict[str, list[tuple[int, Mapping[str, Any]]]] = defaultdict(list)
    for index, leaf in log.leaves:
        if leaf["kind"] == kind:
            found[leaf["key"]].append((index, leaf))
    return found


def _links(host: str, leaves: Sequence[tuple[int, Mapping[str, Any]]], begins: bool) -> Iterator[Problem]:
    first = leaves[0][1]
    if begins and (first["seq"] != 1 or first["prev"] != NO_PREV):
        yield Problem("missing_start", host, f"the log begins with epoch {first['epoch']} seq {first['seq']}")
    for (_, before), (index, leaf) in itertools.pairwise(leaves):
        where = f"log entry {index}: epoch {leaf['epoch']} seq {leaf['seq']}"
        follows = leaf["seq"] == (before["seq"] + 1 if leaf["epoch"] == before["epoch"] else 1)
        if leaf["epoch"] < before["epoch"] or not follows:
            yield Problem("missing", host, f"{where} after epoch {before['epoch']} seq {before['seq']}")
        elif leaf["prev"] != before["bundle_sha256"]:
            yield Problem("broken_link", host, f"{where} does not name the record before it")


def _key_problems(scope: Scope, log: Logbook, concerned: Mapping[str, str]) -> Iterator[Problem]:
    """A signature counts between its key's enrolment and its revocation; a host with a key of the period is in the scope."""
    events = _by_key(log, "key")
    signed = _by_key(log, "bundle")
    for key in sorted(events.keys() | signed.keys()):
        enrolled = next(((at, leaf) for at, leaf in events.get(key, []) if leaf["event"] == "enrol"), None)
        revoked = next(((at, leaf) for at, leaf in events.get(key, []) if leaf["event"] == "revoke"), None)
        places = [at for at, _ in signed.get(key, [])]
        if places and ((enrolled and places[0] < enrolled[0]) or (revoked and places[-1] > revoked[0])):
            yield Problem(
                "key_not_valid", concerned.get(key, key), "signed outside the time of its key, by the log's order"
            )
        late = enrolled is not None and moment(enrolled[1]["at"]) >= scope.end
        early = revoked is not None and moment(revoked[1]["at"]) < scope.start
        if key not in concerned and scope.host is None and not late and not early:
            yield Problem("missing_host", key, "is in the log and not in packet.json")


def completeness(scope: Scope, log: Logbook, records: Sequence[Record]) -> Iterator[Problem]:
    """A packet that was not asked for one control holds, of each host, a stretch of its chain around the whole period."""
    if scope.control is not None:
        return
    here = {record.index: record for record in records}
    signed = _by_key(log, "bundle")
    for host in scope.hosts:
        indexes = [at for at, _ in signed.get(host.key_id, [])]
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
    known: dict[int, str] = {}
    for record in records if log.entries else []:
        if record.document["incident"] is not None:
            yield Problem("log_forked", record.directory, "its host holds two checkpoints that contradict each other")
        head = record.document["log_head"]
        if head is None or head["origin"] != log.origin:
            continue
        size = head["size"]
        if size <= log.size and size not in known:
            known[size] = log.root_at(size).hex()
        if known.get(size) != head["root"]:
            yield Problem("split_view", record.directory, f"its host verified another log of size {size}")
