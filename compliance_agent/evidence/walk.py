"""Finds bundles under directories, in a stable order and without holding all their names, and reads the files of each.

A directory is listed once. One whose name could be a bundle's is listed by whoever reads it, many of them to a batch, so that the
work can be spread. Hidden names are not evidence.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from compliance_agent.errors import NoInput, NotPermitted

BUNDLE, SIGNATURE = "bundle.json", "bundle.sig"
LEAF, PROOF = "leaf.json", "bundle.tlog-proof"
PER_BATCH = 64
_BLOCK = 512
_LIKE_A_BUNDLE = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_OURS = frozenset({BUNDLE, SIGNATURE, LEAF, PROOF})
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


@dataclass(frozen=True)
class Batch:
    """Names in one directory that are each a bundle's directory, or (`single`) the file of one bundle."""

    directory: str
    names: tuple[str, ...]
    single: bool = False


class Place(NamedTuple):
    """Where one bundle's files stand: the directory, and the name of its document; `at` is an open directory above it.

    A name below an open directory is found without walking the whole path again, four times a record. Of what the directory's list
    said to be a regular file (`plain`) nobody asks again whether it is one.
    """

    directory: str
    document: str
    there: Collection[str]
    plain: Collection[str]
    below: str
    at: int

    @property
    def name(self) -> str:
        """Of the directory."""
        return self.directory.rpartition("/")[2]

    def read(self, name: str, limit_bytes: int) -> bytes | None:
        """A file of it, None when it is missing, not a regular file, too long, or cannot be read."""
        try:
            handle = os.open(self.below + name, _FLAGS, dir_fd=self.at)
        except OSError:
            return None
        try:
            if name not in self.plain and not stat.S_ISREG(os.fstat(handle).st_mode):
                return None
            content = os.read(handle, limit_bytes + 1)
            while _may_go_on(content, limit_bytes) and (more := os.read(handle, limit_bytes + 1)):
                content += more
            return content if len(content) <= limit_bytes else None
        except OSError:
            return None
        finally:
            os.close(handle)


def _may_go_on(content: bytes, limit_bytes: int) -> bool:
    """Whether more may follow what one call gave: it ends in the middle of a block of the disk only where the file does."""
    return 0 < len(content) <= limit_bytes and len(content) % _BLOCK == 0


def batches(paths: Iterable[Path]) -> Iterator[Batch]:
    """Every bundle under the paths, each once.

    Raises:
        NoInput: a path is not there, or a directory cannot be listed.
        NotPermitted: it may not be listed.
    """
    roots: list[Path] = []
    for path in paths:
        if not path.is_file() and not path.is_dir():
            raise NoInput(f"{path}: not there")
    for path in sorted({path.absolute() for path in paths}):
        if not any(path.is_relative_to(root) for root in roots):
            roots.append(path)
            yield from _below(str(path)) if path.is_dir() else [Batch(str(path.parent), (path.name,), single=True)]


def _below(directory: str) -> Iterator[Batch]:
    names, alike = _listed(directory)
    if BUNDLE in names or SIGNATURE in names:
        parent, _, name = directory.rpartition("/")
        yield Batch(parent, (name,))
        return
    for at in range(0, len(alike), PER_BATCH):
        yield Batch(directory, tuple(alike[at : at + PER_BATCH]))
    for name in sorted(name for name, is_directory in names.items() if is_directory):
        yield from _below(f"{directory}/{name}")


def _listed(directory: str) -> tuple[dict[str, bool], list[str]]:
    """Names with whether each is a directory, and apart those that look like a bundle's."""
    names: dict[str, bool] = {}
    alike: list[str] = []
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                is_directory = entry.is_dir(follow_symlinks=False)
                if is_directory and _LIKE_A_BUNDLE.fullmatch(entry.name):
                    alike.append(entry.name)
                else:
                    names[entry.name] = is_directory
    except PermissionError as error:
        raise NotPermitted(f"{directory}: no permission to list") from error
    except OSError as error:
        raise NoInput(f"{directory}: cannot be listed ({errno.errorcode.get(error.errno or 0, 'EIO')})") from error
    return names, sorted(alike)


def beside(paths: Iterable[Path], pattern: str, levels: int) -> list[Path]:
    """Files that stand with the evidence as `keys/<pattern>`: in a path, else above it up to so many levels, else below it."""
    found: set[Path] = set()
    for path in paths:
        for place in (path, *list(path.absolute().parents)[:levels]):
            if files := set((place / "keys").glob(pattern)):
                found |= files
                break
        else:
            found |= {file for keys in _named_keys(path) for file in keys.glob(pattern)}
    return sorted(found)


def _named_keys(path: Path) -> Iterator[Path]:
    """Directories of this name below a path; a bundle's own directory has none."""
    if not path.is_dir():
        return
    names, _ = _listed(str(path))
    for name in sorted(name for name, is_directory in names.items() if is_directory):
        if name == "keys":
            yield path / name
        else:
            yield from _named_keys(path / name)


def places(batch: Batch) -> Iterator[Place]:
    """The bundles of a batch, and those below it. A signature without its bundle is a bundle that was removed.

    Raises:
        NoInput, NotPermitted: a directory cannot be listed.
    """
    try:
        handle = os.open(batch.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        _listed(batch.directory)  # says why
        raise
    try:
        for name in batch.names:
            if batch.single:
                yield Place(batch.directory, name, frozenset(_listed(batch.directory)[0]), (), "", handle)
            else:
                yield from _inside(batch.directory, f"{name}/", handle)
    finally:
        os.close(handle)


def _inside(top: str, below: str, at: int) -> Iterator[Place]:
    directory = f"{top}/{below[:-1]}"
    here, plain = list[str](), list[str]()
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                here.append(name := entry.name)
                if name in _OURS and entry.is_file(follow_symlinks=False):
                    plain.append(name)
    except OSError:
        here, plain = list(_listed(directory)[0]), []  # says why
    if BUNDLE in here or SIGNATURE in here:
        yield Place(directory, BUNDLE, here, plain, below, at)
    if not _OURS.issuperset(here):
        names, alike = _listed(directory)
        for name in sorted([*alike, *(name for name, is_directory in names.items() if is_directory)]):
            yield from _inside(top, f"{below}{name}/", at)
