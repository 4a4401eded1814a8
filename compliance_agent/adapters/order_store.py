"""What a host must remember of orders: the last number it took, what it took and how that ended, what it refused.

`begin` is durable before anything is done, so an order is done at most once, whatever stops the agent; a row that was begun and
has no end was interrupted. A refusal is kept so that the same bytes are recorded once for the same reason. The newest thousand
stay; that an older order was taken is told by its number.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from dataclasses import field
from datetime import UTC, datetime
from typing import Any

from compliance_agent.adapters.database import Database
from compliance_agent.dataclass import dataclass

KEPT = 1_000
_TABLES = (
    """CREATE TABLE IF NOT EXISTS order_state (
        one INTEGER PRIMARY KEY CHECK (one = 1), counter INTEGER NOT NULL, stopped INTEGER NOT NULL, time TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS orders (
        number INTEGER PRIMARY KEY, sha256 TEXT NOT NULL, size INTEGER NOT NULL, refused TEXT NOT NULL,
        order_id TEXT, kind TEXT, bundle_id TEXT NOT NULL, at TEXT NOT NULL, state TEXT NOT NULL,
        outcome TEXT NOT NULL, error TEXT NOT NULL, fields TEXT NOT NULL, UNIQUE (sha256, refused)
    ) STRICT""",
)


@dataclass(frozen=True)
class Taken:
    """An order that came: its bytes' digest and length, what it claims to be, and the record it gets.

    Attributes:
        refused: why not; empty for one that was accepted.
        state: `begun`, `ended` or `said` (recorded); a refusal is `ended` at once.
        fields: what else its record says, as JSON values.
    """

    sha256: str
    size: int
    order_id: str | None
    kind: str | None
    bundle_id: str
    at: datetime
    refused: str = ""
    state: str = "begun"
    outcome: str = ""
    error: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Known:
    """The number of the last order that was taken, whether a stop_all stands, and the latest time that the server has signed."""

    counter: int
    stopped: bool
    time: datetime | None


class OrderStore:
    """The two tables. Synchronous; call it through `database.call`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._quiet: tuple[object] | None = None  # the database that was found to hold nothing unsaid, by its damage
        database.migrate("orders", _TABLES)

    def open(self) -> Known:
        """What is known, at the start of an agent; a host that never took an order begins at zero."""
        self.database.write(lambda c: c.execute("INSERT OR IGNORE INTO order_state VALUES (1, 0, 0, '')"))
        known = self.known()
        if known is None:
            raise RuntimeError("a row that was just written is not there")
        return known

    def known(self) -> Known | None:
        """What is known now; None when it was lost while the agent ran."""
        row = self.database.read(
            lambda c: c.execute("SELECT counter, stopped, time FROM order_state WHERE one = 1").fetchone()
        )
        return None if row is None else Known(row[0], bool(row[1]), datetime.fromisoformat(row[2]) if row[2] else None)

    def keep_time(self, at: datetime) -> None:
        """The latest time that the server has signed."""
        text = at.astimezone(UTC).isoformat()
        self.database.write(lambda c: c.execute("UPDATE order_state SET time = ? WHERE time < ?", (text, text)))

    def is_taken(self, sha256: str) -> bool:
        """Whether these very bytes were accepted before."""
        return self._any("SELECT 1 FROM orders WHERE sha256 = ? AND refused = ''", (sha256,))

    def is_refused(self, sha256: str, reason: str) -> bool:
        """Whether these very bytes were refused for this reason before."""
        return self._any("SELECT 1 FROM orders WHERE sha256 = ? AND refused = ?", (sha256, reason))

    def begin(self, taken: Taken, counter: int | None, *, stops: bool | None = None) -> bool:
        """An order is accepted, and its number is used up; durable when this returns. False: it is not to be done.

        Args:
            taken: the order.
            counter: its number, None for one that has none.
            stops: it sets or ends the stop.
        """

        def write(connection: sqlite3.Connection) -> bool:
            if counter is not None:
                used = "UPDATE order_state SET counter = ? WHERE counter < ?"
                if connection.execute(used, (counter, counter)).rowcount != 1:
                    return False
            if stops is not None and connection.execute("UPDATE order_state SET stopped = ?", (stops,)).rowcount != 1:
                return False
            if connection.execute(
                "SELECT 1 FROM orders WHERE order_id = ? AND refused = ''", (taken.order_id,)
            ).fetchone():
                raise _TakenBefore
            _insert(connection, taken)
            return True

        self._quiet = None
        try:
            return self.database.write(write)
        except _TakenBefore:
            return False

    def refuse(self, taken: Taken) -> None:
        """A refusal, to be recorded."""
        self._quiet = None
        self.database.write(lambda c: _insert(c, taken))

    def end(self, sha256: str, outcome: str, error: str, fields: Mapping[str, Any]) -> None:
        """How an order that was begun ended."""
        values = (outcome, error, json.dumps(fields, sort_keys=True), sha256)
        self.database.write(
            lambda c: c.execute(
                "UPDATE orders SET state = 'ended', outcome = ?, error = ?, fields = ?"
                " WHERE sha256 = ? AND refused = '' AND state = 'begun'",
                values,
            )
        )

    def said(self, taken: Taken) -> None:
        """Its record is durable."""
        place = (taken.sha256, taken.refused)
        self.database.write(
            lambda c: c.execute("UPDATE orders SET state = 'said' WHERE sha256 = ? AND refused = ?", place)
        )

    @property
    def all_said(self) -> bool:
        """Nothing was unsaid when that was last asked for, and nothing was taken or refused since; in memory."""
        return self._quiet is not None and self._quiet[0] is self.database.damage

    def unsaid(self) -> list[Taken]:
        """What has no record yet, oldest first."""
        rows = self.database.read(
            lambda c: c.execute(
                "SELECT sha256, size, order_id, kind, bundle_id, at, refused, state, outcome, error, fields FROM orders"
                " WHERE state != 'said' ORDER BY number"
            ).fetchall()
        )
        self._quiet = None if rows else (self.database.damage,)
        return [_taken(row) for row in rows]

    def _any(self, statement: str, values: tuple[Any, ...]) -> bool:
        return self.database.read(lambda c: c.execute(statement, values).fetchone() is not None)


class _TakenBefore(Exception):
    """An accepted order has this id: the transaction is given up, number and all."""


def _taken(row: tuple[Any, ...]) -> Taken:
    sha256, size, order_id, kind, bundle_id, at, refused, state, outcome, error, fields = row
    when = datetime.fromisoformat(at)
    return Taken(
        sha256, size, order_id, kind, bundle_id, when, refused, state, outcome, error, fields=json.loads(fields)
    )


def _insert(connection: sqlite3.Connection, taken: Taken) -> None:
    columns = "sha256, size, refused, order_id, kind, bundle_id, at, state, outcome, error, fields"
    values = (
        taken.sha256, taken.size, taken.refused, taken.order_id, taken.kind, taken.bundle_id, taken.at.isoformat(),
        taken.state, taken.outcome, taken.error, json.dumps(taken.fields, sort_keys=True),
    )  # fmt: skip
    connection.execute(f"INSERT INTO orders ({columns}) VALUES ({', '.join('?' * len(values))})", values)  # noqa: S608  our own words
    oldest = "SELECT number FROM orders ORDER BY number DESC LIMIT ?"
    connection.execute(f"DELETE FROM orders WHERE state = 'said' AND number NOT IN ({oldest})", (KEPT,))  # noqa: S608  our own words
