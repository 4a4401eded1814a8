"""The signed documents that say whose orders count here: every root since the pinned one, and the newest list of keys.

They are kept as they were signed and held to their rules again at each start (core/order_roots.py), so nothing here is believed.
"""

from __future__ import annotations

import sqlite3

from compliance_agent.adapters.database import Database

TABLES = (
    """CREATE TABLE IF NOT EXISTS order_trust (
        role TEXT NOT NULL, version INTEGER NOT NULL, envelope BLOB NOT NULL, PRIMARY KEY (role, version)
    ) STRICT""",
)
ROOTS = "SELECT envelope FROM order_trust WHERE role = 'root' ORDER BY version"
KEYS = "SELECT envelope FROM order_trust WHERE role = 'keys' ORDER BY version DESC LIMIT 1"


class OrderTrustStore:
    """The table. Synchronous; call it through `database.call`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.migrate("order_trust", TABLES)

    def documents(self) -> tuple[list[bytes], bytes | None]:
        """The roots in order, and the newest list of keys."""

        def read(connection: sqlite3.Connection) -> tuple[list[bytes], bytes | None]:
            keys = connection.execute(KEYS).fetchone()
            return [row[0] for row in connection.execute(ROOTS)], None if keys is None else keys[0]

        return self.database.read(read)

    def begin(self, version: int, envelope: bytes) -> None:
        """The pinned root; whatever was there under another pin is gone. Durable when this returns."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM order_trust")
            connection.execute("INSERT INTO order_trust VALUES ('root', ?, ?)", (version, envelope))

        self.database.write(write)

    def add_root(self, version: int, envelope: bytes) -> None:
        """The next root. Durable when this returns."""
        self.database.write(
            lambda c: c.execute("INSERT OR REPLACE INTO order_trust VALUES ('root', ?, ?)", (version, envelope))
        )

    def use_keys(self, version: int, envelope: bytes) -> None:
        """A newer list of keys in place of the one before. Durable when this returns."""

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM order_trust WHERE role = 'keys'")
            connection.execute("INSERT INTO order_trust VALUES ('keys', ?, ?)", (version, envelope))

        self.database.write(write)
