"""How long from one tick to the next: the configured interval, sooner after a change, later under pressure. Pure.

    server        the server asked for a longer interval
    backpressure  many records wait, or old ones: fewer looks make fewer records; up to MOST_S, so that all is still looked at
    changed       a verdict changed or something was cured: the next looks come at a quarter, then at half of the interval

Pressure ends at half of what began it, so that the interval does not swing. A check that fails and stays so changes nothing, and
who keeps undoing a cure is met by the flap breaker: neither makes this loop a fast one.
"""

from __future__ import annotations

MOST_S = 900.0  # a full re-read comes at least so often
SOONEST_S = 15.0
LONGEST_ASKED_S = 3_600.0  # a server may slow this host down, but not silence it for longer than a heartbeat
SOONER = (0.25, 0.5)
DEEP, OLD_S = (1_000, 10_000), 24 * 3_600.0


class Pace:
    """The interval of one loop."""

    def __init__(self) -> None:
        self.why = "configured"
        self._quick: list[float] = []
        self._level = 0

    def changed(self) -> None:
        """A verdict changed, or something was cured."""
        self._quick = list(SOONER)

    def next_s(self, configured_s: float, asked_s: float | None, depth: int, oldest_s: float) -> float:
        """Seconds to the next tick, before jitter.

        Args:
            configured_s: the interval of the configuration.
            asked_s: what the server asked for, if it did.
            depth: records that wait for the server.
            oldest_s: age of the oldest of them.
        """
        self._level = max(self._pressure(depth, oldest_s), min(self._level, self._pressure(2 * depth, 2 * oldest_s)))
        quick = self._quick.pop(0) if self._quick else 1.0
        asked_s = min(asked_s or 0.0, LONGEST_ASKED_S)
        base_s = max(configured_s, asked_s)
        if self._level:
            self.why = "backpressure"
            return max(base_s, min(MOST_S, base_s * float(2**self._level)))
        if asked_s > configured_s:
            self.why = "server"
            return base_s
        if quick < 1 and base_s > SOONEST_S:
            self.why = "changed"
            return max(SOONEST_S, base_s * quick)
        self.why = "configured"
        return base_s

    @staticmethod
    def _pressure(depth: int, oldest_s: float) -> int:
        return max(sum(depth >= limit for limit in DEEP), int(oldest_s >= OLD_S and depth > 0))
