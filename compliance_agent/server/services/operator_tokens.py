"""Operator tokens: what a person's scripts call the API with. Shown once, kept as a hash, narrower than the person where asked.

    create ──▶ live ──▶ rotate: a new one, and the old one is good for the overlap ──▶ ended (expired, revoked)

A token is looked up with every request, so what is revoked, or lost its person's right, counts from the next request on. It never
does more than its person: of two roles the lesser counts, of two lists of sites what is in both, and an auditor's dates stay.
"""

from __future__ import annotations

import secrets
from dataclasses import replace
from datetime import datetime, timedelta

from compliance_agent.errors import Refusal
from compliance_agent.server.records import Clock, OperatorToken, Store, Transaction, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.acts import Act, note, sites_of
from compliance_agent.server.services.secrets import OPERATOR_PREFIX, Rng, hashed, new_secret

LONGEST_LIFE = timedelta(days=366)
SHORTEST_LIFE = timedelta(minutes=1)
LONGEST_OVERLAP = timedelta(days=30)
NOTED_EVERY = timedelta(minutes=1)
NARROWER = ("viewer", "proposer", "operator", "owner")  # an auditor's limits are the person's, not a token's


class OperatorTokens:
    """Every operator token."""

    def __init__(self, store: Store, clock: Clock, *, rng: Rng = secrets.token_bytes) -> None:
        self._store = store
        self._clock = clock
        self._rng = rng

    async def create(
        self,
        name: str,
        life: timedelta,
        *,
        label: str | None = None,
        role: str | None = None,
        sites: frozenset[str] | None = None,
    ) -> tuple[str, OperatorToken]:
        """A new one of a person: its secret, which is kept nowhere, and what is kept.

        Args:
            name: of the person.
            life: from now on.
            label: what people call it by.
            role: a lesser role than the person's; None is the person's.
            sites: the only ones of the person's sites; None is all of them.

        Raises:
            Refusal: no such person, a life out of bounds, or more than the person may do or see.
        """
        _check_life(life)
        now = self._clock()
        secret = new_secret(OPERATOR_PREFIX, self._rng)

        async def work(tx: Transaction) -> OperatorToken:
            user = await tx.user(name)
            if user is None or user.disabled_at is not None:
                raise Refusal(f"name: no user {name}, or disabled", code="no_such_user", status=404)
            if role is not None and (role not in NARROWER or not roles.ROLES[role] <= roles.ROLES[user.role]):
                raise Refusal(f"role: expected a lesser one than {user.role}", code="bad_role", status=422)
            unseen = (sites or frozenset()) - await sites_of(tx, user)
            if unseen:
                raise Refusal(f"sites: {name} does not see {sorted(unseen)[0]}", code="no_such_site", status=422)
            made = OperatorToken(hashed(secret), user, label, role, sites, now, now + life)
            await tx.add_operator_token(made)
            await _note(tx, now, Act.USER_TOKEN, made)
            return made

        return secret, await self._store.write(work)

    async def all(self, name: str | None = None) -> list[OperatorToken]:
        """Every token, ended ones too, of one person or of all, the newest first."""
        return await self._store.operator_tokens(name)

    async def rotate(
        self, token_id: str, overlap: timedelta, life: timedelta | None = None
    ) -> tuple[str, OperatorToken]:
        """A new one in a token's place, as narrow and, unless said otherwise, for as long; the old one ends after the overlap.

        Raises:
            Refusal: there is not exactly one whose id begins so, it has ended or was rotated before, or a time is out of bounds.
        """
        if not timedelta() <= overlap <= LONGEST_OVERLAP:
            raise Refusal("overlap: expected none to 30 days", code="bad_expiry", status=422)
        old, now = await self._one(token_id), self._clock()
        lasts = life or old.expires_at - old.created_at
        _check_life(lasts)
        secret = new_secret(OPERATOR_PREFIX, self._rng)

        async def work(tx: Transaction) -> OperatorToken:
            made = replace(old, hash=hashed(secret), created_at=now, expires_at=now + lasts, used_at=None)
            if not await tx.succeed_operator_token(old.hash, made.hash, now, now + overlap):
                raise Refusal(f"token: {_ended(old, now)}", code="token_used", status=409)
            await tx.add_operator_token(made)
            await _note(tx, now, Act.TOKEN_ROTATED, made)
            return made

        return secret, await self._store.write(work)

    async def revoke(self, token_id: str) -> OperatorToken:
        """Let a token be worth nothing, from the next request on.

        Raises:
            Refusal: there is not exactly one whose id begins so, or it has ended.
        """
        found, now = await self._one(token_id), self._clock()

        async def work(tx: Transaction) -> None:
            if not await tx.revoke_operator_token(found.hash, now):
                raise Refusal(f"token: {_ended(found, now)}", code="token_used", status=409)
            await _note(tx, now, Act.TOKEN_REVOKED, found)

        await self._store.write(work)
        return replace(found, revoked_at=now)

    async def user_of(self, secret: str) -> User | None:
        """The person who calls with this secret, as the token narrows what the person may do and see; noted as used."""
        if not secret.startswith(OPERATOR_PREFIX):
            return None
        found, now = await self._store.operator_token(hashed(secret)), self._clock()
        if found is None or found.state(now) not in {"live", "replaced"} or found.user.disabled_at is not None:
            return None
        if found.used_at is None or now - found.used_at >= NOTED_EVERY:
            await self._store.write(lambda tx: tx.use_operator_token(found.hash, now))
        return narrowed(found)

    async def _one(self, token_id: str) -> OperatorToken:
        found = [item for item in await self.all() if item.hash.startswith(token_id)]
        if len(found) != 1:
            raise Refusal(f"token: {len(found)} have an id that begins so", code="not_found", status=404)
        return found[0]


def narrowed(token: OperatorToken) -> User:
    """The person with the token's limits: what the person may do and see now, and no more than the token allows."""
    user, role = token.user, token.user.role
    if token.role is not None and roles.ROLES[token.role] < roles.ROLES.get(role, frozenset()):
        role = token.role
    return replace(user, role=role, sites=_both(user.sites, token.sites))


def _both(one: frozenset[str] | None, other: frozenset[str] | None) -> frozenset[str] | None:
    if one is None or other is None:
        return other if one is None else one
    return one & other


def _check_life(life: timedelta) -> None:
    if not SHORTEST_LIFE <= life <= LONGEST_LIFE:
        raise Refusal("expires: expected 1 minute to 366 days", code="bad_expiry", status=422)


def _ended(token: OperatorToken, now: datetime) -> str:
    return f"{token.state(now)} already" if token.state(now) != "live" else "changed meanwhile; try again"


async def _note(tx: Transaction, now: datetime, act: Act, token: OperatorToken) -> None:
    sites = await sites_of(tx, token.user)
    person = token.user
    await note(tx, now, act, by=None, sites=sites, subject=person.person_id, said=f"{person.name}:{token.id}")
