"""Evidence comes in: verified, placed in its chain (placing.py), stored with its exact bytes, and only then acknowledged.

Each request is one host's batch, in order. It is taken up to the first bundle that cannot be; that one is named in the reply.
Verification happens before any transaction. Requests share transactions, and so their fsync (grouping.py); the acknowledgement of
each is signed after its own has returned. Whoever waits, for verification
or for a transaction, waits in a fair order (turns.py): one site's flood does not stand in front of another's bundle.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

import orjson
import structlog

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Held, Host, Store
from compliance_agent.server.services.alarms import Alarms
from compliance_agent.server.services.grouping import Grouped
from compliance_agent.server.services.placing import Checked, Outcome, Placing, Stopped, Submission
from compliance_agent.server.services.tracing import Arrival
from compliance_agent.server.services.turns import Turns
from compliance_agent.server.services.verification import Verifier

ACK_SCHEMA = "compliance-agent/ack/v2"
MOST_BUNDLES = 100
GROUP = 64  # requests that share one transaction at most
GROUP_BUNDLES = 400  # and about so many bundles: who comes next waits for no more than that
VERIFYING = 3  # batches that are verified at once, off the event loop
IN_THREAD = 8  # from this many bundles on, verification moves off the event loop

_STATUS = {True: "stored", False: "known"}

log = structlog.get_logger()
Sign = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Ack:
    """Our signed word that we hold certain bundles of a host: exact bytes and signature."""

    document: bytes
    sig: bytes


@dataclass(frozen=True)
class Taken:
    """What became of a batch: what is held of it, from its beginning, our word for that, and where it stopped, if it did."""

    held: tuple[Held, ...]
    ack: Ack
    stopped: Stopped | None


@dataclass
class Totals:
    """Counts since start, for the metrics."""

    stored: int = 0
    known: int = 0
    drift: int = 0  # of those stored, records of a verdict that failed
    forks: int = 0
    refused: dict[str, int] = field(default_factory=dict)


class Ingest:
    """The evidence desk. `submit` returns when the batch is durable."""

    def __init__(
        self, store: Store, sign: Sign, clock: Clock, verifier: Verifier | None = None, alarms: Alarms | None = None
    ) -> None:
        self._store = store
        self._alarms = alarms
        self._since: dict[int, datetime] = {}  # when each submission that is under way came, the oldest first
        self._arrivals = count()
        self._sign = sign
        self._clock = clock
        self._verifier = verifier or Verifier()
        self._writes: Grouped[Submission, Outcome] = Grouped(self._write, most=GROUP, most_cost=GROUP_BUNDLES)
        self._turns = Turns(VERIFYING)
        self.totals = Totals()

    async def submit(self, host: Host, bundles: Sequence[tuple[bytes, bytes]], arrival: Arrival | None = None) -> Taken:
        """Take a host's bundles (bytes, signature), in order; `arrival` is told how far they came.

        Raises:
            Refusal: the very first one was refused, or the host is revoked; nothing was stored.
            StorageError: nothing of it may be promised; the host sends it again.
        """
        number = next(self._arrivals)
        self._since[number] = self._clock()
        try:
            return await self._submitted(host, bundles, arrival)
        finally:
            del self._since[number]

    @property
    def waiting_s(self) -> float:
        """How long the oldest submission has been under way."""
        oldest = next(iter(self._since.values()), None)
        return (self._clock() - oldest).total_seconds() if oldest is not None else 0.0

    async def _submitted(self, host: Host, bundles: Sequence[tuple[bytes, bytes]], arrival: Arrival | None) -> Taken:
        submission = await self._checked(host, bundles)
        if arrival is not None:
            arrival.verified(
                [
                    (host.key_id, item.document["epoch"], item.document["seq"], item.document["check"] or "")
                    for item in submission.items
                ]
            )
        if not submission.items and submission.stopped is not None:
            raise self._counted(submission.stopped.refusal)
        outcome = await self._written(submission)
        if arrival is not None:
            arrival.committed([_STATUS[held.new] for held in outcome.taken])
        self._count(submission, outcome)
        if not outcome.taken and outcome.stopped is not None:
            raise outcome.stopped.refusal
        return Taken(tuple(outcome.taken), self._ack(host, outcome.taken), outcome.stopped)

    async def drain(self) -> None:
        """Wait until everything that was submitted is written."""
        await self._writes.drain()

    async def _checked(self, host: Host, bundles: Sequence[tuple[bytes, bytes]]) -> Submission:
        if len(bundles) < IN_THREAD:
            return self._check(host, bundles)
        async with self._turns.turn(host.site_id, host.key_id, len(bundles)):
            return await asyncio.to_thread(self._check, host, bundles)

    def _check(self, host: Host, bundles: Sequence[tuple[bytes, bytes]]) -> Submission:
        items: list[Checked] = []
        for index, (body, sig) in enumerate(bundles):
            try:
                document = self._verifier.all(host, body, sig)
            except Refusal as refusal:
                return Submission(host, tuple(items), Stopped(index, refusal))
            items.append(Checked(document, hashlib.sha256(body).hexdigest(), body, sig))
        return Submission(host, tuple(items), None)

    async def _written(self, submission: Submission) -> Outcome:
        return await self._writes.written(submission.host, len(submission.items), submission)

    async def _write(self, group: Sequence[Submission]) -> Sequence[Outcome]:
        now = self._clock()
        return await self._store.write(
            lambda tx: Placing(tx, now, self._alarms).run(group), {submission.host.site_id for submission in group}
        )

    def _ack(self, host: Host, taken: Sequence[Held]) -> Ack:
        """One signature for all of them: the host verifies it once, and finds each of its bundles in what was signed."""
        document = orjson.dumps(  # canonical: ASCII texts and whole numbers, sorted
            {
                "schema": ACK_SCHEMA,
                "key_id": host.key_id,
                "received_at": self._clock().strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
                "bundles": [
                    {"bundle_sha256": held.sha256, "epoch": held.epoch, "seq": held.seq, "status": _STATUS[held.new]}
                    for held in taken
                ],
            },
            option=orjson.OPT_SORT_KEYS,
        )
        return Ack(document, self._sign(document))

    def _count(self, submission: Submission, outcome: Outcome) -> None:
        new = [item for held, item in zip(outcome.taken, submission.items, strict=False) if held.new]
        stored = len(new)
        self.totals.stored += stored
        self.totals.drift += sum(item.document["result"] == "fail" for item in new)
        self.totals.known += len(outcome.taken) - stored
        if outcome.stopped is not None:
            self._counted(outcome.stopped.refusal)

    def _counted(self, refusal: Refusal) -> Refusal:
        self.totals.refused[refusal.code] = self.totals.refused.get(refusal.code, 0) + 1
        self.totals.forks += refusal.code == "fork"
        return refusal
