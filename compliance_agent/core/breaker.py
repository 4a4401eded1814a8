"""A circuit breaker: after some failures in a row, stop asking for a while, then ask once before trusting again.

    closed --failures reach the threshold--> open --its duration passes--> half_open --the probe succeeds--> closed
                                              ^------------the probe fails, or never answers----'

Time is handed in (monotonic seconds), as is chance. It knows nothing of what it protects.
"""

from __future__ import annotations

import random
from typing import Literal

State = Literal["closed", "open", "half_open"]
_LONGEST_DOUBLING = 32


class CircuitBreaker:
    """One protected dependency. Ask `allow` before each call, then report `success` or `failure`.

    Args:
        rng: spreads the open durations, so that hosts which failed together do not come back together.
        threshold: failures in a row that open it.
        open_s: the first open duration is from half of this to all of it; it doubles with each probe that fails.
        max_open_s: longest open duration.
        probe_s: a probe that has not reported for so long counts as failed (its caller was cancelled).

    Raises:
        ValueError: an argument that could never work.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        threshold: int = 5,
        open_s: float = 10.0,
        max_open_s: float = 900.0,
        probe_s: float = 60.0,
    ) -> None:
        if threshold < 1 or not 0 < open_s <= max_open_s or probe_s <= 0:
            raise ValueError("breaker: threshold and durations must be positive, and open_s at most max_open_s")
        self._rng = rng
        self._threshold = threshold
        self._open_s, self._max_open_s, self._probe_s = open_s, max_open_s, probe_s
        self._failures = 0  # in a row, while closed
        self._openings = 0  # since it was last closed
        self._open_until: float | None = None  # None: closed
        self._probe_until: float | None = None  # set: a probe is out

    def state(self, now: float) -> State:
        """What it is at this moment."""
        self._expire_probe(now)
        if self._open_until is None:
            return "closed"
        return "half_open" if self._probe_until is not None or now >= self._open_until else "open"

    def allow(self, now: float) -> bool:
        """Whether a call may be made now. In `half_open` the first one to ask becomes the probe, and the only one."""
        self._expire_probe(now)
        if self._open_until is None:
            return True
        if now < self._open_until or self._probe_until is not None:
            return False
        self._probe_until = now + self._probe_s
        return True

    def wait_s(self, now: float) -> float:
        """Seconds until `allow` may say yes, 0 when it may already."""
        self._expire_probe(now)
        if self._open_until is None:
            return 0.0
        until = self._open_until if self._probe_until is None else self._probe_until
        return max(0.0, until - now)

    def success(self, now: float) -> None:
        """The call that was allowed got an answer. An answer to a call from before it opened changes nothing."""
        self._expire_probe(now)
        if self._open_until is None or self._probe_until is not None:
            self._failures = self._openings = 0
            self._open_until = self._probe_until = None

    def failure(self, now: float) -> None:
        """The call that was allowed failed."""
        self._expire_probe(now)
        if self._open_until is None:
            self._failures += 1
            if self._failures >= self._threshold:
                self._open(now)
        elif self._probe_until is not None:
            self._open(now)

    def _expire_probe(self, now: float) -> None:
        if self._probe_until is not None and now >= self._probe_until:
            self._open(self._probe_until)

    def _open(self, now: float) -> None:
        longest = min(self._max_open_s, self._open_s * 2.0 ** min(self._openings, _LONGEST_DOUBLING))
        self._openings += 1
        self._failures = 0
        self._probe_until = None
        self._open_until = now + self._rng.uniform(longest / 2, longest)
