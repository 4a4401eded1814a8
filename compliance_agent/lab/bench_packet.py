"""A packet of the records that `bench_verify` made: as a server writes one, but read from a directory, a record at a time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import overload

from compliance_agent import crypto
from compliance_agent.entries.leaf import shard_leaf
from compliance_agent.lab.bench_log import SITE
from compliance_agent.lab.bench_verify import HOSTS, _key
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, Tile, encode_entries, written
from compliance_agent.log.tree import Edge
from compliance_agent.packet import archive, dsse, ocsf, oscal, table
from compliance_agent.packet.content import PacketHost, Record, Scope
from compliance_agent.packet.manifest import MANIFEST, MANIFEST_SIGNATURE, line
from compliance_agent.packet.outside import outside
from compliance_agent.packet.readme import NOT_PROVEN, Shown, readme


class _OnDisk(Sequence[Record]):
    """The records of a directory in the order of their chains, each read when it is looked at."""

    def __init__(self, places: Sequence[str]) -> None:
        self._places = places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Record: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Record]: ...
    def __getitem__(self, at: int | slice) -> Record | Sequence[Record]:
        if isinstance(at, slice):
            return _OnDisk(self._places[at])
        body, signature, leaf, receipt = ((Path(self._places[at]) / part).read_bytes() for part in archive.PARTS)
        return Record(json.loads(body), body, signature, leaf, Proof.parse(receipt).index)


def make_packet(directory: Path) -> Path:
    """The packet of all records under `directory`; one that is there is kept."""
    out = directory / "packet.zip"
    if out.exists():
        return out
    note = (directory / "checkpoint").read_bytes()
    checkpoint = Checkpoint.parse(Note.parse(note).text)
    vkey = VerifierKey.parse((directory / "keys" / "log.vkey").read_text("ascii").strip())
    leaves = [_leaves(directory / f"leaves-{number}") for number in range(HOSTS)]
    records = _OnDisk([place for host in leaves for place, _ in host])
    files = _log(checkpoint, [leaf for turn in zip(*leaves, strict=True) for _, leaf in turn])
    hosts = [(f"ws-{number:02}", _key(number).public_key().public_bytes_raw()) for number in range(HOSTS)]
    keyed = sorted((label, crypto.key_id(public)) for label, public in hosts)
    scope = Scope(
        SITE, "2026-01-01", "2026-12-31", None, None, checkpoint.origin, checkpoint.size, "2026-12-31T00:00:00.000000Z",
        tuple(PacketHost(label, key_id, "2026-01-01T00:00:00.000000Z", None) for label, key_id in keyed), 0, {},
    )  # fmt: skip
    policy = f"log {vkey}\nquorum none\n".encode()
    files |= {f"keys/{crypto.key_id(public)}.pem": crypto.public_pem(public).encode() for _, public in hosts}
    files |= {
        "packet.json": scope.encode(), "policy": policy, "log/checkpoint": note, "NOT-PROVEN.txt": NOT_PROVEN,
        "keys/log.pem": crypto.public_pem(vkey.public).encode(),
        "README.txt": readme(scope, Shown(len(records), 0, records[0]), oscal.VERSION, outside(policy, note, []), authority=False),
        "export/assessment-results.json": oscal.assessment_results(scope, records),
        "export/ocsf.jsonl": ocsf.lines(scope, records), "export/evidence.csv": table.table(scope, records),
    }  # fmt: skip
    _signed(files)
    names = {f"{_below(place)}/{part}" for place in records._places for part in archive.PARTS}

    def content(name: str) -> bytes:
        return files[name] if name in files else (directory / name).read_bytes()

    everything = sorted(names | files.keys())
    listed = b"".join(line(hashlib.sha256(content(name)).hexdigest(), name) for name in everything)
    files |= {MANIFEST: listed, MANIFEST_SIGNATURE: _key(98).sign(listed)}
    with out.open("wb") as file:
        archive.write({*everything, MANIFEST, MANIFEST_SIGNATURE}, content, file.write)
    return out


def _leaves(path: Path) -> list[tuple[str, bytes]]:
    with path.open(encoding="ascii") as file:
        return [(place, leaf.rstrip("\n").encode("ascii")) for place, _, leaf in (row.partition("\t") for row in file)]


def _below(place: str) -> str:
    return "evidence/" + "/".join(place.rsplit("/", 5)[1:])


def _log(checkpoint: Checkpoint, leaves: Sequence[bytes]) -> dict[str, bytes]:
    entries = [shard_leaf(checkpoint.origin, None, "2026-01-01T00:00:00Z"), *leaves]
    _, tiles = Edge().grow(map(hash_leaf, entries))
    return {f"log/{tile.path}": content for tile, content in [*dict(tiles).items(), *_bundles(entries)]}


def _bundles(entries: Sequence[bytes]) -> Iterator[tuple[Tile, bytes]]:
    for tile in written(0, len(entries)):
        if tile.level == ENTRIES:
            yield tile, encode_entries(list(entries[tile.index * 256 : tile.index * 256 + tile.width]))


def _signed(files: dict[str, bytes]) -> None:
    key, name = _key(98), "export/assessment-results.json"
    public = key.public_key().public_bytes_raw()
    said = dsse.statement(
        name.rpartition("/")[2], hashlib.sha256(files[name]).hexdigest(), {"tool": "compliance-agent"}
    )
    files["keys/packet.pem"] = crypto.public_pem(public).encode()
    files["export/assessment-results.dsse.json"] = dsse.envelope(said, public, key.sign)
