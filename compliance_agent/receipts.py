"""Receipts: the server's word that a bundle is in its site's log, believed only after it was proven here.

    leaf is this bundle's -> checkpoint is signed with the pinned key -> entry is in its tree -> the tree grew from the one
        seen before (consistency computed from tiles) -> receipt and checkpoint become durable together

A receipt that fails is named by its code and forgotten; the bundle stays delivered and a receipt is asked for again. A log that
contradicts itself is never believed again, and both of its signed notes go into an incident bundle: proof that others can check.
Recording and delivery go on whatever the log does.
"""

from __future__ import annotations

import base64
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from compliance_agent.core.receipt import (
    CODES,
    Followed,
    LoggedBundle,
    LogHead,
    PinnedLog,
    Proven,
    Standing,
    check_prefix,
    trusted_key,
    verify_note,
    verify_receipt,
)
from compliance_agent.errors import AgentError, BadEvidence, ServerRefused, StorageError
from compliance_agent.log.note import VerifierKey
from compliance_agent.log.tree import TileReader
from compliance_agent.tile_fetch import FetchedTiles
from compliance_agent.traces import Tracer, read
from compliance_agent.transport.protocol import MAX_RECEIPTS, OfferedReceipt

if TYPE_CHECKING:
    from compliance_agent.ports import Clock

T = TypeVar("T")
MOST_BATCHES = 10  # asked for in one turn; the rest comes with the next
NEVER = (-1, 0)  # a place before every other

log = structlog.get_logger()


class LogClient(Protocol):
    """What receipts need of the server's client; errors as `MCPClient` says."""

    def pinned_log(self) -> PinnedLog | None:
        """Key and name of the server's logs, None when the server had none at enrolment."""

    async def fetch_receipts(self, bundle_ids: Sequence[str]) -> list[OfferedReceipt | None]:
        """Receipts of these bundles, None for those that are not in the log yet."""

    async def log_file(self, origin: str, path: str) -> bytes:
        """A file of the log."""


class Store(Protocol):
    """Where heads and receipts are kept: `adapters.log_store.LogStore`, called through its `database`."""

    database: Any

    def followed(self) -> dict[str, Followed]: ...
    def distrust(self, origin: str, theirs: bytes, code: str, incident: str) -> None: ...
    def unreported(self) -> list[Followed]: ...
    def bundle(self, bundle_id: str) -> tuple[int, LoggedBundle] | None: ...
    def keep(
        self, receipts: Sequence[Proven], heads: Sequence[LogHead], now: datetime
    ) -> Sequence[tuple[str, str]] | None: ...
    def unlogged(self, after: tuple[int, int], limit: int) -> list[tuple[tuple[int, int], str]]: ...
    def standing(self) -> Standing: ...
    def replay(self) -> int: ...


