"""Every error of the product, on one page: one class per thing a caller does differently.

Each class has a stable `code` (a token that may be recorded), an `exit_status` (sysexits, see docs/exit-codes.md), whether a
retry may help, and an optional `hint` with the next step. Hands (adapters, stores, transport) raise these, with `from`;
above the edge nothing else travels.
"""

from __future__ import annotations

import errno


class AgentError(Exception):
    """Root of the tree. `str(error)` is one line for a person; `code` is a token for records and logs.

    Args:
        message: the act, the object, what was expected and what was found.
        code: overrides the class's code where one class has several stable codes.
        hint: the next step a person can take.
    """

    code = "error"
    exit_status = 70
    retryable = False

    def __init__(self, message: str, *, code: str | None = None, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint
        if code is not None:
            self.code = code

    @property
    def line(self) -> str:
        """Message and hint as the one line that the command line prints."""
        return f"{self} ({self.hint})" if self.hint else str(self)


class ConfigError(AgentError):
    """A configuration or baseline file, or an `MSP_*` variable, says something that cannot be used; names the field."""

    code = "bad_config"
    exit_status = 78


class DocumentError(AgentError):
    """Bytes that are not the JSON or YAML document they should be. Callers turn this into the error of their own subject."""

    code = "bad_document"
    exit_status = 65


class BadEvidence(AgentError):
    """Evidence that does not verify: signature, canonical form, schema or chain."""

    code = "bad_evidence"
    exit_status = 65


class NoInput(AgentError):
    """A named file or directory is not there or is not of the kind that was asked for."""

    code = "no_input"
    exit_status = 66


class Unavailable(AgentError):
    """The other side (server, socket) cannot be reached now; nothing is lost and a later try may do."""

    code = "unavailable"
    exit_status = 69
    retryable = True


class ServerRefused(AgentError):
    """The server answered, and the answer is no.

    Attributes:
        status: HTTP status.
        retry_after_s: what the server asked for, already bounded, or None.
        expected: the server's (epoch, seq) when it asks for a bundle other than the one that was sent.
    """

    code = "server_refused"
    exit_status = 69

    def __init__(
        self,
        message: str,
        *,
        code: str = "server_refused",
        status: int = 0,
        retry_after_s: float | None = None,
        expected: tuple[int, int] | None = None,
        hint: str = "",
    ) -> None:
        super().__init__(message, code=code, hint=hint)
        self.status = status
        self.retry_after_s = retry_after_s
        self.expected = expected
        self.retryable = status in {408, 409, 425, 429} or status >= 500


class Refusal(AgentError):
    """What our own server says when the answer is no; `ServerRefused` is the same as the agent hears it.

    Attributes:
        status: HTTP status.
        retry_after_s: when asking again makes sense, or None.
        expected: the chain position the server wants instead, as it goes into the reply, or None.
    """

    code = "refused"
    exit_status = 69

    def __init__(
        self,
        message: str,
        *,
        code: str,
        status: int,
        retry_after_s: int | None = None,
        expected: dict[str, int | str] | None = None,
    ) -> None:
        super().__init__(message, code=code)
        self.status = status
        self.retry_after_s = retry_after_s
        self.expected = expected


class BadReply(AgentError):
    """The server's answer is not what the protocol allows (too large, not JSON, wrong types, a signature that fails).

    Nothing in it is believed and nothing is deleted because of it.
    """

    code = "bad_reply"
    exit_status = 69
    retryable = True


class BadFrame(AgentError):
    """Another process of this host sent what the protocol between them does not allow; `code` names the rule.

    The connection is closed, and nothing that came over it half is used.
    """

    code = "bad_frame"
    exit_status = 76


class StorageError(AgentError):
    """Local storage failed: nothing that was not already durable may be promised; re-open and re-verify."""

    code = "storage_failed"
    exit_status = 74
    retryable = True


class StorageFull(StorageError):
    """The disk is full."""

    code = "storage_full"
    exit_status = 73


class StorageForbidden(StorageError):
    """This user may not read or write the state."""

    code = "storage_forbidden"
    exit_status = 77


class StorageDamaged(StorageError):
    """The database was read twice and is damaged; it was moved aside, never deleted."""

    code = "storage_damaged"
    retryable = False


class LogStopped(AgentError):
    """A transparency log may not go on: what is held contradicts what was published, or the state of a write is unknown."""

    code = "log_stopped"
    exit_status = 65


class OffDuty(AgentError):
    """Another replica does this work now; what was begun under an older epoch was not written."""

    code = "off_duty"
    exit_status = 75
    retryable = True


class StateInUse(StorageError):
    """Another process has the state directory open; two writers would corrupt the evidence chain."""

    code = "state_in_use"
    exit_status = 75


class NotPermitted(AgentError):
    """The operating system or the product's own rules do not allow this to this user."""

    code = "not_permitted"
    exit_status = 77


class FactRefused(AgentError):
    """A value is not of the type its fact declares, so it may not leave the host. Names the fact, never the value."""

    code = "fact_refused"
    exit_status = 70


class StepFailed(AgentError):
    """One step of a cure did not do what it should. `exit_status_of_step` is the tool's, when a tool was run."""

    code = "step_failed"

    def __init__(self, message: str, *, code: str = "step_failed", exit_status_of_step: int | None = None) -> None:
        super().__init__(message, code=code)
        self.exit_status_of_step = exit_status_of_step


CANNOT_TELL_REASONS = (
    "timed_out",  # the deadline passed; a process that was started has been killed or abandoned
    "tool_missing",  # the program is not installed where programs live
    "not_permitted",  # the operating system refused the look
    "not_found",  # a file, socket or unit that must exist to be judged is not there
    "unparsable",  # the answer came and could not be understood
    "output_too_large",  # the answer was longer than its limit
    "tool_failed",  # the program ran and reported failure
    "io_error",  # any other errno, kept in errno_name
    "crashed",  # the check itself failed: a bug here, recorded as such
    "fact_refused",  # the observation held a value its declared type does not allow
    "not_configured",  # the baseline gives the check nothing to compare with
)


class CannotTell(AgentError):
    """A look at the host that gave no answer. It ends in the verdict `unknown`, never in a pass.

    Args:
        reason: one of CANNOT_TELL_REASONS.
        message: for the person at this host only; it is never recorded and never leaves the host.
        errno_name: `EACCES` and the like, where the operating system gave one.
    """

    code = "cannot_tell"
    exit_status = 1

    def __init__(self, reason: str, message: str = "", *, errno_name: str | None = None) -> None:
        if reason not in CANNOT_TELL_REASONS:
            raise RuntimeError(f"undeclared reason {reason!r}")
        super().__init__(message or reason, code=reason)
        self.reason = reason
        self.errno_name = errno_name

    @classmethod
    def from_os_error(cls, error: OSError, message: str) -> CannotTell:
        """The reason an `OSError` stands for, with the errno's name kept."""
        number = error.errno or 0
        reason = {
            errno.EACCES: "not_permitted",
            errno.EPERM: "not_permitted",
            errno.ENOENT: "not_found",
            errno.ENOTDIR: "not_found",
        }.get(number, "io_error")
        return cls(reason, message, errno_name=errno.errorcode.get(number))
