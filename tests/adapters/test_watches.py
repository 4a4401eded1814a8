"""What a watch does not tell, and a look does: why no watch stands for a look (docs/adr/0025)."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent.adapters.events.inotify import Inotify

ALL = 0xFFF  # IN_ALL_EVENTS
OLD, NEW = b"right bytes\n", b"wrong bytes\n"


class Scene:
    """A file two directories down, and watches for everything that can be watched."""

    def __init__(self, place: Path) -> None:
        self.top = place / "top"
        self.file = self.top / "directory" / "file"
        self.file.parent.mkdir(parents=True)
        self.file.write_bytes(OLD)
        self.watch = Inotify()

    def told(self) -> bool:
        return bool(self.watch.read())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    made = Scene(tmp_path)
    yield made
    made.watch.close()


def test_a_write_to_a_mapped_page_is_told_by_no_watch(scene: Scene) -> None:
    with scene.file.open("r+b") as file:
        mapped = mmap.mmap(file.fileno(), len(OLD))
    for path in (scene.file, scene.file.parent):
        scene.watch.add(str(path), ALL)
    mapped[:] = NEW
    assert not scene.told()
    mapped.flush()
    assert not scene.told()
    assert scene.file.read_bytes() == NEW
    mapped.close()


def test_a_write_by_another_name_is_told_only_by_a_watch_of_the_file_itself(scene: Scene) -> None:
    """So thousands of files cannot be watched by their few hundred directories."""
    scene.watch.add(str(scene.file.parent), ALL)
    before = scene.file.stat()
    other = scene.top.parent / "another name"
    other.hardlink_to(scene.file)
    with other.open("r+b") as file:
        file.write(NEW)
    assert not scene.told()
    assert scene.file.stat().st_ctime_ns > before.st_ctime_ns or scene.file.stat().st_nlink > before.st_nlink
    scene.watch.add(str(scene.file), ALL)
    with other.open("r+b") as file:
        file.write(OLD)
    assert scene.told()


def test_another_directory_on_the_way_is_told_only_by_a_watch_on_the_way(scene: Scene) -> None:
    for path in (scene.file, scene.file.parent):
        scene.watch.add(str(path), ALL)
    scene.top.rename(scene.top.with_name("moved"))
    scene.file.parent.mkdir(parents=True)
    scene.file.write_bytes(NEW)
    assert not scene.told()
    scene.watch.add(str(scene.top.parent), ALL)
    scene.top.rename(scene.top.with_name("moved too"))
    assert scene.told()
