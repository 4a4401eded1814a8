"""The server's memory: reads by site, and writes that are durable when they return."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from datetime import datetime
from typing import Protocol, TypeVar

from compliance_agent.server.records.chains import Host, HostGroup
from compliance_agent.server.records.people import Audited, Dates, Factor, OperatorToken, Session, User
from compliance_agent.server.records.reading import SiteReader
from compliance_agent.server.records.writing import Transaction

T = TypeVar("T")
Work = Callable[[Transaction], Awaitable[T]]


class Store(Protocol):
    """The server's memory."""

    async def write(self, work: Work[T], sites: Iterable[str] | None = None) -> T:
        """Run `work` in one transaction, durable when this returns; an error of `work` undoes all of it and passes through.

        It runs as if alone. It may be run again from its beginning, so it changes nothing outside of it before it returns.

        Args:
            work: what to read and write.
            sites: what it will touch, where that is known beforehand: PostgreSQL then holds it to that.

        Raises:
            StorageError: it did not become durable; nothing may be promised.
        """
        ...

    def for_sites(self, sites: Iterable[str], dates: Dates | None = None) -> SiteReader:
        """The handle through which everything that belongs to a site is read; with dates, the records of these days alone."""
        ...

    async def all_sites(self, client_id: str | None = None) -> frozenset[str]:
        """Ids of all sites, or of all sites of one client."""
        ...

    async def host_groups(self, silent_before: datetime) -> list[HostGroup]:
        """The hosts of all sites, counted; silent ones are those that were not heard of since this time."""
        ...

    async def host_of_api_key(self, key_hash: str) -> tuple[Host, bool] | None:
        """The host that holds this API key, revoked or not."""
        ...

    async def key_of_certificate(self, fingerprint: str) -> str | None:
        """Key id of the host that holds this certificate."""
        ...

    async def user(self, name: str) -> User | None:
        """A user by name."""
        ...

    async def users(self) -> list[User]:
        """Every user, by name."""
        ...

    async def session(self, session_hash: str) -> Session | None:
        """A session that nobody ended, unless its user is disabled; how old it may be is another question."""
        ...

    async def sessions(self, name: str) -> list[Session]:
        """The same of one user, the newest first."""
        ...

    async def factor(self, name: str) -> Factor | None:
        """A user's second factor."""
        ...

    async def operator_token(self, token_hash: str) -> OperatorToken | None:
        """The operator token with this hash, and its person as of now; whether either is still good is another question."""
        ...

    async def operator_tokens(self, name: str | None = None) -> list[OperatorToken]:
        """Every one of a person, or of all, the newest first."""
        ...

    async def audited(self, actions: Collection[str], after: int, at_most: int) -> list[Audited]:
        """Lines of the audit table about these actions, in order, from the number after `after` on."""
        ...

    async def ready(self) -> None:
        """Raises StorageError when the database cannot be read or is of another version."""
        ...
