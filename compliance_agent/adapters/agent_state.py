"""What the loop itself must still know after a restart.

Statistics, what was last recorded of each check, the last heartbeat, and the baseline this host is held to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from compliance_agent.adapters.database import Database
from compliance_agent.core.versions import older
from compliance_agent.errors import ConfigError
from compliance_agent.models import STATS

_TABLES = (
    "CREATE TABLE IF NOT EXISTS statistics (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT",
    """CREATE TABLE IF NOT EXISTS recorded (
        check_id TEXT PRIMARY KEY, result TEXT NOT NULL, reason TEXT NOT NULL,
        outcome TEXT NOT NULL, gate TEXT NOT NULL, since TEXT NOT NULL
    ) STRICT""",
    "CREATE TABLE IF NOT EXISTS moments (name TEXT PRIMARY KEY, at TEXT NOT NULL) STRICT",
    "CREATE TABLE IF NOT EXISTS baselines (version TEXT PRIMARY KEY, sha256 TEXT NOT NULL, since TEXT NOT NULL) STRICT",
)


@dataclass(frozen=True)
class Recorded:
    """What evidence last said of a check: verdict, and what was done or why nothing was (empty when nothing was due)."""

    result: str
    reason: str
    outcome: str = ""
    gate: str = ""


class AgentState:
    """The loop's own rows in the agent's database. Synchronous; call it through `database.call`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        database.migrate("agent_state", _TABLES)

    def statistics(self) -> dict[str, int]:
        """The seven counters as last saved; zero where never saved."""
        found = dict(
            self.database.read(lambda connection: connection.execute("SELECT name, value FROM statistics").fetchall())
        )
        return {name: int(found.get(name, 0)) for name in STATS}

    def save_statistics(self, values: Mapping[str, int]) -> None:
        """Keep the counters."""

        def save(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO statistics VALUES (?, ?)", [(name, values[name]) for name in STATS]
            )

        self.database.write(save)

    def recorded(self) -> dict[str, Recorded]:
        """Per check what was last recorded."""
        rows = self.database.read(
            lambda connection: connection.execute(
                "SELECT check_id, result, reason, outcome, gate FROM recorded"
            ).fetchall()
        )
        return {row[0]: Recorded(*row[1:]) for row in rows}

    def set_recorded(self, check_id: str, value: Recorded, at: datetime) -> None:
        """Remember what has just been recorded."""
        row = (check_id, value.result, value.reason, value.outcome, value.gate, at.isoformat())
        self.database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO recorded VALUES (?, ?, ?, ?, ?, ?)", row)
        )

    def moment(self, name: str) -> datetime | None:
        """When something was last done."""
        row = self.database.read(
            lambda connection: connection.execute("SELECT at FROM moments WHERE name = ?", (name,)).fetchone()
        )
        try:
            at = datetime.fromisoformat(row[0]) if row else None
        except ValueError:  # salvaged from a damaged database: as good as never
            return None
        return at if at is not None and at.tzinfo is not None else None

    def set_moment(self, name: str, at: datetime) -> None:
        """Remember that it was done."""
        self.database.write(
            lambda connection: connection.execute(
                "INSERT OR REPLACE INTO moments VALUES (?, ?)", (name, at.isoformat())
            )
        )

    def is_new_drill(self, drill: str, at: datetime) -> bool:
        """Whether a drill of this time has not been recorded yet."""
        last = self.moment(f"drill.{drill}")
        return last is None or at > last

    def set_drilled(self, drill: str, at: datetime, *, fired: bool) -> None:
        """Remember that a drill was recorded, and when its detector was last proven to fire."""
        self.set_moment(f"drill.{drill}", at)
        if fired:
            self.set_moment(f"proven.{drill}", at)

    def adopt_baseline(self, version: str, sha256: str, at: datetime) -> bool:
        """Take a baseline as the one this host is held to; whether it is another than before.

        Raises:
            ConfigError: `baseline_older`: this host was held to a newer version, and what was fixed since must stay fixed.
        """
        held = self.database.read(
            lambda connection: connection.execute("SELECT version, sha256, since FROM baselines").fetchall()
        )
        for newest, _, since in held:
            if older(version, newest):
                raise ConfigError(
                    f"baseline version {version} is older than {newest}, which this host is held to since {since[:10]}",
                    code="baseline_older",
                    hint="give the older content a newer version if it is meant",
                )
        if [(version, sha256)] == [row[:2] for row in held]:
            return False

        def adopt(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM baselines")
            connection.execute("INSERT INTO baselines VALUES (?, ?, ?)", (version, sha256, at.isoformat()))

        self.database.write(adopt)
        return True
