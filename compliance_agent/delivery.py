"""Delivery: what is recorded goes to the server, oldest first, soon and without ever holding up a check or a cure.

    check in -> is the server's copy of the chain ahead of ours? -> deliver what waits -> ask for receipts that are missing

It runs in a task of its own, one at a time. `wake` has it deliver what was recorded just now; `turn`, once in an iteration, has it
go the whole way and waits for that, within bounds. After a failure it rests until the next turn, whatever is recorded meanwhile:
a server that is down is asked once in an iteration. Where the breaker lets a try through before that turn, what waits goes then.

A bundle leaves the line only after the server's verified acknowledgement of it. Trouble is said once when it begins or changes
and once when it is over. A server that contradicts this host's chain makes it go on in a new epoch, at most once an hour, and
bundles that it can then never take where they stand are given new places: an honest server gets every one of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import structlog

from compliance_agent.errors import AgentError, ServerRefused, Unavailable
from compliance_agent.logs import where
from compliance_agent.mcp_client import MCPClient
from compliance_agent.models import BundleKind, DriftResult, QueuedEvidence
from compliance_agent.ports import Clock
from compliance_agent.traces import Open, Tracer, read
from compliance_agent.transport.protocol import Acknowledged, CheckinReply, OfferedReceipt

log = structlog.get_logger()
RECONCILE_AT_MOST_EVERY_S = 3_600.0
CHECKIN_HOLDS_S = 150.0  # so long a round that something recorded asked for does without a check-in of its own
TROUBLED_S = 1.0  # a turn waits no longer for a server that did not answer the last time; delivery goes on by itself
SOONEST_AGAIN_S = 0.1
CONTRADICTED = {"fork", "seq_gap"}
Later = Callable[[float, Callable[[], None]], asyncio.TimerHandle]


class Round(enum.IntEnum):
    """How far delivery goes: only what waits in the line, or the whole way."""

    SOON = 1
    WHOLE = 2


class Parts(Protocol):
    """What delivery needs of the agent, read anew each time: parts may be replaced."""

    mcp_client: Any
    offline_queue: Any
    evidence_generator: Any
    drift_detector: Any
    receipts: Any
    shedding: Any
    clock: Clock
    stats: dict[str, int]
    shutdown_event: asyncio.Event

    @property
    def latest(self) -> Sequence[DriftResult]:
        """The newest result of each check."""


async def settled(value: Any) -> Any:
    """The value, awaited when it can be: a collaborator that is passed in may answer at once."""
    return await value if inspect.isawaitable(value) else value


def code_of(error: BaseException) -> str:
    """The token of an error: its own code, or its type."""
    return error.code if isinstance(error, AgentError) else type(error).__name__


class Delivery:
    """The agent's side towards the server.

    Args:
        parts: the agent.
        turn_s: seconds that a caller waits for a turn at most; what is not finished then goes on by itself.
        later: calls something after so many seconds; the event loop's own when not given.
    """

    def __init__(self, parts: Parts, turn_s: float, later: Later | None = None) -> None:
        self._parts = parts
        self._turn_s = turn_s
        self._later = later
        self._timer: asyncio.TimerHandle | None = None  # until the breaker lets a try through
        self._coming: dict[str, bool] = {}  # being recorded; whether it was delivered before that was said
        self._fresh: dict[str, QueuedEvidence] = {}  # recorded just now, and neither delivered nor failed yet
        self._acks: dict[str, bytes] = {}
        self._offered: dict[str, OfferedReceipt] = {}
        self._task: asyncio.Task[None] | None = None
        self._wanted: Round | None = None
        self._resting = False  # after a failure, until the next turn
        self._spent = False  # what was woken has failed, which was the turn's try
        self._checked_in_at: float | None = None
        self._reconciled_at: float | None = None
        self._known: tuple[int, int, str] | None = None  # the newest bundle the server holds, as it said last
        self._answer: CheckinReply | None = None  # to the check-in of this turn
        self._trouble = ""
        self._failures = 0
        self.backlog: tuple[int, datetime | None] = (
            0,
            None,
        )  # at the last report: how many wait, and since when the oldest

    @contextlib.contextmanager
    def recording(self, bundle_id: str) -> Iterator[None]:
        """While a bundle is recorded, which ends after it is in the line: it may be delivered before `add` is called."""
        self._coming[bundle_id] = False
        try:
            yield
        except BaseException:
            del self._coming[bundle_id]
            raise

    def add(self, item: QueuedEvidence) -> None:
        """A bundle that was recorded just now and stands in the line."""
        if not self._coming.pop(item.bundle_id, False):
            self._fresh[item.bundle_id] = item

    def withdraw(self, bundle_id: str) -> None:
        """It was recorded and will not be added; the line has it."""
        self._coming.pop(bundle_id, None)

    def wake(self) -> None:
        """Deliver soon what was recorded, in the background."""
        if self._parts.mcp_client is None or self._resting or self._parts.shutdown_event.is_set():
            return
        _ = self._want(Round.SOON)

    def _want(self, what: Round) -> asyncio.Task[None]:
        self._wanted = max(what, self._wanted or what)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._deliver())
        return self._task

    def keep_ack(self, ack: Acknowledged) -> None:
        """Keep the proof, and the receipt that came with it, until the bundle is marked as delivered."""
        self._acks[ack.bundle_id] = ack.ack
        if (orders := getattr(self._parts, "orders", None)) is not None:
            orders.saw_time(ack.received_at)
        if ack.receipt is not None:
            self._offered[ack.bundle_id] = ack.receipt

    @property
    def trouble(self) -> str:
        """Code of what is in its way, empty when nothing is."""
        return self._trouble

    async def turn(self, seconds: float | None = None) -> None:
        """Give delivery a bounded turn, which ends early on shutdown and is short while there is trouble: looks and cures come
        after it. One that woke it may have had it for nothing already.
        """
        if self._parts.mcp_client is None:
            return
        self._resting, spent, self._spent = False, self._spent, False
        if spent:
            return
        task = self._want(Round.WHOLE)
        waits_s = min(self._turn_s, TROUBLED_S) if self._trouble else self._turn_s
        stopping = asyncio.ensure_future(self._parts.shutdown_event.wait())
        others = set() if self._parts.shutdown_event.is_set() else {stopping}
        try:
            await asyncio.wait(
                {task, *others},
                timeout=waits_s if seconds is None else seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
        finally:
            stopping.cancel()

    async def stop(self, seconds: float) -> None:
        """One last turn of so many seconds, then give up what is under way; nothing is lost by that."""
        await self.turn(seconds)
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait({self._task}, timeout=0.5)
        self._forget_timer()

    async def _deliver(self) -> None:
        """Rounds, as long as one is wanted and the last one went well."""
        while (what := self._wanted) is not None:
            self._wanted = None
            went_well = False
            try:
                went_well = await self._round(what)
            except Exception as error:
                log.error("delivery.failed", code=code_of(error), at=where(error))
            finally:
                if not went_well:
                    self._resting, self._spent, self._wanted = True, what is Round.SOON, None
                    self._try_when_let()
                if self._wanted is None:
                    self._leave_to_the_queue()

    def _try_when_let(self) -> None:
        """Have what waits tried when the breaker lets a try through; its jitter spreads the hosts of one outage. A wait that the
        server itself asked for, the same for all of them, ends with a round, whose own jitter does that.
        """
        self._forget_timer()
        client = self._log_client()
        wait_s = client.let_in_s() if client is not None else None
        if wait_s is not None and not self._parts.shutdown_event.is_set():
            later = self._later if self._later is not None else asyncio.get_running_loop().call_later
            self._timer = later(max(SOONEST_AGAIN_S, wait_s), self._let)

    def _let(self) -> None:
        """The wait should be over; where it is not, by the agent's own clock, the rest of it comes."""
        self._timer = None
        client = self._log_client()
        if client is None or not self._resting or self._parts.shutdown_event.is_set():
            return
        if client.let_in_s():
            self._try_when_let()
            return
        self._resting = False
        self._checked_in_at = None  # a check-in is what is tried: a bundle that fails makes the whole line wait
        _ = self._want(Round.SOON)

    def _forget_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _round(self, what: Round) -> bool:
        if not await self._key_is_known() or not await self._check_in(what):
            return False
        if not await self._deliver_unlisted():
            return False
        went_well = await self._deliver_waiting()
        if what is Round.WHOLE:
            await self._collect_receipts()
            await self._shed()
        return went_well

    async def _key_is_known(self) -> bool:
        """The server must know this host's key before it can take what the key has signed."""
        rotation = getattr(self._parts, "key_rotation", None)
        return rotation is None or self._log_client() is None or bool(await rotation.tell())

    def _leave_to_the_queue(self) -> None:
        self._parts.stats["evidence_queued"] += len(self._fresh)
        self._fresh.clear()

    async def _deliver_unlisted(self) -> bool:
        """Deliver what was recorded just now, where the line does not count what waits in it."""
        stats = await settled(self._parts.offline_queue.get_stats()) if self._fresh else {}
        fresh = list(self._fresh.values())
        if not fresh or (isinstance(stats, Mapping) and isinstance(stats.get("pending"), int)):
            return True
        return await self._upload_in_order(fresh) == len(fresh)

    async def process_queue(self) -> None:
        """Deliver what waits, oldest first, until nothing is left or the server or network says no."""
        await self._deliver_waiting()

    async def _deliver_waiting(self) -> bool:
        """The same; whether nothing was refused."""
        tried: set[tuple[int, int | None, int | None]] = set()  # a bundle may come again under a new place
        while pending := await settled(self._parts.offline_queue.get_pending()):
            batch = [item for item in pending if (item.id, item.epoch, item.seq) not in tried]
            if not batch:
                break
            tried.update((item.id, item.epoch, item.seq) for item in batch)
            if await self._upload_in_order(batch) < len(batch):
                return False
        return True

    async def _upload_in_order(self, items: Sequence[QueuedEvidence]) -> int:
        """Try to deliver these; they leave together where the client can. Returns how many were acknowledged."""
        spans = list(map(self._leaving, items))
        uploads = map(self._upload, items, spans)
        delivered = 0
        answers = await asyncio.gather(*uploads, return_exceptions=True)
        for item, span, answer in zip(items, spans, answers, strict=True):
            if span is not None:
                span.end(how="acknowledged" if answer is True else "failed")
            if answer is True:
                await self._mark_uploaded(item)
                delivered += 1
            elif isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            else:
                await self._failed(item, answer)
                break
        if delivered:
            await self._take_receipts()
            log.info("evidence.delivered", count=delivered)
            if delivered == len(items):
                self._over()
        return delivered

    def _leaving(self, item: QueuedEvidence) -> Open | None:
        """The span of one try to deliver this, where it belongs to a trace."""
        tracer, context = getattr(self._parts, "tracer", None), read(item.traceparent)
        return tracer.begin("deliver", context) if isinstance(tracer, Tracer) and context is not None else None

    async def _upload(self, item: QueuedEvidence, span: Open | None = None) -> Any:
        client = self._log_client()
        if client is not None:
            return await client.upload(replace(item, traceparent=None if span is None else span.context.text))
        paths = Path(item.bundle_path), Path(item.signature_path)
        return await settled(self._parts.mcp_client.upload_evidence(*paths))

    async def _mark_uploaded(self, item: QueuedEvidence) -> None:
        ack = self._acks.pop(item.bundle_id, None)
        await settled(self._parts.offline_queue.mark_uploaded(item.id, *([ack] if ack is not None else [])))
        self._parts.stats["evidence_uploaded"] += 1
        self._fresh.pop(item.bundle_id, None)
        if item.bundle_id in self._coming:
            self._coming[item.bundle_id] = True

    async def _failed(self, item: QueuedEvidence, answer: Any) -> None:
        """Keep the bundle, remember why, and do what the server's answer asks for."""
        code = code_of(answer) if isinstance(answer, BaseException) else "refused"
        self._say(code, bundle_id=item.bundle_id)
        refusal = answer if isinstance(answer, ServerRefused) else None
        if refusal is not None and code in CONTRADICTED and await self._made_up_for(item, refusal):
            return
        asked = refusal.retry_after_s if refusal is not None else None
        wait = {} if asked is None else {"retry_after_s": asked}
        await settled(self._parts.offline_queue.increment_retry(item.id, error=code, **wait))

    async def _made_up_for(self, item: QueuedEvidence, refusal: ServerRefused) -> bool:
        """Send again what the server lacks; where it holds another history, find this bundle a place that it can take."""
        epoch, seq, wanted = item.epoch, item.seq, refusal.expected
        if epoch is None or seq is None:
            return False
        lacks = refusal.code == "seq_gap" and wanted is not None and wanted < (epoch, seq)
        if lacks and wanted and await settled(self._parts.offline_queue.requeue_from(*wanted)):
            return True
        if await settled(self._parts.evidence_generator.rechain(epoch, seq)):
            return True
        return await self._reconcile(broken=True) and bool(await self._parts.evidence_generator.rechain(epoch, seq))

    # Receipts

    def _log_client(self) -> MCPClient | None:
        """The client, where it can speak of a log."""
        client = self._parts.mcp_client
        return client if isinstance(client, MCPClient) else None

    async def _take_receipts(self) -> None:
        """Verify what came with acknowledgements. Trouble here never touches a bundle: it is delivered, and stays so."""
        offered, client = list(self._offered.values()), self._log_client()
        self._offered.clear()
        if client is None or not offered:
            return
        try:
            await self._parts.receipts.take(client, offered)
        except Exception as error:
            log.error("receipts.failed", code=code_of(error), at=where(error))

    async def _collect_receipts(self) -> None:
        """Ask for receipts that are missing; record and deliver that a log contradicted itself, if one did."""
        client = self._log_client()
        if client is None:
            return
        await self._parts.receipts.collect(client)
        incidents = await self._parts.receipts.incidents()
        for fields in incidents:
            generator = self._parts.evidence_generator
            bundle = await settled(generator.create_evidence("", None, kind=BundleKind.INCIDENT, **fields))
            await settled(generator.store_evidence(bundle))
            self._parts.stats["evidence_generated"] += 1
        if incidents:
            await self.process_queue()

    async def _shed(self) -> None:
        """Let go of what the server holds in a backup, if that is wanted at all."""
        client, answer = self._log_client(), self._answer
        if client is not None:
            await self._parts.shedding.turn(client, answer)

    # Check-in

    async def _check_in(self, what: Round) -> bool:
        """Say that this host lives, and learn whether the server's copy of the chain is ahead of ours (a restored disk).

        Whether it makes sense to go on: the network was there, or nothing could be said of it.
        """
        now, last = self._parts.clock.monotonic(), self._checked_in_at
        if what is Round.SOON and last is not None and now - last < CHECKIN_HOLDS_S:
            return True
        self._answer = None
        check_in = getattr(self._parts.mcp_client, "check_in", None)
        if check_in is None or not hasattr(self._parts.evidence_generator, "head"):
            return True
        self._checked_in_at = now
        try:
            answer = await settled(check_in(**await self._report(), **self._nonce()))
        except Unavailable as error:
            self._say(error.code)
            return False
        except (AgentError, TypeError, KeyError, AttributeError) as error:
            log.debug("checkin.failed", code=code_of(error))
            return True
        if isinstance(answer, CheckinReply):
            self._answer, self._known = answer, answer.known
            await self._reconcile()
            if (orders := getattr(self._parts, "orders", None)) is not None:
                await orders.trust.take(answer.order_trust)
                orders.offer(answer.orders)
        return True

    def _nonce(self) -> dict[str, Any]:
        """What orders to this host have to name, and which word on whose orders count is here, where the client can say it."""
        orders = getattr(self._parts, "orders", None)
        if orders is None or self._log_client() is None:
            return {}
        return {"order_nonce": orders.nonce, "order_trust": orders.trust.said()}

    async def _report(self) -> dict[str, Any]:
        stats = await settled(self._parts.offline_queue.get_stats())
        pending = stats["pending"]
        if isinstance(pending, int):
            oldest = stats.get("oldest_pending")
            self.backlog = (pending, datetime.fromisoformat(oldest) if isinstance(oldest, str) else None)
        baseline = self._parts.drift_detector.baseline
        return {
            "head": await settled(self._parts.evidence_generator.head()),
            "pending": pending,
            "baseline": (baseline.version, baseline.sha256),
            "checks": {drift.check: (str(drift.result), drift.reason) for drift in self._parts.latest},
        }

    async def _reconcile(self, *, broken: bool = False) -> bool:
        """Compare heads; whether a new epoch was begun. Rarely: a server that lies must not fill the chain with epochs."""
        now = self._parts.clock.monotonic()
        if self._reconciled_at is not None and now - self._reconciled_at < RECONCILE_AT_MOST_EVERY_S:
            return False
        epoch = await settled(self._parts.evidence_generator.reconcile(self._known, broken=broken))
        if epoch is None:
            return False
        self._reconciled_at = now
        log.error("chain.contradicted", epoch=epoch, broken=broken)
        return True

    # What is said

    def _say(self, code: str, **keys: Any) -> None:
        self._failures += 1
        if (counts := getattr(self._parts, "counts", None)) is not None:
            counts.add("delivery_failed", code)
        if code != self._trouble:
            self._trouble = code
            log.warning("delivery.troubled", code=code, **keys)

    def _over(self) -> None:
        if self._trouble:
            log.info("delivery.recovered", failures=self._failures)
        self._trouble, self._failures = "", 0
