"""A host, its records and the log over them, small enough to damage in every way: as files, and as what a server serves."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from compliance_agent.entries.leaf import bundle_leaf, key_leaf, shard_leaf
from compliance_agent.evidence.chains import Tagger
from compliance_agent.evidence.problems import Problem
from compliance_agent.evidence.served import ServedLog, held_to_older, read_log
from compliance_agent.evidence.verify import Report, verify_paths
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, Tile, encode_entries
from compliance_agent.log.tree import Edge, TileTree
from tests.log.builder import Signer, signer
from tests.server.builder import START, FakeHost, Signed

ORIGIN = "evidence.example/clinic-1/2026"
LOG, WITNESS = signer(ORIGIN), signer("witness.example/w1", KeyType.COSIGNATURE)
POLICY = Policy.parse(f"log {LOG.key}\nwitness w1 {WITNESS.key}\nquorum none\n".encode())
MINUTE = 60
RECORDS = 8
STAMPED_AFTER = 3  # the log's time stands between the third and the fourth record


def posix(minutes: float) -> int:
    return int((START + timedelta(minutes=minutes)).timestamp())


@dataclass
class World:
    """Eight records a minute apart; `entries` is the log over them, with one entry of a time in their middle."""

    host: FakeHost = field(default_factory=FakeHost)
    records: list[Signed] = field(default_factory=list)
    entries: list[bytes] = field(default_factory=list)
    log: Signer = LOG
    cosigned_at: int = posix(30)
    files: dict[str, bytes] = field(default_factory=dict)  # what is served instead of what would be
    keep_receipts: list[bytes | None] = field(default_factory=list)

    @classmethod
    def live(cls) -> World:
        made = cls()
        made.entries = [shard_leaf(ORIGIN, None, "2026-11-22T00:00:00Z")]
        made.entries.append(key_leaf("enrol", made.host.key_id, made.host.public, "2026-11-22T00:00:00Z"))
        for number in range(RECORDS):
            if number == STAMPED_AFTER:
                made.entries.append(made.time_entry(posix(number - 0.5)))
            made.host.now = START + timedelta(minutes=number)
            made.record(log_head=made.head())
        return made

    def record(self, **changes: Any) -> Signed:
        signed = self.host.next(**changes)
        self.records.append(signed)
        self.entries.append(self.leaf(signed))
        return signed

    def leaf(self, signed: Signed) -> bytes:
        said = signed.document
        return bundle_leaf(self.host.key_id, said["epoch"], said["seq"], said["prev"], signed.sha256, signed.sig)

    def again(self, number: int, **changes: Any) -> None:
        """A record signed anew with the host's own key, and with the entry it had."""
        self.records[number] = self.host.sign({**self.records[number].document, **changes})

    def edge(self, size: int | None = None) -> tuple[Edge, dict[Tile, bytes]]:
        edge, tiles = Edge().grow(map(hash_leaf, self.entries[: len(self.entries) if size is None else size]))
        return edge, dict(tiles)

    def head(self) -> dict[str, Any]:
        edge, _ = self.edge()
        return {"origin": ORIGIN, "size": edge.size, "root": edge.root().hex(), "witnessed_at": None}

    def note(self, size: int | None = None, cosigned_at: int | None = None) -> bytes:
        edge, _ = self.edge(size)
        text = Checkpoint(ORIGIN, edge.size, edge.root()).text
        return Note(text, (self.log.line(text), WITNESS.line(text, cosigned_at or self.cosigned_at))).encode()

    def time_entry(self, at: int, tokens: Sequence[bytes] = ()) -> bytes:
        note = self.note(cosigned_at=at)
        entry = {
            "v": 1, "kind": "time", "checkpoint": base64.b64encode(note).decode(),
            "tokens": [base64.b64encode(token).decode() for token in tokens],
        }  # fmt: skip
        return json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()

    # As files, and as a server

    def write(self, directory: Path) -> Path:
        """An evidence directory with receipts."""
        _, tiles = self.edge()
        tree = TileTree(len(self.entries), lambda *tile: tiles[Tile(*tile)])
        for number, signed in enumerate(self.records):
            place = directory / "evidence" / "2026" / "11" / "22" / signed.document["bundle_id"]
            place.mkdir(parents=True, exist_ok=True)
            (place / "bundle.json").write_bytes(signed.body)
            (place / "bundle.sig").write_bytes(signed.sig)
            leaf = self.leaf(signed)
            if leaf in self.entries:
                index = self.entries.index(leaf)
                proof = Proof(index, tuple(tree.inclusion(index)), self.note()).encode()
                kept = self.keep_receipts[number] if number < len(self.keep_receipts) else None
                (place / "leaf.json").write_bytes(leaf)
                (place / "bundle.tlog-proof").write_bytes(kept or proof)
        return directory / "evidence"

    def served(self) -> dict[str, bytes]:
        edge, tiles = self.edge()
        found = {tile.path: content for tile, content in tiles.items()}
        found[Tile(ENTRIES, 0, edge.size).path] = encode_entries(self.entries)
        return {**found, "checkpoint": self.note(), **self.files}

    def read(self, tags: Tagger | None = None, policy: Policy = POLICY, **more: Any) -> ServedLog:
        return read_log(self.served().get, policy, tags or Tagger(), **more)

    def copy(self) -> World:
        return copy.deepcopy(self)

    # Looking

    def directory(self, tmp_path: Path, policy: Policy = POLICY) -> Report:
        return verify_paths([self.write(tmp_path)], {self.host.key_id: self.host.public}, policy=policy)

    def url(self, older: bytes | None = None, policy: Policy = POLICY) -> list[Problem]:
        log = self.read(policy=policy)
        return [*log.problems, *(held_to_older(log, older, policy) if older else ())]

    def held(self, tmp_path: Path, log: World | None = None, **more: Any) -> Report:
        """The records against a log, their own when no other is given."""
        tags = Tagger()
        served = (log or self).read(tags)
        keys = {self.host.key_id: self.host.public}
        return verify_paths([self.write(tmp_path)], keys, policy=POLICY, logs=[served], tags=tags, **more)


def digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


Damage = Callable[[World], World | None]


def other_key(key: VerifierKey) -> VerifierKey:
    """Of the same name, and somebody else's."""
    return signer(key.name, key.type, seed="somebody else").key
