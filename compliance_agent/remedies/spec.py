"""What an action is: one idempotent change with its own undo, reached only through the fixed table.

`capture` looks before anything is changed and returns what `undo` needs, as plain JSON; it is persisted (locally only) before
`apply` runs. `apply` brings the host to the stated state and is harmless when it is there already. `undo` brings back what
`capture` saw, and is harmless when run twice or when `apply` never ran.
"""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import field
from typing import Any

from compliance_agent.dataclass import dataclass
from compliance_agent.ports import ChangingHost, Host

Args = Mapping[str, str | int | bool]


@dataclass(frozen=True)
class Action:
    """One row of the table.

    Attributes:
        id: stable token; the file is named after it.
        title: what it does, as a sentence with `{argument}` places, for plans and screens.
        arguments: name -> type of each argument, all required.
        capture: `(host, args) -> JSON`; raises `CannotTell` when the former state cannot be read, and then nothing is changed.
        apply: `(host, args)`; raises `StepFailed` or `CannotTell`.
        undo: `(host, args, captured)`; raises `StepFailed` or `CannotTell`.
        deadline_s: for each of the three.
        undo_is_empty: why `undo` has nothing to bring back, for the few actions of which that is true (a clock that was put
            right is not made wrong again); empty for all others, and a test holds them to it.
        restored: `(captured, captured after the undo)`: whether the former state is back. Equal, unless the action says
            otherwise (a unit that had failed can only be brought back to stopped).
        by_others: `(captured, captured after it was applied)`: whether the host shows what this action never makes, so that
            somebody else was at work meanwhile (a needed unit was masked). Never, unless the action says so.
        codes: every token that its errors and `blocked` may give besides the common reasons, each with its sentence; one
            that is not declared could not stand in evidence.
        blocked: `(host, args)` -> token of what is in the way for now (package manager lock, running backup), or None;
            only looks. None when nothing can be in the way.
    """

    id: str
    title: str
    arguments: Mapping[str, type]
    capture: Callable[[ChangingHost, Args], Awaitable[Any]]
    apply: Callable[[ChangingHost, Args], Awaitable[None]]
    undo: Callable[[ChangingHost, Args, Any], Awaitable[None]]
    deadline_s: float = 60.0
    undo_is_empty: str = ""
    restored: Callable[[Any, Any], bool] = operator.eq
    by_others: Callable[[Any, Any], bool] | None = None
    codes: Mapping[str, str] = field(default_factory=dict)
    blocked: Callable[[Host, Args], Awaitable[str | None]] | None = None

    def describe(self, args: Args) -> str:
        """The title with its places filled, for a person at this host."""
        return self.title.format_map(dict(args))
