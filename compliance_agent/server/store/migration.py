"""The schema's revisions (alembic), for both databases: one file each in `revisions/`, in a row without branches.

A new database is made at once from `tables.py` and marked with the newest revision; an older one is led there, all of it in the
transaction that opens it. Tests hold both ways, and the way down and up again, against each other.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select, text

from compliance_agent.errors import StorageError
from compliance_agent.server.store import before, tables

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

REVISIONS = Path(__file__).with_name("revisions")
HEAD = max(path.name[:4] for path in REVISIONS.glob("[0-9][0-9][0-9][0-9]_*.py"))
VERSIONS = Table("alembic_version", MetaData(), Column("version_num", String, primary_key=True))  # alembic's own
BASE = "base"
_BY_HAND = "0003"  # where the hand-made steps end
_RUN_ANOTHER = "run the version of the program that wrote it, or a newer one"


def made(connection: Connection) -> bool:
    """Make the schema in an empty database, or bring an older one up to it; whether it is new here.

    Raises:
        StorageError: it is of a version from which no way leads here; nothing was changed.
    """
    found = inspect(connection)
    if found.has_table(VERSIONS.name):
        if revision(connection) == HEAD:
            return False
        move(connection, HEAD)
        return True
    if found.has_table("meta"):
        version = connection.execute(text("SELECT value FROM meta WHERE key = 'schema_version'")).scalar()
        if version is None or not before.bring_up(connection, version):
            raise wrong(version)
        _context(connection).stamp(_scripts(), _BY_HAND)
        move(connection, HEAD)
        return True
    tables.metadata.create_all(connection)
    _context(connection).stamp(_scripts(), HEAD)
    return True


def check(connection: Connection) -> None:
    """Refuse a database that is not of this program's revision."""
    known = revision(connection) if inspect(connection).has_table(VERSIONS.name) else None
    if known != HEAD:
        raise wrong(known, "compliance-agent server migrate")


def revision(connection: Connection) -> str | None:
    """The revision that a database says it has."""
    found = connection.execute(select(VERSIONS.c.version_num)).scalars().all()
    return str(found[0]) if len(found) == 1 else None


def wrong(known: str | None, hint: str = _RUN_ANOTHER) -> StorageError:
    """What is said of a database of another version."""
    return StorageError(
        f"database: schema is {known or 'missing'}, this program knows {HEAD}", code="wrong_schema_version", hint=hint
    )


def move(connection: Connection, to: str) -> None:
    """Run the revisions up or down to another one, within the transaction that has begun."""
    from alembic.operations import Operations

    scripts, known = _scripts(), revision(connection)
    places = {BASE: 0, **{item.revision: int(item.revision) for item in scripts.walk_revisions()}}
    if known not in places and inspect(connection).has_table("sites"):
        raise wrong(known)

    def steps(current: Any, _context: Any) -> Any:
        at = current[0] if current else BASE
        way = scripts._upgrade_revs if places[to] >= places[at] else scripts._downgrade_revs
        return way(to, at)

    context = _context(connection, steps)
    with Operations.context(context):
        context.run_migrations()


def _context(connection: Connection, steps: Callable[[Any, Any], Any] | None = None) -> Any:
    from alembic.runtime.migration import MigrationContext

    connection.execute(text("SELECT 1"))  # it is seen to be in a transaction, which alembic then leaves alone
    return MigrationContext.configure(connection, opts={"fn": steps, "target_metadata": tables.metadata})


def _scripts() -> ScriptDirectory:
    from alembic.script import ScriptDirectory

    return ScriptDirectory(str(REVISIONS.parent), version_locations=[str(REVISIONS)])
