"""What the loop itself must still know after a restart.

Statistics, what was last recorded of each check, the last heartbeat, and the baseline this host is held to.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import datetime

from compliance_agent.adapters.database import Database
from compliance_agent.core.versions import older
from compliance_agent.dataclass import dataclass
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
    """CREATE TABLE IF NOT EXISTS taken_baseline (
        one INTEGER PRIMARY KEY CHECK (one = 1), version TEXT NOT NULL, sha256 TEXT NOT NULL, body BLOB NOT NULL, sig BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE IF NOT EXISTS counts (
        name TEXT NOT NULL, label TEXT NOT NULL, value INTEGER NOT NULL, PRIMARY KEY (name, label)
    ) STRICT, WITHOUT ROWID""",
    "CREATE TABLE IF NOT EXISTS events_state (kind TEXT PRIMARY KEY, code TEXT NOT NULL) STRICT",
)
_SET_MOMENT = "INSERT OR REPLACE INTO moments VALUES (?, ?)"


@dataclass(frozen=True)
class Recorded:
    """What evidence last said of a check: verdict, and what was done or why nothing was (empty when nothing was due)."""

    result: str
    reason: str
    outcome: str = ""
    gate: str = ""


@dataclass(frozen=True)
class TakenBaseline:
    """A baseline that was adopted by order: its exact bytes, its signature, and when."""

    version: str
    sha256: str
    body: bytes
    sig: bytes
    at: datetime


class AgentState:
    """The loop's own rows in the agent's database. Synchronous; call it through `database.call`."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._saved: dict[tuple[str, str], int] = {}
        self._moments: dict[str, datetime | None] = {}
        self._noted: dict[str, datetime] = {}  # not kept yet
        self._moments_of = database.damage  # a database that took the place of a damaged one is asked anew
        database.migrate("agent_state", _TABLES)

    def statistics(self) -> dict[str, int]:
        """The seven counters as last saved; zero where never saved."""
        found = dict(
            self.database.read(lambda connection: connection.execute("SELECT name, value FROM statistics").fetchall())
        )
        return {name: int(found.get(name, 0)) for name in STATS}

    def counts(self) -> dict[tuple[str, str], int]:
        """Every other count as last saved, by name and label."""
        rows = self.database.read(
            lambda connection: connection.execute("SELECT name, label, value FROM counts").fetchall()
        )
        return {(name, label): value for name, label, value in rows}

    def save_statistics(
        self, values: Mapping[str, int], counts: Mapping[tuple[str, str], int], events: Mapping[str, str] | None = None
    ) -> None:
        """Keep the counters, and what was noted. A restart finds them; a power cut takes back at most what was counted since the
        last record.
        `events`: what is watched (`sources`), and which kinds of events are not told and why.
        """
        rows = [(*key, count) for key, count in counts.items() if self._saved.get(key) != count]
        noted = dict(self._noted)

        def save(connection: sqlite3.Connection) -> None:
            connection.executemany(
                "INSERT OR REPLACE INTO statistics VALUES (?, ?)", [(name, values[name]) for name in STATS]
            )
            connection.executemany("INSERT OR REPLACE INTO counts VALUES (?, ?, ?)", rows)
            connection.executemany(_SET_MOMENT, [(name, at.isoformat()) for name, at in noted.items()])
            if events is not None:
                connection.execute("DELETE FROM events_state")
                connection.executemany("INSERT INTO events_state VALUES (?, ?)", sorted(events.items()))

        self.database.write_lazily(save)
        self._saved = dict(counts)
        for name, at in noted.items():
            if self._noted.get(name) is at:  # not noted anew meanwhile
                del self._noted[name]

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

    async def last(self, name: str) -> datetime | None:
        """As `moment`, by the database's thread, which is asked once: nobody else writes it while an agent runs.

        Raises:
            StorageError: it had to be read and cannot be.
        """
        if self._moments_of is not self.database.damage:
            self._moments, self._moments_of = dict(self._noted), self.database.damage
        if name not in self._moments:
            found = await self.database.call(lambda: self.moment(name))
            self._moments.setdefault(name, found)  # it may have been set meanwhile
        return self._moments[name]

    def set_moment(self, name: str, at: datetime) -> None:
        """Remember that it was done; durable when this returns."""
        self.database.write(lambda connection: connection.execute(_SET_MOMENT, (name, at.isoformat())))
        self._moments[name] = at

    def note_moment(self, name: str, at: datetime) -> None:
        """Remember that it was done, in memory; kept with the statistics. Called by whoever asks for `last`."""
        self._moments[name] = self._noted[name] = at

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
        held = self.held()
        _refuse_older(version, held)
        if [(version, sha256)] == [row[:2] for row in held]:
            return False

        self.database.write(lambda connection: _hold(connection, [(version, sha256, at.isoformat())]))
        return True

    def held(self) -> list[tuple[str, str, str]]:
        """Version, digest and since when, of the baseline that this host is held to; none before the first."""
        return self.database.read(
            lambda connection: connection.execute("SELECT version, sha256, since FROM baselines").fetchall()
        )

    def refuse_older(self, version: str) -> None:
        """Raises `ConfigError`, `baseline_older`, where this host is held to a newer version."""
        _refuse_older(version, self.held())

    def take_baseline(self, taken: TakenBaseline) -> None:
        """Keep a baseline that was adopted by order, and hold the host to it; one transaction.

        Raises:
            ConfigError: `baseline_older`, as for `adopt_baseline`.
        """
        _refuse_older(taken.version, self.held())

        def take(connection: sqlite3.Connection) -> None:
            _hold(connection, [(taken.version, taken.sha256, taken.at.isoformat())])
            row = (taken.version, taken.sha256, taken.body, taken.sig)
            connection.execute("INSERT OR REPLACE INTO taken_baseline VALUES (1, ?, ?, ?, ?)", row)

        self.database.write(take)

    def give_back(self, held: Sequence[tuple[str, str, str]]) -> None:
        """It could not be brought to its files: the host is held to what it was held to before."""

        def give(connection: sqlite3.Connection) -> None:
            _hold(connection, held)
            connection.execute("DELETE FROM taken_baseline")

        self.database.write(give)

    def taken_baseline(self) -> TakenBaseline | None:
        """The baseline that was adopted by order, if one was and the host is held to it."""
        row = self.database.read(
            lambda connection: connection.execute(
                "SELECT t.version, t.sha256, t.body, t.sig, b.since FROM taken_baseline t"
                " JOIN baselines b ON b.version = t.version AND b.sha256 = t.sha256"
            ).fetchone()
        )
        return None if row is None else TakenBaseline(row[0], row[1], row[2], row[3], datetime.fromisoformat(row[4]))


def _refuse_older(version: str, held: Sequence[tuple[str, str, str]]) -> None:
    for newest, _, since in held:
        if older(version, newest):
            raise ConfigError(
                f"baseline version {version} is older than {newest}, which this host is held to since {since[:10]}",
                code="baseline_older",
                hint="give the older content a newer version if it is meant",
            )


def _hold(connection: sqlite3.Connection, held: Sequence[tuple[str, str, str]]) -> None:
    connection.execute("DELETE FROM baselines")
    connection.executemany("INSERT INTO baselines VALUES (?, ?, ?)", held)
