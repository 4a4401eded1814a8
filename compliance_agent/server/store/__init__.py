"""The server's memory: `records.Store` over SQLAlchemy Core.

store = await SqlStore.open(Path("server.db"))           # or the Address of a PostgreSQL database
await store.write(lambda tx: tx.add_site(site))         # one transaction, durable on return
await store.for_sites({"clinic-1"}).hosts()             # sees the rows of these sites only
await store.close()
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import Executable, Select, Table, bindparam, func, insert, select, text
from sqlalchemy.engine import Connection, RowMapping

from compliance_agent.server.records import (
    Audited,
    Clock,
    Dates,
    Factor,
    Host,
    HostGroup,
    OperatorToken,
    Session,
    SiteReader,
    User,
    Work,
)
from compliance_agent.server.store import fences, migration, rows, tables
from compliance_agent.server.store.copying import Copied, Rows, Told, fill, see_empty
from compliance_agent.server.store.database import Database, Statements, translated
from compliance_agent.server.store.engine import SqliteDatabase
from compliance_agent.server.store.postgres import Address, PostgresDatabase
from compliance_agent.server.store.reader import BoundReader
from compliance_agent.server.store.transaction import BoundTransaction
from compliance_agent.server.store.wall import raise_wall

__all__ = ["Address", "SqlStore", "migrate"]

T = TypeVar("T")
_MIGRATING = 0x636F6D706C79  # the advisory lock of whoever changes the schema


class SqlStore:
    """Made by `open`; several processes may hold the same database."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self.database = database
        self._clock = clock

    @classmethod
    async def open(cls, where: Path | Address, clock: Clock | None = None) -> SqlStore:
        """Open a database. A file is made, or brought up to the current schema; PostgreSQL's owner does that beforehand.

        Args:
            where: the file, or the address.
            clock: what leases go by, in tests; PostgreSQL's own when not given, and of a file this machine's.

        Raises:
            StorageError: it cannot be opened, is of another schema version, or PostgreSQL does not guard it.
        """
        database: Database
        with translated(f"opening {where}"):
            database = SqliteDatabase(where) if isinstance(where, Path) else PostgresDatabase(where)
        try:
            await database.prepare(_prepare if isinstance(where, Path) else _look)
        except BaseException:
            await database.close()
            raise
        return cls(database, clock or (_machine_clock if isinstance(where, Path) else None))

    async def close(self) -> None:
        """Close every connection."""
        await self.database.close()

    async def write(self, work: Work[T], sites: Iterable[str] | None = None) -> T:
        """Run `work` in one transaction, bound to these sites where they are known beforehand; durable when this returns."""
        return await self.database.transaction(
            lambda statements: work(BoundTransaction(statements, self._clock)), sites=sites
        )

    def for_sites(self, sites: Iterable[str], dates: Dates | None = None) -> SiteReader:
        """The handle that sees the rows of these sites, and of these days alone where they are given."""
        return BoundReader(self.database, sites, dates)

    async def all_sites(self, client_id: str | None = None) -> frozenset[str]:
        """Ids of all sites, or of all sites of one client."""
        query = select(tables.sites.c.site_id)
        if client_id is not None:
            query = query.where(tables.sites.c.client_id == client_id)
        return frozenset(row["site_id"] for row in await self._all(query))

    async def host_groups(self, silent_before: datetime) -> list[HostGroup]:
        """The hosts of all sites, counted; silent ones are those that were not heard of since this time."""
        c = tables.hosts.c
        heard = func.coalesce(c.last_seen_at, c.enrolled_at)
        alike = (
            c.site_id,
            c.revoked_at.is_not(None).label("revoked"),
            c.waiting_since.is_not(None).label("waiting"),
            (heard < rows.text(silent_before)).label("silent"),
        )
        counts = (
            func.count().label("count"),
            func.count().filter(c.forks > 0).label("forked"),
            func.count(c.contested_at).label("contested"),
        )
        everywhere = c.site_id.in_(await self.all_sites())  # a statement on tenants' rows names its sites, these too
        found = await self._all(select(*alike, *counts).where(everywhere, c.rotated_to.is_(None)).group_by(*alike))
        flags = ("revoked", "waiting", "silent")
        return [HostGroup(**{**row, **{name: bool(row[name]) for name in flags}}) for row in found]

    async def host_of_api_key(self, key_hash: str) -> tuple[Host, bool] | None:
        """The host that holds this API key, revoked or not, and whether it uses the key for the first time."""
        found = await self.database.all(_OF_API_KEY, {"hash": key_hash})
        if not found:
            return None
        return rows.host(found[0]), found[0]["replaces"] is not None

    async def key_of_certificate(self, fingerprint: str) -> str | None:
        """Key id of the host that holds this certificate."""
        c = tables.host_certificates.c
        found = await self._all(select(c.key_id).where(c.fingerprint == fingerprint))
        return str(found[0]["key_id"]) if found else None

    async def user(self, name: str) -> User | None:
        """A user by name."""
        found = await self._all(select(tables.users).where(tables.users.c.name == name))
        return rows.user(found[0]) if found else None

    async def users(self) -> list[User]:
        """Every user, by name."""
        return [rows.user(row) for row in await self._all(select(tables.users).order_by(tables.users.c.name))]

    async def session(self, session_hash: str) -> Session | None:
        """A session that nobody ended."""
        found = await self._all(_sessions().where(tables.sessions.c.hash == session_hash))
        return rows.session(found[0]) if found else None

    async def sessions(self, name: str) -> list[Session]:
        """The same of one user, the newest first."""
        c = tables.sessions.c
        found = await self._all(_sessions().where(c.name == name).order_by(c.created_at.desc(), c.hash))
        return [rows.session(row) for row in found]

    async def factor(self, name: str) -> Factor | None:
        """A user's second factor."""
        found = await self._all(select(tables.factors).where(tables.factors.c.name == name))
        return rows.factor(found[0]) if found else None

    async def operator_token(self, token_hash: str) -> OperatorToken | None:
        """An operator token by its hash, with its person."""
        found = await self._all(_of_users(tables.operator_tokens).where(tables.operator_tokens.c.hash == token_hash))
        return rows.operator_token(found[0]) if found else None

    async def operator_tokens(self, name: str | None = None) -> list[OperatorToken]:
        """Every operator token, of one person or of all, the newest first."""
        c = tables.operator_tokens.c
        query = _of_users(tables.operator_tokens).order_by(c.created_at.desc(), c.hash)
        found = await self._all(query if name is None else query.where(c.name == name))
        return [rows.operator_token(row) for row in found]

    async def audited(self, actions: Collection[str], after: int, at_most: int) -> list[Audited]:
        """Lines of the audit table about these actions, in order."""
        c = tables.audit.c
        query = select(c.number, c.at, c.actor, c.action, c.subject).where(c.action.in_(actions), c.number > after)
        found = await self._all(query.order_by(c.number).limit(at_most))
        return [Audited(**{**row, "at": rows.when(row["at"])}) for row in found]

    async def ready(self) -> None:
        """Raises StorageError when the database cannot be read or is of another version."""
        found = await self._all(select(migration.VERSIONS.c.version_num))
        known = str(found[0]["version_num"]) if found else None
        if known != migration.HEAD:
            raise migration.wrong(known)

    async def rows(self, query: Executable) -> Rows:
        """Rows as they are, over all sites: for whoever copies the whole database."""
        return [tuple(row.values()) for row in await self.database.all(query)]

    async def _all(self, query: Select[Any]) -> list[RowMapping]:
        return await self.database.all(query)


