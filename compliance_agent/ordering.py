"""Orders on a host: judged, begun durably, done by the agent's own parts, and each one's end recorded.

    offer (delivery brings them)  ->  judge (core.orders)  ->  begin, durable  ->  do  ->  end, durable  ->  record

Nothing here acts by itself: checks are looked at, cures asked for, healing paused and keys rotated by the parts that do so anyway,
behind the same gates. An order that was begun is never begun again; one that was cut off is recorded as interrupted, and the checks
look anew.

The nonce that an order must name lives in this process alone: after a restart, and so after a state directory was wiped, restored
or copied, nothing that was signed before is worth anything. It is renewed as time passes by the monotonic clock, so an order that
was kept back dies although the wall clock is set back.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import secrets
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import field
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import structlog

from compliance_agent.config import AgentConfig
from compliance_agent.core import orders
from compliance_agent.core.orders import Order, Refused, Standing
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import AgentError, StorageError
from compliance_agent.facts import LARGEST_INT, is_timestamp
from compliance_agent.logs import where
from compliance_agent.models import BundleKind, DriftResult, Outcome, RemediationResult, Result
from compliance_agent.order_trust import OrderTrust
from compliance_agent.ports import Clock
from compliance_agent.progress import Progress

log = structlog.get_logger()
LONGEST_LOOK_S = 3_600.0  # the longest deadline that a baseline may give a check
MOST_OFFERED = 16  # of one check-in; the server offers the others again
MOST_REFUSED_AN_HOUR = 60  # that are recorded: a server that invents orders must not fill the chain
ROOT_NONCE_S = 6 * 3_600.0  # then root is asked for another one; it keeps two, each for a day at most
ASK_ROOT_AGAIN_S = 600.0
NONCE_LIFE_S = 12 * 3_600.0  # then there is a new one, and the former is good for as long once more
KEEP_TIME_EVERY = timedelta(minutes=1)
STALE_AFTER_S = (
    24 * 3_600.0
)  # without a newer time that the server has signed: somebody may be keeping this host in the past


class Store(Protocol):
    """`adapters.order_store.OrderStore`."""

    database: Any

    @property
    def all_said(self) -> bool: ...
    def open(self) -> Any: ...
    def known(self) -> Any: ...
    def keep_time(self, at: datetime) -> None: ...
    def is_taken(self, sha256: str) -> bool: ...
    def is_refused(self, sha256: str, reason: str) -> bool: ...
    def begin(self, taken: Any, counter: int | None, *, stops: bool | None = None) -> bool: ...
    def refuse(self, taken: Any) -> None: ...
    def end(self, sha256: str, outcome: str, error: str, fields: Mapping[str, Any]) -> None: ...
    def said(self, taken: Any) -> None: ...
    def unsaid(self) -> Sequence[Any]: ...


class Parts(Protocol):
    """What orders need of the agent, read anew each time: parts may be replaced."""

    signer: Any
    drift_detector: Any
    healing_engine: Any
    recording: Any
    key_rotation: Any
    clock: Clock
    progress: Progress

    async def order_look(self, checks: Sequence[str], order_id: str) -> list[DriftResult]:
        """Look at these now; heal and record as after any look."""
        ...

    async def order_cure(self, drift: DriftResult, order_id: str) -> RemediationResult:
        """Ask for one cure."""
        ...

    async def rotate_key(self) -> Any:
        """Let a new key take this one's place."""
        ...

    async def adopt_baseline(
        self, version: str, sha256: str, order: bytes, documents: tuple[Sequence[bytes], bytes | None]
    ) -> None:
        """Fetch a signed baseline and take it in place of the present one, whole or not at all; root may want to see the order."""
        ...

    async def approve_by_root(self, order: bytes, documents: tuple[Sequence[bytes], bytes | None]) -> None:
        """Have root note what this order approves, where root acts for this agent and waits for that."""
        ...

    async def follow_baseline(self, version: str, sha256: str) -> bool:
        """Go on with this one if it is what root's files hold now; whether it is."""
        ...


