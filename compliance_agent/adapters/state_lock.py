"""A state directory belongs to one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from compliance_agent.adapters.durable import storage_error
from compliance_agent.errors import StateInUse


def taken(path: Path) -> int:
    """The lock file, open and locked until it is closed or the process ends.

    Raises:
        StateInUse: another process has it.
        StorageError: it cannot be opened.
    """
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise storage_error(error, f"opening {path}") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if error.errno in {errno.EWOULDBLOCK, errno.EACCES}:
            raise StateInUse(
                f"state {path.parent} is in use by another process",
                hint="stop the running agent, or name another state_dir",
            ) from error
        raise storage_error(error, f"locking {path}") from error
    return handle
