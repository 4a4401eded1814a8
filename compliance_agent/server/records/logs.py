"""A site's logs: entries before and after they have an index, and the tree over them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple


class NewLeaf(NamedTuple):
    """An entry for a site's log, decided in the transaction of what it records; the sequencer gives it its index.

    Attributes:
        epoch, seq: of the bundle that it is for; None for every other kind.
    """

    site_id: str
    leaf: bytes
    key_id: str | None = None
    epoch: int | None = None
    seq: int | None = None


class PendingLeaf(NamedTuple):
    """An entry without an index yet; `number` is its order of arrival over all sites."""

    number: int
    site_id: str
    leaf: bytes
    key_id: str | None
    epoch: int | None
    seq: int | None


@dataclass(frozen=True, slots=True)  # the newest are held in memory
class Leaf:
    """An integrated entry and its place."""

    site_id: str
    year: int
    index: int
    leaf: bytes
    key_id: str | None
    epoch: int | None
    seq: int | None
    bundle_id: str | None = None


@dataclass(frozen=True)
class Backlog:
    """Entries that wait for an index: how many, and since when."""

    count: int
    oldest: datetime | None


class NewestHead(NamedTuple):
    """How far a log is published, and how many bytes its newest cosigned checkpoint has: more with each line."""

    site_id: str
    year: int
    size: int
    cosigned_size: int
    cosigned_bytes: int


@dataclass(frozen=True)
class Kept:
    """A stored bundle as it goes into a packet; year and index are None while it waits for the log; destroyed, it has no body."""

    number: int
    key_id: str
    epoch: int
    seq: int
    body: bytes
    sig: bytes
    year: int | None
    index: int | None
    created_at: str


@dataclass(frozen=True)
class Shard:
    """One site's log of one year: the tree that is committed, and the newest checkpoint that was signed over it.

    Attributes:
        root, edge: of the tree of `size` entries; `edge` is what appending needs (log.tree.Edge), its levels joined.
        checkpoint: the signed note, None before the first; it is here before anybody sees it.
        checkpoint_size: entries under that note, at most `size`.
        sequenced_at: when entries last got indexes; the next ones get theirs strictly later.
        published_at: when that note was signed.
    """

    site_id: str
    year: int
    origin: str
    size: int
    root: bytes
    edge: bytes
    sequenced_at: datetime
    checkpoint: bytes | None = None
    checkpoint_size: int = 0
    published_at: datetime | None = None