class RootNonces(Protocol):
    """`adapters.adopt_root.AdoptRoot`."""

    def nonce(self) -> str | None:
        """One that root gave; None when it did not answer."""
        ...


@dataclass(frozen=True)
class Ended:
    """How an order ended, and what else its record says."""

    outcome: str
    error: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


class Nonces:
    """The nonces of one process."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._former = ""
        self.renew()

    def renew(self, *, keep: bool = False) -> None:
        """A new one; the one before stays good if it is to be kept."""
        self._former = self._current if keep else ""
        self._current = secrets.token_hex(16)
        self._since = self._clock.monotonic()

    def take(self, nonce: str) -> None:
        """One that root gave; the one before stays good."""
        self._former, self._current, self._since = self._current, nonce, self._clock.monotonic()

    def current(self) -> str:
        """The one to hand out."""
        self._age()
        return self._current

    def good(self) -> tuple[str, ...]:
        """Those that an order may name."""
        self._age()
        return (self._current, self._former) if self._former else (self._current,)

    def _age(self) -> None:
        age = self._clock.monotonic() - self._since
        if age >= NONCE_LIFE_S:
            self.renew(keep=age < 2 * NONCE_LIFE_S)

    _current = ""


class Orders:
    """The orders of one host.

    Args:
        parts: the agent.
        config: who this host is.
        store: what it remembers, in the agent's database.
        taken: makes a row of it.
        trust: whose orders count.
        root: root's side of orders, where it is another process: it gives the nonces, so that it can tell for itself.
        nonce: the first one, if it gave one.
    """

    def __init__(
        self, parts: Parts, config: AgentConfig, store: Store, taken: Callable[..., Any], trust: OrderTrust,
        root: RootNonces | None = None, nonce: str | None = None,
    ) -> None:  # fmt: skip
        self._parts = parts
        self._config = config
        self._store = store
        self._taken = taken
        self.trust = trust
        self._offered: list[bytes] = []
        self._doing = b""  # the order that is being done, as it came
        self._any = asyncio.Event()
        self._nonces = Nonces(parts.clock)
        self._root = root
        self._ask_root_at = 0.0
        self._owed: tuple[str, str] | None = (
            None  # a baseline that root may have taken, and whose files were not there yet
        )
        if root is not None:
            self._take_nonce(nonce)
        known = store.open()
        self._counter: int = known.counter
        self._time: datetime | None = known.time
        self._time_at = parts.clock.monotonic()
        self._time_kept: datetime | None = known.time
        self._refusals: deque[float] = deque(maxlen=MOST_REFUSED_AN_HOUR)
        self._muted = False
        away_s = max(0.0, (parts.clock.now() - known.time).total_seconds()) if known.time is not None else 0.0
        self._newest, self._fresh_at = known.time, parts.clock.monotonic() - away_s
        self._stale = False

    # What delivery brings

    @property
    def nonce(self) -> str:
        """What an order that is to be taken must name."""
        return self._nonces.current()

    def offer(self, envelopes: Sequence[bytes]) -> None:
        """Orders that the server forwarded. They are looked at soon, and offered again until the server has their record."""
        self._offered = list(envelopes[:MOST_OFFERED])
        if self._offered:
            self._any.set()

    async def offered(self) -> None:
        """Return when there is something to look at."""
        await self._any.wait()

    def saw_time(self, text: str) -> None:
        """A time that the server has signed: no order that ended before it is taken any more."""
        if not is_timestamp(text):
            return
        at = datetime.fromisoformat(text).astimezone(UTC)
        if at > (self._floor() or at - timedelta(seconds=1)):
            self._time, self._time_at = at, self._parts.clock.monotonic()
        if self._newest is None or at > self._newest:  # the floor may run ahead of it by the two clocks' drift
            self._newest, self._fresh_at = at, self._parts.clock.monotonic()

    def _floor(self) -> datetime | None:
        if self._time is None:
            return None
        return self._time + timedelta(seconds=self._parts.clock.monotonic() - self._time_at)

    def _now(self) -> datetime:
        now, floor = self._parts.clock.now(), self._floor()
        return now if floor is None else max(now, floor)

    def _take_nonce(self, nonce: str | None) -> None:
        if nonce is not None:
            self._nonces.take(nonce)
        self._ask_root_at = self._parts.clock.monotonic() + (ROOT_NONCE_S if nonce is not None else ASK_ROOT_AGAIN_S)

    async def _renew_by_root(self) -> None:
        """Before its nonce is old; and where it did not answer, now and then again."""
        if self._root is None or self._parts.clock.monotonic() < self._ask_root_at:
            return
        nonce = await asyncio.to_thread(self._root.nonce)
        self._take_nonce(nonce)
        if self._owed is not None:
            await self._follow(self._owed, answered=nonce is not None)

    async def _follow(self, owed: tuple[str, str], *, answered: bool) -> None:
        """Root that answers has finished what it had begun, so its files say whether it took this one. Else the next cycle asks."""
        try:
            if answered and not await self._parts.follow_baseline(*owed):
                log.warning("baseline.not_taken", version=owed[0], sha256=owed[1])
            self._owed = None if answered else owed
        except AgentError as error:
            log.error("baseline.not_followed", code=error.code, at=where(error))
        if self._owed is not None:
            self._ask_root_at = 0.0

    # One turn

    async def recover(self) -> None:
        """At start: what was cut off in the middle is said to be interrupted; what has no record gets it; a stop stands.

        Raises:
            StorageError: it cannot be read.
        """
        known = await self._call(self._store.known)
        if known is not None and known.stopped:
            await self._call(self._parts.healing_engine.pause)
        for taken in await self._call(self._store.unsaid):
            if taken.state == "begun":
                log.error("order.interrupted", order_id=taken.order_id, kind=taken.kind)
                await self._end(taken, Ended(Outcome.FAILED, "order_interrupted"), recovered=True)
            else:
                await self._record(taken, recovered=True)

    async def run(self) -> None:
        """Do what was offered: a stop first, then by number. Trouble with one waits for the next offer, the others go on."""
        self._any.clear()
        offered, self._offered = self._offered, []
        for raw in sorted(offered, key=_rank):
            self._parts.progress.step(LONGEST_LOOK_S)
            try:
                await self._one(raw)
            except AgentError as error:
                log.error("order.not_taken", code=error.code, at=where(error))
        await self._keep_time()
        self._tell_freshness()
        self.trust.keys(self._now())  # which says it when they have expired or cannot be used

    async def _one(self, raw: bytes) -> None:
        sha256 = hashlib.sha256(raw).hexdigest()
        if await self._call(lambda: self._store.is_taken(sha256)):
            return  # the server does not have its record yet
        known = await self._call(self._store.known) or await self._forget()
        verdict = orders.judge(raw, self._standing(known))
        if isinstance(verdict, Refused):
            await self._refuse(raw, sha256, verdict)
            return
        taken = self._row(raw, sha256, verdict)
        stops = {"stop_all": True, "resume": False}.get(verdict.kind)
        if not await self._call(lambda: self._store.begin(taken, verdict.counter, stops=stops)):
            await self._refuse(raw, sha256, Refused("replayed", verdict))
            return
        self._counter = max(self._counter, verdict.counter or 0)
        log.info("order.begun", order_id=verdict.order_id, kind=verdict.kind)
        self._doing = raw
        await self._end(taken, await self._done(verdict))

    async def _forget(self) -> Any:
        """What this host had taken is gone: nothing that was signed for the present nonces counts any more."""
        self._nonces.renew()
        self._ask_root_at = 0.0
        log.error("order.state_lost")
        return await self._call(self._store.open)

    def _standing(self, known: Any) -> Standing:
        baseline = self._parts.drift_detector.baseline
        return Standing(
            tenant=self._config.client_id,
            site=self._config.site_id,
            host=self._parts.signer.key_id,
            keys=self.trust.keys(self._now()),
            now=self._now(),
            nonces=self._nonces.good(),
            counter=max(self._counter, known.counter),
            stopped=known.stopped,
            baseline_sha256=baseline.sha256,
            checks=tuple(baseline.entries),
        )

    # Doing

    async def _done(self, order: Order) -> Ended:
        """Do it; whatever goes wrong in there ends this order and nothing else."""
        try:
            return await _ACTS[order.kind](self, order)
        except AgentError as error:
            log.error("order.failed", order_id=order.order_id, kind=order.kind, code=error.code, at=where(error))
            return Ended(Outcome.FAILED, error.code)
        except Exception as error:
            log.error(
                "order.failed", order_id=order.order_id, kind=order.kind, code=type(error).__name__, at=where(error)
            )
            return Ended(Outcome.FAILED, "order_failed")

    async def _check(self, order: Order) -> Ended:
        found = await self._parts.order_look(order.checks, order.order_id)
        return Ended(
            Outcome.SUCCESS, fields={"states": {item.check: [str(item.result), item.reason] for item in found}}
        )

    async def _remediate(self, order: Order) -> Ended:
        check = order.parameters["check"]
        drift = await self._parts.drift_detector.check_one(check)
        fields = {"check": check, "result": str(drift.result), "reason": drift.reason}
        if drift.result is Result.PASS:
            return Ended(Outcome.SUCCESS, fields=fields)
        if not drift.drifted:
            return Ended(Outcome.ALERT, "not_drifted", fields)
        cure = await self._parts.order_cure(drift, order.order_id)
        fields |= {"post_result": cure.post_result, "post_reason": cure.post_reason} if cure.post_result else {}
        cured = cure.outcome == Outcome.SUCCESS
        return Ended(str(cure.outcome), "" if cured else cure.error or cure.reason, fields)

    async def _approve(self, order: Order) -> Ended:
        check, target = order.parameters["check"], order.parameters["target"]
        await self._parts.approve_by_root(self._doing, self.trust.documents())
        await self._call(lambda: self._parts.healing_engine.approve(check, target))
        again = getattr(self._parts.drift_detector, "due_again", None)
        if callable(again):
            again({check})
        return Ended(Outcome.SUCCESS, fields={"check": check})

    async def _pause(self, _order: Order) -> Ended:
        await self._call(self._parts.healing_engine.pause)
        return Ended(Outcome.SUCCESS)

    async def _resume(self, _order: Order) -> Ended:
        await self._call(self._parts.healing_engine.resume)
        return Ended(Outcome.SUCCESS)

    async def _rotate_key(self, _order: Order) -> Ended:
        rotated = await self._parts.rotate_key()
        if rotated.code == "rotated":
            return Ended(Outcome.SUCCESS)
        self._parts.key_rotation.request_file.touch(mode=0o600)
        return Ended(Outcome.DEFERRED, rotated.code)  # the agent goes on trying by itself

    async def _adopt_baseline(self, order: Order) -> Ended:
        wanted = order.parameters
        try:
            await self._parts.adopt_baseline(wanted["version"], wanted["sha256"], self._doing, self.trust.documents())
        except AgentError as error:
            # It may have been taken all the same, and the files follow; the next cycle looks.
            if isinstance(error, StorageError) or error.code in {"adopt_failed", "adopt_unreachable"}:
                self._owed, self._ask_root_at = (wanted["version"], wanted["sha256"]), 0.0
            raise
        self._owed = None
        return Ended(Outcome.SUCCESS)

    # Recording

    def _row(self, raw: bytes, sha256: str, order: Order | None, **more: Any) -> Any:
        named = {"order_id": order.order_id, "kind": order.kind} if order else {"order_id": None, "kind": None}
        now = self._parts.clock.now()
        return self._taken(sha256=sha256, size=len(raw), bundle_id=str(uuid.uuid4()), at=now, **named, **more)

    async def _refuse(self, raw: bytes, sha256: str, refused: Refused) -> None:
        if await self._call(lambda: self._store.is_refused(sha256, refused.reason)):
            return
        now = self._parts.clock.monotonic()
        if len(self._refusals) == MOST_REFUSED_AN_HOUR and now - self._refusals[0] < 3_600:
            if not self._muted:
                log.error("order.refusals_muted", count=MOST_REFUSED_AN_HOUR)
            self._muted = True
            return
        self._muted = False
        self._refusals.append(now)
        order = refused.order
        log.warning("order.refused", order_id=order.order_id if order else None, reason=refused.reason)
        outcome = Outcome.EXPIRED if refused.reason == "order_expired" else Outcome.REJECTED
        taken = self._row(
            raw, sha256, order, refused=refused.reason, state="ended", outcome=str(outcome), error=refused.reason
        )
        await self._call(lambda: self._store.refuse(taken))
        await self._record(taken)

    async def _end(self, taken: Any, ended: Ended, *, recovered: bool = False) -> None:
        await self._call(lambda: self._store.end(taken.sha256, str(ended.outcome), ended.error, ended.fields))
        log.info("order.ended", order_id=taken.order_id, kind=taken.kind, outcome=str(ended.outcome), error=ended.error)
        outcome = {"outcome": str(ended.outcome), "error": ended.error, "fields": ended.fields}
        await self._record(dataclasses.replace(taken, state="ended", **outcome), recovered=recovered)

    async def _record(self, taken: Any, *, recovered: bool = False) -> None:
        """One bundle for each order. Trouble is said, and the next start records it: the same id gives the same record."""
        fields = {name: value for name, value in taken.fields.items() if name != "check"}
        states = {check: tuple(said) for check, said in fields.pop("states", {}).items()}
        now = self._parts.clock.now()
        try:
            evidence = await self._parts.recording.create(
                check=taken.fields.get("check", ""),
                outcome=taken.outcome,
                kind=BundleKind.ORDER,
                trigger="order",
                order_id=taken.order_id,
                bundle_id=taken.bundle_id,
                error=taken.error or None,
                states=states,
                artifacts=({"name": "order", "sha256": taken.sha256, "size": taken.size},),
                recovered=recovered,
                timestamp_start=min(taken.at, now),
                timestamp_end=now,
                **fields,
            )
        except AgentError as error:
            log.error("order.not_recorded", order_id=taken.order_id, code=error.code, at=where(error))
            return
        await self._call(lambda: self._store.said(taken))
        await self._parts.recording.submitted(evidence)

    async def record_again(self) -> None:
        """Record what could not be recorded when it ended."""
        for taken in () if self._store.all_said else await self._call(self._store.unsaid):
            if taken.state == "ended":
                await self._record(taken)
        await self._renew_by_root()
        await self._keep_time()

    async def _keep_time(self) -> None:
        at = self._time
        if at is not None and (self._time_kept is None or at - self._time_kept >= KEEP_TIME_EVERY):
            await self._call(lambda: self._store.keep_time(at))
            self._time_kept = at

    def _tell_freshness(self) -> None:
        """Say once that the server's signed time stands still, and once that it goes on; checks and cures do so all the time."""
        takes_orders = self._config.order_keys_file is not None or self._config.order_root_file is not None
        if not takes_orders or self._config.mcp_url is None:
            return
        stale = self._parts.clock.monotonic() - self._fresh_at >= STALE_AFTER_S
        if stale and not self._stale:
            log.error("order.time_stale")
        elif self._stale and not stale:
            log.info("order.time_fresh")
        self._stale = stale

    async def _call(self, fn: Callable[[], Any]) -> Any:
        return await self._store.database.call(fn)


_ACTS: dict[str, Callable[[Orders, Order], Awaitable[Ended]]] = {
    "check": Orders._check,
    "remediate": Orders._remediate,
    "approve": Orders._approve,
    "pause": Orders._pause,
    "resume": Orders._resume,
    "adopt_baseline": Orders._adopt_baseline,
    "rotate_key": Orders._rotate_key,
    "stop_all": Orders._pause,
}


def _rank(raw: bytes) -> tuple[bool, int]:
    """A stop before everything, then by number. What cannot be read comes last, and is refused there."""
    try:
        order = orders.read_payload(orders.read_envelope(raw).payload)
    except AgentError:
        return True, LARGEST_INT
    return order.kind != "stop_all", order.counter or 0
