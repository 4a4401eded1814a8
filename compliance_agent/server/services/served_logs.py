"""Logs as their files say, for whoever proves something from them: entries, trees, times. Nothing here asks the database."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from compliance_agent.errors import AgentError, BadEvidence, NoInput
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries
from compliance_agent.log.tree import TileTree
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Shard
from compliance_agent.server.services.checkpoints import Line, State, Witness, signed_checkpoint, witnessed
from compliance_agent.server.services.moments import NEAR, NEAR_REMOTE, Bound, Interval, Moments, Stamped, interval


class ServedLogs:
    """Calls block; what cannot be read is an AgentError.

    Args:
        policy: whose cosignatures count; nobody's where it is None.
        stamped: verifies time stamps; None where no authority is configured.
    """

    def __init__(
        self, files: LogFiles, keys: LogKeys, policy: Policy | None = None, stamped: Stamped | None = None
    ) -> None:
        self._files = files
        self._keys = keys
        self._policy = policy
        self._stamped = stamped

    @property
    def remote(self) -> bool:
        """Whether reading waits for a network."""
        return self._files.remote

    def compared(self, shard: Shard, note: bytes) -> tuple[Line, Checkpoint | None, Line, tuple[Witness, ...]]:
        """A checkpoint under the log's key, and who of the policy cosigned it."""
        signed, checkpoint = signed_checkpoint(note, self._keys.verifier(shard.origin))
        return signed, checkpoint, *witnessed(note, self._policy)

    def stamps(self, tokens: Iterable[bytes], note: bytes) -> list[datetime]:
        """When these time stamps say that the note was there; those that do not verify here are left out."""
        found, stamped = list[datetime](), self._stamped
        for token in tokens if stamped is not None else ():
            with contextlib.suppress(AgentError):
                found += [stamped(token, note)] if stamped is not None else []
        return found

    def published(self, shard: Shard) -> Checkpoint | None:
        """The served checkpoint, where there is one and the log's key signed it."""
        note = self._files.published(shard.site_id, shard.year)
        line, found = signed_checkpoint(note, self._keys.verifier(shard.origin)) if note else (None, None)
        return found if line is not None and line.state is State.VERIFIED else None

    def entries(self, shard: Shard, number: int, size: int) -> list[bytes]:
        """A tile of entries; NoInput with code `pruned` where it was destroyed when its time was over."""
        tile = Tile(ENTRIES, number, min(FULL, size - number * FULL))
        try:
            return decode_entries(self._files.exactly(shard.site_id, shard.year, tile), tile.width)
        except NoInput:  # the full bundle has replaced the partial one
            full = Tile(ENTRIES, number)
        try:
            return decode_entries(self._files.exactly(shard.site_id, shard.year, full), FULL)
        except NoInput as error:
            said = self._files.pruned(shard.site_id, shard.year)
            if said is None or not said.covers(full):
                raise
            raise NoInput(f"{full.path}: destroyed when its time was over", code="pruned") from error

    def moments(self, shard: Shard, checkpoint: Checkpoint) -> Moments:
        """What a log shows of time."""
        key = self._keys.verifier(shard.origin)

        def seen(note: bytes) -> tuple[Checkpoint, list[datetime]]:
            signed, found = signed_checkpoint(note, key)
            if found is None or signed.state is not State.VERIFIED:
                raise BadEvidence("a checkpoint of another log", code=signed.code)
            return found, [one.at for one in witnessed(note, self._policy)[1] if one.at is not None]

        def read(*tile: int) -> bytes:
            return self._files.read(shard.site_id, shard.year, Tile(*tile))

        return Moments(
            TileTree(checkpoint.size, read),
            checkpoint.root,
            read,
            lambda number: self.entries(shard, number, checkpoint.size),
            seen,
            self._stamped,
            NEAR_REMOTE if self._files.remote else NEAR,
        )

    def interval(
        self,
        shard: Shard,
        named: Shard,
        checkpoint: Checkpoint,
        index: int,
        document: Mapping[str, Any],
        served: Iterable[datetime],
    ) -> Interval:
        """Of the record with this entry; `named` is the log whose head it names, which may be of the year before."""
        here = self.moments(shard, checkpoint)
        before = here.before(document) if named is shard else self._before(named, document)
        return interval(document, before, here.after(index, served))

    def _before(self, named: Shard, document: Mapping[str, Any]) -> Bound:
        try:
            earlier = self.published(named)
        except AgentError:
            earlier = None
        return self.moments(named, earlier).before(document) if earlier is not None else Bound(why="unreadable")

    def proof(self, shard: Shard, named: Shard, index: int, document: Mapping[str, Any]) -> bytes | None:
        """What a browser checks that interval with; None where a log is not published as far, or not signed."""
        held, earlier = self.published(shard), self.published(named)
        if held is None or earlier is None or index >= held.size:
            return None
        return self.moments(shard, held).proof(index, document, self.moments(named, earlier))
