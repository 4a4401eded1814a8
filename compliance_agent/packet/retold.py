"""The exports, held to the records while these go by in order; none of them is ever in memory. Pure.

    told = Retold(scope, csv, ocsf, again)
    for row, beside in ...: told.take(host, row, beside)   # host by host, in the order of each chain
    told.csv(), told.ocsf(), told.oscal(chunks, stated)     # whether the files are exactly what follows from the records

A line of the table and of the events was made by whoever judged the record, and a digest of both kept: here as many bytes are taken
from the files and must have that digest; where they have not, both lines are made again, which tells the wrong file. The assessment
results name the same records in another order, by host and check: what each of these lists has to be is hashed as the records go
by, and the file is read once at the end.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from compliance_agent.evidence.chains import Row
from compliance_agent.packet import oscal, table
from compliance_agent.packet.content import Scope
from compliance_agent.packet.due import Due
from compliance_agent.packet.reading import Beside

_PIECE = 1 << 20


class Taken:
    """A file of which the next bytes are taken, as many as somebody asks for."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks, self._held, self._at = chunks, b"", 0

    def take(self, length: int) -> bytes:
        """The next bytes; fewer where it ends."""
        end = self._at + length
        if end > len(self._held):
            parts, have = [self._held[self._at :]], len(self._held) - self._at
            while have < length and (chunk := next(self._chunks, b"")):
                parts.append(chunk)
                have += len(chunk)
            self._held, self._at, end = b"".join(parts), 0, length
        found = self._held[self._at : end]
        self._at = min(end, len(self._held))
        return found

    @property
    def ended(self) -> bool:
        """Whether nothing is left."""
        return not self.take(1)


class _Lines:
    """A file that is one line after the other; `right` until somebody finds otherwise."""

    def __init__(self, file: Iterator[bytes], head: bytes = b"") -> None:
        self._file = Taken(file)
        self.next = self._file.take
        self.right = self._file.take(len(head)) == head

    def ended(self) -> bool:
        return self.right and self._file.ended


@dataclass
class _List:
    """The records that are about one check on one host, as the document cites them."""

    digest: Any = field(default_factory=hashlib.sha256)
    length: int = 0

    def add(self, piece: bytes) -> None:
        if self.length:
            piece = b"," + piece
        self.digest.update(piece)
        self.length += len(piece)


class Retold:
    """What the exports have to be.

    Args:
        scope: of the packet.
        csv, ocsf: the files, in pieces.
        again: gives the lines of a record in either once more; `line` is where the directory's lines about it begin.
    """

    def __init__(
        self,
        scope: Scope,
        csv: Iterator[bytes],
        ocsf: Iterator[bytes],
        again: Callable[[int, Due], tuple[bytes, bytes]],
    ) -> None:
        self._scope, self._again, self._due = scope, again, Due(scope)
        self._csv, self._ocsf = _Lines(csv, table.HEAD), _Lines(ocsf)
        self._root = oscal.Root(scope)
        self._lists: dict[oscal.Place, _List] = {}

    @property
    def count(self) -> int:
        """How many records were told of."""
        return self._root.count

    def take(self, host: str, row: Row, kept: Beside) -> None:
        """The next record of the period."""
        csv, ocsf = self._csv.next(kept.csv_bytes), self._ocsf.next(kept.ocsf_bytes)
        if sha256(csv + ocsf).digest() != kept.lines and (self._csv.right or self._ocsf.right):
            wanted = self._again(kept.line, self._due)
            self._csv.right &= csv == wanted[0]
            self._ocsf.right &= ocsf == wanted[1]
        digest = kept.sha256.hex()
        self._root.take(digest)
        if (about := kept.about) is not None:
            path = f"evidence/{host}/{kept.day.decode('ascii')}/{row.bundle_id}"
            found = self._lists.get((host, about)) or self._lists.setdefault((host, about), _List())
            found.add(oscal.evidence(path, digest))

    def csv(self) -> bool:
        """Whether the table is that of these records."""
        return self._csv.ended()

    def ocsf(self) -> bool:
        """Whether the events are those of these records."""
        return self._ocsf.ended()

    def oscal(self, chunks: Iterator[bytes], stated: oscal.Stated) -> bool:
        """Whether this is the document of these records, of which `stated` is what they say."""
        file = Taken(chunks)
        for piece in oscal.document(self._scope, self._root, stated):
            if isinstance(piece, bytes):
                if file.take(len(piece)) != piece:
                    return False
            elif not _is(file, self._lists[piece]):
                return False
        return file.ended


def _is(file: Taken, wanted: _List) -> bool:
    digest = hashlib.sha256()
    for at in range(0, wanted.length, _PIECE):
        digest.update(file.take(min(_PIECE, wanted.length - at)))
    return bool(digest.digest() == wanted.digest.digest())
