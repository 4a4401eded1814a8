"""Where the files of the logs are: named bytes that every replica sees, in a directory or in a bucket.

A name is a relative path (`riverside/2026/tile/0/000`). What is in a blob is for others: here it is bytes, at most `limit_bytes`
of them, and nothing that comes back is trusted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True)
class Lock:
    """What the store itself holds a blob by: nobody removes or replaces it before."""

    mode: str
    until: datetime


class Blobs(Protocol):
    """Calls block; what is written is durable when they return.

    Attributes:
        remote: a call may take as long as a network does.
        locks: the store itself can hold a blob until a day.

    Raises, all of them:
        StorageError: it could not be asked or written; code `blobs_away` (ask again) or `blobs_refused` (its answer is no).
        NoInput: something is there that cannot be a blob of ours.
    """

    remote: bool
    locks: bool

    def create(self, name: str, content: bytes, retain_until: datetime | None = None) -> bool:
        """Put a blob where none is; whether this call did. What is there is never replaced.

        With `retain_until` it stays until then, where the store can see to that.
        """
        ...

    def update(self, name: str, change: Callable[[bytes | None], bytes | None], *, limit_bytes: int) -> None:
        """Replace a blob by what `change` makes of the one that is there (None: there is none; nothing to be written).

        Nobody else's writing falls in between: `change` is asked again then.
        """
        ...

    def get(self, name: str, *, limit_bytes: int) -> bytes | None:
        """A blob; None when there is none."""
        ...

    def children(self, name: str) -> list[str]:
        """The first part of every name below `name` ("" is the top), in order."""
        ...

    def delete(self, name: str) -> None:
        """Remove a blob, whatever is kept of its past too; one that is not there is fine.

        Raises:
            StorageForbidden: code `retained`; the store holds it, and says until when.
        """
        ...

    def delete_below(self, name: str) -> None:
        """Remove every blob below a name."""
        ...

    def lock(self, name: str) -> Lock | None:
        """What holds a blob; None when nothing does."""
        ...
