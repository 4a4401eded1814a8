"""Whether a loop gets on: by when it has to be heard of again, and whether that time has passed.

The loop says before each step how long the step may take, and before each pause how long the pause is. Every step ends by a
deadline of its own, so one that is overdue hangs. What looks at this decides nothing else: the watchdog is fed or not, and the
health page says so.
"""

from __future__ import annotations

import asyncio

from compliance_agent.ports import Clock

STEP_S = 120.0  # for a step that says nothing else; a disk that is frozen for a minute is waited for


class Progress:
    """Of one loop.

    Args:
        clock: time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._due = clock.monotonic() + STEP_S
        self.looked = asyncio.Event()  # the first look at the host, with the state open, came back

    def step(self, seconds: float = 0.0) -> None:
        """A step or a pause begins that may take so long, and STEP_S more."""
        self._due = self._clock.monotonic() + seconds + STEP_S

    def overdue_s(self) -> float:
        """Seconds since the loop should have been heard of; 0 while it gets on."""
        return max(0.0, self._clock.monotonic() - self._due)
