"""The rows of a packet's records, host by host as its files stand, let go of when a host was looked at.

    kept.add(part)              # in the order of the batches
    for host in kept.ready(): ...  # labels in their order, each once all its records are here

The files of "ws-1-a" stand before those of "ws-1", because "-" sorts before "/"; the exports are in the order of labels. So a host
waits while one whose label begins its own may still come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import NamedTuple

from compliance_agent.evidence.chains import Row, rows_in_order, unpacked
from compliance_agent.packet.reading import Beside, Part, beside


class Line(NamedTuple):
    """One chain: the records of a key and epoch under one label."""

    host: str
    key: str
    epoch: int
    rows: bytearray
    kept: bytearray

    @property
    def place(self) -> tuple[str, int, str]:
        """In the order in which chains are told of."""
        return self.key, self.epoch, self.host

    def records(self) -> Iterator[tuple[Row, Beside]]:
        """In the order of the chain."""
        for at in rows_in_order(self.rows):
            yield unpacked(self.rows, at), beside(self.kept, at)


class Rows:
    """The rows of the hosts that were not looked at yet.

    Args:
        labels: of the hosts that the packet says it concerns.
    """

    def __init__(self, labels: Collection[str]) -> None:
        self._labels = set(labels)
        self._held: dict[str, dict[tuple[str, int], tuple[bytearray, bytearray]]] = {}
        self._begun: list[str] = []  # in the order of their files; the last may go on
        self._all_here = False

    def add(self, part: Part) -> None:
        """Take up what was found in the next batch."""
        for (host, key, epoch), found in part.rows.items():
            if host not in self._held:
                self._held[host] = {}
                self._begun.append(host)
            mine = self._held[host].setdefault((key, epoch), found)
            if mine is not found:
                mine[0].extend(found[0])
                mine[1].extend(found[1])

    def finish(self) -> None:
        """Every batch was taken up."""
        self._all_here = True

    @property
    def finished(self) -> bool:
        """Whether nothing comes any more, and nothing waits."""
        return self._all_here and not self._held

    def ready(self) -> list[Line] | None:
        """The chains of the next host in the order of labels, of which the rows are let go; None while none is whole."""
        if not self._held:
            return None
        host = min(self._held)
        if not self._all_here and (host == self._begun[-1] or self._waits(host)):
            return None
        return [Line(host, *place, *found) for place, found in sorted(self._held.pop(host).items())]

    def _waits(self, host: str) -> bool:
        """Whether a host may still come that is before this one in the order of labels: its label begins this one."""
        return any(host.startswith(label) and label not in self._begun for label in self._labels)


class Marked(Collection[int]):
    """Some of the numbers below a size, a byte for each."""

    def __init__(self, size: int) -> None:
        self._marks = bytearray(size)

    def mark(self, number: int) -> None:
        """Take up one."""
        if 0 <= number < len(self._marks):
            self._marks[number] = 1

    def __contains__(self, number: object) -> bool:
        return isinstance(number, int) and 0 <= number < len(self._marks) and self._marks[number] == 1

    def __iter__(self) -> Iterator[int]:
        return (number for number, mark in enumerate(self._marks) if mark)

    def __len__(self) -> int:
        return self._marks.count(1)
