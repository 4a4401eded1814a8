"""People in a write transaction: users, their sessions and tokens, and the attempts to guess a password."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Executable, Table, delete, insert, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import User
from compliance_agent.server.store import rows, tables


class PeopleRows:
    """The part of `records.Transaction` that is about people."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def user(self, name: str) -> User | None:
        found = await self._all(select(tables.users).where(tables.users.c.name == name))
        return rows.user(found[0]) if found else None

    async def add_user(self, user: User) -> bool:
        if await self.user(user.name) is not None:
            return False
        await self._changed(
            insert(tables.users).values(
                name=user.name,
                person_id=user.person_id,
                password_hash=user.password_hash,
                role=user.role,
                created_at=rows.text(user.created_at),
                **rows.user_limits(user),
            )
        )
        return True

    async def save_user(self, user: User) -> None:
        changed = {"role": user.role, "password_hash": user.password_hash, **rows.user_limits(user)}
        same = tables.users.c.name == user.name
        await self._changed(
            update(tables.users).where(same).values(disabled_at=rows.text_or_none(user.disabled_at), **changed)
        )

    async def has_owner(self) -> bool:
        c = tables.users.c
        owner = (c.role == "owner", c.client_id.is_(None), c.sites.is_(None), c.disabled_at.is_(None))
        return bool(await self._all(select(c.name).where(*owner).limit(1)))

    async def end_credentials(self, name: str, now: datetime, *, tokens: bool) -> None:
        for table in (tables.sessions, tables.operator_tokens) if tokens else (tables.sessions,):
            live = (table.c.name == name, table.c.revoked_at.is_(None))
            await self._changed(update(table).where(*live).values(revoked_at=rows.text(now)))

    async def count_attempt(self, bucket: int, now: datetime, *, window_s: int, at_most: int) -> bool:
        table = tables.login_attempts
        found = await self._all(select(table).where(table.c.bucket == bucket))
        started, attempts = now, 0
        if found and rows.when(found[0]["started_at"]) > now - timedelta(seconds=window_s):
            started, attempts = rows.when(found[0]["started_at"]), found[0]["attempts"]
        if attempts >= at_most:
            return False
        values: dict[str, Any] = {"started_at": rows.text(started), "attempts": attempts + 1}
        if found:
            await self._changed(update(table).where(table.c.bucket == bucket).values(values))
        else:
            await self._changed(insert(table).values({"bucket": bucket, **values}))
        return True

    async def forget_attempts(self, bucket: int) -> None:
        await self._changed(delete(tables.login_attempts).where(tables.login_attempts.c.bucket == bucket))

    async def add_session(self, session_hash: str, name: str, now: datetime, expires_at: datetime) -> None:
        table = tables.sessions
        await self._changed(delete(table).where(table.c.expires_at <= rows.text(now)))
        await self._credential(table, session_hash, name, now, expires_at)

    async def end_session(self, session_hash: str, now: datetime) -> None:
        table = tables.sessions
        ended = update(table).where(table.c.hash == session_hash, table.c.revoked_at.is_(None))
        await self._changed(ended.values(revoked_at=rows.text(now)))

    async def add_operator_token(self, token_hash: str, name: str, now: datetime, expires_at: datetime) -> None:
        await self._credential(tables.operator_tokens, token_hash, name, now, expires_at)

    async def _credential(self, table: Table, secret_hash: str, name: str, now: datetime, expires_at: datetime) -> None:
        await self._changed(
            insert(table).values(
                hash=secret_hash, name=name, created_at=rows.text(now), expires_at=rows.text(expires_at)
            )
        )
