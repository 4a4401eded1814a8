"""Every bundle is found once, wherever it stands, and nothing hidden is; names are listed in batches, not all at once."""

from __future__ import annotations

import os
import random
import uuid
from pathlib import Path

import pytest

from compliance_agent.errors import NoInput
from compliance_agent.evidence import walk


def plainly(paths: list[Path]) -> set[Path]:
    """As a person would look."""
    found = set()
    for path in paths:
        for name in (walk.BUNDLE, walk.SIGNATURE):
            for file in path.rglob(name):
                if not any(part.startswith(".") for part in file.relative_to(path).parts):
                    found.add(file.parent)
    return found


def walked(paths: list[Path]) -> list[Path]:
    return [Path(place.directory) for batch in walk.batches(paths) for place in walk.places(batch)]


def grow(root: Path, rng: random.Random, depth: int = 0) -> None:
    """A random tree: days, bundles with and without their name, bundles below bundles, hidden ones, stray files."""
    for number in range(rng.randrange(1, 5)):
        name = rng.choice(
            ["2026", "keys", ".hidden", f"x{number}", str(uuid.UUID(int=rng.getrandbits(128), version=4))]
        )
        place = root / name
        if place.exists():
            continue
        place.mkdir()
        for file in rng.sample(
            ["bundle.json", "bundle.sig", "leaf.json", "bundle.tlog-proof", "bundle.intoto.json"], rng.randrange(5)
        ):
            (place / file).write_bytes(b"{}")
        if depth < 4:
            grow(place, rng, depth + 1)


@pytest.mark.parametrize("seed", range(30))
def test_every_bundle_is_found_once(tmp_path: Path, seed: int) -> None:
    grow(tmp_path, random.Random(seed))
    found = walked([tmp_path])
    assert len(found) == len(set(found))
    assert set(found) == plainly([tmp_path])
    inner = [path for path in sorted(tmp_path.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    assert sorted(walked([tmp_path, *inner])) == sorted(found), "a path within another is not looked at twice"


def test_batches_are_small_and_in_order(tmp_path: Path) -> None:
    names = sorted(str(uuid.UUID(int=number, version=4)) for number in range(200))
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "bundle.json").write_bytes(b"{}")
    found = list(walk.batches([tmp_path]))
    assert max(len(batch.names) for batch in found) == walk.PER_BATCH
    assert [name for batch in found for name in batch.names] == names


def test_what_is_no_regular_file_of_its_size_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "long").write_bytes(b"x" * 11)
    (tmp_path / "fits").write_bytes(b"x" * 10)
    (tmp_path / walk.BUNDLE).touch()
    places = walk.places(walk.Batch(str(tmp_path), (walk.BUNDLE,), single=True))
    place = next(places)
    assert [place.read(name, 10) for name in ("fifo", "long", "absent", ".", "fits")] == [None] * 4 + [b"x" * 10]


def test_a_path_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NoInput, match="not there"):
        list(walk.batches([tmp_path, tmp_path / "nowhere"]))


def test_keys_are_found_beside_above_and_below(tmp_path: Path) -> None:
    day = tmp_path / "host" / "evidence" / "2026" / "11" / "22"
    day.mkdir(parents=True)
    for keys in (tmp_path / "keys", tmp_path / "host" / "keys"):
        keys.mkdir()
        (keys / "a.pub.pem").write_bytes(b"")
    nearest = [tmp_path / "host" / "keys" / "a.pub.pem"]
    assert walk.beside([day], "*.pub.pem", 6) == nearest
    assert walk.beside([tmp_path / "host"], "*.pub.pem", 6) == nearest
    (tmp_path / "keys" / "a.pub.pem").unlink()
    assert walk.beside([tmp_path], "*.pub.pem", 0) == nearest
