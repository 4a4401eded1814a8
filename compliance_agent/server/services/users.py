"""People: passwords (argon2id), sessions, operator tokens, and which sites each may see.

A login attempt is counted in one transaction before the password is looked at, so that parallel guesses share one
limit. The counter is kept per name whether or not the name exists; the answer is the same for both. Sessions are random,
kept as hashes, revocable.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from datetime import timedelta

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from compliance_agent.errors import Refusal
from compliance_agent.facts import NAME
from compliance_agent.server.records import Clock, SiteReader, Store, Transaction, User
from compliance_agent.server.services.secrets import OPERATOR_PREFIX, Rng, hashed, new_secret

SESSION_LIFE = timedelta(hours=12)
ATTEMPTS = 10
WINDOW_S = 900
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256
_BUCKETS = 65_536

log = structlog.get_logger()


class Users:
    """Who may look, and at what."""

    def __init__(
        self, store: Store, clock: Clock, *, hasher: PasswordHasher | None = None, rng: Rng = secrets.token_bytes
    ) -> None:
        self._store = store
        self._clock = clock
        self._hasher = hasher or PasswordHasher()
        self._rng = rng
        self._hashing = asyncio.Semaphore(2)  # each takes 64 MiB and a core for tens of milliseconds
        self._nobody: str | None = None
        self.failed = 0

    async def add(self, name: str, password: str, *, role: str = "viewer", sites: frozenset[str] | None = None) -> None:
        """A new user.

        Raises:
            Refusal: the name is taken or malformed, or the password is too short or too long.
        """
        if not NAME.fullmatch(name):
            raise Refusal("name: expected letters, digits and @._:/+-, at most 96", code="bad_name", status=422)
        digest, now = await self._digest(password), self._clock()

        async def work(tx: Transaction) -> bool:
            added = await tx.add_user(User(name, digest, role, sites, now))
            if added:
                await tx.audit(now, "operator", "user.added", subject=name)
            return added

        if not await self._store.write(work):
            raise Refusal(f"name: user {name} exists already", code="user_exists", status=409)

    async def login(self, name: str, password: str) -> str:
        """A new session's secret, for the cookie.

        Raises:
            Refusal: 401 wrong name or password, 429 too many attempts.
        """
        now, bucket = self._clock(), _bucket(name)

        async def count(tx: Transaction) -> bool:
            return await tx.count_attempt(bucket, now, window_s=WINDOW_S, at_most=ATTEMPTS)

        if not await self._store.write(count):
            raise Refusal(
                "too many attempts for this name", code="too_many_attempts", status=429, retry_after_s=WINDOW_S
            )
        user = await self._store.user(name) if NAME.fullmatch(name) else None
        right = await self._matches(user.password_hash if user else await self._stand_in(), password)
        if not right or user is None or user.disabled_at is not None:
            self.failed += 1
            log.warning("login.failed")
            raise Refusal("name or password is wrong", code="bad_login", status=401)
        return await self._new_session(user, bucket)

    async def _new_session(self, user: User, bucket: int) -> str:
        secret, now = new_secret("", self._rng), self._clock()

        async def work(tx: Transaction) -> None:
            await tx.forget_attempts(bucket)
            await tx.add_session(hashed(secret), user.name, now, now + SESSION_LIFE)
            await tx.audit(now, user.name, "login")

        await self._store.write(work)
        return secret

    async def logout(self, secret: str) -> None:
        """End a session; an unknown one is ended already."""
        now = self._clock()
        await self._store.write(lambda tx: tx.end_session(hashed(secret), now))

    async def of_session(self, secret: str | None) -> User | None:
        """The user of a live session."""
        return await self._store.user_of_session(hashed(secret), self._clock()) if secret else None

    async def of_token(self, secret: str) -> User | None:
        """The user of an operator token."""
        if not secret.startswith(OPERATOR_PREFIX):
            return None
        return await self._store.user_of_token(hashed(secret), self._clock())

    async def new_token(self, name: str, life: timedelta) -> str:
        """A token with which a user's scripts may call the API.

        Raises:
            Refusal: no such user.
        """
        if await self._store.user(name) is None:
            raise Refusal(f"name: no user {name}", code="no_such_user", status=404)
        secret, now = new_secret(OPERATOR_PREFIX, self._rng), self._clock()

        async def work(tx: Transaction) -> None:
            await tx.add_operator_token(hashed(secret), name, now, now + life)
            await tx.audit(now, "operator", "token.made", subject=name)

        await self._store.write(work)
        return secret

    async def set_password(self, name: str, password: str) -> None:
        """Change a password; every session of the user ends.

        Raises:
            Refusal: no such user, or a password that is too short or too long.
        """
        if await self._store.user(name) is None:
            raise Refusal(f"name: no user {name}", code="no_such_user", status=404)
        digest, now = await self._digest(password), self._clock()
        await self._store.write(lambda tx: tx.set_password(name, digest, now))

    async def reader(self, user: User) -> SiteReader:
        """The rows this user may see."""
        return self._store.for_sites(user.sites if user.sites is not None else await self._store.all_sites())

    async def _digest(self, password: str) -> str:
        if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD or not password.isprintable():
            raise Refusal(
                f"password: expected {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} printable characters",
                code="bad_password",
                status=422,
            )
        async with self._hashing:
            return await asyncio.to_thread(self._hasher.hash, password)

    async def _stand_in(self) -> str:
        # An unknown name must cost what a known one costs.
        if self._nobody is None:
            self._nobody = await self._digest(self._rng(16).hex())
        return self._nobody

    async def _matches(self, digest: str, password: str) -> bool:
        if len(password) > LONGEST_PASSWORD:
            return False
        async with self._hashing:
            try:
                return await asyncio.to_thread(self._hasher.verify, digest, password)
            except (VerificationError, InvalidHashError, UnicodeEncodeError):
                return False


def _bucket(name: str) -> int:
    """Attempts are counted in so many counters, whatever names are tried: the table cannot be filled from outside."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big") % _BUCKETS