class Receipts:
    """This host's side of its site's logs.

    Args:
        store: heads and receipts.
        site_id: of this host; logs of other sites are refused.
        clock: for the times that are noted.
        tracer: makes the last span of a trace.
    """

    def __init__(self, store: Store, site_id: str, clock: Clock, tracer: Tracer | None = None) -> None:
        self._tracer = tracer
        self._store = store
        self._site_id = site_id
        self._clock = clock
        self._after = NEVER  # the last bundle that was asked about; the next turn goes on behind it
        self._tiles = FetchedTiles()
        self.last_refused = ""  # code of the newest trouble, empty when the last receipts were fine

    # Believing

    async def take(self, client: LogClient, offered: Sequence[OfferedReceipt]) -> int:
        """Verify receipts and keep those that are proven; how many. Trouble is said, not raised: they can be asked for again.

        Raises:
            ConfigError: the pinned log key cannot be used.
            StorageError: what this host knows of its logs cannot be read.
        """
        pinned = client.pinned_log()
        if pinned is None or not offered:
            return 0
        trial = Trial(self, client, pinned, self._site_id, await self._call(self._store.followed))
        refused = Counter[str]()
        kept = 0
        for item in offered:
            try:
                await trial.verify(item, await self._bundle(item.bundle_id))
            except AgentError as error:
                refused[error.code] += 1
                if isinstance(error, Contradiction):
                    kept += await self._keep(trial, refused)  # what was proven before stands on the note that is ours
                    await self._distrust(error)
        kept += await self._keep(trial, refused)
        self._say(refused, kept)
        return kept

    async def _bundle(self, bundle_id: str) -> tuple[int, LoggedBundle] | None:
        return await self._call(lambda: self._store.bundle(bundle_id))

    async def _keep(self, trial: Trial, refused: Counter[str]) -> int:
        proven, heads = trial.taken()
        if not proven:
            return 0
        now = self._clock.now()
        try:
            ended = await self._call(lambda: self._store.keep(proven, heads, now))
        except StorageError as error:
            refused[error.code] += len(proven)
            return 0
        log.info("receipts.verified", count=len(proven))
        for traceparent, delivered_at in ended or ():
            self._end_trace(traceparent, delivered_at)
        return len(proven)

    def _end_trace(self, traceparent: str, delivered_at: str) -> None:
        context = read(traceparent)
        if self._tracer is not None and context is not None:
            try:
                start = datetime.fromisoformat(delivered_at)
            except ValueError:  # it was not noted that it was delivered, and it was
                start = None
            self._tracer.begin("prove", context, start).end(how="proven")

    async def collect(self, client: LogClient) -> int:
        """Ask for receipts of acknowledged bundles that have none yet, a bounded number of them; how many were proven.

        Trouble is said, not raised: the next turn asks again.
        """
        found = 0
        try:
            await self._call(self._store.replay)
            if client.pinned_log() is None:
                return 0
            for _ in range(MOST_BATCHES):
                missing = await self._call(lambda: self._store.unlogged(self._after, MAX_RECEIPTS))
                self._after = missing[-1][0] if len(missing) == MAX_RECEIPTS else NEVER
                if missing:
                    offered = await client.fetch_receipts([bundle_id for _, bundle_id in missing])
                    found += await self.take(client, [item for item in offered if item is not None])
                if self._after == NEVER:
                    break
        except AgentError as error:
            if not isinstance(error, ServerRefused) or error.status not in {404, 405}:  # an older server has none
                self._say(Counter([error.code]), 0)
        return found

    async def incidents(self) -> list[dict[str, Any]]:
        """Fields of the bundles that must say that a log contradicted itself, and do not yet."""
        return [
            {
                "bundle_id": item.incident,
                "reason": item.code,
                "incident": {
                    "origin": item.head.origin,
                    "ours": base64.b64encode(item.head.note).decode("ascii"),
                    "theirs": base64.b64encode(item.theirs or b"").decode("ascii"),
                    "code": item.code,
                },
            }
            for item in await self._call(self._store.unreported)
        ]

    async def _distrust(self, found: Contradiction) -> None:
        incident = str(uuid.uuid4())
        origin = found.ours.origin
        await self._call(lambda: self._store.distrust(origin, found.theirs.note, found.code, incident))
        log.error("log.contradicted", code=found.code, ours=found.ours.size, theirs=found.theirs.size)

    def _say(self, refused: Counter[str], proven: int) -> None:
        """Each kind of trouble once when it begins or changes, and once that it is over."""
        code = refused.most_common(1)[0][0] if refused else ""
        if code and code != self.last_refused:
            log.error("receipts.refused", code=code, count=refused.total())
        elif self.last_refused and proven and not code:
            log.info("receipts.recovered")
        if code or proven:
            self.last_refused = code

    # Looking

    async def health(self, client: LogClient) -> dict[str, Any]:
        """How this host stands to its site's log, for `health_check`."""
        standing = await self._call(self._store.standing)
        followed = (await self._call(self._store.followed)).values()
        distrusted = next((item.code for item in followed if item.code is not None), None)
        newest = next(iter(followed), None)
        oldest = standing.oldest_unlogged
        age_s = None if oldest is None else max(0, int((self._clock.now().astimezone(UTC) - oldest).total_seconds()))
        pinned = client.pinned_log()
        witnessed_at = newest.head.witnessed_at if newest else None
        unwitnessed = pinned is not None and pinned.witnesses is not None and newest is not None and not witnessed_at
        state = distrusted or ("no_log" if pinned is None else "unwitnessed" if unwitnessed else "followed")
        return {
            "state": state,
            "origin": newest.head.origin if newest else None,
            "size": newest.head.size if newest else None,
            "witnessed_at": _shown(witnessed_at),
            "receipted": standing.receipted,
            "unlogged": standing.unlogged,
            "oldest_unlogged_age_s": age_s,
            "last_refused": self.last_refused or None,
        }

    # Tiles

    async def with_tiles(self, client: LogClient, head: LogHead, work: Callable[[TileReader], T]) -> T:
        """Run `work(read)` on the tiles of a tree, fetching each when it is first asked for.

        Raises:
            BadEvidence: `no_tile`, `bad_tile`, or what `work` raises.
            Unavailable, BadReply, ServerRefused: the server could not be asked.
        """
        return await self._tiles.run(client, head, work)

    def _call(self, fn: Callable[[], T]) -> Awaitable[T]:
        answer: Awaitable[T] = self._store.database.call(fn)
        return answer


