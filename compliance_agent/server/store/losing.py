"""What keeps a step down from losing rows."""

from __future__ import annotations

from sqlalchemy import Connection, text

from compliance_agent.errors import StorageError


def refuse_to_lose(connection: Connection, *tables: str) -> None:
    """Refuse when one of these tables holds a row.

    Raises:
        StorageError: names the table; nothing was changed.
    """
    for table in tables:
        if connection.execute(text(f"SELECT 1 FROM {table} LIMIT 1")).first() is not None:  # noqa: S608  our own names
            raise StorageError(
                f"database: a step back would lose the rows of {table}; nothing was changed", code="rows_would_be_lost"
            )
