"""Counts since ever, beside the seven statistics: verdicts of each check, cycles and their time, failures by code.

They are kept in the agent's database with the seven (adapters/agent_state.py) and go on after a restart. Names are fixed; labels
are ids of checks, verdicts and codes, so there are never many.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from compliance_agent.models import DriftResult

MOST_LABELS = 1_000
Key = tuple[str, str]  # name, label; the label of a verdict is `check:result`


class Counts:
    """Of one host.

    Args:
        kept: as they were saved last.
    """

    def __init__(self, kept: Mapping[Key, int]) -> None:
        self._counts = dict(kept)

    def add(self, name: str, label: str = "", by: int = 1) -> None:
        """Count. A label too many is counted with `other`."""
        key = (name, label)
        if key not in self._counts and len(self._counts) >= MOST_LABELS:
            key = (name, "other")
        self._counts[key] = self._counts.get(key, 0) + by

    def looked(self, results: Iterable[DriftResult]) -> None:
        """These looks came back."""
        for result in results:
            self.add("verdicts", f"{result.check}:{result.result}")

    def cycle(self, seconds: float) -> None:
        """A cycle was completed and took so long."""
        self.add("cycles")
        self.add("cycle_ms", by=max(0, int(seconds * 1_000)))

    def total(self, name: str, label: str = "") -> int:
        """One count."""
        return self._counts.get((name, label), 0)

    def by_label(self, name: str) -> dict[str, int]:
        """Every label of a name with its count."""
        return {label: count for (known, label), count in sorted(self._counts.items()) if known == name}

    def snapshot(self) -> dict[Key, int]:
        """All of it, to be saved."""
        return dict(self._counts)
