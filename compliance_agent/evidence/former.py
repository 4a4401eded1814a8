"""Keys that signed for this host and gave way, with the statements that say so, until the server has them and after."""

from __future__ import annotations

import sqlite3
from typing import Any

from compliance_agent.dataclass import dataclass


@dataclass(frozen=True)
class FormerKey:
    """A key that gave way to the next one, with the statement that both have signed."""

    key_id: str
    public: bytes
    ended_at: str
    statement: bytes
    old_sig: bytes
    new_sig: bytes
    confirmed: bool


def former_keys(connection: sqlite3.Connection) -> list[FormerKey]:
    """Keys that gave way, the first one first."""
    columns = "key_id, public, ended_at, statement, old_sig, new_sig, confirmed"
    found = connection.execute(f"SELECT {columns} FROM former_keys ORDER BY rowid").fetchall()  # noqa: S608  constants only
    return [
        FormerKey(str(key_id), bytes(public), str(at), bytes(said), bytes(old_sig), bytes(new_sig), bool(confirmed))
        for key_id, public, at, said, old_sig, new_sig, confirmed in found
    ]


class FormerKeys:
    """The former keys of an agent's database, for who waits on the event loop."""

    def __init__(self, database: Any) -> None:
        self._database = database

    async def known(self) -> list[FormerKey]:
        """All that gave way, the first one first."""
        known: list[FormerKey] = await self._database.call(lambda: self._database.read(former_keys))
        return known

    async def unconfirmed(self) -> list[FormerKey]:
        """Rotations that the server has not confirmed, the first one first."""
        return [former for former in await self.known() if not former.confirmed]

    async def confirm(self, key_id: str) -> None:
        """Remember, durably, that the server knows that this key gave way."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("UPDATE former_keys SET confirmed = 1 WHERE key_id = ?", (key_id,))

        await self._database.call(lambda: self._database.write(write))
