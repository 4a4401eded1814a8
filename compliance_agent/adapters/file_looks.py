"""Looks at one path of this machine. Each blocks, and raises `CannotTell`, or `OSError` as the system has it."""

from __future__ import annotations

import os
import stat
from datetime import UTC, datetime
from pathlib import Path

from compliance_agent.adapters.file_digests import KINDS
from compliance_agent.errors import CannotTell
from compliance_agent.ports import FileStat

MOST_NAMES = 100_000


def read(path: str, limit_bytes: int) -> bytes:
    """As `Host.read`."""
    # Looked at before it is opened: opening a device may already do something.
    _regular(path, Path(path).stat())
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        info = os.fstat(handle)
        _regular(path, info)
        content = b""
        while info.st_size <= limit_bytes and len(content) <= limit_bytes:
            piece = os.read(handle, min(1 << 20, limit_bytes + 1 - len(content)))
            if not piece:
                return content
            content += piece
    finally:
        os.close(handle)
    raise CannotTell("output_too_large", f"{path}: longer than {limit_bytes} bytes")


def _regular(path: str, info: os.stat_result) -> None:
    if not stat.S_ISREG(info.st_mode):
        raise CannotTell("io_error", f"{path}: not a regular file", errno_name="EINVAL")


def stat_of(path: str) -> FileStat:
    """As `Host.stat`."""
    info = os.lstat(path)
    return FileStat(
        kind=KINDS.get(stat.S_IFMT(info.st_mode), "other"),
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        size_bytes=info.st_size,
        modified_at=datetime.fromtimestamp(info.st_mtime, UTC),
    )


def names_in(path: str) -> tuple[str, ...]:
    """As `Host.list`."""
    names = []
    with os.scandir(path) as entries:
        for entry in entries:
            names.append(entry.name)
            if len(names) > MOST_NAMES:
                raise CannotTell("output_too_large", f"{path}: more than {MOST_NAMES} names")
    return tuple(sorted(names))
