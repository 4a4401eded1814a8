"""What the agent's database says, for commands that look beside a running agent. Nothing here writes or takes a lock."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from compliance_agent.adapters import log_store
from compliance_agent.adapters.healing_store import pause_of
from compliance_agent.adapters.open_databases import read_only
from compliance_agent.adapters.order_trust_store import KEYS, ROOTS
from compliance_agent.adapters.sqlite_trouble import as_ours
from compliance_agent.core.pausing import Pause
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import NoInput, NotPermitted, StorageError
from compliance_agent.models import STATS

MAX_RETRIES = 10  # attempts after which a waiting bundle counts as failed, as in queue.py
LOCKS = Path("/proc/locks")


@dataclass(frozen=True)
class Standing:
    """What evidence last said of a check, and since when (`outcome` and `gate` are empty when nothing was due)."""

    check: str
    result: str
    reason: str
    outcome: str
    gate: str
    since: str


@dataclass(frozen=True)
class Record:
    """One recorded bundle: what it says, where it stands, and whether the server has acknowledged it."""

    document: dict[str, Any]
    state: str


@contextlib.contextmanager
def looking(path: Path) -> Iterator[AgentView]:
    """The database of an agent, to be read.

    Raises:
        NoInput: there is none yet.
        NotPermitted: this user may not read it.
        StorageError: it cannot be read.
    """
    try:
        path.stat()
    except PermissionError as error:
        raise NotPermitted(f"state {path.parent}: no permission to read", hint="run it as the agent's user") from error
    except OSError as error:
        raise NoInput(f"state {path.parent}: no agent has run here yet", hint="compliance-agent run") from error
    if not os.access(path, os.R_OK):
        raise NotPermitted(f"state {path}: no permission to read", hint="run it as the agent's user")
    with read_only(path) as connection:
        yield AgentView(connection, path)


class AgentView:
    """Questions to an open database. A table that is not there yet is as good as an empty one."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def statistics(self) -> dict[str, int]:
        """The seven counters as last saved."""
        found = dict(self._rows("statistics", "SELECT name, value FROM statistics"))
        return {name: int(found.get(name, 0)) for name in STATS}

    def standings(self) -> list[Standing]:
        """Every check's last recorded verdict, by name."""
        rows = self._rows(
            "recorded", "SELECT check_id, result, reason, outcome, gate, since FROM recorded ORDER BY check_id"
        )
        return [Standing(*map(str, row)) for row in rows]

    def moment(self, name: str) -> datetime | None:
        """When something was last done."""
        for row in self._rows("moments", "SELECT at FROM moments WHERE name = ?", (name,)):
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(str(row[0]))
        return None

    def events(self) -> dict[str, Any] | None:
        """How many sources wake checks, and which kinds of events are not told and why; None before the agent has said so."""
        known = {
            str(kind): str(code) for kind, code in self._rows("events_state", "SELECT kind, code FROM events_state")
        }
        count = known.pop("sources", None)
        if count is None:
            return None
        return {"sources": int(count), "untold": [{"kind": kind, "code": code} for kind, code in sorted(known.items())]}

    def queue(self) -> dict[str, Any]:
        """Counts of bundles by state, and since when the oldest has been waiting."""
        states = dict(self._rows("evidence", "SELECT state, count(*) FROM evidence GROUP BY state"))
        waiting = self._rows(
            "evidence",
            "SELECT count(*) FILTER (WHERE retry_count >= ?), min(created_at), max(last_error) FROM evidence"
            " WHERE state = 'pending'",
            (MAX_RETRIES,),
        )
        failed, oldest, last_error = waiting[0] if waiting else (0, None, None)
        until = self._rows("queue_wait", "SELECT until FROM queue_wait")
        return {
            **{state: int(states.get(state, 0)) for state in ("pending", "uploaded", "damaged")},
            "failed": failed,
            "oldest_pending": oldest,
            "last_error": last_error,
            "next_attempt_at": until[0][0] if until else None,
        }

    def chain(self) -> dict[str, Any] | None:
        """Epoch, number and digest of the last bundle, and the key that signed it."""
        rows = self._rows("chain", "SELECT epoch, seq, digest, key_id FROM chain")
        return dict(zip(("epoch", "seq", "digest", "key_id"), rows[0], strict=True)) if rows else None

    def keys(self) -> list[dict[str, Any]]:
        """The keys that have signed this host's chain, the present one last; none before the first record."""
        former = self._rows("former_keys", "SELECT key_id, ended_at, confirmed FROM former_keys ORDER BY rowid")
        chain = self.chain()
        return [
            {"key_id": key_id, "state": "gave_way" if confirmed else "gave_way_unconfirmed", "until": until}
            for key_id, until, confirmed in former
        ] + ([{"key_id": chain["key_id"], "state": "signs", "until": None}] if chain else [])

    def log(self) -> dict[str, Any] | None:
        """How the host stands to its site's log: last verified checkpoint, receipts, logs that contradicted themselves.

        None in a state that is older than logs are.
        """
        if not self._rows("receipts", "SELECT 1"):
            return None
        known = "SELECT 1 FROM pragma_table_info('log_heads') WHERE name = 'witnessed_at'"  # not in an older state
        witnessed = "witnessed_at" if self._rows("log_heads", known) else "NULL"
        heads = self._rows(
            "log_heads",
            f"SELECT origin, size, seen_at, {witnessed}, code FROM log_heads"  # noqa: S608  constants only
            " ORDER BY substr(origin, -4), seen_at",
        )
        origin, size, seen_at, witnessed_at, _ = heads[-1] if heads else (None, None, None, None, None)
        try:
            counts = log_store.standing(self._connection)
        except sqlite3.Error as error:
            raise StorageError(f"state {self._path}: {error.sqlite_errorname}") from error
        return {
            "origin": origin,
            "size": size,
            "seen_at": seen_at,
            "witnessed_at": witnessed_at,
            "receipted": counts.receipted,
            "unlogged": counts.unlogged,
            "shed": next(iter(self._rows("shed", "SELECT count FROM shed")), (0,))[0],
            "oldest_unlogged": counts.oldest_unlogged.isoformat() if counts.oldest_unlogged else None,
            "contradicted": [{"origin": name, "code": code} for name, *_, code in heads if code is not None],
        }

    def records(self, check: str, most: int, *, kind: str | None = None) -> list[Record]:
        """The newest bundles about a check, newest first."""
        wanted = [f'"check":"{check}"', *([f'"kind":"{kind}"'] if kind else [])]
        where = " AND ".join(["own", *("instr(body, ?) > 0" for _ in wanted)])
        rows = self._rows(
            "evidence",
            f"SELECT body, state FROM evidence WHERE {where} ORDER BY id DESC LIMIT ?",  # noqa: S608  constants only
            (*(word.encode() for word in wanted), most),
        )
        return [Record(json.loads(body), str(state)) for body, state in rows]

    def orders(self, most: int) -> dict[str, Any] | None:
        """The number of the last order taken, whether a stop stands, and the newest orders; None in an older state."""
        known = self._rows("order_state", "SELECT counter, stopped, time FROM order_state")
        if not known:
            return None
        rows = self._rows(
            "orders",
            "SELECT at, order_id, kind, state, outcome, error FROM orders ORDER BY number DESC LIMIT ?",
            (most,),
        )
        names = ("at", "order_id", "kind", "state", "outcome", "error")
        recent = [dict(zip(names, (value or None for value in row), strict=True)) for row in rows]
        counter, stopped, time = known[0]
        return {"counter": counter, "stopped": bool(stopped), "server_time": time or None, "recent": recent}

    def order_trust(self) -> tuple[list[bytes], bytes | None]:
        """The documents that say whose orders count: roots in order, and the newest list of keys."""
        roots = [bytes(row[0]) for row in self._rows("order_trust", ROOTS)]
        return roots, next((bytes(row[0]) for row in self._rows("order_trust", KEYS)), None)

    def pause(self) -> Pause | None:
        """What a person at this host asked for last; it may be over."""
        with as_ours(f"reading state {self._path}"):
            return pause_of(self._connection)

    def paused(self) -> bool:
        """Whether an order paused healing."""
        return bool(self._rows("heal_flag", "SELECT 1 FROM heal_flag WHERE name = 'paused'"))

    def agent_runs(self) -> bool | None:
        """Whether a process holds this state; None when that cannot be told. Asking takes no lock."""
        try:
            inode = (self._path.parent / "lock").stat().st_ino
            lines = LOCKS.read_text("ascii", "replace").splitlines()
        except OSError:
            return None
        return any(" FLOCK " in f" {line} " and f":{inode} " in line for line in lines)

    def _rows(self, table: str, statement: str, values: tuple[Any, ...] = ()) -> list[Any]:
        try:
            known = self._connection.execute(
                "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", (table,)
            ).fetchone()
            return self._connection.execute(statement, values).fetchall() if known else []
        except sqlite3.Error as error:
            raise StorageError(f"state {self._path}: {error.sqlite_errorname}") from error
