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


class Trouble(Exception):
    """Why not. `kind` is the answer's, `said` what it and the journal say."""

    kind = ""

    def __init__(self, **said: str) -> None:
        super().__init__(*said.values())
        self.said = said


class Refused(Trouble):
    """There is no leave for it; `code` says why not."""

    kind = "refused"

    def __init__(self, code: str) -> None:
        super().__init__(code=code)
        self.code = code


class Failed(Trouble):
    """It did not do what it should. `exit` is the program's status, where one was run."""

    kind = "failed"

    def __init__(self, code: str, exit: int | None = None) -> None:
        super().__init__(code=code)
        self.code, self.exit = code, exit

    @classmethod
    def from_os_error(cls, error: OSError) -> Failed:
        """The code an `OSError` stands for."""
        return cls(_FILE_CODES.get(error.errno or 0, "io_error"))


class Unclear(Trouble):
    """The machine gave no answer, for this reason (errors.CANNOT_TELL_REASONS)."""

    kind = "unclear"

    def __init__(self, reason: str) -> None:
        super().__init__(reason=reason)
        self.reason = reason
