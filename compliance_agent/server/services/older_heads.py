"""Older checkpoints of a log, out of its own entries: each `time` entry holds one, signed by the log and by others.

The newest come first, page by page, and as far as is looked; each is held against the tree that is served now. Calls block.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from compliance_agent.errors import AgentError, BadEvidence
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.tiles import FULL
from compliance_agent.server.records import Shard
from compliance_agent.server.services.checkpoints import Line, State, Witness
from compliance_agent.server.services.moments import Moments
from compliance_agent.server.services.served_logs import ServedLogs

PER_PAGE = 12
TILES = 16  # of entries that are looked through for one page
TILES_REMOTE = 4


@dataclass(frozen=True)
class OlderHead:
    """A checkpoint that an entry holds.

    Attributes:
        index: of the entry.
        size: entries under it; 0 where it cannot be read.
        lines: whether the tree that is served now begins with it, and whether the policy's quorum cosigned it.
        stamps: when authorities stamped it (RFC 3161); tokens: how many the entry holds.
    """

    index: int
    size: int
    note: bytes
    lines: tuple[Line, ...]
    witnesses: tuple[Witness, ...] = ()
    stamps: tuple[datetime, ...] = ()
    tokens: int = 0

    @property
    def anchored_at(self) -> datetime | None:
        """When third parties had signed it: the quorum's last, or the first time stamp; None when none had, or it does not hold."""
        if self.lines[0].state is not State.VERIFIED:
            return None
        times = [one.at for one in self.witnesses if one.at is not None]
        met = self.lines[1].state is State.VERIFIED and bool(times)
        return min([*([max(times)] if met else []), *self.stamps], default=None)


@dataclass(frozen=True)
class OlderHeads:
    """A page of them. `next` is the index before which the next one begins, None at the end; `why` is why it ended early."""

    heads: tuple[OlderHead, ...] = ()
    next: int | None = None
    why: str = ""


def older_heads(logs: ServedLogs, shard: Shard, served: Checkpoint, before: int | None = None) -> OlderHeads:
    """The newest ones whose entry has an index below `before`."""
    stop = min(served.size if before is None else before, served.size)
    moments, found = logs.moments(shard, served), list[OlderHead]()
    tiles = TILES_REMOTE if logs.remote else TILES
    for looked, number in enumerate(range((stop - 1) // FULL, -1, -1)):
        if looked == tiles:
            return OlderHeads(tuple(found), (number + 1) * FULL, "stopped")
        try:
            entries = logs.entries(shard, number, served.size)
        except AgentError as error:
            return OlderHeads(tuple(found), None, "pruned" if error.code == "pruned" else "unreadable")
        for index, leaf in _times(entries, number * FULL, stop):
            if len(found) == PER_PAGE:
                return OlderHeads(tuple(found), index + 1)
            found.append(head_of(logs, moments, shard, index, leaf))
    return OlderHeads(tuple(found))


def head_of(logs: ServedLogs, moments: Moments, shard: Shard, index: int, leaf: bytes) -> OlderHead:
    """What one entry holds, compared with the tree that is served now."""
    try:
        said = json.loads(leaf)
        note = from_base64(str(said["checkpoint"]), "checkpoint", "bad_entry")
        tokens = [from_base64(str(one), "token", "bad_entry") for one in said["tokens"]]
    except (BadEvidence, ValueError, KeyError, TypeError):
        return OlderHead(
            index,
            0,
            b"",
            (Line("older", State.WRONG, "bad_checkpoint"), Line("witnesses", State.UNTOLD, "bad_checkpoint")),
        )
    signed, checkpoint, line, witnesses = logs.compared(shard, note)
    stamps = tuple(sorted(logs.stamps(tokens, note)))
    size = checkpoint.size if checkpoint is not None else 0
    held = signed if checkpoint is None or signed.state is not State.VERIFIED else _held(moments, checkpoint, index)
    return OlderHead(index, size, note, (Line("older", held.state, held.code), line), witnesses, stamps, len(tokens))


def _held(moments: Moments, older: Checkpoint, index: int) -> Line:
    try:
        begins = older.size <= index and moments.holds(older.size, older.root)
    except AgentError:
        return Line("older", State.UNTOLD, "unreadable")
    return Line("older", State.VERIFIED, "continued") if begins else Line("older", State.WRONG, "forked")


def _times(entries: list[bytes], first: int, stop: int) -> Iterator[tuple[int, bytes]]:
    """Those of kind `time` below an index, the newest first."""
    for at in range(min(len(entries), stop - first) - 1, -1, -1):
        if b'"kind":"time"' in entries[at]:
            yield first + at, entries[at]
