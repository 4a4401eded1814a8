"""RFC 6962, section 2.1, word for word and recursive: slow, and written without a look at the product."""

from __future__ import annotations

import hashlib
from functools import cache


class Reference:
    """MTH, PATH and PROOF over fixed entries."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = entries
        self.mth = cache(self._mth)

    def _mth(self, start: int, stop: int) -> bytes:
        """MTH(D[start:stop])."""
        n = stop - start
        if n == 0:
            return hashlib.sha256(b"").digest()
        if n == 1:
            return hashlib.sha256(b"\x00" + self.entries[start]).digest()
        k = largest_power_below(n)
        return hashlib.sha256(b"\x01" + self.mth(start, start + k) + self.mth(start + k, stop)).digest()

    def root(self, size: int) -> bytes:
        return self.mth(0, size)

    def path(self, m: int, size: int, start: int = 0) -> list[bytes]:
        """PATH(m, D[start:start+size]), 2.1.1."""
        if size == 1:
            return []
        k = largest_power_below(size)
        if m < k:
            return [*self.path(m, k, start), self.mth(start + k, start + size)]
        return [*self.path(m - k, size - k, start + k), self.mth(start, start + k)]

    def proof(self, m: int, size: int) -> list[bytes]:
        """PROOF(m, D[size]), 2.1.2, for 0 < m < size."""
        return self._subproof(m, 0, size, whole=True)

    def _subproof(self, m: int, start: int, size: int, *, whole: bool) -> list[bytes]:
        if m == size:
            return [] if whole else [self.mth(start, start + size)]
        k = largest_power_below(size)
        if m <= k:
            return [*self._subproof(m, start, k, whole=whole), self.mth(start + k, start + size)]
        return [*self._subproof(m - k, start + k, size - k, whole=False), self.mth(start, start + k)]


def largest_power_below(n: int) -> int:
    """The largest power of two smaller than n."""
    power = 1
    while power * 2 < n:
        power *= 2
    return power
