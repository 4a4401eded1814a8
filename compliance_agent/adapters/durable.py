"""Files that are there when the call returns: write, fsync, rename, fsync the directory.

Reading is as careful: only regular files, at most so many bytes, and for files that steer the agent (`trusted`) only
ones that nobody else may write.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from compliance_agent.errors import NoInput, NotPermitted, StorageError, StorageForbidden, StorageFull

RUN = os.urandom(
    4
).hex()  # in names of files that are being written: two containers may share a directory, and a process id
_FULL = {errno.ENOSPC, errno.EDQUOT}


def storage_error(error: OSError, act: str) -> StorageError:
    """Our error for a failed write, naming the act and the errno."""
    name = errno.errorcode.get(error.errno or 0, "EIO")
    if error.errno in {errno.EACCES, errno.EPERM}:
        return StorageForbidden(f"{act}: {name}", hint="run it as the user whose state it is")
    kind = StorageFull if error.errno in _FULL else StorageError
    return kind(f"{act}: {name}")


def fsync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Create a directory and its missing parents, each name durable.

    Raises:
        StorageError: it cannot be created.
    """
    missing = []
    current = path
    try:
        while not current.is_dir():
            missing.append(current)
            if current.parent == current:
                break
            current = current.parent
        for directory in reversed(missing):
            try:
                directory.mkdir(mode=mode)
            except FileExistsError:
                if not directory.is_dir():  # a file, or a link to nowhere; else another process was faster
                    raise
            fsync_directory(directory.parent)
    except OSError as error:
        raise storage_error(error, f"creating directory {path}") from error


def write_file(path: Path, content: bytes, mode: int = 0o600, *, owner: tuple[int, int] | None = None) -> None:
    """Replace a file atomically and durably; `owner` (uid, gid) is who it shall belong to, else whoever runs this.

    Raises:
        StorageError: the file is as it was before, or (when only its directory could not be synced) wholly the new one.
    """
    with replaced_file(path, mode, owner=owner) as put:
        put(content)


@contextlib.contextmanager
def replaced_file(
    path: Path, mode: int = 0o600, *, owner: tuple[int, int] | None = None
) -> Iterator[Callable[[bytes], object]]:
    """As `write_file`, for content that comes in pieces; where the block raises, the file is as it was before.

    Raises:
        StorageError: as `write_file`.
    """
    with replaced_handle(path, mode, owner=owner) as handle:

        def put(piece: bytes) -> None:
            view = memoryview(piece)
            while view:
                view = view[os.write(handle, view) :]

        yield put


