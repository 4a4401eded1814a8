"""The four lines of a record in a packet's directory, read at once: what `archive` does line by line, for the plain case. Pure.

    four = Four.at(held, at, line)   # None for whatever else stands there: that is read line by line
    four.before(number)              # what stands before the bytes of its file of this number

A packet of a million records has four million lines. Nothing is taken here that `archive` would not take.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

from compliance_agent.packet.archive import PARTS, Layout

NAMES = tuple(sorted(PARTS))
BELOW = tuple(f"/{name}".encode("ascii") for name in NAMES)
_FIRST = BELOW[0]
_FIELDS = 9


class Four(NamedTuple):
    """The files of a record that has exactly these, one after the other.

    Attributes:
        directory: that they stand in.
        line: where the first of the lines begins; length: of all of them.
        crcs, sizes, offsets: of each file, in the order of NAMES.
    """

    directory: str
    line: int
    length: int
    crcs: tuple[int, ...]
    sizes: tuple[int, ...]
    offsets: tuple[int, ...]

    @property
    def end(self) -> int:
        """Of the bytes of the last file."""
        return self.offsets[3] + Layout.LOCAL + len(self.directory) + 1 + len(NAMES[3]) + self.sizes[3]

    @classmethod
    def at(cls, held: bytes, at: int, line: int) -> Four | None:
        """The lines at a place of a stretch of the directory; None where these are not the four of one record."""
        name = at + Layout.LINE
        if len(held) < name:
            return None
        length = int.from_bytes(held[at + Layout.NAME_LENGTH : at + Layout.NAME_LENGTH + 2], "little")
        if not held.startswith(_FIRST, name + length - len(_FIRST)):
            return None
        above = held[name : name + length - len(_FIRST)]
        far = held.startswith(Layout.FAR, at)
        lines, lengths, names = _lines(above, far)
        if len(held) < at + lines.size or not above.isascii():
            return None
        found = lines.unpack_from(held, at)
        each = _FIELDS + 2 * far
        sizes, offsets = found[2::each], found[7::each]
        if (found[0::each], found[6::each]) != (_FIXED[far], _BETWEEN) or found[8::each] != names:
            return None
        if found[3::each] != sizes or found[4::each] != lengths or found[5::each] != _EXTRA[far]:
            return None
        if far:
            if offsets != _UNSAID or found[9::each] != _EXTRA_BEGINS:
                return None
            offsets = found[10::each]
        if (min(offsets) > Layout.SMALL) != far or not _adjoin(offsets, sizes, lengths):
            return None
        following = at + lines.size + Layout.LINE
        if held.startswith(above + b"/", following):
            return None  # more than these four stand there
        return cls(above.decode("ascii"), line, lines.size, found[1::each], sizes, offsets)


def _adjoin(offsets: tuple[int, ...], sizes: tuple[int, ...], lengths: tuple[int, ...]) -> bool:
    """Whether each file begins where the one before it ends."""
    first, second, third, fourth = offsets
    return (
        second == first + Layout.LOCAL + lengths[0] + sizes[0]
        and third == second + Layout.LOCAL + lengths[1] + sizes[1]
        and fourth == third + Layout.LOCAL + lengths[2] + sizes[2]
    )


@functools.lru_cache(64)
def _lines_of(length: int, far: bool) -> tuple[struct.Struct, tuple[int, ...]]:
    """The form of the four lines, and the lengths of the names in them, for a directory of so many bytes."""
    lengths = tuple(length + 1 + len(name) for name in NAMES)
    extra = "4sQ" if far else ""
    return struct.Struct("<" + "".join(f"16s3L2H10sL{one}s{extra}" for one in lengths)), lengths


def _lines(above: bytes, far: bool) -> tuple[struct.Struct, tuple[int, ...], tuple[bytes, ...]]:
    form, lengths = _lines_of(len(above), far)
    return form, lengths, tuple([above + name for name in BELOW])


_FIXED = ((Layout.NEAR,) * 4, (Layout.FAR,) * 4)
_BETWEEN = (Layout.BETWEEN,) * 4
_EXTRA = ((0,) * 4, (Layout.EXTRA,) * 4)
_EXTRA_BEGINS = (b"\x01\x00\x08\x00",) * 4
_UNSAID = (Layout.UNSAID,) * 4
