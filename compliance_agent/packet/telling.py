"""Makes the exports while records go by in order, host by host, each in the order of its chain; what `retold` holds them to.

    telling = Telling(scope, aside)
    for record in ...: telling.take(record)
    telling.document(), telling.csv(), telling.ocsf()   # each in pieces

Lines are kept aside in files, and so is what the assessment results cite: in their order, host by host and check by check.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from compliance_agent.evidence.alike import OWN
from compliance_agent.packet import ocsf, oscal, table
from compliance_agent.packet.content import Record, Scope
from compliance_agent.packet.due import Due

Aside = Callable[[], BinaryIO]  # an empty file that is gone when it is closed
_PIECE = 1 << 20
_OWN = tuple(key for keys in OWN for key in keys)


class Telling:
    """The exports of the records of a period.

    Args:
        scope: of the packet.
        aside: gives a file to keep things in.
    """

    def __init__(self, scope: Scope, aside: Aside) -> None:
        self._scope, self._due = scope, Due(scope)
        self._csv, self._ocsf, self._cited = aside(), aside(), aside()
        self._root, self._stated = oscal.Root(scope), oscal.Stated()
        self._host = ""
        self._own: dict[str, list[bytes]] = defaultdict(list)  # of this host, by check
        self._lengths: dict[oscal.Place, int] = {}
        self._like: Mapping[
            str, Any
        ] = {}  # the last record that differs in more than its own members from the one before it
        self._lines: tuple[Callable[[Record], bytes], Callable[[Record], bytes]]
        self._csv.write(table.HEAD)

    @property
    def count(self) -> int:
        """How many records were told of."""
        return self._root.count

    def take(self, record: Record) -> None:
        """The next record of the period."""
        host = record.document["host"]["id"]
        if host != self._host:
            self._close()
            self._host = host
        if not _alike(record.document, self._like):
            self._like = record.document
            self._lines = table.writer(self._like, self._due), ocsf.writer(self._like)
        self._csv.write(self._lines[0](record))
        self._ocsf.write(self._lines[1](record))
        self._root.take(record.digest)
        self._stated.take(record)
        if (about := oscal.own_check(record.document)) is not None:
            self._own[about].append(oscal.evidence(record.directory, record.digest))

    def _close(self) -> None:
        """A host's records are all here."""
        for check in sorted(self._own):
            cited = b",".join(self._own[check])
            self._lengths[self._host, check] = len(cited)
            self._cited.write(cited)
        self._own.clear()

    def document(self) -> Iterator[bytes]:
        """The assessment results; may be asked for again."""
        self._close()
        starts, at = dict[oscal.Place, int](), 0
        for place, length in self._lengths.items():
            starts[place], at = at, at + length
        for piece in oscal.document(self._scope, self._root, self._stated):
            if isinstance(piece, bytes):
                yield piece
            else:
                yield from _pieces(self._cited, starts[piece], self._lengths[piece])

    def csv(self) -> Iterator[bytes]:
        """The table."""
        return _pieces(self._csv, 0, self._csv.seek(0, 2))

    def ocsf(self) -> Iterator[bytes]:
        """The events."""
        return _pieces(self._ocsf, 0, self._ocsf.seek(0, 2))


def _alike(said: Mapping[str, Any], like: Mapping[str, Any]) -> bool:
    """Whether two records differ in nothing but what each has of its own."""
    return len(said) == len(like) and {**said, **{key: like[key] for key in _OWN}} == like


def _pieces(file: BinaryIO, start: int, length: int) -> Iterator[bytes]:
    file.seek(start)
    for at in range(0, length, _PIECE):
        yield file.read(min(_PIECE, length - at))
