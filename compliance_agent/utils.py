"""apply_jitter, and nothing that has a better home."""

from __future__ import annotations

import math
import random


def apply_jitter(seconds: float, jitter_pct: float = 10.0, *, rng: random.Random | None = None) -> float:
    """`seconds`, moved evenly by at most `jitter_pct` per cent either way, so that hosts do not call all at once.

    Args:
        seconds: the interval; the result is never negative.
        jitter_pct: 0 to 100; 0 gives `seconds` back.
        rng: source of randomness; a module-wide one when not given.

    Raises:
        ValueError: a negative or endless interval, or a percentage outside 0 to 100.
    """
    if not 0 <= seconds < math.inf or not 0 <= jitter_pct <= 100:
        raise ValueError(f"jitter of {jitter_pct} % on {seconds} s: expected 0 to 100 % of a positive interval")
    spread = seconds * jitter_pct / 100
    return seconds + (rng or random).uniform(-spread, spread)
