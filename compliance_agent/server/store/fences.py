"""What guards the rows in PostgreSQL, whatever program asks: the wall, forced row-level security, and what the server may do.

- The wall of wall.py, as triggers that fire always, TRUNCATE included. What SQLite must be told about REPLACE, keys do here.
- Row-level security, forced on every table of a clinic: a transaction sees and writes rows of the sites that it was bound to at
  its beginning, and none when it was not. It is the second wall behind the predicates of `reader.py`.
- The role the server connects as owns nothing and is granted what it needs; it can take none of this down. `look` finds that out.

`raise_fences` is for the owner (`compliance-agent server migrate`), again after each revision; it mends what differs.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from sqlalchemy import Connection, bindparam, text

from compliance_agent.core.retention import LEAST_DAYS
from compliance_agent.errors import StorageError
from compliance_agent.server.store import tables, wall
from compliance_agent.server.store.postgres import EVERY_SITE, SITES

_HELD = """EXISTS (SELECT 1 FROM holds h WHERE h.site_id = OLD.site_id AND h.released_at IS NULL
    AND (h.host_id IS NULL OR h.host_id IN (SELECT host_id FROM hosts WHERE key_id = OLD.key_id)))"""
_GUARDED = f"""EXISTS (SELECT 1 FROM prune_guards g JOIN log_entries e
    ON e.site_id = g.site_id AND e.year = g.year AND e.leaf_index >= g.first AND e.leaf_index < g.stop
    WHERE e.key_id = OLD.key_id
    AND extract(epoch FROM g.at::timestamptz - OLD.received_at::timestamptz) >= {LEAST_DAYS * 86_400}"""  # noqa: S608  our own words
_KEPT = "this record must be kept"
_RELEASED = """OLD.released_at IS NOT NULL OR NEW.released_at IS NULL OR (NEW.number, NEW.site_id, NEW.host_id,
    NEW.reason_id, NEW.added_at) IS DISTINCT FROM (OLD.number, OLD.site_id, OLD.host_id, OLD.reason_id, OLD.added_at)"""
_FORWARD = """NEW.last_on < OLD.last_on
    OR (NEW.site_id, NEW.host_id, NEW.version) IS DISTINCT FROM (OLD.site_id, OLD.host_id, OLD.version)"""


def _refusing(when: str, says: str) -> str:
    return f"""
BEGIN
  IF {when} THEN
    RAISE EXCEPTION '{says}' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END
"""


_FUNCTIONS = {
    "wall_refuse": """
BEGIN
  RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation';
END
""",
    "wall_bundles_body": _refusing(
        f"NOT (length(NEW.body) = 0 AND NOT {_HELD} AND {_GUARDED} AND e.epoch = OLD.epoch AND e.seq = OLD.seq))",
        f"bundles: {_KEPT}",
    ),
    "wall_forks_body": _refusing(
        f"NOT (length(NEW.body) = 0 AND NOT {_HELD} AND {_GUARDED}"
        " AND e.seq IS NULL AND position(convert_to(OLD.sha256, 'UTF8') IN e.leaf) > 0))",
        f"forks: {_KEPT}",
    ),
    "wall_entries_move": _refusing("OLD.leaf_index IS NOT NULL", "log_entries: an entry never moves"),
    "wall_holds_change": _refusing(_RELEASED, "holds: a hold is released once, and not changed"),
    "wall_uses_change": _refusing(_FORWARD, "baseline_uses: the last day of a baseline version only moves forward"),
}


class _Stone(NamedTuple):
    table: str
    event: str
    call: str


def _refuse(says: str) -> str:
    return f"wall_refuse('{says}')"


_NO_DELETE = {
    "bundles": "bundles: a record is never deleted",
    "forks": "forks: a record is never deleted",
    "log_entries": "log_entries: an entry is never deleted",
    "holds": "holds: a hold is released, never deleted",
    "baseline_uses": "baseline_uses: the last day of a baseline version is never forgotten",
}
_NO_CHANGE = {
    "bundles": (wall.PLACE_OF_BUNDLE, "bundles: a record is never changed"),
    "forks": (wall.COLUMNS_OF_FORK, "forks: a record is never changed"),
    "log_entries": (wall.COLUMNS_OF_ENTRY, "log_entries: an entry is never changed"),
}
STONES = {
    **{f"wall_{name}_delete": _Stone(name, "DELETE", _refuse(says)) for name, says in _NO_DELETE.items()},
    **{f"wall_{name}_truncate": _Stone(name, "TRUNCATE", _refuse(says)) for name, says in _NO_DELETE.items()},
    **{
        f"wall_{name}_change": _Stone(name, f"UPDATE OF {columns}", _refuse(says))
        for name, (columns, says) in _NO_CHANGE.items()
    },
    "wall_bundles_body": _Stone("bundles", "UPDATE OF body", "wall_bundles_body()"),
    "wall_forks_body": _Stone("forks", "UPDATE OF body", "wall_forks_body()"),
    "wall_entries_move": _Stone("log_entries", "UPDATE OF year, leaf_index", "wall_entries_move()"),
    "wall_holds_change": _Stone("holds", "UPDATE", "wall_holds_change()"),
    "wall_uses_change": _Stone("baseline_uses", "UPDATE", "wall_uses_change()"),
}
_BOUND = (
    f"((current_setting('{SITES}'::text, true) = '{EVERY_SITE}'::text)"
    f" OR ((site_id)::text = ANY (string_to_array(current_setting('{SITES}'::text, true), ' '::text))))"
)
POLICY = "bound_sites"


def _statement(name: str, stone: _Stone) -> str:
    """As PostgreSQL itself writes it down."""
    each = "STATEMENT" if stone.event == "TRUNCATE" else "ROW"
    return f"CREATE TRIGGER {name} BEFORE {stone.event} ON {stone.table} FOR EACH {each} EXECUTE FUNCTION {stone.call}"


def raise_fences(connection: Connection, server_role: str) -> list[str]:
    """Put up what is missing or was changed, and grant `server_role` what the server needs; the names of what was mended."""
    mended = missing(connection)
    [schema] = connection.execute(text("SELECT quote_ident(current_schema())")).one()
    there = {row[0]: row[1] for row in connection.execute(_TRIGGERS)}
    for name, body in _FUNCTIONS.items():
        if f"function {name}" in mended:
            connection.exec_driver_sql(
                f"CREATE OR REPLACE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql"
                f" SET search_path = {schema}, pg_temp AS $wall${body}$wall$"
            )
    for name, stone in STONES.items():
        if f"trigger {name}" in mended:
            if name in there:
                connection.exec_driver_sql(f"DROP TRIGGER {name} ON {stone.table}")
            connection.exec_driver_sql(_statement(name, stone))
            connection.exec_driver_sql(f"ALTER TABLE {stone.table} ENABLE ALWAYS TRIGGER {name}")
    for table in tables.TENANT_TABLES:
        if f"row security of {table.name}" in mended:
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ENABLE ROW LEVEL SECURITY")
            connection.exec_driver_sql(f"ALTER TABLE {table.name} FORCE ROW LEVEL SECURITY")
            for [policy] in connection.execute(_POLICIES_OF, {"name": table.name}).all():
                connection.exec_driver_sql(f"DROP POLICY {policy} ON {table.name}")
            connection.exec_driver_sql(f"CREATE POLICY {POLICY} ON {table.name} USING {_BOUND} WITH CHECK {_BOUND}")
    _grant(connection, schema, server_role)
    return mended


def _grant(connection: Connection, schema: str, server_role: str) -> None:
    [role] = connection.execute(text("SELECT quote_ident(:role)"), {"role": server_role}).one()
    kept = ", ".join(_NO_DELETE)
    for statement in (
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {role}",
        f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}",
        f"REVOKE DELETE ON {kept} FROM {role}",
        f"REVOKE UPDATE, DELETE ON audit FROM {role}",
        f"REVOKE INSERT, UPDATE, DELETE ON alembic_version FROM {role}",
    ):
        connection.exec_driver_sql(statement)


_TRIGGERS = text(
    "SELECT t.tgname, pg_get_triggerdef(t.oid, true) || ' ' || t.tgenabled::text FROM pg_trigger t"
    " JOIN pg_class c ON c.oid = t.tgrelid WHERE NOT t.tgisinternal AND c.relnamespace = current_schema()::regnamespace"
)
_FUNCTIONS_THERE = text(
    "SELECT proname, prosrc, proconfig FROM pg_proc WHERE pronamespace = current_schema()::regnamespace"
)
_SECURED = text(
    "SELECT c.relname, c.relrowsecurity AND c.relforcerowsecurity, array_agg(p.polname::text),"
    " array_agg(pg_get_expr(p.polqual, c.oid)), array_agg(pg_get_expr(p.polwithcheck, c.oid)),"
    " bool_and(p.polcmd = '*' AND p.polpermissive AND p.polroles = '{0}')"
    " FROM pg_class c JOIN pg_policy p ON p.polrelid = c.oid"
    " WHERE c.relnamespace = current_schema()::regnamespace GROUP BY c.oid"
)
_POLICIES_OF = text(
    "SELECT quote_ident(p.polname) FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid"
    " WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = :name"
)
_MAY_TOO_MUCH = text(
    "SELECT r.rolsuper OR r.rolbypassrls OR EXISTS (SELECT 1 FROM pg_class c WHERE c.relname IN :names"
    " AND c.relnamespace = current_schema()::regnamespace AND pg_has_role(c.relowner, 'USAGE'))"
    " FROM pg_roles r WHERE r.rolname = current_user"
).bindparams(bindparam("names", expanding=True))


def missing(connection: Connection) -> list[str]:
    """What is not there, or not as it should be, in the order in which it is put up."""
    functions = {row[0]: (row[1], row[2]) for row in connection.execute(_FUNCTIONS_THERE)}
    [path] = connection.execute(text("SELECT 'search_path=' || quote_ident(current_schema()) || ', pg_temp'")).one()
    triggers = {row[0]: row[1] for row in connection.execute(_TRIGGERS)}
    secured = {row[0]: tuple(row[1:]) for row in connection.execute(_SECURED)}
    whole = (True, [POLICY], [_BOUND], [_BOUND], True)
    return [
        *(f"function {name}" for name, body in _FUNCTIONS.items() if functions.get(name) != (body, [path])),
        *(f"trigger {name}" for name, stone in STONES.items() if triggers.get(name) != f"{_statement(name, stone)} A"),
        *(f"row security of {table.name}" for table in tables.TENANT_TABLES if secured.get(table.name) != whole),
    ]


def look(connection: Connection) -> None:
    """As the server: are the fences up, and out of its own reach?

    Raises:
        StorageError: `wall_down` or `role_too_strong`; nothing is taken in over a database that does not guard it.
    """
    gone = missing(connection)
    if gone:
        raise StorageError(
            f"database: {gone[0]} is missing or was changed{_more(gone)}",
            code="wall_down",
            hint="compliance-agent server migrate, as the owner of the tables, puts it up again",
        )
    [too_much] = connection.execute(_MAY_TOO_MUCH, {"names": [table.name for table in tables.TENANT_TABLES]}).one()
    if too_much:
        raise StorageError(
            "database: the server connects as a superuser, or as the owner of its tables, whom nothing there stops",
            code="role_too_strong",
            hint="name a role of its own in `database`; the owner is for `server migrate --owner`",
        )


def _more(gone: Iterable[str]) -> str:
    count = len(list(gone)) - 1
    return f", and {count} more" if count else ""
