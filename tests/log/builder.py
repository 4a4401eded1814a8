"""A log in memory with fixed keys, so that every test shows the same bytes, and the flipping of single bits."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import RootHash, hash_leaf
from compliance_agent.log.note import KeyType, Note, Signature, VerifierKey
from compliance_agent.log.policy import Policy
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import Edge, TileTree

ORIGIN = "evidence.example/clinic-a/2026"
NOW = 1_795_000_000


@dataclass(frozen=True)
class Signer:
    """A verifier key with the private half."""

    key: VerifierKey
    private: Callable[[bytes], bytes]

    def line(self, text: str, timestamp: int = NOW) -> Signature:
        return self.key.sign(text, self.private, None if self.key.type == KeyType.ED25519 else timestamp)


def signer(name: str, type_: KeyType = KeyType.ED25519, seed: str = "") -> Signer:
    """The same key for the same arguments, every time."""
    secret = hashlib.sha256(f"{seed or name} {type_}".encode()).digest()
    if type_ == KeyType.MLDSA44:
        mldsa = MLDSA44PrivateKey.from_seed_bytes(secret)
        return Signer(VerifierKey(name, type_, mldsa.public_key().public_bytes_raw()), mldsa.sign)
    ed25519 = Ed25519PrivateKey.from_private_bytes(secret)
    return Signer(VerifierKey(name, type_, ed25519.public_key().public_bytes_raw()), ed25519.sign)


LOG = signer(ORIGIN)
LOG_PQ = signer(ORIGIN, KeyType.MLDSA44)
WITNESSES = [signer(f"witness.example/w{number}", KeyType.COSIGNATURE) for number in (1, 2, 3)]
POLICY_TEXT = "".join(
    [
        "# two of three\n",
        f"log {LOG.key} https://log.example/\n",
        f"log {LOG_PQ.key}\n",
        *(f"witness w{number}\t{witness.key}\n" for number, witness in enumerate(WITNESSES, 1)),
        "group some 2 w1 w2 w3\n\n",
        "quorum some\n",
    ]
)
POLICY = Policy.parse(POLICY_TEXT.encode())


class MemoryLog:
    """Entries, and the files that serve them."""

    def __init__(self, size: int = 0) -> None:
        self.entries: list[bytes] = []
        self.edge = Edge()
        self.tiles: dict[Tile, bytes] = {}
        self.reads: list[Tile] = []
        self.append(size)

    def append(self, count: int) -> None:
        new = [b"entry %d" % number for number in range(len(self.entries), len(self.entries) + count)]
        self.entries += new
        self.edge, tiles = self.edge.grow(hash_leaf(entry) for entry in new)
        self.tiles.update(tiles)

    def read(self, level: int, index: int, width: int) -> bytes:
        self.reads.append(Tile(level, index, width))
        return self.tiles.get(self.reads[-1]) or self.tiles[Tile(level, index)]

    def tree(self, size: int | None = None) -> TileTree:
        return TileTree(self.edge.size if size is None else size, self.read)

    def checkpoint(self, *signers: Signer) -> bytes:
        text = Checkpoint(ORIGIN, self.edge.size, self.edge.root()).text
        return Note(text, tuple(one.line(text) for one in signers or (LOG, *WITNESSES[:2]))).encode()

    def receipt(self, index: int, *signers: Signer) -> Proof:
        return Proof(index, tuple(self.tree().inclusion(index)), self.checkpoint(*signers))


def flips(raw: bytes, step: int = 1) -> Iterator[tuple[int, bytes]]:
    """Every `step`th bit of some bytes, turned over, with its number."""
    for bit in range(0, len(raw) * 8, step):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        yield bit, bytes(damaged)


def root(value: bytes) -> RootHash:
    return RootHash(value)
