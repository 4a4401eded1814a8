"""What a program's answer is worth, before its meaning is looked at: refused, failed, or an answer that can be read.

Standard error is only looked at for the system's own refusals, and never kept: it may hold names and paths of the host.
"""

from __future__ import annotations

from typing import Any

from compliance_agent.documents import read_json
from compliance_agent.errors import CannotTell, DocumentError
from compliance_agent.ports import Ran

_REFUSALS = ("permission denied", "operation not permitted", "must be root", "non-root user", "access denied")


def refused(ran: Ran) -> bool:
    """Whether the program said that this user may not look."""
    said = (ran.err + ran.out).decode("utf-8", "replace").lower()
    return any(refusal in said for refusal in _REFUSALS)


def answered(ran: Ran, tool: str) -> Ran:
    """The answer of a program that must end with status 0.

    Raises:
        CannotTell: `not_permitted` when it was refused, else `tool_failed`.
    """
    if ran.exit_status == 0:
        return ran
    reason = "not_permitted" if refused(ran) else "tool_failed"
    raise CannotTell(reason, f"{tool}: exit status {ran.exit_status}, expected 0")


def json_answer(raw: bytes, tool: str, *, limit_bytes: int = 4_194_304, max_depth: int = 32) -> Any:
    """The JSON value a program printed.

    Raises:
        CannotTell: `unparsable`; the message says where, never what.
    """
    try:
        return read_json(raw, limit_bytes=limit_bytes, max_depth=max_depth)
    except DocumentError as error:
        raise CannotTell("unparsable", f"{tool}: not the JSON it should print ({error.code})") from error


def unparsable(tool: str, expected: str) -> CannotTell:
    """The error for an answer of another shape than `expected`."""
    return CannotTell("unparsable", f"{tool}: expected {expected}")
