"""A site's log as people look at it: what is published and by whom it is signed, what waits, and why it stands still.

The checkpoint is the file as it is served, verified now; the newest entries are those under it.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from compliance_agent.errors import AgentError, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64, to_base64
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import FULL
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Backlog, Shard, SiteReader
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.checkpoints import Line, State, Witness, signed_checkpoint, witnessed
from compliance_agent.server.services.moments import Stamped
from compliance_agent.server.services.older_heads import OlderHeads, older_heads
from compliance_agent.server.services.served_logs import ServedLogs

NEWEST = 12


@dataclass(frozen=True)
class Entry:
    """One entry; `content` is what it says, empty when its bytes are not what an entry is."""

    index: int
    kind: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Anchor:
    """A checkpoint that third parties have signed: the entries under it, and when."""

    size: int
    at: datetime


@dataclass(frozen=True)
class SiteLog:
    """One log of a site; `shard` is None where none was opened yet.

    Attributes:
        years: of every log of this site, the newest first.
        note: the checkpoint as it is served.
        lines: what the checkpoint was compared with: the log's key, the witnesses.
        vkeys: the log's verifier keys.
        backlog: entries of the site that wait for an index, and since when.
        unlogged: records that no published checkpoint covers.
        still: code of what keeps the log from going on; empty when it goes on.
        passing: that ends by itself.
        older: earlier checkpoints that entries of the log hold.
        anchor: the newest checkpoint that third parties are known to have signed.
    """

    site_id: str
    years: tuple[int, ...]
    shard: Shard | None
    note: bytes | None
    checkpoint: Checkpoint | None
    lines: tuple[Line, ...]
    witnesses: tuple[Witness, ...]
    vkeys: tuple[str, ...]
    backlog: Backlog
    unlogged: int
    entries: tuple[Entry, ...]
    still: str
    passing: bool
    older: OlderHeads
    anchor: Anchor | None

    @property
    def published_at(self) -> datetime | None:
        """When the newest checkpoint was signed."""
        return self.shard.published_at if self.shard else None


class Logbook:
    """Reads the logs of the sites that its reader sees; Refusal 404 for all others, and for a year without a log."""

    def __init__(
        self,
        reader: SiteReader,
        files: LogFiles,
        keys: LogKeys,
        board: Board,
        policy: Policy | None = None,
        stamped: Stamped | None = None,
    ) -> None:
        self._reader = reader
        self._files = files
        self._keys = keys
        self._board = board
        self._policy = policy
        self._served = ServedLogs(files, keys, policy, stamped)
        self.anchors = (policy is not None and policy.quorum != "none") or stamped is not None

    async def log(self, site_id: str, year: int | None = None, before: int | None = None) -> SiteLog:
        """The log of this year, of the newest when none is given; with older checkpoints from entries before that index."""
        reader = self._reader.only(site_id)
        if not await reader.site_rows():
            raise _not_found()
        shards = {shard.year: shard for shard in await reader.shards()}
        chosen = max(shards, default=None) if year is None else year
        if year is not None and year not in shards:
            raise _not_found()
        shard = shards[chosen] if chosen is not None else None
        note = await asyncio.to_thread(self._note, shard) if shard else None
        checkpoint, lines, witnesses = self._verified(shard, note)
        still, passing = self._still(site_id)
        newest, older = await asyncio.to_thread(self._older, shard, checkpoint if _holds(lines) else None, before)
        return SiteLog(
            site_id,
            tuple(sorted(shards, reverse=True)),
            shard,
            note,
            checkpoint,
            lines,
            witnesses,
            self._vkeys(shard),
            await reader.backlog(),
            sum((await reader.unlogged()).values()),
            await self._entries(reader, shard, checkpoint),
            still,
            passing,
            older,
            _anchor(checkpoint, lines, witnesses, newest),
        )

    async def vkey(self, site_id: str, year: int) -> str:
        """The Ed25519 verifier key of one log."""
        found = await self._reader.only(site_id).shards()
        origin = next((shard.origin for shard in found if shard.year == year), None)
        if origin is None:
            raise _not_found()
        return str(self._keys.verifier(origin))

    def _older(
        self, shard: Shard | None, checkpoint: Checkpoint | None, before: int | None
    ) -> tuple[OlderHeads, OlderHeads]:
        """The newest of them, and those that are asked for."""
        if shard is None or checkpoint is None:
            return OlderHeads(), OlderHeads()
        newest = older_heads(self._served, shard, checkpoint)
        return newest, newest if before is None else older_heads(self._served, shard, checkpoint, before)

    async def older(self, site_id: str, year: int, index: int) -> bytes:
        """The checkpoint that the entry with this index holds, as it is there; nothing is believed of it."""
        shard, served = await self._of(site_id, year)

        def read() -> bytes | None:
            try:
                leaf = self._served.entries(shard, index // FULL, served.size)[index % FULL]
                return from_base64(str(json.loads(leaf)["checkpoint"]), "checkpoint", "bad_entry")
            except (AgentError, ValueError, KeyError, TypeError, IndexError):
                return None

        found = await asyncio.to_thread(read) if index < served.size else None
        if not found:
            raise _not_found()
        return found

    async def consistency(self, site_id: str, year: int, old: int) -> bytes:
        """That the published tree begins with its first `old` entries, as a witness is told it (C2SP tlog-witness).

        The size, the path and the published checkpoint; without a path where it has no more entries than that.
        """
        shard, _ = await self._of(site_id, year)

        def made() -> bytes | None:
            try:
                note = self._files.published(site_id, year) or b""
                signed, checkpoint = signed_checkpoint(note, self._keys.verifier(shard.origin))
                if checkpoint is None or signed.state is not State.VERIFIED:
                    return None
                tree = self._served.moments(shard, checkpoint).tree
                path = tree.consistency(old) if old < checkpoint.size else []
            except AgentError:
                return None
            lines = "".join(f"{to_base64(one)}\n" for one in path)
            return f"old {old}\n{lines}\n".encode() + note

        found = await asyncio.to_thread(made) if old else None
        if found is None:
            raise _not_found()
        return found

    async def _of(self, site_id: str, year: int) -> tuple[Shard, Checkpoint]:
        """A log with its published checkpoint; Refusal 404."""
        shards = await self._reader.only(site_id).shards()
        shard = next((one for one in shards if one.year == year), None)
        try:
            served = await asyncio.to_thread(self._served.published, shard) if shard is not None else None
        except AgentError:
            served = None
        if shard is None or served is None:
            raise _not_found()
        return shard, served

    def _note(self, shard: Shard) -> bytes | None:
        try:
            return self._files.published(shard.site_id, shard.year)
        except AgentError:
            return b""  # there, and of no use: it will not verify

    def _verified(
        self, shard: Shard | None, note: bytes | None
    ) -> tuple[Checkpoint | None, tuple[Line, ...], tuple[Witness, ...]]:
        if shard is None or note is None:
            return None, (Line("checkpoint", State.UNTOLD, "not_published"),), ()
        signed, checkpoint = signed_checkpoint(note, self._keys.verifier(shard.origin))
        line, witnesses = witnessed(note, self._policy)
        return checkpoint, (signed, line), witnesses

    def _vkeys(self, shard: Shard | None) -> tuple[str, ...]:
        if shard is None:
            return ()
        keys = (self._keys.verifier(shard.origin), self._keys.cosigner(shard.origin))
        return tuple(str(key) for key in keys if key is not None)

    async def _entries(
        self, reader: SiteReader, shard: Shard | None, checkpoint: Checkpoint | None
    ) -> tuple[Entry, ...]:
        """The newest entries under the checkpoint, the newest first."""
        if shard is None or checkpoint is None:
            return ()
        stop = min(checkpoint.size, shard.size)
        start = max(stop - NEWEST, 0)
        leaves = await reader.leaves(shard.site_id, shard.year, start, stop)
        return tuple(_entry(index, leaf) for index, leaf in reversed(list(enumerate(leaves, start))))

    def _still(self, site_id: str) -> tuple[str, bool]:
        for codes, passing in ((self._board.stopped, False), (self._board.paused, True)):
            code = codes.get(site_id) or codes.get("")
            if code:
                return code, passing
        return ("" if self._board.sequencing else "not_sequencing"), False


def _holds(lines: tuple[Line, ...]) -> bool:
    """Whether the log's key signed the checkpoint: else nothing follows from it."""
    return lines[0].state is State.VERIFIED


def _anchor(
    checkpoint: Checkpoint | None, lines: tuple[Line, ...], witnesses: tuple[Witness, ...], newest: OlderHeads
) -> Anchor | None:
    if checkpoint is None or not _holds(lines):
        return None
    times = [one.at for one in witnesses if one.at is not None]
    if lines[1].state is State.VERIFIED and times:
        return Anchor(checkpoint.size, max(times))
    return next((Anchor(one.size, at) for one in newest.heads if (at := one.anchored_at) is not None), None)


def _entry(index: int, leaf: bytes) -> Entry:
    try:
        content = json.loads(leaf)
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        return Entry(index, "unreadable", {})
    return Entry(index, str(content.get("kind")), content)


def _not_found() -> Refusal:
    return Refusal("no such log", code="not_found", status=404)
