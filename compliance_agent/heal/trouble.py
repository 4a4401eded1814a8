"""Why a question is not answered with `done`."""

from __future__ import annotations

import errno

_FILE_CODES = {
    errno.ENOENT: "not_found",
    errno.EACCES: "not_permitted",
    errno.EPERM: "not_permitted",
    errno.EROFS: "read_only",
    errno.ELOOP: "not_a_regular_file",
    errno.ENOSPC: "storage_full",
    errno.EDQUOT: "storage_full",
}


class Refused(Exception):
    """There is no leave for it; `code` says why not."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


class Failed(Exception):
    """It did not do what it should. `exit` is the program's status, where one was run."""

    def __init__(self, code: str, exit: int | None = None) -> None:
        super().__init__(code)
        self.code, self.exit = code, exit

    @classmethod
    def from_os_error(cls, error: OSError) -> Failed:
        """The code an `OSError` stands for."""
        return cls(_FILE_CODES.get(error.errno or 0, "io_error"))


class Unclear(Exception):
    """The machine gave no answer, for this reason (errors.CANNOT_TELL_REASONS)."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
