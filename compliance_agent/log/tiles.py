"""Names and contents of the files that a log serves (C2SP tlog-tiles, "Merkle Tree" and "Log entries").

A full tile holds 256 hashes of one level; the last tile of a level may be partial. Entry bundles are named like the tiles
of level 0 whose hashes their entries have; here they are of level `ENTRIES`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.merkle import HASH_BYTES

FULL = 256  # hashes, or entries
TILE_BYTES = FULL * HASH_BYTES
ENTRIES = -1
MAX_ENTRY_BYTES = 65_535
_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,6}[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?")


@dataclass(frozen=True, order=True)
class Tile:
    """One file: its level (0..63, or ENTRIES), its index in the level, and its width (256, less if partial)."""

    level: int
    index: int
    width: int = FULL

    @property
    def path(self) -> str:
        """Below the log's prefix: `tile/0/x001/x234/067.p/8`."""
        first, *others = f"{self.index:,}".split(",")
        *outer, last = first.zfill(3), *others
        level = "entries" if self.level == ENTRIES else self.level
        partial = f".p/{self.width}" if self.width < FULL else ""
        return "/".join(["tile", str(level), *(f"x{group}" for group in outer), last + partial])

    @classmethod
    def parse(cls, path: str) -> Tile:
        """The tile of exactly this path; code `bad_tile_path` for every other spelling."""
        found = _PATH.fullmatch(path)
        if found:
            level = ENTRIES if found[1] == "entries" else int(found[1])
            tile = cls(level, int(found[2].replace("x", "").replace("/", "")), int(found[3] or FULL))
            if level < 64 and tile.path == path:
                return tile
        raise BadEvidence("not the path of a tile or entry bundle", code="bad_tile_path")


def written(old: int, new: int) -> Iterator[Tile]:
    """Every file that growth from `old` to `new` entries adds: entry bundles, then tiles level by level."""
    for level in range(ENTRIES, 8):
        shift = 8 * max(level, 0)
        before, after = old >> shift, new >> shift
        if before < after:
            for index in range(before // FULL, -(-after // FULL)):
                yield Tile(level, index, min(FULL, after - index * FULL))


def encode_entries(entries: Iterable[bytes]) -> bytes:
    """An entry bundle: each entry after its length as u16, big-endian; code `entry_too_large`."""
    parts: list[bytes] = []
    for entry in entries:
        if len(entry) > MAX_ENTRY_BYTES:
            raise BadEvidence(f"log entry has {len(entry)} bytes; at most {MAX_ENTRY_BYTES}", code="entry_too_large")
        parts += (len(entry).to_bytes(2, "big"), entry)
    return b"".join(parts)


def decode_entries(bundle: bytes, width: int) -> list[bytes]:
    """The entries of a bundle of exactly `width`; code `bad_entry_bundle`."""
    entries, at = list[bytes](), 0
    while at < len(bundle) and len(entries) < width:
        end = at + 2 + int.from_bytes(bundle[at : at + 2], "big")
        entries.append(bundle[at + 2 : end])
        at = end
    if at != len(bundle) or len(entries) != width:
        raise BadEvidence(f"entry bundle does not hold exactly {width} whole entries", code="bad_entry_bundle")
    return entries
