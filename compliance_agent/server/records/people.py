"""Who is let in: enrolment tokens and people."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NamedTuple


@dataclass(frozen=True)
class Token:
    """An enrolment token, known only by its hash."""

    hash: str
    site_id: str
    client_id: str
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None
    used_by: str | None
    revoked_at: datetime | None = None

    @property
    def id(self) -> str:
        """What people call it by; worth nothing to enrol with."""
        return self.hash[:16]

    def state(self, now: datetime) -> str:
        """`used`, `revoked`, `expired`, or `open`."""
        ended = {"used": self.used_at, "revoked": self.revoked_at}
        gone = next((word for word, at in ended.items() if at is not None), None)
        return gone or ("expired" if self.expires_at <= now else "open")


@dataclass(frozen=True)
class Dates:
    """Days in UTC, both included. A record belongs to the day on which its host says that it was made."""

    first: date
    last: date

    @property
    def start(self) -> datetime:
        """The first moment."""
        return datetime.combine(self.first, time(), UTC)

    @property
    def stop(self) -> datetime:
        """The moment after the last one."""
        return datetime.combine(self.last, time(), UTC) + timedelta(days=1)

    def hold(self, at: datetime | None) -> bool:
        """Whether something happened within them."""
        return at is not None and self.start <= at < self.stop


@dataclass(frozen=True)
class User:
    """A person (or an operator's script).

    Attributes:
        person_id: random, and the person's for good: what logs may hold instead of the name.
        role: see `services.roles`.
        sites: the only ones; None is every site of the client.
        client_id: the MSP whose sites these are; None is every MSP of this server.
        dates: the days whose records are there for this person; None is all.
    """

    name: str
    person_id: str
    password_hash: str
    role: str
    sites: frozenset[str] | None
    created_at: datetime
    disabled_at: datetime | None = None
    client_id: str | None = None
    dates: Dates | None = None


@dataclass(frozen=True)
class Session:
    """Somebody who is signed in.

    Attributes:
        hash: of the secret in the cookie.
        used_at: when it was used last, a minute more or less.
        proved_at: when the second factor was shown last.
    """

    hash: str
    user: User
    created_at: datetime
    used_at: datetime
    expires_at: datetime
    proved_at: datetime | None

    @property
    def id(self) -> str:
        """Names the session, and opens nothing."""
        return self.hash[:16]


@dataclass(frozen=True)
class OperatorToken:
    """What a person's scripts call with, known only by its hash.

    Attributes:
        label: what people call it by.
        role, sites: narrower than the person's; None is the person's.
        used_at: when it was used last, a minute more or less.
        successor: hash of the one that took its place.
    """

    hash: str
    user: User
    label: str | None
    role: str | None
    sites: frozenset[str] | None
    created_at: datetime
    expires_at: datetime
    used_at: datetime | None = None
    revoked_at: datetime | None = None
    successor: str | None = None

    @property
    def id(self) -> str:
        """Names the token, and opens nothing."""
        return self.hash[:16]

    def state(self, now: datetime) -> str:
        """`revoked`, `expired`, `replaced` (and still good), or `live`."""
        if self.revoked_at is not None:
            return "revoked"
        if self.expires_at <= now:
            return "expired"
        return "live" if self.successor is None else "replaced"


class Audited(NamedTuple):
    """A line of the audit table: who did what, and the words that it was noted with."""

    number: int
    at: datetime
    actor: str
    action: str
    subject: str


@dataclass(frozen=True)
class Factor:
    """A person's second factor: its sealed secret, since when it counts (None: not yet), and the last time step used."""

    name: str
    sealed: bytes
    confirmed_at: datetime | None
    last_step: int


@dataclass(frozen=True)
class Flow:
    """A sign-in at an OpenID provider that is under way, by the hash of its `state`.

    Attributes:
        browser_hash: of the secret in the cookie of the browser that began it.
        nonce, verifier: what the token must hold, and what proves that the code is ours.
        back: where the person was going.
    """

    state_hash: str
    browser_hash: str
    nonce: str
    verifier: str
    back: str
    expires_at: datetime
