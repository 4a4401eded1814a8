"""Leases for cures that users notice: the board of a site (core.leases), kept in one row and changed by one transaction at a time.

Whether a canary's cure succeeded is read from its own signed evidence, never from what it says when it lets its lease go.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import structlog

from compliance_agent.core import leases
from compliance_agent.core.leases import Ask, Board
from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Host, Store, Transaction

T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True)
class Told:
    """What a host hears. Lengths of time, because its clock is its own.

    Attributes:
        fence: the fencing token of its lease, None when it has none.
        for_s: how long the lease lasts, or how long it makes no sense to ask again (0: not known).
        reason: why there is none, a key of `core.leases.REASONS`.
    """

    fence: int | None
    for_s: int
    reason: str = ""


class Leases:
    """The desk for leases."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def take(self, caller: Host, check: str, target: str, life_s: int) -> Told:
        """Give or renew a lease for one cure.

        Raises:
            Refusal: the host is revoked, or its key is contested.
        """
        now = self._clock()
        ask = Ask(caller.key_id, caller.host_id, check, target, life_s)

        async def work(tx: Transaction, board: Board) -> tuple[Board, Told]:
            await _live(tx, caller)
            wave, cured = board.wave(check, target), None
            if wave is not None:
                since = datetime.fromtimestamp(wave.since, UTC)
                cured = await tx.cured(caller.site_id, wave.canary, check, since)
            board, answer = leases.take(board, ask, now.timestamp(), cured=cured)
            until = answer.not_before if answer.lease is None else answer.lease.until
            left = 0 if until is None else max(0, int(until - now.timestamp()))
            return board, Told(answer.lease.fence if answer.lease is not None else None, left, answer.reason)

        told = await self._changed(caller.site_id, work)
        log.info("lease.answered", key_id=caller.key_id, check_id=check, fence=told.fence, reason=told.reason)
        return told

    async def release(self, caller: Host, fence: int) -> Told:
        """End a lease; `lease_lost` when it had ended, or never was."""
        now = self._clock().timestamp()

        async def work(tx: Transaction, board: Board) -> tuple[Board, bool]:
            await _live(tx, caller, contested=True)
            return leases.release(board, caller.key_id, fence, now)

        done = await self._changed(caller.site_id, work)
        return Told(None, 0, "" if done else "lease_lost")

    async def board(self, site_id: str) -> Board:
        """All leases of a site, as they were when somebody asked last."""

        async def work(tx: Transaction) -> Board:
            held = await tx.lease_board(site_id)
            return _read(held[1]) if held else Board()

        return await self._store.write(work)

    async def set_rules(self, site_id: str, *, hosts_at_once: int, canary: str, actor: str) -> None:
        """Say how many hosts of a site may be worked on at a time, and which goes first with a cure that is new ("": any).

        Raises:
            Refusal: there is no such site.
        """
        if site_id not in await self._store.all_sites():
            raise Refusal(f"site {site_id}: not known here", code="not_found", status=404)
        now = self._clock()

        async def work(tx: Transaction, board: Board) -> tuple[Board, None]:
            await tx.audit(now, actor, "lease.rules", site_id=site_id, subject=canary)
            return replace(board, hosts_at_once=hosts_at_once, canary=canary), None

        await self._changed(site_id, work)

    async def retry(self, site_id: str, check: str, *, actor: str) -> None:
        """Somebody looked into it: what is known of the cures of this check at a site is forgotten, and one host goes first again.

        Raises:
            Refusal: nothing is known of them.
        """
        now = self._clock()

        async def work(tx: Transaction, board: Board) -> tuple[Board, None]:
            kept = tuple(wave for wave in board.waves if wave.check != check)
            if kept == board.waves:
                raise Refusal(f"site {site_id}: no cure of {check} is known", code="not_found", status=404)
            await tx.audit(now, actor, "lease.retry", site_id=site_id, subject=check)
            return replace(board, waves=kept), None

        await self._changed(site_id, work)

    async def _changed(self, site_id: str, work: Callable[[Transaction, Board], Awaitable[tuple[Board, T]]]) -> T:
        async def change(tx: Transaction) -> T:
            held = await tx.lease_board(site_id)
            board, answer = await work(tx, _read(held[1]) if held else Board())
            if not await tx.save_lease_board(site_id, held[0] if held else None, _written(board)):
                raise Refusal("leases: changed meanwhile; ask again", code="busy", status=503, retry_after_s=1)
            return answer

        return await self._store.write(change)


async def _live(tx: Transaction, caller: Host, *, contested: bool = False) -> None:
    host = (await tx.hosts({caller.site_id}, {caller.key_id})).get(caller.key_id)
    if host is None or host.revoked_at is not None:
        raise Refusal("this host is revoked", code="host_revoked", status=403)
    if host.contested_at is not None and not contested:
        raise Refusal("more than one machine seems to hold this key", code="host_contested", status=409)


def _written(board: Board) -> str:
    return json.dumps(asdict(board), sort_keys=True, separators=(",", ":"))


def _read(text: str) -> Board:
    document: dict[str, Any] = json.loads(text)
    parts = {"leases": leases.Lease, "waves": leases.Wave, "waiting": leases.Waiting}
    return Board(**{**document, **{name: tuple(kind(**one) for one in document[name]) for name, kind in parts.items()}})