def _machine_clock() -> datetime:
    return datetime.now(UTC)


def _of_users(table: Table) -> Select[Any]:
    """Credentials, each with its user."""
    users = tables.users
    return select(table, *(column.label(f"user_{column.name}") for column in users.c)).join(
        users, table.c.name == users.c.name
    )


_h, _k, _s = tables.hosts.c, tables.api_keys.c, tables.sites.c
_OF_API_KEY = (  # made once: a fleet asks it at each poll
    select(tables.hosts, _s.client_id, _k.replaces)
    .join(tables.sites, _s.site_id == _h.site_id)
    .join(tables.api_keys, (_k.key_id == _h.key_id) & (_k.site_id == _h.site_id))
    .where(_k.hash == bindparam("hash"), _k.revoked_at.is_(None) | _h.revoked_at.is_not(None))
)


def _sessions() -> Select[Any]:
    live = (tables.sessions.c.revoked_at.is_(None), tables.users.c.disabled_at.is_(None))
    return _of_users(tables.sessions).where(*live)


def _prepare(connection: Connection) -> None:
    """Make the schema in an empty database, bring an older one up to it, and put up the wall; refuse any other, untouched."""
    new = migration.made(connection)
    mended = raise_wall(connection)
    if not new and mended:  # somebody took it down
        at = {"at": rows.text(datetime.now(UTC)), "actor": "server", "action": "wall.mended", "outcome": "ok"}
        connection.execute(insert(tables.audit), [{**at, "subject": name} for name in mended])


def _look(connection: Connection) -> None:
    """Refuse a database of PostgreSQL that is of another version, or not guarded."""
    migration.check(connection)
    fences.look(connection)


async def migrate(owner: Address, server_role: str) -> list[str]:
    """As the owner of a PostgreSQL database: make the schema, or bring it up to date, and put up the fences.

    Returns:
        What was missing or changed of the fences of a schema that was there already.

    Raises:
        StorageError: it was not done; nothing was changed.
    """
    database = PostgresDatabase(owner)

    def act(connection: Connection) -> list[str]:
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATING})"))  # one at a time
        new = migration.made(connection)
        mended = fences.raise_fences(connection, server_role)
        return [] if new else mended

    try:
        return await database.prepare(act)
    finally:
        await database.close()


async def copy_all(source: SqlStore, owner: Address, told: Told = None) -> list[Copied]:
    """Copy a whole store into an empty PostgreSQL database, as its owner, in one transaction.

    Raises:
        NotPermitted: the database holds rows.
        BadEvidence: what was read back there is not what was read; nothing was kept.
        StorageError: it was not done; nothing was kept.
    """
    database = PostgresDatabase(owner)
    try:
        return await database.transaction(lambda statements: fill(statements, source.rows, told))
    finally:
        await database.close()


async def look_at(target: Address, owner: Address) -> None:
    """See that both roles reach a PostgreSQL database, and that nothing is in it.

    Raises:
        NotPermitted: it holds rows.
        StorageError: one of them does not reach it.
    """
    for address, work in ((owner, see_empty), (target, _answers)):
        database = PostgresDatabase(address)
        try:
            await database.transaction(work)
        finally:
            await database.close()


async def _answers(statements: Statements) -> None:
    await statements.execute(text("SELECT 1"))