@contextlib.contextmanager
def replaced_handle(path: Path, mode: int = 0o600, *, owner: tuple[int, int] | None = None) -> Iterator[int]:
    """As `replaced_file`, for content whose pieces come in another order: a file to be written and read (`put_at`).

    Raises:
        StorageError: as `write_file`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{RUN}.tmp")
    try:
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            if owner is not None and owner != (os.geteuid(), os.getegid()):
                os.fchown(handle, *owner)
            os.fchmod(handle, mode)
            yield handle
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.rename(path)
        fsync_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise storage_error(error, f"writing {path}") from error
        raise


def put_at(handle: int, piece: bytes, at: int) -> None:
    """Write all of it at a place of a file."""
    view = memoryview(piece)
    while view:
        written = os.pwrite(handle, view, at)
        view, at = view[written:], at + written


def remove_file(path: Path) -> None:
    """Remove a file durably; one that is not there is fine.

    Raises:
        StorageError: it may still be there.
    """
    try:
        if os.path.lexists(path):
            path.unlink(missing_ok=True)
            fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"removing {path}") from error


def create_file(path: Path, content: bytes, mode: int = 0o600) -> bool:
    """Put a file there durably unless the name is taken; whether this call did. What is there is never replaced.

    Raises:
        StorageError: it could not be written.
    """
    if os.path.lexists(path):
        return False
    make_directory(path.parent)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{RUN}.new")
    write_file(temporary, content, mode)
    try:
        os.link(temporary, path, follow_symlinks=False)
        temporary.unlink()
        fsync_directory(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise storage_error(error, f"creating {path}") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def read_file(path: Path, *, limit_bytes: int, trusted: bool = False, secret: bool = False) -> bytes:
    """A regular file's bytes.

    Args:
        path: the file; a symbolic link is followed, and the rules hold for its target.
        limit_bytes: refuse a longer file.
        trusted: refuse a file that others may write, or whose owner is neither root nor this user.
        secret: refuse a file that group or others may read, too; a credential that the service manager loaded is fine.

    Raises:
        NoInput: absent, not a regular file, too large, or unreadable for another reason.
        NotPermitted: the operating system or the rules above refuse it.
    """
    handle, info = _regular(path)
    with os.fdopen(handle, "rb") as file:
        forbidden = (0o077 if secret else 0o022) if trusted or secret else 0
        if info.st_uid == 0 and str(path.parent) == os.environ.get("CREDENTIALS_DIRECTORY"):
            forbidden &= (
                0o037  # the service manager gives this user its leave as an ACL, whose mask shows as the group's
            )
        if info.st_mode & forbidden:
            raise NotPermitted(
                f"{path}: mode {stat.S_IMODE(info.st_mode):04o} lets others {'read' if secret else 'write'} it",
                hint=f"chmod {'600' if secret else 'go-w'} {path}",
            )
        if (trusted or secret) and info.st_uid not in {0, os.geteuid()}:
            raise NotPermitted(f"{path}: owned by uid {info.st_uid}; expected root or the agent's own user")
        if info.st_size > limit_bytes:
            raise NoInput(f"{path}: larger than {limit_bytes} bytes")
        try:
            content = file.read(limit_bytes + 1)
        except OSError as error:
            raise NoInput(f"{path}: {errno.errorcode.get(error.errno or 0, 'EIO')} while reading") from error
    if len(content) > limit_bytes:
        raise NoInput(f"{path}: larger than {limit_bytes} bytes")
    return content


def _regular(path: Path) -> tuple[int, os.stat_result]:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except PermissionError as error:
        raise NotPermitted(f"{path}: no permission to read") from error
    except (OSError, ValueError) as error:
        name = errno.errorcode.get(getattr(error, "errno", 0) or 0, "EINVAL")
        raise NoInput(f"{path}: cannot be read ({name})") from error
    info = os.fstat(handle)
    if not stat.S_ISREG(info.st_mode):  # before fdopen, which has an error of its own for directories
        os.close(handle)
        raise NoInput(f"{path}: not a regular file")
    return handle, info


@contextlib.contextmanager
def opened_file(path: Path) -> Iterator[tuple[Callable[[int, int], bytes], int]]:
    """A regular file to be read in places, with its length: `read(offset, length)` gives fewer bytes where it ends.

    Raises:
        NoInput: absent, not a regular file, or unreadable for another reason.
        NotPermitted: the operating system refuses it.
    """
    handle, info = _regular(path)

    def read(offset: int, length: int) -> bytes:
        try:
            found = os.pread(handle, length, offset)
            while len(found) < length and (more := os.pread(handle, length - len(found), offset + len(found))):
                found += more
        except OSError as error:
            raise NoInput(f"{path}: {errno.errorcode.get(error.errno or 0, 'EIO')} while reading") from error
        return found

    try:
        yield read, info.st_size
    finally:
        os.close(handle)


def give(root: Path, files: Sequence[Path], uid: int, gid: int) -> None:
    """Make a directory, these files below it and the directories between another user's; what is not there is left out.

    No symbolic link below the directory is followed: its user may have put one there.

    Raises:
        StorageError: it cannot be done.
    """
    try:
        for path in files:
            _give(root, path.relative_to(root).parts, uid, gid)
    except OSError as error:
        raise storage_error(error, f"give {root} to its user") from error


def _give(root: Path, parts: Sequence[str], uid: int, gid: int) -> None:
    handle = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fchown(handle, uid, gid)
        for part in parts[:-1]:
            below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle)
            os.close(handle)
            handle = below
            os.fchown(handle, uid, gid)
        with contextlib.suppress(FileNotFoundError):
            os.chown(parts[-1], uid, gid, dir_fd=handle, follow_symlinks=False)
    finally:
        os.close(handle)
