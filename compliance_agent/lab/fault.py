"""What a synthetic fault of a simulated host is, and the list of all of them; lab/drift.py and drift_access.py fill it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from compliance_agent.lab.host import FakeHost

Cure = Literal["now", "window", "person"]


@dataclass(frozen=True)
class Fault:
    """One way to drift.

    Attributes:
        name: token for the command line.
        check: the check that must find it.
        reason: what it must be found for.
        title: what happens, as a sentence.
        cure: when the agent heals it, or that a person has to.
        inject: makes it happen.
    """

    name: str
    check: str
    reason: str
    title: str
    cure: Cure
    inject: Callable[[FakeHost], None]

    @property
    def heals(self) -> bool:
        """The agent heals it at any time of day, by itself."""
        return self.cure == "now"


FAULTS: dict[str, Fault] = {}


def register(check: str, reason: str, cure: Cure, title: str) -> Callable[[Callable[[FakeHost], None]], None]:
    """Register a function as a fault under its own name."""

    def keep(inject: Callable[[FakeHost], None]) -> None:
        name = inject.__name__.strip("_")

        def happen(host: FakeHost) -> None:
            inject(host)
            host.notice()

        FAULTS[name] = Fault(name, check, reason, title, cure, happen)

    return keep
