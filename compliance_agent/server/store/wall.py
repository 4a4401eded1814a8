"""The wall: triggers in the database file that let nobody change or delete evidence, whatever program asks.

A record, a contradicting record and a log entry are never deleted and never changed. One thing has a door: the bytes of a record
may be emptied while a guard row names the site, year and stretch of the log in which its entry stands, the record was received at
least 2,192 days before, and no hold covers it. Only the prune job writes such a row, in the transaction that needs it: a row that
is still there at the end makes the commit fail, for it refers to a table that is always empty.

Whoever owns the file can take the wall down, as they can delete the file. `raise_wall` puts it up again at every opening,
and says what it had to mend.
"""

from __future__ import annotations

from sqlalchemy import Connection, text

from compliance_agent.core.retention import LEAST_DAYS

PLACE_OF_BUNDLE = (
    'number, bundle_id, site_id, key_id, epoch, seq, sha256, prev, kind, "check", result, reason, outcome, error,'
    " created_at, received_at, sig"
)
COLUMNS_OF_FORK = "number, site_id, key_id, epoch, seq, sha256, sig, received_at"
COLUMNS_OF_ENTRY = "number, site_id, key_id, epoch, seq, decided_at, leaf"
_OLD_ENOUGH = f"julianday(g.at) - julianday(OLD.received_at) >= {LEAST_DAYS}"
_HELD = """EXISTS (SELECT 1 FROM holds h WHERE h.site_id = OLD.site_id AND h.released_at IS NULL
    AND (h.host_id IS NULL OR h.host_id IN (SELECT host_id FROM hosts WHERE key_id = OLD.key_id)))"""
_STRETCH = """prune_guards g JOIN log_entries e
    ON e.site_id = g.site_id AND e.year = g.year AND e.leaf_index >= g.first AND e.leaf_index < g.stop"""
_BUNDLE_DOOR = f"""length(NEW.body) = 0 AND NOT {_HELD} AND EXISTS (SELECT 1 FROM {_STRETCH}
    WHERE e.key_id = OLD.key_id AND e.epoch = OLD.epoch AND e.seq = OLD.seq AND {_OLD_ENOUGH})"""  # noqa: S608  our own words
_FORK_DOOR = f"""length(NEW.body) = 0 AND NOT {_HELD} AND EXISTS (SELECT 1 FROM {_STRETCH}
    WHERE e.key_id = OLD.key_id AND e.seq IS NULL AND instr(e.leaf, CAST(OLD.sha256 AS BLOB)) > 0 AND {_OLD_ENOUGH})"""  # noqa: S608  our own words
_SAME_BUNDLE = """SELECT 1 FROM bundles WHERE number = NEW.number
    UNION ALL SELECT 1 FROM bundles WHERE key_id = NEW.key_id AND epoch = NEW.epoch AND seq = NEW.seq
    UNION ALL SELECT 1 FROM bundles WHERE key_id = NEW.key_id AND bundle_id = NEW.bundle_id"""
_SAME_FORK = """SELECT 1 FROM forks WHERE number = NEW.number
    UNION ALL SELECT 1 FROM forks WHERE key_id = NEW.key_id AND sha256 = NEW.sha256"""
_SAME_ENTRY = """SELECT 1 FROM log_entries WHERE number = NEW.number
    UNION ALL SELECT 1 FROM log_entries WHERE key_id = NEW.key_id AND epoch = NEW.epoch AND seq = NEW.seq
    UNION ALL SELECT 1 FROM log_entries
        WHERE site_id = NEW.site_id AND year = NEW.year AND leaf_index = NEW.leaf_index"""


def _trigger(name: str, event: str, table: str, says: str, when: str = "") -> tuple[str, str]:
    condition = f" WHEN {when}" if when else ""
    return f"wall_{name}", (
        f"CREATE TRIGGER wall_{name} BEFORE {event} ON {table}{condition}"
        f" BEGIN SELECT RAISE(ABORT, '{table}: {says}'); END"
    )


WALL: dict[str, str] = dict(
    (
        _trigger("bundles_delete", "DELETE", "bundles", "a record is never deleted"),
        _trigger("bundles_change", f"UPDATE OF {PLACE_OF_BUNDLE}", "bundles", "a record is never changed"),
        _trigger("bundles_body", "UPDATE OF body", "bundles", "this record must be kept", f"NOT ({_BUNDLE_DOOR})"),
        _trigger("bundles_replace", "INSERT", "bundles", "a record is never replaced", f"EXISTS ({_SAME_BUNDLE})"),
        _trigger("forks_delete", "DELETE", "forks", "a record is never deleted"),
        _trigger("forks_change", f"UPDATE OF {COLUMNS_OF_FORK}", "forks", "a record is never changed"),
        _trigger("forks_body", "UPDATE OF body", "forks", "this record must be kept", f"NOT ({_FORK_DOOR})"),
        _trigger("forks_replace", "INSERT", "forks", "a record is never replaced", f"EXISTS ({_SAME_FORK})"),
        _trigger("entries_delete", "DELETE", "log_entries", "an entry is never deleted"),
        _trigger("entries_change", f"UPDATE OF {COLUMNS_OF_ENTRY}", "log_entries", "an entry is never changed"),
        _trigger(
            "entries_move",
            "UPDATE OF year, leaf_index",
            "log_entries",
            "an entry never moves",
            "OLD.leaf_index IS NOT NULL",
        ),
        _trigger("entries_replace", "INSERT", "log_entries", "an entry is never replaced", f"EXISTS ({_SAME_ENTRY})"),
        _trigger("holds_delete", "DELETE", "holds", "a hold is released, never deleted"),
        _trigger(
            "holds_change",
            "UPDATE",
            "holds",
            "a hold is released once, and not changed",
            "OLD.released_at IS NOT NULL OR NEW.released_at IS NULL OR NEW.number IS NOT OLD.number"
            " OR NEW.site_id IS NOT OLD.site_id OR NEW.host_id IS NOT OLD.host_id"
            " OR NEW.reason_id IS NOT OLD.reason_id OR NEW.added_at IS NOT OLD.added_at",
        ),
        _trigger("uses_delete", "DELETE", "baseline_uses", "the last day of a baseline version is never forgotten"),
        _trigger(
            "uses_change",
            "UPDATE",
            "baseline_uses",
            "the last day of a baseline version only moves forward",
            "NEW.last_on < OLD.last_on OR NEW.site_id IS NOT OLD.site_id OR NEW.host_id IS NOT OLD.host_id"
            " OR NEW.version IS NOT OLD.version",
        ),
    )
)


def raise_wall(connection: Connection) -> list[str]:
    """Put up what is missing or was changed; the names of that, in order."""
    found = connection.execute(text("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"))
    there = {row[0]: row[1] for row in found}
    mended = [name for name, statement in WALL.items() if there.get(name) != statement]
    for name in mended:
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}")
        connection.exec_driver_sql(WALL[name])
    return mended
