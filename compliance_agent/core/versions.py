"""Which of two version texts is the newer one: numbers compare as numbers, words as text."""

from __future__ import annotations

import re

_PART = re.compile(r"[0-9]+|[A-Za-z]+")


def order(version: str) -> tuple[tuple[int, int, str], ...]:
    """A sort key: `2026.11.10` is after `2026.11.9`, `1.0.1` after `1.0`, and a number after a word, so `1.0.1` after `1.0-rc2`."""
    return tuple((1, int(part), "") if part.isdigit() else (0, 0, part) for part in _PART.findall(version))


def older(version: str, than: str) -> bool:
    """Whether `version` comes before `than`. Texts that differ in punctuation alone are the same version."""
    return order(version) < order(than)
