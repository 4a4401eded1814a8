"""Names and contents of tiles and entry bundles."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import BadEvidence
from compliance_agent.log.merkle import hash_leaf
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries, encode_entries, written
from tests.log.builder import MemoryLog, flips

PATHS = [
    (Tile(0, 0), "tile/0/000"),
    (Tile(0, 1_234_067), "tile/0/x001/x234/067"),
    (Tile(0, 1000), "tile/0/x001/000"),
    (Tile(3, 999, 1), "tile/3/999.p/1"),
    (Tile(63, 10**9, 255), "tile/63/x001/x000/x000/000.p/255"),
    (Tile(ENTRIES, 273, 112), "tile/entries/273.p/112"),
]


@pytest.mark.parametrize(("tile", "path"), PATHS)
def test_paths_of_the_specification(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


@given(st.builds(Tile, st.integers(-1, 63), st.integers(0, 2**55), st.integers(1, 256)))
def test_path_round_trip(tile: Tile) -> None:
    assert Tile.parse(tile.path) == tile


@pytest.mark.parametrize(
    "path",
    [
        *(
            "",
            "tile/0/0",
            "tile/00/000",
            "tile/64/000",
            "tile/0/x000/000",
            "tile/0/001/000",
            "tile/0/x001",
            "/tile/0/000",
        ),
        *("tile/0/000.p/0", "tile/0/000.p/256", "tile/0/000.p/01", "tile/0/000.p/", "tile/0/000/", "tile/0/000\n"),
        *("tile/-1/000", "tile/0/../000", "tile/\u0660/000", "tile/0/\u0660\u0660\u0660", "tile/data/000"),
        *("tile/entries/x1/000", "tile/0/" + "x001/" * 9 + "000"),
    ],
)
def test_other_paths_are_refused(path: str) -> None:
    with pytest.raises(BadEvidence) as refused:
        Tile.parse(path)
    assert refused.value.code == "bad_tile_path"


def test_the_tiles_of_the_specification() -> None:
    """Sizes 70,000 and 256, as the text of tlog-tiles describes them."""
    tiles = list(written(0, 70_000))
    assert sum(tile.level == 0 and tile.width == FULL for tile in tiles) == 273
    assert [tile for tile in tiles if tile.level >= 0 and tile.width < FULL] == [
        Tile(0, 273, 112),
        Tile(1, 1, 17),
        Tile(2, 0, 1),
    ]
    assert Tile(1, 0) in tiles
    assert [tile.path for tile in written(0, 256)] == ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]
    assert list(written(300, 300)) == list(written(0, 0)) == []


@pytest.mark.parametrize(
    ("old", "new", "paths"),
    [
        (255, 256, ["tile/entries/000", "tile/0/000", "tile/1/000.p/1"]),
        (256, 257, ["tile/entries/001.p/1", "tile/0/001.p/1"]),
        (65_535, 65_536, ["tile/entries/255", "tile/0/255", "tile/1/000", "tile/2/000.p/1"]),
        (65_536, 65_537, ["tile/entries/256.p/1", "tile/0/256.p/1"]),
        (500, 513, ["tile/entries/001", "tile/entries/002.p/1", "tile/0/001", "tile/0/002.p/1", "tile/1/000.p/2"]),
    ],
)
def test_growth_writes_what_is_new(old: int, new: int, paths: list[str]) -> None:
    assert [tile.path for tile in written(old, new)] == paths


@given(st.lists(st.binary(max_size=40), max_size=FULL))
def test_entry_bundle_round_trip(entries: list[bytes]) -> None:
    assert decode_entries(encode_entries(entries), len(entries)) == entries


def test_entry_bundle_layout_and_limits() -> None:
    """u16, big-endian; 65,535 bytes fit, one more does not."""
    assert encode_entries([b"ab", b""]) == b"\x00\x02ab\x00\x00"
    largest = bytes(65_535)
    assert decode_entries(encode_entries([largest]), 1) == [largest]
    with pytest.raises(BadEvidence) as refused:
        encode_entries([largest + b"x"])
    assert refused.value.code == "entry_too_large"


@pytest.mark.parametrize(
    ("bundle", "width"),
    [(b"\0", 1), (b"\0\2a", 1), (b"\0\1a\0", 1), (b"\0\1a\0\1b", 1), (b"\0\1a", 2), (b"", 1), (b"\0\0", 0)],
)
def test_other_bundles_are_refused(bundle: bytes, width: int) -> None:
    with pytest.raises(BadEvidence) as refused:
        decode_entries(bundle, width)
    assert refused.value.code == "bad_entry_bundle"


def test_any_flipped_bit_of_a_bundle_shows_beside_its_tile() -> None:
    """Either the layout breaks or an entry no longer has the hash that stands in the tile."""
    log = MemoryLog(20)
    tile = log.tiles[Tile(0, 0, 20)]
    for _, damaged in flips(encode_entries(log.entries)):
        try:
            assert b"".join(map(hash_leaf, decode_entries(damaged, 20))) != tile
        except BadEvidence:
            continue
