"""Records to measure a verifier with: of several hosts, each a chain, one log over all; made once and kept in a file a host.

A directory and a packet are made of the same records (`bench_verify`, `bench_packet`). Hosts are made in several processes.
"""

from __future__ import annotations

import hashlib
import itertools
import random
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from compliance_agent import crypto
from compliance_agent.adapters.workers import in_order
from compliance_agent.entries.leaf import bundle_leaf, shard_leaf
from compliance_agent.evidence.canonical import canonical
from compliance_agent.lab.bench_log import SITE, ZEROS, _document
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.note import KeyType, Note, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, encode_entries, written
from compliance_agent.log.tree import Edge, TileTree

START = datetime(2026, 1, 1, tzinfo=UTC)
PER_DAY = 500  # of each host, so that no directory is very long
HOSTS = 8
AT = "2026-01-01T00:00:00Z"
_LENGTHS = struct.Struct("<HHH")
_DIRECTORY = "%Y/%m/%d"


@dataclass(frozen=True)
class Bundle:
    """One record as it was made."""

    directory: str  # from the host's label on
    body: bytes
    signature: bytes
    leaf: bytes


@dataclass(frozen=True)
class Log:
    """The log over all of them, with one checkpoint at its end."""

    note: bytes
    key: VerifierKey
    size: int
    hashes: dict[Tile, bytes]

    def receipt(self, tree: TileTree, host: int, at: int) -> tuple[int, bytes]:
        """Index and receipt of a host's record."""
        index = at * HOSTS + host + 1  # hosts take turns, after the entry that begins the log
        return index, Proof(index, tuple(tree.inclusion(index)), self.note).encode()

    @property
    def tree(self) -> TileTree:
        """To prove from."""
        return TileTree(self.size, lambda *tile: self.hashes[Tile(*tile)])


def label(number: int) -> str:
    """Of a host."""
    return f"ws-{number:02}"


def key(number: int) -> Any:
    """Of a host; 98 signs packets, 99 the log."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(f"bench {number}".encode()).digest())


def public_key(number: int) -> bytes:
    """Of a host."""
    raw: bytes = key(number).public_key().public_bytes_raw()
    return raw


def make(directory: Path, records: int) -> None:
    """So many records; what is there already is kept."""
    done = directory / f"made-{records}"
    if not done.exists():
        directory.mkdir(parents=True, exist_ok=True)
        each = records // HOSTS
        list(in_order(lambda number: _make_host(directory, number, each), range(HOSTS), count=2))
        done.touch()


def _make_host(directory: Path, number: int, count: int) -> None:
    secret, rng, prev = key(number), random.Random(number), ZEROS
    key_id, host = crypto.key_id(public_key(number)), label(number)
    with (directory / f"records-{number}").open("wb") as file:
        for at in range(count):
            now = START + timedelta(days=at // PER_DAY, seconds=at % PER_DAY * 60)
            bundle_id = str(uuid.UUID(int=rng.getrandbits(128), version=4))
            document = _document(host, key_id, now) | {
                "epoch": 0, "seq": at + 1, "prev": prev, "bundle_id": bundle_id, "pre_state": {"offset_us": at % 900},
            }  # fmt: skip
            document["clock"] |= {"monotonic_ns": at * 10**9, "boot_id": "0b1e7c9a-3c5d-4e6f-8a9b-0c1d2e3f4a5b"}
            body = canonical(document)
            signature, digest = secret.sign(body), hashlib.sha256(body).hexdigest()
            leaf = bundle_leaf(key_id, 0, at + 1, prev, digest, signature)
            where = f"{host}/{now.strftime(_DIRECTORY)}/{bundle_id}".encode("ascii")
            file.write(_LENGTHS.pack(len(where), len(body), len(leaf)) + where + body + signature + leaf)
            prev = digest


def of_host(directory: Path, number: int) -> Iterator[Bundle]:
    """A host's records, in the order of its chain."""
    with (directory / f"records-{number}").open("rb") as file:
        while lengths := file.read(_LENGTHS.size):
            yield _read(file, *_LENGTHS.unpack(lengths))


def _read(file: BinaryIO, where: int, body: int, leaf: int) -> Bundle:
    return Bundle(file.read(where).decode("ascii"), file.read(body), file.read(crypto.SIGNATURE_BYTES), file.read(leaf))


def entries(directory: Path) -> Iterator[bytes]:
    """Of the log, in its order."""
    yield shard_leaf(f"bench/{SITE}/2026", None, AT)
    hosts = [of_host(directory, number) for number in range(HOSTS)]
    for turn in zip(*hosts, strict=True):
        yield from (bundle.leaf for bundle in turn)


def log(directory: Path) -> Log:
    """The log over the records of a directory."""
    edge, hashes, leaves = Edge(), dict[Tile, bytes](), map(hash_leaf, entries(directory))
    while some := list(itertools.islice(leaves, 100 * FULL)):
        edge, grown = edge.grow(some)
        hashes |= dict(grown)
    whole = set(written(0, edge.size))  # not what it has while it grows
    hashes = {tile: content for tile, content in hashes.items() if tile in whole}
    vkey = VerifierKey(f"bench/{SITE}/2026", KeyType.ED25519, public_key(99))
    text = Checkpoint(vkey.name, edge.size, edge.root()).text
    return Log(Note(text, (vkey.sign(text, key(99).sign),)).encode(), vkey, edge.size, hashes)


def entry_tiles(size: int) -> list[Tile]:
    """The files of entries."""
    return [tile for tile in written(0, size) if tile.level == ENTRIES]


def entry_bundles(directory: Path, size: int) -> Iterator[tuple[Tile, bytes]]:
    """The files of entries, in their order."""
    all_entries = entries(directory)
    for tile in entry_tiles(size):
        yield tile, encode_entries(list(itertools.islice(all_entries, tile.width)))