def _shown(at: datetime | None) -> str | None:
    return None if at is None else at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Contradiction(BadEvidence):
    """Two signed checkpoints of one log that cannot both be true; `code` is `log_forked` or `log_rolled_back`."""

    def __init__(self, code: str, ours: LogHead, theirs: LogHead) -> None:
        super().__init__(f"log {ours.origin}: {CODES[code]}", code=code)
        self.ours, self.theirs = ours, theirs


class Trial:
    """One batch of receipts on trial."""

    def __init__(
        self, receipts: Receipts, client: LogClient, pinned: PinnedLog, site_id: str, followed: Mapping[str, Followed]
    ) -> None:
        self._receipts, self._client, self._pinned, self._site_id = receipts, client, pinned, site_id
        self._heads = {origin: item.head for origin, item in followed.items()}
        self._distrusted = {origin for origin, item in followed.items() if item.code is not None}
        self._proven: list[Proven] = []
        self._moved: dict[str, LogHead] = {}

    def taken(self) -> tuple[list[Proven], list[LogHead]]:
        """What was proven since the last call, and the checkpoints that moved on with it."""
        found = self._proven, list(self._moved.values())
        self._proven, self._moved = [], {}
        return found

    async def verify(self, offered: OfferedReceipt, row: tuple[int, LoggedBundle] | None) -> None:
        """Prove one receipt.

        Raises:
            Contradiction: it shows that the log lied, now or before.
            BadEvidence: it is not proven; `code` is one of `core.receipt.CODES`.
            Unavailable, BadReply, ServerRefused: tiles could not be fetched.
        """
        if row is None:
            raise BadEvidence("receipt: of no bundle of this host", code="wrong_leaf")
        row_id, bundle = row
        seen_before = next((head.server for head in self._heads.values()), None)
        pinned = replace(self._pinned, server=self._pinned.server or seen_before)
        key = trusted_key(offered.proof, pinned, self._site_id)
        head = verify_receipt(bundle, offered.leaf, offered.proof, [key], pinned.witnesses)
        if pinned.required and head.witnessed_at is None:
            raise BadEvidence(f"log {head.origin}: {CODES['unwitnessed']}", code="unwitnessed")
        if head.origin in self._distrusted:
            raise BadEvidence(f"log {head.origin}: {CODES['log_not_believed']}", code="log_not_believed")
        try:
            await self._follow(head, key)
        except Contradiction:
            self._distrusted.add(head.origin)
            raise
        self._proven.append(Proven(row_id, bundle.sha256, offered.leaf, offered.proof))

    async def _follow(self, head: LogHead, key: VerifierKey) -> None:
        """Hold a checkpoint against the one that was verified last, and move on to the larger."""
        known = self._heads.get(head.origin)
        if known is not None:
            older, newer = sorted((known, head), key=lambda item: item.size)
            try:
                await self._receipts.with_tiles(self._client, newer, lambda read: check_prefix(older, newer, read))
            except BadEvidence as error:
                if error.code == "log_forked":
                    raise Contradiction("log_forked", known, head) from error
                if newer is known:
                    await self._ask_again(known, key)
                raise
        if known is None or head.size > known.size or self._is_witnessed_now(known, head):
            self._heads[head.origin] = self._moved[head.origin] = head

    @staticmethod
    def _is_witnessed_now(known: LogHead, head: LogHead) -> bool:
        return head.size == known.size and known.witnessed_at is None and head.witnessed_at is not None

    async def _ask_again(self, known: LogHead, key: VerifierKey) -> None:
        """The log cannot show a tree that it signed. If it now says that it is smaller, or another one, that is proof."""
        now = verify_note(await self._client.log_file(known.origin, "checkpoint"), [key], self._pinned.witnesses)
        if now.origin == known.origin and now.size < known.size:
            raise Contradiction("log_rolled_back", known, now)
        if now.origin == known.origin and now.note != known.note:
            await self._follow(now, key)
