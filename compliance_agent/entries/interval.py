"""Between which two moments a record came to be, by what others said of its log. Pure; times are microseconds since 1970.

    line = Timeline(said=[(40, t1)], shown=[(64, t2)])
    line.not_before(64)   # t1: a root over entry 40 cannot be older than what entry 40 holds
    line.not_after(50)    # t2 and a second: entry 50 was in a tree that somebody had seen by then

A third party's signature cannot be foretold, so neither can an entry that holds one, nor any root over that entry, nor a record
that names that root. And what stood in a tree that a third party signed was there when it signed. Both keep to the safe side of a
time that is given in whole seconds. A bound that nothing shows is None.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from itertools import accumulate

SECOND_US = 1_000_000  # how much later a moment may be than the whole second that names it


class Timeline:
    """What is proven of time in one log.

    Args:
        said: (index, time) for each time that an entry holds: that entry, and all that follows from it, is not older.
        shown: (size, time) for each time at which a third party had the tree of that size before it.
    """

    def __init__(self, said: Iterable[tuple[int, int]] = (), shown: Iterable[tuple[int, int]] = ()) -> None:
        entries, trees = sorted(said), sorted(shown)
        self._indexes = [index for index, _ in entries]
        self._latest = list(accumulate((time for _, time in entries), max))
        self._sizes = [size for size, _ in trees]
        self._earliest = list(accumulate((time for _, time in reversed(trees)), min))[::-1]

    def not_before(self, head_size: int) -> int | None:
        """For a record that names the root of the first `head_size` entries: the latest time in one of them."""
        at = bisect_left(self._indexes, head_size)
        return self._latest[at - 1] if at else None

    def not_after(self, index: int) -> int | None:
        """For a record whose entry has this index: the earliest time at which a tree with it was seen."""
        at = bisect_right(self._sizes, index)
        return self._earliest[at] + SECOND_US if at < len(self._sizes) else None
