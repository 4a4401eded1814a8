"""Four lines read at once are what four lines are that are read one by one; whatever is odd in them is left to that."""

from __future__ import annotations

import pytest

from compliance_agent.errors import BadEvidence
from compliance_agent.packet import archive
from compliance_agent.packet.archive import Entry
from compliance_agent.packet.four import NAMES, Four

DIRECTORY = "evidence/ws-01/2026/11/22/4b1b3c1e-5d0a-4a44-8c1f-0f6f2b10aaaa"
SIZES = (1_320, 64, 802, 370)


def lines(start: int, directory: str = DIRECTORY, gap: int = 0) -> list[Entry]:
    entries, at = list[Entry](), start
    for number, (name, size) in enumerate(zip(NAMES, SIZES, strict=True)):
        entries.append(Entry(f"{directory}/{name}", size, 0x1234567 * number, at, 0))
        at = entries[-1].end + gap
    return entries


def slowly(raw: bytes) -> list[Entry] | None:
    """One by one, held to each other; None where that refuses."""
    found, order = list[Entry](), archive.InOrder()
    try:
        for entry in archive.opened(raw + archive.ending(4, 0, len(raw))).entries():
            order.follow(entry)
            found.append(entry._replace(line=0))
    except BadEvidence:
        return None
    return found


def quickly(raw: bytes) -> list[Entry] | None:
    four = Four.at(raw, 0, 0)
    if four is None:
        return None
    each = zip(NAMES, four.sizes, four.crcs, four.offsets, strict=True)
    return [Entry(f"{four.directory}/{name}", size, crc, offset, 0) for name, size, crc, offset in each]


@pytest.mark.parametrize("start", [0, 1 << 20, 1 << 31, 1 << 40])
def test_four_lines_are_read(start: int) -> None:
    raw = b"".join(entry.listed for entry in lines(start))
    assert quickly(raw) == slowly(raw) == lines(start)
    four = Four.at(raw, 0, 77)
    assert four is not None and (four.line, four.length, four.end) == (77, len(raw), lines(start)[-1].end)


@pytest.mark.parametrize("start", [0, 1 << 31])
def test_no_flipped_bit_is_taken_that_the_slow_way_refuses(start: int) -> None:
    raw = b"".join(entry.listed for entry in lines(start))
    taken = 0
    for bit in range(8 * len(raw)):
        flipped = bytearray(raw)
        flipped[bit // 8] ^= 1 << bit % 8
        found = quickly(bytes(flipped))
        if found is not None:
            taken += 1
            assert found == slowly(bytes(flipped)) != lines(start)
    assert taken  # another checksum is a fine line; the file is held to it


def test_what_is_not_four_files_of_one_record_is_left_alone() -> None:
    whole = [entry.listed for entry in lines(0)]
    more = Entry(f"{DIRECTORY}/more", 1, 0, lines(0)[-1].end, 0).listed
    after = Entry(f"{DIRECTORY}b/bundle.json", 1, 0, lines(0)[-1].end, 0).listed
    assert quickly(b"".join([*whole, after])) is not None
    for odd in ([*whole, more], whole[:3], whole[1:], whole[::-1], [whole[0]] * 4):
        assert quickly(b"".join(odd)) is None
    assert quickly(b"".join(entry.listed for entry in lines(0, gap=1))) is None
    edge = (1 << 31) - SIZES[0] - 100  # the first lines are near, the others far
    assert quickly(b"".join(entry.listed for entry in lines(edge))) is None
    assert slowly(b"".join(entry.listed for entry in lines(edge))) == lines(edge)
