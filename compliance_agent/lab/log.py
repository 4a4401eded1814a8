"""A transparency log in memory, made with the real core, that can be told to lie.

log = FakeLog("clinic-1")
log.add("bundle-id", leaf)
log.receipt("bundle-id")            # {"bundle_id", "leaf", "proof"} as the protocol has it, None when not in the log
log.lie = Lie.WRONG_LEAF            # until it is set to something else
log.fork(); log.roll_back(3)        # from then on it is another tree, signed with the same key
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Sequence
from enum import Enum

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.merkle import HASH_BYTES, hash_leaf
from compliance_agent.log.note import KeyType, Note, Signature, VerifierKey
from compliance_agent.log.proof import Proof
from compliance_agent.log.tiles import FULL, Tile
from compliance_agent.log.tree import Edge, TileTree


class Lie(Enum):
    """What is wrong with the receipts and files that a log gives."""

    NOTHING = "nothing"
    NO_RECEIPT = "no receipt"  # it never has one
    LATE = "late"  # none with the acknowledgement, only when it is asked for
    GARBAGE = "garbage"  # a receipt that is no tlog-proof
    OTHER_NAME = "other name"  # it is said to be of another bundle
    WRONG_LEAF = "wrong leaf"  # an entry that is in the tree, but of another place in the chain
    WRONG_INDEX = "wrong index"
    OLD_CHECKPOINT = "old checkpoint"  # of the tree before the entry
    WRONG_KEY = "wrong key"  # signed by somebody else under the log's name
    FORGED_LINE = "forged line"  # the log's own name and key id, and a signature that is not its
    OTHER_SITE = "other site"
    OTHER_SERVER = "other server"
    EXTENDED = "extended"  # the checkpoint carries more than a tree
    TRUNCATED_TILE = "truncated tile"
    FLIPPED_TILE = "flipped tile"
    NO_TILE = "no tile"


class FakeLog:
    """One site's log of one year.

    Args:
        site_id: the site.
        server: the server's name.
        year: the year.
        seed: of its key.
    """

    def __init__(self, site_id: str, *, server: str = "fake", year: int = 2026, seed: str = "log") -> None:
        from nacl.signing import SigningKey

        self.origin = f"{server}/{site_id}/{year}"
        self.lie = Lie.NOTHING
        self.cosignatures: Callable[[str], Sequence[Signature]] = lambda text: ()  # of its witnesses
        self.entries: list[bytes] = []
        self.served: list[str] = []
        self._places: dict[str, int] = {}
        self._edges = [Edge()]  # after each entry
        self._tiles: dict[str, bytes] = {}
        self._key = SigningKey(hashlib.sha256(seed.encode()).digest())
        self._stranger = SigningKey(hashlib.sha256(f"not {seed}".encode()).digest())
        self.append(b'{"kind":"shard","v":1}')

    @property
    def public(self) -> bytes:
        """Its raw key."""
        return bytes(self._key.verify_key)

    @property
    def vkey(self) -> VerifierKey:
        """Its key with its name."""
        return VerifierKey(self.origin, KeyType.ED25519, self.public)

    @property
    def size(self) -> int:
        """How many entries there are."""
        return len(self.entries)

    def add(self, bundle_id: str, leaf: bytes) -> None:
        """Log a bundle, once."""
        if bundle_id not in self._places:
            self._places[bundle_id] = self.append(self._altered(leaf))

    def append(self, entry: bytes) -> int:
        """Add an entry; its index."""
        edge, tiles = self._edges[-1].grow([hash_leaf(entry)])
        self.entries.append(entry)
        self._edges.append(edge)
        self._tiles |= {tile.path: content for tile, content in tiles}
        return len(self.entries) - 1

    def fork(self) -> None:
        """Show another history of the same length from now on."""
        self._rebuild([b"something else", *self.entries[1:]])

    def roll_back(self, count: int) -> None:
        """Forget the newest entries, as a server does that is restored from a backup without any guard."""
        self._rebuild(self.entries[:-count])
        self._places = {name: index for name, index in self._places.items() if index < len(self.entries)}

    def _rebuild(self, entries: Sequence[bytes]) -> None:
        self.entries, self._edges, self._tiles = [], [Edge()], {}
        for entry in entries:
            self.append(entry)

    # What it gives

    def receipt(self, bundle_id: str) -> dict[str, str] | None:
        """A bundle's receipt under the newest checkpoint."""
        index = self._places.get(bundle_id)
        if index is None or self.lie is Lie.NO_RECEIPT:
            return None
        path = tuple(TileTree(self.size, self._read).inclusion(index))
        size = index if self.lie is Lie.OLD_CHECKPOINT else self.size
        proof = Proof(index ^ (self.lie is Lie.WRONG_INDEX), path, self.note(size)).encode()
        named = "another" if self.lie is Lie.OTHER_NAME else bundle_id
        proof = b"garbage" if self.lie is Lie.GARBAGE else proof
        return {"bundle_id": named, "leaf": _b64(self.entries[index]), "proof": _b64(proof)}

    def note(self, size: int | None = None) -> bytes:
        """A signed checkpoint, the newest when no size is given."""
        edge = self._edges[self.size if size is None else size]
        server, site, year = self.origin.split("/")
        server = "other" if self.lie is Lie.OTHER_SERVER else server
        site = "other" if self.lie is Lie.OTHER_SITE else site
        origin = f"{server}/{site}/{year}"
        extensions = ("something more",) if self.lie is Lie.EXTENDED else ()
        text = Checkpoint(origin, edge.size, edge.root(), extensions).text
        name = self._stranger if self.lie is Lie.WRONG_KEY else self._key
        signer = self._stranger if self.lie in {Lie.WRONG_KEY, Lie.FORGED_LINE} else self._key
        key = VerifierKey(origin, KeyType.ED25519, bytes(name.verify_key))
        line = key.sign(text, lambda message: bytes(signer.sign(message).signature))
        return Note(text, (line, *self.cosignatures(text))).encode()

    def file(self, path: str) -> bytes | None:
        """A file below the log's prefix, None when there is none."""
        self.served.append(path)
        if path == "checkpoint":
            return self.note()
        found = None if self.lie is Lie.NO_TILE else self._tiles.get(path)
        if found is not None and self.lie is Lie.TRUNCATED_TILE:
            return found[:-1]
        if found is not None and self.lie is Lie.FLIPPED_TILE:
            return bytes([found[0] ^ 1]) + found[1:]
        return found

    def _read(self, level: int, index: int, width: int) -> bytes:
        tile = self._tiles.get(Tile(level, index, width).path) or self._tiles[Tile(level, index, FULL).path]
        return tile[: width * HASH_BYTES]

    def _altered(self, leaf: bytes) -> bytes:
        return leaf.replace(b'"epoch":0', b'"epoch":7') if self.lie is Lie.WRONG_LEAF else leaf


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode("ascii")
