"""Bundles as files: `YYYY/MM/DD/<bundle_id>/{bundle.json,bundle.sig}`, made whole or not at all; later, beside them, the
receipt of the log: `leaf.json` and `bundle.tlog-proof`.

The directory is a copy that people and `openssl` can read; the database row is the truth. A directory that differs from
its row is moved aside under a hidden name, never deleted, and written anew. Hidden names are not evidence.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import structlog

from compliance_agent.adapters.durable import fsync_directory, make_directory, read_file, storage_error, write_file
from compliance_agent.errors import NoInput, NotPermitted

BUNDLE, SIGNATURE = "bundle.json", "bundle.sig"
LEAF, PROOF = "leaf.json", "bundle.tlog-proof"
MAX_BUNDLE_BYTES = 65_535  # an entry of a tiled log is at most this long (C2SP tlog-tiles)

log = structlog.get_logger()


def read(bundle_path: Path, signature_path: Path | None = None) -> tuple[bytes, bytes] | None:
    """Bundle and signature as they stand in their files; None when either is missing, unreadable or too long."""
    try:
        body = read_file(bundle_path, limit_bytes=MAX_BUNDLE_BYTES)
        return body, read_file(signature_path or bundle_path.with_name(SIGNATURE), limit_bytes=4_096)
    except (NoInput, NotPermitted):
        return None


def put(directory: Path, body: bytes, signature: bytes) -> bool:
    """Make the directory hold exactly these bytes, durably; whether anything had to be written.

    Raises:
        StorageError: it is as it was before, or absent.
    """
    if read(directory / BUNDLE) == (body, signature):
        return False
    make_directory(directory.parent)
    temporary = directory.with_name(f".{directory.name}.tmp")
    try:
        _clear(temporary)
        temporary.mkdir(mode=0o700)
        for name, content in ((BUNDLE, body), (SIGNATURE, signature)):
            _write_new(temporary / name, content)
        fsync_directory(temporary)
        if os.path.lexists(directory):
            _move_aside(directory)
        temporary.rename(directory)
        fsync_directory(directory.parent)
    except OSError as error:
        _clear(temporary)
        raise storage_error(error, "writing an evidence directory") from error
    return True


def put_receipt(directory: Path, leaf: bytes, proof: bytes) -> None:
    """Make a bundle's directory hold its receipt too, durably; the proof last, so that it never stands alone.

    Raises:
        StorageError: each file is as it was before, absent, or whole.
    """
    for name, content in ((LEAF, leaf), (PROOF, proof)):
        write_file(directory / name, content)


def remove(directory: Path) -> None:
    """Remove a bundle's directory, whole or not at all to whoever looks; one that is not there is fine.

    Raises:
        StorageError: it may still be there.
    """
    hidden = directory.with_name(f".{directory.name}.tmp")  # what `sweep` removes, should this be stopped
    try:
        if os.path.lexists(directory):
            _clear(hidden)
            directory.rename(hidden)
            fsync_directory(directory.parent)
        if hidden.exists():
            _clear(hidden, quietly=False)
        for parent in list(directory.parents)[:3]:  # the day, the month and the year, once they are empty
            parent.rmdir()
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise storage_error(error, "removing an evidence directory") from error


def _write_new(path: Path, content: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(handle, view) :]
        os.fsync(handle)
    finally:
        os.close(handle)


def _move_aside(directory: Path) -> None:
    number = 1
    while os.path.lexists(aside := directory.with_name(f".{directory.name}.differs-{number}")):
        number += 1
    directory.rename(aside)
    log.error("evidence.directory_differed", bundle_id=directory.name)


def days(evidence_dir: Path, newest: int | None = None) -> Iterator[Path]:
    """The day directories, newest first, at most `newest` of them."""
    count = 0
    for year in _numbered(evidence_dir, 4):
        for month in _numbered(year, 2):
            for day in _numbered(month, 2):
                if newest is not None and count >= newest:
                    return
                count += 1
                yield day


def _numbered(parent: Path, digits: int) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(
            (path for path in parent.iterdir() if len(path.name) == digits and path.name.isdigit()), reverse=True
        )
    return []


def _clear(path: Path, *, quietly: bool = True) -> None:
    """Remove it with all below it; `quietly` also where it is not there, or cannot be removed."""
    if quietly and not os.path.lexists(path):
        return
    import shutil  # with every kind of archive that it can make; seldom is there anything to remove

    shutil.rmtree(path, ignore_errors=quietly)


def sweep(day: Path) -> None:
    """Remove what a stop in the middle of `put` left behind: its row makes the directory again."""
    with contextlib.suppress(OSError):
        for path in day.iterdir():
            if path.name.startswith(".") and path.name.endswith(".tmp"):
                _clear(path)


def bundles(day: Path) -> list[Path]:
    """The bundle directories of one day, by name; hidden ones are leftovers and not evidence."""
    with contextlib.suppress(OSError):
        return sorted(path for path in day.iterdir() if not path.name.startswith(".") and path.is_dir())
    return []
