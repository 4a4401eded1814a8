"""Group commit: whoever comes while a transaction is being written waits, and all who wait go into the next one together.

So many share one fsync, and nobody is answered before the commit that holds its own. Whose turn it is decides `turns.Fair`. A
group that fails is tried again one by one, so that one that cannot be written does not take the others with it; when the
database is away there is nothing to try.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

from compliance_agent.server.records import Host
from compliance_agent.server.services.turns import Fair

GATHER_S = 0.01  # the most that who is there waits for those on their way

I = TypeVar("I")  # noqa: E741  what is asked
R = TypeVar("R")  # and what is answered


class Grouped(Generic[I, R]):
    """What asks to be written.

    Args:
        write: writes a group in one transaction; an answer for each, in their order.
        most: that share one transaction.
        most_cost: about so much goes into one: who comes next waits for no more than that.
        linger_s: a writer that was idle waits so long for company.
    """

    def __init__(
        self,
        write: Callable[[Sequence[I]], Awaitable[Sequence[R]]],
        *,
        most: int,
        most_cost: int,
        linger_s: float = 0.0,
    ) -> None:
        self._write = write
        self._most = most
        self._most_cost = most_cost
        self._linger_s = linger_s
        self._waiting: Fair[tuple[int, I, asyncio.Future[R]]] = Fair()
        self._writer: asyncio.Task[None] | None = None

    async def written(self, host: Host, cost: int, item: I) -> R:
        """Wait until it is written; raises what `write` raised for it."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._waiting.put(host.site_id, host.key_id, cost, (cost, item, future))
        if self._writer is None or self._writer.done():
            self._writer = asyncio.create_task(self._write_waiting())
        return await future

    async def drain(self) -> None:
        """Wait until everything that was asked is written."""
        while self._writer is not None and not self._writer.done():
            await asyncio.wait([self._writer])

    async def _write_waiting(self) -> None:
        try:
            await asyncio.sleep(self._linger_s)
            while len(self._waiting):
                await self._gathered()
                await self._write_next()
        except BaseException as error:  # cancelled: nobody who waits may be left without an answer
            _fail([future for _, _, future in self._waiting.drain()], error)
            raise

    async def _gathered(self) -> None:
        """Let those come who are on their way: while each turn of the loop brings more, and not for long."""
        clock = asyncio.get_running_loop().time
        latest, before = clock() + GATHER_S, 0
        while before < len(self._waiting) < self._most and clock() < latest:
            before = len(self._waiting)
            await asyncio.sleep(0)

    async def _write_next(self) -> None:
        items, futures = self._next_group()
        try:
            _answer(futures, await self._write(items))
        except Exception as error:
            if len(items) == 1 or getattr(error, "code", "") == "database_away":
                _fail(futures, error)
            else:
                await self._write_singly(items, futures)
        except BaseException as error:
            _fail(futures, error)
            raise

    def _next_group(self) -> tuple[list[I], list[asyncio.Future[R]]]:
        """Those whose turn it is, as many as go into one transaction."""
        items, futures, total = list[I](), list[asyncio.Future[R]](), 0
        while len(self._waiting) and len(items) < self._most and total < self._most_cost:
            cost, item, future = self._waiting.get()
            items.append(item)
            futures.append(future)
            total += cost
        return items, futures

    async def _write_singly(self, items: Sequence[I], futures: Sequence[asyncio.Future[R]]) -> None:
        for at, (item, future) in enumerate(zip(items, futures, strict=True)):
            try:
                _answer([future], await self._write([item]))
            except Exception as error:
                _fail([future], error)
            except BaseException as error:
                _fail(futures[at:], error)
                raise


def _answer(futures: Sequence[asyncio.Future[R]], answers: Sequence[R]) -> None:
    for future, answer in zip(futures, answers, strict=True):
        if not future.done():
            future.set_result(answer)


def _fail(futures: Sequence[asyncio.Future[R]], error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
