"""A packet's directory, cut into stretches that are read apart: only what stands before and after the records is walked here. Pure.

    files = beside(container)         # every file that does not stand below evidence/
    for batch in batches(container):  # together the whole directory, each line once

Whoever reads a batch holds its lines to each other; `archive.InOrder.join` holds the batches to each other. So nothing that is
found here by looking into the middle of the directory has to be believed.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import NamedTuple

from compliance_agent.errors import BadEvidence
from compliance_agent.packet.archive import Container, Entry

_DAY = re.compile(r"evidence/[^/]+/\d{4}/\d\d/\d\d")
STRETCH = 1 << 17  # bytes of the directory
TOGETHER = 1 << 20  # bytes of files beside the records that are read together
MAX_OTHERS = 1_000_000  # files that are no record's
_EVIDENCE, AFTER = "evidence/", "evidence0"  # in order of names, the first that follows all of them
_FEW = 1 << 12


def is_record(directory: str) -> bool:
    """Whether a directory is where a record stands: in the day of a host."""
    above, _, name = directory.rpartition("/")
    return name != "" and _is_day(above)


@functools.lru_cache(16)
def _is_day(directory: str) -> bool:
    return _DAY.fullmatch(directory) is not None


class Batch(NamedTuple):
    """Lines of the directory from `start` to `end`."""

    start: int
    end: int


def beside(container: Container) -> dict[str, Entry]:
    """The files before and after those below evidence/; BadEvidence, code `bad_container`."""
    found: dict[str, Entry] = {}
    for entry in container.entries():
        if entry.name.startswith(_EVIDENCE):
            break
        add(found, entry)
    else:
        return found
    for entry in container.entries(_after(container)):
        add(found, entry)
    return found


def add(others: dict[str, Entry], entry: Entry) -> None:
    """Take up a file that is no record's; BadEvidence where there are too many."""
    others[entry.name] = entry
    if len(others) > MAX_OTHERS:
        raise BadEvidence("packet: it holds too many files that are no record's", code="bad_container")


def _after(container: Container) -> int:
    """The first line after those of evidence/, where the lines are in order."""
    low, high = container.directory, container.end
    while low < high:
        line = container.line_at(middle := (low + high) // 2)
        if line < high and _at(container, line).name < AFTER:
            low = line + 1
        else:
            high = middle
    return container.line_at(low)


def _at(container: Container, line: int) -> Entry:
    return next(container.entries(line, together=_FEW))


def batches(container: Container) -> Iterator[Batch]:
    """The whole directory; the files of a record are never parted, and a long file beside them is alone."""
    start, after = container.directory, _after(container)
    while start < container.end:
        of_records = _at(container, start).name.startswith(_EVIDENCE)
        end = _cut(container, start + STRETCH) if of_records else _few(container, start)
        end = min(end, after) if start < after else end
        yield Batch(start, end)
        start = end


def _few(container: Container, start: int) -> int:
    """Where the lines end of files beside the records that are together not long; of the first, where that is long itself."""
    end, length = start, 0
    for entry in container.entries(start, together=_FEW):
        length += entry.size
        if end > start and (length > TOGETHER or entry.name.startswith(_EVIDENCE)):
            break
        end = entry.line + entry.line_length
    return end


def _cut(container: Container, at: int) -> int:
    line = container.line_at(at)
    if line == container.end:
        return line
    entries = container.entries(line, together=_FEW)
    above = next(entries).name.rpartition("/")[0]
    if not is_record(above):
        return line
    return next((entry.line for entry in entries if entry.name.rpartition("/")[0] != above), container.end)
