"""Receipts: an entry's place in a log, provable offline (C2SP tlog-proof, "Format" and "Verifying a tlog proof")."""

from __future__ import annotations

import binascii
import functools
import re

from compliance_agent.dataclass import dataclass
from compliance_agent.errors import BadEvidence
from compliance_agent.log.fields import from_base64, from_decimal, to_base64
from compliance_agent.log.merkle import HASH_BYTES, LeafHash, verify_inclusion
from compliance_agent.log.policy import Policy, Verified

_HEADER = "c2sp.org/tlog-proof@v1"
# What a log writes: no extra, and 32 bytes in each line, of which base64 has one spelling. The rest is read line by line.
_PLAIN = re.compile(
    rb"c2sp\.org/tlog-proof@v1\nindex (0|[1-9][0-9]{0,17})\n((?:[A-Za-z0-9+/]{42}[AEIMQUYcgkosw048]=\n){0,63})\n"
)
_NEAR = 6 * 45  # of the lines, six: entries that are near each other share the others


@functools.lru_cache(1_024)
def _hashes(lines: bytes) -> tuple[bytes, ...]:
    return tuple(map(binascii.a2b_base64, lines.split()))


@dataclass(frozen=True)
class Proof:
    """What a `.tlog-proof` file holds: nothing in it is true before `verify`, and `extra` not even then."""

    index: int
    path: tuple[bytes, ...]
    checkpoint: bytes  # the signed note as published
    extra: bytes = b""

    def encode(self) -> bytes:
        """The file."""
        extra = f"extra {to_base64(self.extra)}\n" if self.extra else ""
        hashes = b"".join(map(binascii.b2a_base64, self.path))  # each ends its line
        return f"{_HEADER}\n{extra}index {self.index}\n".encode() + hashes + b"\n" + self.checkpoint

    @classmethod
    def parse(cls, raw: bytes) -> Proof:
        """The proof of exactly these bytes; code `bad_receipt`. The checkpoint in it is read by `verify`."""
        if plain := _PLAIN.match(raw):
            near, far = plain[2][:_NEAR], plain[2][_NEAR:]
            hashes = (*map(binascii.a2b_base64, near.split()), *_hashes(far))
            return cls(int(plain[1]), hashes, raw[plain.end() :])
        head, blank, checkpoint = raw.partition(b"\n\n")
        header, *lines = head.decode("utf-8", "replace").split("\n")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = from_base64(lines.pop(0)[6:], "extra of receipt", "bad_receipt")
        if not blank or header != _HEADER or not lines or not lines[0].startswith("index "):
            raise BadEvidence("receipt does not begin as a tlog-proof with an index", code="bad_receipt")
        index = from_decimal(lines[0][6:], "index of receipt", "bad_receipt")
        path = [from_base64(line, f"hash {at} of receipt", "bad_receipt") for at, line in enumerate(lines[1:], 1)]
        if len(path) > 63 or any(len(node) != HASH_BYTES for node in path):
            raise BadEvidence("receipt has a hash that is not of 32 bytes, or more than 63", code="bad_receipt")
        return cls(index, tuple(path), checkpoint, extra)

    def verify(self, leaf: LeafHash, policy: Policy, *, require_quorum: bool = True) -> Verified:
        """Prove that the leaf is in a log the policy trusts; codes of the steps, and `no_quorum` unless not required."""
        verified = policy.verify(self.checkpoint)
        verify_inclusion(leaf, self.index, verified.checkpoint.size, self.path, verified.checkpoint.root)
        if require_quorum and not verified.quorum_met:
            raise BadEvidence(f"checkpoint of {verified.checkpoint.origin} lacks its witnesses", code="no_quorum")
        return verified
