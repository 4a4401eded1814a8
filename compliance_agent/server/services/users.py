"""People: passwords (argon2id), sessions, operator tokens, their roles, and which sites and days each may see.

A login attempt is counted in one transaction before the password is looked at, so that parallel guesses share one
limit. The counter is kept per name whether or not the name exists; the answer is the same for both. Sessions are random,
kept as hashes, revocable. Role and limits are read anew with every request, so a change counts from the next one on; who is
disabled, or moves to another client, keeps no session and no token.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
from collections.abc import Callable
from dataclasses import replace

import structlog
from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from compliance_agent.errors import Refusal
from compliance_agent.facts import NAME
from compliance_agent.server.records import Clock, Dates, Session, SiteReader, Store, Transaction, User
from compliance_agent.server.services import roles
from compliance_agent.server.services.acts import Act, note, sites_of
from compliance_agent.server.services.factors import Factors
from compliance_agent.server.services.id_tokens import Claims
from compliance_agent.server.services.operator_tokens import OperatorTokens
from compliance_agent.server.services.secrets import Rng, hashed, new_secret
from compliance_agent.server.services.sessions import Limits, Sessions

ATTEMPTS = 10
WINDOW_S = 900
SHORTEST_PASSWORD = 12
LONGEST_PASSWORD = 256
_BUCKETS = 65_536

log = structlog.get_logger()


class Users:
    """Who may look, and at what."""

    def __init__(
        self,
        store: Store,
        clock: Clock,
        factors: Factors,
        *,
        sessions: Limits | None = None,
        demands_factor: Callable[[User], bool] = lambda _user: False,
        hasher: PasswordHasher | None = None,
        rng: Rng = secrets.token_bytes,
    ) -> None:
        self._store = store
        self._clock = clock
        self.factors = factors
        self.sessions = Sessions(store, clock, sessions or Limits())
        self.tokens = OperatorTokens(store, clock, rng=rng)
        self._demands_factor = demands_factor
        self._hasher = hasher or PasswordHasher()
        self._rng = rng
        self._hashing = asyncio.Semaphore(2)  # each takes 64 MiB and a core for tens of milliseconds
        self._nobody: str | None = None
        self.failed = 0

    async def add(
        self,
        name: str,
        password: str,
        *,
        role: str = "viewer",
        client_id: str | None = None,
        sites: frozenset[str] | None = None,
        dates: Dates | None = None,
    ) -> User:
        """A new user.

        Raises:
            Refusal: the name is taken or malformed, the password too short or too long, or the role or its limits are wrong.
        """
        if not NAME.fullmatch(name):
            raise Refusal("name: expected letters, digits and @._:/+-, at most 96", code="bad_name", status=422)
        now, person = self._clock(), f"p{self._rng(8).hex()}"
        user = User(name, person, "", role, sites, now, client_id=client_id, dates=dates)
        await self._check(user)
        user = replace(user, password_hash=await self._digest(password))

        async def work(tx: Transaction) -> bool:
            added = await tx.add_user(user)
            if added:
                sites = await sites_of(tx, user)
                await note(tx, now, Act.USER_ADDED, by=None, sites=sites, subject=user.person_id, said=name)
            return added

        if not await self._store.write(work):
            raise Refusal(f"name: user {name} exists already", code="user_exists", status=409)
        return user

    async def set_role(self, name: str, role: str, dates: Dates | None = None) -> User:
        """Another role, from the next request on. Dates are an auditor's, and no one else keeps any.

        Raises:
            Refusal: no such user, a role that does not fit the limits, or nobody would be left who may do everything.
        """
        return await self._change(name, Act.USER_ROLE, lambda user: replace(user, role=role, dates=dates))

    async def set_sites(
        self, name: str, *, client_id: str | None, sites: frozenset[str] | None, dates: Dates | None = None
    ) -> User:
        """Other sites, from the next request on; a move to another client ends every session and token.

        Args:
            name: of the user.
            client_id: the client; None is every client of this server.
            sites: the only sites; None is all of the client.
            dates: an auditor's dates; None leaves them as they are.

        Raises:
            Refusal: no such user or site, or limits that the role must have are missing.
        """

        def limited(user: User) -> User:
            return replace(user, client_id=client_id, sites=sites, dates=dates or user.dates)

        return await self._change(name, Act.USER_SITES, limited)

    async def set_disabled(self, name: str, disabled: bool) -> User:
        """Let a person in no more, and end every session and token; or let in again.

        Raises:
            Refusal: no such user, or nobody would be left who may do everything.
        """
        at = self._clock() if disabled else None
        act = Act.USER_DISABLED if disabled else Act.USER_ENABLED
        return await self._change(name, act, lambda user: replace(user, disabled_at=at))

    async def all(self) -> list[User]:
        """Everybody, by name."""
        return await self._store.users()

    async def _change(self, name: str, act: Act, change: Callable[[User], User]) -> User:
        now, held = self._clock(), await self._known(name)
        await self._check(change(held))

        async def work(tx: Transaction) -> User:
            before = await tx.user(name)
            if before is None:
                raise _unknown(name)
            user = change(before)
            roles.check_limits(user)
            await tx.save_user(user)
            if user.disabled_at is not None or user.client_id != before.client_id:
                await tx.end_credentials(name, now, tokens=True)
            if not await tx.has_owner():
                raise Refusal(
                    f"name: {name} is the last owner of all; make another one first", code="last_owner", status=409
                )
            sites = await sites_of(tx, before) | await sites_of(tx, user)
            await note(tx, now, act, by=None, sites=sites, subject=user.person_id, said=name)
            return user

        return await self._store.write(work)

    async def _check(self, user: User) -> None:
        roles.check_limits(user)
        unknown = (user.sites or frozenset()) - await self._store.all_sites(user.client_id)
        if unknown:
            where = "this server" if user.client_id is None else f"client {user.client_id}"
            raise Refusal(
                f"sites: {where} has no site {sorted(unknown)[0]}; a site is made with its first enrolment token",
                code="no_such_site",
                status=422,
            )

    async def _known(self, name: str) -> User:
        user = await self._store.user(name)
        if user is None:
            raise _unknown(name)
        return user

    async def login(self, name: str, password: str, code: str = "") -> str:
        """A new session's secret, for the cookie.

        Raises:
            Refusal: 401 wrong name, password or code, 429 too many attempts. Which of them was wrong is not said.
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
        secret = None
        if right and user is not None and user.disabled_at is None:
            secret = await self._new_session(user, bucket, code)
        if secret is None:
            self.failed += 1
            log.warning("login.failed")
            raise Refusal("name, password or code is wrong", code="bad_login", status=401)
        return secret

    async def _new_session(self, user: User, bucket: int, code: str) -> str | None:
        """A session, its id new; None when the person has a second factor and this is no code of it."""
        secret, now = new_secret("", self._rng), self._clock()

        async def work(tx: Transaction) -> bool:
            held = await tx.factor(user.name)
            counts = held is not None and held.confirmed_at is not None
            if counts and not await self.factors.take(tx, user.name, code, now):
                return False
            await tx.forget_attempts(bucket)
            ends = now + self.sessions.limits.life
            await tx.add_session(hashed(secret), user.name, now, ends, now if counts else None)
            await note(tx, now, Act.LOGIN, by=user, sites=await sites_of(tx, user))
            return True

        return secret if await self._store.write(work) else None

    async def logout(self, secret: str) -> None:
        """End a session; an unknown one is ended already."""
        await self.sessions.end(secret)

    async def of_session(self, secret: str | None, *, use: bool = True) -> User | None:
        """Who is signed in; nobody while the person still has to set up a second factor."""
        session = await self.sessions.of(secret, use=use)
        return None if session is None or self.lacks_factor(session) else session.user

    def lacks_factor(self, session: Session) -> bool:
        """Whether the person's client demands a second factor, and none was shown: here, or at the provider."""
        return self._demands_factor(session.user) and session.proved_at is None

    async def login_federated(self, claims: Claims) -> str:
        """A new session's secret for who an OpenID provider says it is.

        Raises:
            Refusal: 403 `not_linked`; nobody is linked with this identity, or who is may not come in.
        """
        secret, now = new_secret("", self._rng), self._clock()

        async def work(tx: Transaction) -> bool:
            user = await tx.user_of_identity(claims.issuer, claims.subject)
            if user is None or user.disabled_at is not None:
                return False
            ends = now + self.sessions.limits.life
            await tx.add_session(hashed(secret), user.name, now, ends, now if claims.second_factor else None)
            await note(tx, now, Act.LOGIN, by=user, sites=await sites_of(tx, user))
            return True

        if not await self._store.write(work):
            self.failed += 1
            raise Refusal(
                f"sign-in: no account is linked with {claims.subject[:60]!r} of {claims.issuer}; an owner can link one",
                code="not_linked",
                status=403,
            )
        return secret

    async def link(self, name: str, issuer: str, subject: str, *, linked: bool = True) -> None:
        """Link a person with an identity at a provider, or end that, and with it every session.

        Raises:
            Refusal: no such user, somebody is linked with it already, or nobody is.
        """
        user, now = await self._known(name), self._clock()

        async def work(tx: Transaction) -> bool:
            if linked:
                done, act = await tx.link_identity(name, issuer, subject, now), Act.IDENTITY_LINKED
            else:
                done, act = await tx.unlink_identity(name, issuer, subject), Act.IDENTITY_UNLINKED
                await tx.end_credentials(name, now, tokens=False)
            if done:
                await note(tx, now, act, by=None, sites=await sites_of(tx, user), subject=user.person_id, said=name)
            return done

        if not await self._store.write(work):
            code, why = ("identity_linked", "is linked already") if linked else ("no_such_identity", "is not linked")
            raise Refusal(f"subject: this identity {why}", code=code, status=409 if linked else 404)

    async def confirm_factor(self, session: Session, secret: str, code: str) -> list[str]:
        """The person's new factor counts from now on; every other session of the person ends. Recovery codes, shown once.

        Raises:
            Refusal: the code is wrong.
        """
        codes = await self.factors.confirm(session.user.name, code)
        await self.sessions.prove(secret)
        await self.sessions.end_named(session.user.name, None, by=session.user, but=session.id)
        return codes

    async def step_up(self, session: Session, secret: str, code: str) -> None:
        """Show the second factor again, for what needs it fresh; guesses count as those at the login do.

        Raises:
            Refusal: 403 wrong code or no factor, 429 too many attempts.
        """
        name, now, bucket = session.user.name, self._clock(), _bucket(session.user.name)

        async def work(tx: Transaction) -> str:
            if not await tx.count_attempt(bucket, now, window_s=WINDOW_S, at_most=ATTEMPTS):
                return "too_many_attempts"
            if not await self.factors.take(tx, name, code, now):
                return "bad_code"
            await tx.forget_attempts(bucket)
            await tx.prove_session(hashed(secret), now)
            await note(tx, now, Act.STEP_UP, by=session.user, sites=await sites_of(tx, session.user))
            return ""

        refused = await self._store.write(work)
        if refused == "too_many_attempts":
            raise Refusal("too many attempts for this name", code=refused, status=429, retry_after_s=WINDOW_S)
        if refused:
            self.failed += 1
            raise Refusal("code: wrong, used, or from another minute", code=refused, status=403)

    async def password_is(self, user: User, password: str) -> bool:
        """Whether this is the person's password; guesses count as those at the login do.

        Raises:
            Refusal: 429 too many attempts.
        """
        now, bucket = self._clock(), _bucket(user.name)
        if not await self._store.write(lambda tx: tx.count_attempt(bucket, now, window_s=WINDOW_S, at_most=ATTEMPTS)):
            raise Refusal(
                "too many attempts for this name", code="too_many_attempts", status=429, retry_after_s=WINDOW_S
            )
        right = await self._matches(user.password_hash, password)
        if right:
            await self._store.write(lambda tx: tx.forget_attempts(bucket))
        return right

    async def set_password(self, name: str, password: str) -> None:
        """Change a password; every session of the user ends.

        Raises:
            Refusal: no such user, or a password that is too short or too long.
        """
        await self._known(name)
        digest, now = await self._digest(password), self._clock()

        async def work(tx: Transaction) -> None:
            user = await tx.user(name)
            if user is None:
                raise _unknown(name)
            await tx.save_user(replace(user, password_hash=digest))
            await tx.end_credentials(name, now, tokens=False)
            sites = await sites_of(tx, user)
            await note(tx, now, Act.USER_PASSWORD, by=None, sites=sites, subject=user.person_id, said=name)

        await self._store.write(work)

    async def reader(self, user: User) -> SiteReader:
        """The one way to what a person may see: of the sites of the client, the person's own, on the person's days."""
        sites = await self._store.all_sites(user.client_id)
        return self._store.for_sites(sites if user.sites is None else sites & user.sites, user.dates)

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


def _unknown(name: str) -> Refusal:
    return Refusal(f"name: no user {name}", code="no_such_user", status=404)


def _bucket(name: str) -> int:
    """Attempts are counted in so many counters, whatever names are tried: the table cannot be filled from outside."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:4], "big") % _BUCKETS
