"""People in a write transaction: users, their sessions and tokens, and the attempts to guess a password."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Executable, Table, Update, case, delete, func, insert, select, update
from sqlalchemy.engine import RowMapping

from compliance_agent.server.records import Factor, Flow, OperatorToken, User
from compliance_agent.server.store import rows, tables


class PeopleRows:
    """The part of `records.Transaction` that is about people."""

    async def _all(self, query: Executable, **values: Any) -> list[RowMapping]:
        raise NotImplementedError

    async def _changed(self, statement: Executable) -> int:
        raise NotImplementedError

    async def all_sites(self, client_id: str | None) -> frozenset[str]:
        query = select(tables.sites.c.site_id)
        if client_id is not None:
            query = query.where(tables.sites.c.client_id == client_id)
        return frozenset(row["site_id"] for row in await self._all(query))

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

    async def add_session(
        self, session_hash: str, name: str, now: datetime, expires_at: datetime, proved_at: datetime | None
    ) -> None:
        table = tables.sessions
        await self._changed(delete(table).where(table.c.expires_at <= rows.text(now)))
        used = {"used_at": rows.text(now), "proved_at": rows.text_or_none(proved_at)}
        await self._credential(table, session_hash, name, now, expires_at, **used)

    async def use_session(self, session_hash: str, now: datetime) -> None:
        await self._changed(_live_session(session_hash).values(used_at=rows.text(now)))

    async def prove_session(self, session_hash: str, now: datetime) -> None:
        await self._changed(_live_session(session_hash).values(proved_at=rows.text(now)))

    async def end_session(self, session_hash: str, now: datetime) -> str | None:
        c = tables.sessions.c
        found = await self._all(select(c.name).where(c.hash == session_hash))
        ended = await self._changed(_live_session(session_hash).values(revoked_at=rows.text(now)))
        return str(found[0]["name"]) if ended and found else None

    async def add_flow(self, flow: Flow, now: datetime, *, at_most: int) -> bool:
        table = tables.flows
        await self._changed(delete(table).where(table.c.expires_at <= rows.text(now)))
        [found] = await self._all(select(func.count().label("live")).select_from(table))
        if found["live"] >= at_most:
            return False
        await self._changed(insert(table).values(**{**flow.__dict__, "expires_at": rows.text(flow.expires_at)}))
        return True

    async def take_flow(self, state_hash: str, now: datetime) -> Flow | None:
        table = tables.flows
        live = (table.c.state_hash == state_hash, table.c.expires_at > rows.text(now))
        found = await self._all(select(table).where(*live))
        if not found or await self._changed(delete(table).where(*live)) != 1:
            return None
        return Flow(**{**found[0], "expires_at": rows.when(found[0]["expires_at"])})

    async def user_of_identity(self, issuer: str, subject: str) -> User | None:
        c = tables.identities.c
        query = select(tables.users).join(tables.identities, c.name == tables.users.c.name)
        found = await self._all(query.where(c.issuer == issuer, c.subject == subject))
        return rows.user(found[0]) if found else None

    async def link_identity(self, name: str, issuer: str, subject: str, now: datetime) -> bool:
        if await self.user_of_identity(issuer, subject) is not None:
            return False
        values = {"issuer": issuer, "subject": subject, "name": name, "linked_at": rows.text(now)}
        await self._changed(insert(tables.identities).values(**values))
        return True

    async def unlink_identity(self, name: str, issuer: str, subject: str) -> bool:
        c = tables.identities.c
        same = (c.name == name, c.issuer == issuer, c.subject == subject)
        return await self._changed(delete(tables.identities).where(*same)) == 1

    async def factor(self, name: str) -> Factor | None:
        found = await self._all(select(tables.factors).where(tables.factors.c.name == name))
        return rows.factor(found[0]) if found else None

    async def add_factor(self, factor: Factor) -> None:
        confirmed = rows.text_or_none(factor.confirmed_at)
        columns = {"name": factor.name, "sealed": factor.sealed, "last_step": factor.last_step}
        await self._changed(insert(tables.factors).values(**columns, confirmed_at=confirmed))

    async def drop_factor(self, name: str) -> None:
        for table in (tables.factors, tables.recovery_codes):
            await self._changed(delete(table).where(table.c.name == name))

    async def confirm_factor(self, name: str, now: datetime, recovery_hashes: Collection[str]) -> None:
        same = tables.factors.c.name == name
        await self._changed(update(tables.factors).where(same).values(confirmed_at=rows.text(now)))
        for code in recovery_hashes:
            await self._changed(insert(tables.recovery_codes).values(name=name, hash=code))

    async def use_step(self, name: str, step: int) -> bool:
        c = tables.factors.c
        return (
            await self._changed(update(tables.factors).where(c.name == name, c.last_step < step).values(last_step=step))
            == 1
        )

    async def use_recovery_code(self, name: str, code_hash: str, now: datetime) -> bool:
        c = tables.recovery_codes.c
        unused = update(tables.recovery_codes).where(c.name == name, c.hash == code_hash, c.used_at.is_(None))
        return await self._changed(unused.values(used_at=rows.text(now))) == 1

    async def add_operator_token(self, token: OperatorToken) -> None:
        narrower = {"label": token.label, "role": token.role, "sites": rows.sites_text(token.sites)}
        name, begins, ends = token.user.name, token.created_at, token.expires_at
        await self._credential(tables.operator_tokens, token.hash, name, begins, ends, **narrower)

    async def use_operator_token(self, token_hash: str, now: datetime) -> None:
        c = tables.operator_tokens.c
        await self._changed(update(tables.operator_tokens).where(c.hash == token_hash).values(used_at=rows.text(now)))

    async def succeed_operator_token(self, token_hash: str, successor: str, now: datetime, until: datetime) -> bool:
        c = tables.operator_tokens.c
        ends = case((c.expires_at < rows.text(until), c.expires_at), else_=rows.text(until))
        mine = _good_token(token_hash, now).where(c.successor.is_(None))
        return await self._changed(mine.values(successor=successor, expires_at=ends)) == 1

    async def revoke_operator_token(self, token_hash: str, now: datetime) -> bool:
        return await self._changed(_good_token(token_hash, now).values(revoked_at=rows.text(now))) == 1

    async def _credential(
        self, table: Table, secret_hash: str, name: str, now: datetime, expires_at: datetime, **more: str | None
    ) -> None:
        times = {"created_at": rows.text(now), "expires_at": rows.text(expires_at)}
        await self._changed(insert(table).values(hash=secret_hash, name=name, **times, **more))


def _good_token(token_hash: str, now: datetime) -> Update:
    c = tables.operator_tokens.c
    good = (c.hash == token_hash, c.revoked_at.is_(None), c.expires_at > rows.text(now))
    return update(tables.operator_tokens).where(*good)


def _live_session(session_hash: str) -> Update:
    c = tables.sessions.c
    return update(tables.sessions).where(c.hash == session_hash, c.revoked_at.is_(None))
