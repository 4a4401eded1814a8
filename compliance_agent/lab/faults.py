"""Faults to inject into a fake host: what cannot be seen, what answers nonsense, what fails, lies or dies half-way.

A fault is set on a target, written as the fake host records its calls in `looked` and `changed`:

    path:/etc/chrony/chrony.conf    program:nft    unit:chrony.service    socket:/run/clamav/clamd.ctl    clock:

Targets are shell patterns (`program:*`, `*`), and the fault that was set last wins. So a test generated over all checks
can ask a healthy host what a check looked at, and then take away one thing after the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from compliance_agent.errors import CANNOT_TELL_REASONS, StepFailed

ChangeFault = Literal["before", "after", "lie"]

# Answers that no parser may take for a good one: nothing, not text, cut JSON, JSON of another shape, a number, a long
# line.
GARBAGE: tuple[bytes, ...] = (
    b"",
    b"\xff\xfe\x00\x80garbage\x00",
    b'{"nftables": [{"metai',
    b"[]",
    b"{}",
    b"null",
    b"-1",
    b'"' + b"A" * 4096,
    b"nan,nan,,,\n" * 20,
    "\u202epatient J\u00f6rg M\u00fcller\n".encode(),
)


@dataclass
class LookFault:
    """How a look fails: a reason to raise, or bytes and an exit status in place of the true answer."""

    reason: str | None = None
    answer: bytes | None = None
    exit_status: int = 0


@dataclass
class _Set:
    pattern: str
    fault: LookFault | ChangeFault
    remaining: int | None


class Faults:
    """The faults of one host. Everything works until something is set; `clear` makes it whole again."""

    def __init__(self) -> None:
        self._looks: list[_Set] = []
        self._changes: list[_Set] = []

    def blind(self, target: str, reason: str, *, times: int | None = None) -> None:
        """Make looks at `target` raise `CannotTell(reason)`; `timed_out` first lets the deadline pass.

        Raises:
            ValueError: not one of the declared reasons.
        """
        if reason not in CANNOT_TELL_REASONS:
            raise ValueError(f"undeclared reason {reason!r}")
        self._looks.append(_Set(target, LookFault(reason=reason), times))

    def answer(self, target: str, answer: bytes, *, exit_status: int = 0, times: int | None = None) -> None:
        """Give these bytes in place of a file's content, a socket's answer or a program's output."""
        self._looks.append(_Set(target, LookFault(answer=answer, exit_status=exit_status), times))

    def exits(self, target: str, exit_status: int, *, times: int | None = None) -> None:
        """Make a program print nothing and end with this status."""
        self.answer(target, b"", exit_status=exit_status, times=times)

    def change(self, target: str, fault: ChangeFault, *, times: int | None = None) -> None:
        """Make changes to `target` fail before they take effect, fail `after` they did, or succeed without effect
        (`lie`).
        """
        self._changes.append(_Set(target, fault, times))

    def clear(self) -> None:
        """Forget every fault."""
        self._looks.clear()
        self._changes.clear()

    def of_look(self, target: str) -> LookFault | None:
        """The fault of this look, used up by one."""
        fault = _take(self._looks, target)
        return fault if isinstance(fault, LookFault) else None

    def of_change(self, target: str) -> ChangeFault | None:
        """The fault of this change, used up by one."""
        fault = _take(self._changes, target)
        return None if isinstance(fault, LookFault) else fault

    def around(self, target: str, effect: Callable[[], None]) -> None:
        """Carry out a change as its fault says.

        Raises:
            StepFailed: the fault is `before` or `after`.
        """
        fault = self.of_change(target)
        if fault == "before":
            raise StepFailed(f"{target}: injected failure before any effect", code="injected_before")
        if fault != "lie":
            effect()
        if fault == "after":
            raise StepFailed(f"{target}: injected failure after the effect", code="injected_after")


def _take(faults: list[_Set], target: str) -> LookFault | ChangeFault | None:
    for item in reversed(faults):
        if fnmatchcase(target, item.pattern):
            if item.remaining is not None:
                item.remaining -= 1
                if item.remaining <= 0:
                    faults.remove(item)
            return item.fault
    return None
