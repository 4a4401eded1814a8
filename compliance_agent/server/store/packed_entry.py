"""How a record's entry of the log is kept: the parts that it is made of, in binary, less than half of what it says.

A kept entry is one byte, 2, then key id, digest and digest before of 32 bytes each, the signature of 64, and in decimal
`EPOCH,SEQ`. Every other entry is kept as it is: it begins with a brace. What is handed out, hashed and compared is the entry
itself; a value that cannot be read is handed on as it stands, so whoever checks finds the damage.
"""

from __future__ import annotations

import re
from binascii import a2b_base64

from sqlalchemy import Dialect

from compliance_agent.entries.leaf import bundle_leaf
from compliance_agent.server.store.packing import Packed

NUMBER = b"\x02"
_COUNT = rb"(0|[1-9][0-9]{0,18})"
_ENTRY = re.compile(
    rb'\{"bundle_sha256":"([0-9a-f]{64})","epoch":' + _COUNT + rb',"key":"([0-9a-f]{64})","kind":"bundle",'
    rb'"prev":"([0-9a-f]{64})","seq":' + _COUNT + rb',"sig":"([A-Za-z0-9+/]{85}[AQgw]==)","v":1\}'
)
_KEPT = re.compile(NUMBER + rb"(.{32})(.{32})(.{32})(.{64})" + _COUNT + b"," + _COUNT, re.DOTALL)


def packed(entry: bytes) -> bytes:
    """As it is kept: `unpacked` gives exactly these bytes again."""
    found = _ENTRY.fullmatch(entry)
    if found is None:
        return entry
    sha256, epoch, key, prev, seq, sig = found.groups()
    parts = bytes.fromhex((key + sha256 + prev).decode("ascii"))
    return b"%b%b%b%b,%b" % (NUMBER, parts, a2b_base64(sig), epoch, seq)


def unpacked(kept: bytes) -> bytes:
    """The entry that was given."""
    found = _KEPT.fullmatch(kept)
    if found is None:
        return kept
    key, sha256, prev, sig, epoch, seq = found.groups()
    return bundle_leaf(key.hex(), int(epoch), int(seq), prev.hex(), sha256.hex(), sig)


class PackedEntry(Packed):
    """A column of entries."""

    cache_ok = True

    @staticmethod
    def kept(value: bytes) -> bytes:
        """As it is kept."""
        return packed(value)

    def process_result_value(self, value: bytes | None, dialect: Dialect) -> bytes | None:
        """As it comes out."""
        return None if value is None else unpacked(bytes(value))
