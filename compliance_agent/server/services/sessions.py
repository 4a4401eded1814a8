"""Sessions of people: a random secret in a cookie, its hash here; they end by idleness, by age, and whenever somebody ends them.

A session's `id` is the beginning of that hash: enough to name it, nothing to use it with. When it was used is noted at most once a
minute, so a session ends a little before its idle time and never after it. What a page asks by itself is no use.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, Session, Store, Transaction, User
from compliance_agent.server.services.acts import Act, note, sites_of
from compliance_agent.server.services.secrets import hashed

IDLE = timedelta(minutes=15)
LIFE = timedelta(hours=12)
NOTED_EVERY = timedelta(seconds=60)


@dataclass(frozen=True)
class Limits:
    """How long a session lasts: unused, and at all."""

    idle: timedelta = IDLE
    life: timedelta = LIFE


class Sessions:
    """Every live session."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self.limits = limits

    async def of(self, secret: str | None, *, use: bool = True) -> Session | None:
        """The live session with this secret; noted as used unless a page asked by itself."""
        found = await self._store.session(hashed(secret)) if secret else None
        if secret is None or found is None or not self._live(found):
            return None
        now = self._clock()
        if use and now - found.used_at >= NOTED_EVERY:
            await self._store.write(lambda tx: tx.use_session(hashed(secret), now))
        return found

    async def all_of(self, name: str) -> list[Session]:
        """A person's live sessions, the newest first."""
        return [item for item in await self._store.sessions(name) if self._live(item)]

    async def end(self, secret: str) -> None:
        """End this one; an unknown one is ended already."""
        now = self._clock()

        async def work(tx: Transaction) -> None:
            name = await tx.end_session(hashed(secret), now)
            user = await tx.user(name) if name is not None else None
            if user is not None:
                await note(tx, now, Act.LOGOUT, by=user, sites=await sites_of(tx, user))

        await self._store.write(work)

    async def end_named(self, name: str, session_id: str | None, *, by: User | None, but: str | None = None) -> int:
        """End one of a person's sessions by its id, or all, `but` one; how many were. `by` None is the console.

        Raises:
            Refusal: the person has no live session with this id.
        """
        chosen = [
            item for item in await self.all_of(name) if item.id != but and (session_id is None or item.id == session_id)
        ]
        if session_id is not None and not chosen:
            raise Refusal(f"session: {name} has none with this id", code="no_such_session", status=404)
        now = self._clock()

        async def work(tx: Transaction) -> None:
            for item in chosen:
                await tx.end_session(item.hash, now)
                sites, subject = await sites_of(tx, item.user), item.user.person_id
                await note(tx, now, Act.SESSION_ENDED, by=by, sites=sites, subject=subject, said=f"{name}:{item.id}")

        await self._store.write(work)
        return len(chosen)

    def _live(self, session: Session) -> bool:
        now = self._clock()
        return now < session.expires_at and now - session.used_at <= self.limits.idle

    async def prove(self, secret: str) -> None:
        """The person has shown the second factor just now."""
        now = self._clock()
        await self._store.write(lambda tx: tx.prove_session(hashed(secret), now))

    def proven(self, session: Session, within: timedelta) -> bool:
        """Whether the second factor was shown within this time."""
        return session.proved_at is not None and self._clock() - session.proved_at <= within
