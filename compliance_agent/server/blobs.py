"""Blobs in a directory: one file each, so that any web server can hand them out.

A directory holds nothing against who may write to it: `lock` is always None, and the rules of retention alone decide.
Processes that write to one at once (a server and a command beside it) take turns by a lock file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from compliance_agent.adapters.durable import (
    create_file,
    fsync_directory,
    make_directory,
    read_file,
    remove_file,
    storage_error,
    write_file,
)
from compliance_agent.server.records.blobs import Lock

MODE = 0o644
TURNS = ".lock"


class Directory:
    """Blobs below `root`, which is made with the first of them; directories get `mode`."""

    remote = False
    locks = False

    def __init__(self, root: Path, mode: int = 0o755) -> None:
        self.root = root
        self._mode = mode

    def create(self, name: str, content: bytes, retain_until: datetime | None = None) -> bool:
        """As the port says; a file that a crashed run left is made durable, too."""
        path = self.root / name
        make_directory(path.parent, self._mode)
        with _alone(self.root / TURNS):
            if create_file(path, content, MODE):
                return True
        _resync(path)
        return False

    def update(self, name: str, change: Callable[[bytes | None], bytes | None], *, limit_bytes: int) -> None:
        """As the port says; the file is replaced atomically."""
        path = self.root / name
        make_directory(self.root, self._mode)
        with _alone(self.root / TURNS):
            new = change(self.get(name, limit_bytes=limit_bytes))
            if new is not None:
                make_directory(path.parent, self._mode)
                write_file(path, new, MODE)

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """As the port says."""
        path = self.root / name
        return read_file(path, limit_bytes=limit_bytes) if os.path.lexists(path) else None

    def children(self, name: str) -> list[str]:
        """As the port says."""
        path = self.root / name if name else self.root
        try:
            return sorted(item.name for item in path.iterdir() if not item.name.startswith("."))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise storage_error(error, f"reading {path}") from error

    def delete(self, name: str) -> None:
        """As the port says."""
        remove_file(self.root / name)

    def delete_below(self, name: str) -> None:
        """As the port says."""
        path = self.root / name
        try:
            if path.is_dir():
                shutil.rmtree(path)
        except OSError as error:
            raise storage_error(error, f"removing {path}") from error

    def lock(self, name: str) -> Lock | None:
        """Nothing holds a file."""
        return None


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, and one thread of it; the end of a process ends its turn."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_error(error, f"opening {path}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _resync(path: Path) -> None:
    """A file that a crashed run left may not be durable yet."""
    try:
        with path.open("rb") as file:
            os.fsync(file.fileno())
        fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"writing {path}") from error
