"""Whom the server asks about its own logs after each checkpoint: witnesses, and a time-stamping authority. Neither can stop a log.

    checkpoint in the database and visible -> witnesses asked at once, with one deadline -> the cosigned note made visible
        -> receipts under it, and now and then an entry in the log itself that holds it (kind `time`)

While the last checkpoint of a log has met the quorum, receipts wait for the answer, at most the deadline. Once it has not, the
log is unwitnessed: receipts go out at once, that is said in log, figures and status, and the witnesses go on being asked. A
witness that shows a larger or another tree, signed by our own key, is proof that this server was put back: the sequencer then
stops that log.

An entry of kind `time` proves time without anything beside the log: every entry below the note's size existed when it was
cosigned, and no tree that holds the entry is older than that.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

import structlog

from compliance_agent.core.witness import origin_hash
from compliance_agent.entries.leaf import time_leaf
from compliance_agent.errors import AgentError, BadEvidence, OffDuty, Refusal
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.fields import from_base64
from compliance_agent.log.note import Note
from compliance_agent.log.policy import Policy
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileTree
from compliance_agent.logs import where
from compliance_agent.ports import Transport
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Clock, Leaf, NewLeaf, Shard, Store, Transaction
from compliance_agent.server.services.board import Board, Head, Witnessing
from compliance_agent.server.time_stamps import TimeStamps
from compliance_agent.witnessing import LARGEST_SKEW_S, merged, witnessed

TICK_S = 5.0  # between two looks at what still lacks its witnesses
GUARD_S = 5.0
LOOK_BACK = 256  # entries in which the newest time entry is looked for at start
CONTRADICTS = {"ahead", "inconsistent"}

log = structlog.get_logger()
Show = Callable[[str, int, bytes], Awaitable[bool]]
Fence = Callable[[Transaction, Iterable[str]], Awaitable[None]]
Place = tuple[str, int]


@dataclass(frozen=True)
class Intervals:
    """How long is waited, and how often time is written into a log."""

    deadline_s: float = 2.0
    entry: timedelta = timedelta(minutes=5)
    stamp: timedelta = timedelta(hours=1)


@dataclass
class _Log:
    """One log: what is to be cosigned next, what has been, and what its witnesses remember."""

    head: Head
    leaves: list[Leaf] = field(default_factory=list)
    note: bytes = b""  # of `head.size`, with every line so far
    size: int = -1  # of `note`
    old: Mapping[str, int] = field(default_factory=dict)
    met: bool = True  # nobody has failed us yet
    task: asyncio.Task[None] | None = None
    entry_at: datetime | None = None  # when a time entry was last written, and below which size it proves time
    stamp_at: datetime | None = None
    proven: int = -1  # -1: not looked for yet


class Cosigning:
    """Stands between the sequencer and the board: what is posted here reaches the board with its witnesses, or without.

    Args:
        witnesses: the lines of the policy without its log; empty when there are no witnesses.
        transports: the way to each URL that these lines name.
        stamps: the time-stamping authority, if there is one.
        store, files, keys, board: of the server.
        clock: the server's.
        intervals: how long, how often.

    Attributes:
        witnesses, stamps: as given.
        named: the policy with its witnesses, None when there are none; for those who ask which of them have cosigned.
        show, contradicted, noted, fence: the sequencer's.
    """

    def __init__(
        self,
        witnesses: str,
        transports: Mapping[str, Transport],
        stamps: TimeStamps | None,
        *,
        store: Store,
        files: LogFiles,
        keys: LogKeys,
        board: Board,
        clock: Clock,
        intervals: Intervals = Intervals(),
    ) -> None:
        self.witnesses = witnesses
        self._transports = transports
        self.stamps = stamps
        self._store, self._files, self._keys, self._board, self._clock = store, files, keys, board, clock
        self._every = intervals
        self._logs: dict[Place, _Log] = {}
        self.named = policy_of(witnesses, f"{keys.verifier('any/log/2026')}") if witnesses else None
        self.show: Show | None = None  # the sequencer's, which owns the files
        self.contradicted: Callable[[str, list[Checkpoint]], Awaitable[None]] | None = None
        self.fence: Fence | None = None  # what keeps an entry from being decided by one who is not on duty any more
        self.noted: Callable[[int], None] = lambda count: None  # an entry was decided

    async def close(self) -> None:
        """Let go of the connections; nobody is asked any more."""
        for transport in self._transports.values():
            await transport.close()
        if self.stamps is not None:
            await self.stamps.close()

    @property
    def deadline_s(self) -> float:
        """How long receipts wait for witnesses."""
        return self._every.deadline_s

    def forget(self, site_id: str) -> None:
        """Another replica asks for this site's logs from now on."""
        for place in [place for place in self._logs if place[0] == site_id]:
            task = self._logs.pop(place).task
            if task is not None:
                task.cancel()
            self._board.witnessing.pop(place, None)

    def policy(self, origin: str) -> Policy:
        """Whom to believe of one log: its own key, and the witnesses."""
        return policy_of(self.witnesses, f"{self._keys.verifier(origin)}")

    # --- from the sequencer ---------------------------------------------------------------------

    def post(self, site_id: str, year: int, head: Head, leaves: Iterable[Leaf] = ()) -> None:
        """A checkpoint is visible, and these entries are new in it; the board hears of it with its witnesses, or at once."""
        one = self._logs.setdefault((site_id, year), _Log(head))
        one.head = head
        one.leaves += leaves
        if not self.witnesses or not one.met:
            self._pass_on((site_id, year), one, head)
        if one.task is None or one.task.done():
            one.task = asyncio.create_task(self._serve((site_id, year), one))

    async def latest(self, shard: Shard) -> list[Checkpoint]:
        """What the witnesses that can be reached hold of a log, each signed by our own key."""
        if not self.witnesses:
            return []
        found = await asyncio.gather(*(self._latest(url, shard.origin) for url in self._transports))
        return [checkpoint for checkpoint in found if checkpoint is not None]

    async def _latest(self, url: str, origin: str) -> Checkpoint | None:
        try:
            path = f"/{origin_hash(origin)}/checkpoint"
            reply = await self._transports[url].request("GET", path, timeout_s=GUARD_S)
            if reply.status == 404:  # it has cosigned nothing of this log yet
                return None
            note = Note.parse(reply.body)
            note.verify([self._keys.verifier(origin)])
            checkpoint = Checkpoint.parse(note.text)
            if checkpoint.origin != origin:
                raise BadEvidence("a checkpoint of another log", code="bad_checkpoint")
        except AgentError as error:
            log.warning("log.witness_unreachable", code=error.code)
            return None
        return checkpoint

    # --- its own time ---------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go on asking about what lacks its witnesses or its time, until the block ends."""
        task = asyncio.create_task(self._tick_for_ever())
        try:
            yield
        finally:
            tasks = [task, *(one.task for one in self._logs.values() if one.task is not None)]
            for each in tasks:
                each.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _tick_for_ever(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self.tick()

    def tick(self) -> None:
        """Take up again every log whose newest checkpoint has not met the quorum, or whose time is due."""
        for place, one in self._logs.items():
            idle = one.task is None or one.task.done()
            if idle and (not one.met or one.size != one.head.size or self._entry_due(one)):
                one.task = asyncio.create_task(self._serve(place, one))

    async def settled(self) -> None:
        """Wait until nothing is being asked any more."""
        while busy := [one.task for one in self._logs.values() if one.task is not None and not one.task.done()]:
            await asyncio.wait(busy)

    # --- one log --------------------------------------------------------------------------------

    async def _serve(self, place: Place, one: _Log) -> None:
        """Until the newest checkpoint has been asked about."""
        try:
            while True:
                head = one.head
                await self._cosign(place, one, head)
                await self._write_time(place, one)
                if one.head is head:
                    return
        except OffDuty:
            return  # another replica asks for this log now
        except AgentError as error:
            log.error("log.witnessing_failed", code=error.code, site_id=place[0])
        except Exception as error:
            log.error("log.witnessing_crashed", error=type(error).__name__, where=where(error))
        self._pass_on(place, one, one.head)

    async def _cosign(self, place: Place, one: _Log, head: Head) -> None:
        if not self.witnesses:
            one.note, one.size = head.note, head.size
            return
        site_id, year = place
        note = one.note if one.size == head.size else head.note
        tree = TileTree(head.size, lambda *tile: self._files.read(site_id, year, Tile(*tile)))
        policy = self.policy(Checkpoint.parse(Note.parse(note).text).origin)
        found = await witnessed(
            note,
            policy,
            self._transports,
            tree.consistency,
            one.old,
            lambda: int(self._clock().timestamp()),
            deadline_s=self._every.deadline_s,
        )
        one.old = found.old
        if one.size > head.size:  # a witness has brought its word on a newer one meanwhile
            return
        note = _with_lines_of(one.note, found.note, policy) if one.size == head.size else found.note
        one.note, one.size = note, head.size
        self._judge(place, one, policy, found.failed)
        if found.cosigned and self.show is not None:
            await self.show(site_id, year, note)
        self._pass_on(place, one, Head(head.size, note, head.at))
        if CONTRADICTS & set(found.failed.values()) and self.contradicted is not None:
            shards = await self._store.for_sites({site_id}).shards()
            for shard in (shard for shard in shards if shard.year == year):
                await self.contradicted(site_id, await self.latest(shard))

    def _judge(self, place: Place, one: _Log, policy: Policy, failed: Mapping[str, str]) -> None:
        """Whether the note that is held now meets the quorum, whoever of its witnesses was asked or came by itself."""
        seen = policy.verify(one.note)
        missing = {name: code for name, code in failed.items() if name not in seen.witnesses}
        self._say(place, one.met, Witnessing(one.size, seen.witnesses, missing, seen.quorum_met, self._clock()))
        one.met = seen.quorum_met

    async def hand_in(self, site_id: str, year: int, raw: bytes) -> None:
        """Take what a witness brings that only calls out: the newest checkpoint of a log, with its line. Its line is its right to.

        Raises:
            Refusal: 404 when no witness of this log has signed it, so that a stranger learns nothing; 409 `stale` when it is not
                the newest checkpoint; 422 `bad_time` when the witness's clock is not ours.
            StorageError: it is held here, and not visible yet.
        """
        one = self._logs.get((site_id, year))
        if one is None and self.witnesses and (site_id, year) in self._board.heads:
            self._believed(site_id, year, raw)
            raise Refusal("another replica sequences this log", code="not_here", status=503, retry_after_s=1)
        if one is None or not self.witnesses:
            raise _nothing_here()
        held = one.note if one.size == one.head.size else one.head.note
        text = Note.parse(held).text
        policy = self.policy(Checkpoint.parse(text).origin)
        try:
            given = policy.verify(raw)
        except BadEvidence as error:
            raise _nothing_here() from error
        if not given.witnesses:
            raise _nothing_here()
        if Note.parse(raw).text != text:
            raise Refusal("the log has another checkpoint by now", code="stale", status=409)
        known, now = policy.verify(held).witnesses, int(self._clock().timestamp())
        new = {name: at for name, at in given.witnesses.items() if at > known.get(name, -1)}
        if any(abs(at - now) > LARGEST_SKEW_S for at in new.values()):
            raise Refusal(
                "the time of the cosignature is more than five minutes from ours", code="bad_time", status=422
            )
        if not new:
            return
        one.note, one.size = _with_lines_of(raw, held, policy, set(new)), one.head.size
        standing = self._board.witnessing.get((site_id, year))
        self._judge((site_id, year), one, policy, standing.failed if standing is not None else {})
        head = Head(one.size, one.note, one.head.at)
        if self.show is not None:
            await self.show(site_id, year, head.note)
        self._pass_on((site_id, year), one, head)

    def _believed(self, site_id: str, year: int, raw: bytes) -> None:
        """Raises Refusal 404 unless a witness of this log has signed it: a stranger learns nothing."""
        try:
            text = Note.parse(self._board.heads[site_id, year].note).text
            if self.policy(Checkpoint.parse(text).origin).verify(raw).witnesses:
                return
        except BadEvidence as error:
            raise _nothing_here() from error
        raise _nothing_here()

    def _pass_on(self, place: Place, one: _Log, head: Head) -> None:
        """To the board: the larger of two heads, and of one size the one with more lines."""
        leaves, one.leaves = (
            [leaf for leaf in one.leaves if leaf.index < head.size],
            [leaf for leaf in one.leaves if leaf.index >= head.size],
        )
        known = self._board.heads.get(place)
        newer = (
            known is None or known.size < head.size or (known.size == head.size and len(known.note) <= len(head.note))
        )
        self._board.post(*place, head if newer or known is None else known, leaves)

    def _say(self, place: Place, was_met: bool, found: Witnessing) -> None:
        known = self._board.witnessing.get(place)
        self._board.witnessing[place] = found
        if found.met and not was_met:
            log.info("log.witnessed", site_id=place[0], size=found.size, count=len(found.cosigned))
        elif not found.met and (was_met or known is None):
            codes = sorted(set(found.failed.values()))
            log.error(
                "log.unwitnessed", site_id=place[0], size=found.size, count=len(found.cosigned), code=",".join(codes)
            )

    # --- time, in the log itself ----------------------------------------------------------------

    def _entry_due(self, one: _Log) -> bool:
        """There are entries that no time entry covers (but that entry itself), and the last one is long enough ago."""
        now = self._clock()
        waited = one.entry_at is None or now - one.entry_at >= self._every.entry
        return waited and one.size > one.proven + 1

    async def _write_time(self, place: Place, one: _Log) -> None:
        if not self.witnesses and self.stamps is None:
            return
        if one.proven < 0:
            one.proven = await self._last_proven(place, one.size)
        if not self._entry_due(one):
            return
        cosigned = len(Note.parse(one.note).signatures) > len(Note.parse(one.head.note).signatures)
        tokens = await self._stamped(one)
        if not cosigned and not tokens:
            return
        one.entry_at, one.proven = self._clock(), one.size
        entry = NewLeaf(place[0], time_leaf(one.note, tokens))
        now = self._clock()

        async def add(tx: Transaction) -> None:
            if self.fence is not None:
                await self.fence(tx, {place[0]})
            await tx.add_leaves([entry], now)

        await self._store.write(add, {place[0]})
        self.noted(1)

    async def _last_proven(self, place: Place, size: int) -> int:
        """Size of the note in the newest time entry among the last ones; 0 when there is none."""
        leaves = await self._store.for_sites({place[0]}).leaves(*place, max(0, size - LOOK_BACK), size)
        for leaf in reversed(leaves):
            if b'"kind":"time"' in leaf:
                note = json.loads(leaf)["checkpoint"]
                return Checkpoint.parse(
                    Note.parse(from_base64(note, "checkpoint of a time entry", "bad_checkpoint")).text
                ).size
        return 0

    async def _stamped(self, one: _Log) -> list[bytes]:
        now = self._clock()
        if self.stamps is None or (one.stamp_at is not None and now - one.stamp_at < self._every.stamp):
            return []
        one.stamp_at = now
        try:
            token, _ = await self.stamps.stamp(one.note, self._every.deadline_s)
        except AgentError as error:
            one.stamp_at = now - self._every.stamp + self._every.entry  # again with the next time entry
            self._board.stamp_failed = error.code
            log.error("log.time_stamp_failed", code=error.code)
            return []
        self._board.stamp_failed, self._board.stamped_at = "", now
        return [token]


def _with_lines_of(other: bytes, note: bytes, policy: Policy, names: Collection[str] | None = None) -> bytes:
    """`note` with the lines that witnesses of the policy have under `other`: all that it lacks, or those of these names."""
    lines = {(line.name, line.key_id): line for line in Note.parse(other).signatures}
    present = {(line.name, line.key_id) for line in Note.parse(note).signatures}
    keys = [
        key
        for name, key in policy.witnesses.items()
        if (key.name, key.id) in lines and (name in names if names is not None else (key.name, key.id) not in present)
    ]
    return merged(note, keys, [lines[key.name, key.id] for key in keys])


def _nothing_here() -> Refusal:
    return Refusal("Not Found", code="not_found", status=404)


def policy_of(witnesses: str, log_key: str) -> Policy:
    """The policy for one log.

    Raises:
        BadEvidence: `bad_policy`.
    """
    lines = witnesses if witnesses else "quorum none\n"
    return Policy.parse(f"log {log_key}\n{lines}".encode())
