"""Letting go of old records, where the operator has allowed it (`keep_days`) and the server holds them in a backup.

One bounded turn after each delivery: read the beginning of the chain, ask `core.shedding` what may go, let that go. The clock is
the earlier of the host's own and the server's, so that a clock that ran ahead lets go of nothing too soon.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import structlog

from compliance_agent.core.receipt import Followed, PinnedLog
from compliance_agent.core.shedding import Candidate, Mark, Terms, mark_after, may_go
from compliance_agent.errors import AgentError
from compliance_agent.transport.protocol import CheckinReply

if TYPE_CHECKING:
    from compliance_agent.ports import Clock

T = TypeVar("T")
AT_A_TIME = 256
KEEP_LAST = 100  # the newest records stay whatever their age

log = structlog.get_logger()


class LogClient(Protocol):
    """What shedding needs of the server's client."""

    def pinned_log(self) -> PinnedLog | None:
        """Key and name of the server's logs."""


class Store(Protocol):
    """Where the records stand: `adapters.shed_store.ShedStore`, called through its `database`."""

    database: Any

    def followed(self) -> dict[str, Followed]: ...
    def mark(self) -> Mark | None: ...
    def candidates(self, mark: Mark | None, limit: int, keep_last: int) -> list[Candidate]: ...
    def let_go(self, gone: Sequence[Candidate], mark: Mark) -> None: ...


class Shedding:
    """This host's own pruning.

    Args:
        store: the records.
        site_id: of this host.
        clock: the host's.
        keep_days: how long records stay; 0 lets go of none, ever.
        keep_last: how many of the newest stay.
    """

    def __init__(self, store: Store, site_id: str, clock: Clock, keep_days: int, *, keep_last: int = KEEP_LAST) -> None:
        self._store = store
        self._site_id = site_id
        self._clock = clock
        self._keep_days = keep_days
        self._keep_last = keep_last
        self._trouble = ""

    async def turn(self, client: LogClient, answer: CheckinReply | None) -> int:
        """Let go of what may go, at most AT_A_TIME records; how many went. Trouble is said once, and the next turn goes on.

        Args:
            client: knows the pinned log.
            answer: what the server said at the check-in of this very turn.
        """
        try:
            count = await self._turn(client, answer)
        except AgentError as error:
            if error.code != self._trouble:
                log.error("evidence.shed_failed", code=error.code)
            self._trouble = error.code
            return 0
        self._trouble = ""
        return count

    async def _turn(self, client: LogClient, answer: CheckinReply | None) -> int:
        pinned = client.pinned_log()
        if not self._keep_days or answer is None or not answer.durable or pinned is None:
            return 0
        followed = await self._call(self._store.followed)
        seen_before = next((item.head.server for item in followed.values()), None)
        now = min(self._clock.now().astimezone(UTC), datetime.fromisoformat(answer.server_time).astimezone(UTC))
        terms = Terms(
            pinned=replace(pinned, server=pinned.server or seen_before),
            site_id=self._site_id,
            durable=answer.durable,
            known=answer.known[:2] if answer.known is not None else None,
            distrusted={origin for origin, item in followed.items() if item.code is not None},
            before=now - timedelta(days=self._keep_days),
        )
        mark = await self._call(self._store.mark)
        chain = await self._call(lambda: self._store.candidates(mark, AT_A_TIME, self._keep_last))
        gone = may_go(chain, mark, terms)
        if not gone:
            return 0
        after = mark_after(gone, mark)
        await self._call(lambda: self._store.let_go(gone, after))
        log.info("evidence.shed", count=len(gone), epoch=after.epoch, seq=after.seq)
        return len(gone)

    def _call(self, fn: Callable[[], T]) -> Awaitable[T]:
        answer: Awaitable[T] = self._store.database.call(fn)
        return answer
