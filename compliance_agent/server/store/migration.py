"""Older databases, brought up to the schema of this program in the transaction that opens them: wholly, or not at all.

1 -> 2  the transparency log. Everything the database holds becomes a pending entry, in the order in which it came: a host's
        enrolment before its bundles, then what contradicted them, then its revocation.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from sqlalchemy import insert, select, update
from sqlalchemy.engine import Connection, RowMapping

from compliance_agent.log.leaf import bundle_leaf, fork_leaf, key_leaf
from compliance_agent.server.store import tables

_CHUNK = 1_000  # rows held in memory at a time


def from_version_1(connection: Connection) -> None:
    """Make the log's tables and fill them with what waits to be logged."""
    tables.metadata.create_all(connection, tables=[tables.log_shards, tables.log_entries])
    entries = _entries(connection)
    while chunk := list(islice(entries, _CHUNK)):
        connection.execute(insert(tables.log_entries), chunk)
    version = update(tables.meta).where(tables.meta.c.key == "schema_version")
    connection.execute(version.values(value=str(tables.SCHEMA_VERSION)))


def _entries(connection: Connection) -> Iterator[dict[str, Any]]:
    hosts, bundles, forks = tables.hosts, tables.bundles, tables.forks
    for row in _rows(connection, select(hosts).order_by(hosts.c.enrolled_at, hosts.c.key_id)):
        yield _entry(row, key_leaf("enrol", row["key_id"], row["public_key"], row["enrolled_at"]), row["enrolled_at"])
    columns = (
        bundles.c[name] for name in ("site_id", "key_id", "epoch", "seq", "prev", "sha256", "sig", "received_at")
    )
    for row in _rows(connection, select(*columns).order_by(bundles.c.number)):
        leaf = bundle_leaf(row["key_id"], row["epoch"], row["seq"], row["prev"], row["sha256"], row["sig"])
        yield _entry(row, leaf, row["received_at"], epoch=row["epoch"], seq=row["seq"])
    same_place = (bundles.c.key_id == forks.c.key_id, bundles.c.epoch == forks.c.epoch, bundles.c.seq == forks.c.seq)
    held = select(bundles.c.sha256).where(*same_place).scalar_subquery().label("held")
    for row in _rows(connection, select(forks, held).order_by(forks.c.number)):
        leaf = fork_leaf(row["key_id"], row["epoch"], row["seq"], row["held"], row["sha256"], row["sig"])
        yield _entry(row, leaf, row["received_at"])
    revoked = select(hosts).where(hosts.c.revoked_at.is_not(None)).order_by(hosts.c.revoked_at, hosts.c.key_id)
    for row in _rows(connection, revoked):
        yield _entry(row, key_leaf("revoke", row["key_id"], row["public_key"], row["revoked_at"]), row["revoked_at"])


def _rows(connection: Connection, query: Any) -> Iterable[RowMapping]:
    # What is read here is not written meanwhile: the inserts go to another table.
    return connection.execute(query).mappings().yield_per(_CHUNK)


def _entry(
    row: RowMapping, leaf: bytes, at: str, *, epoch: int | None = None, seq: int | None = None
) -> dict[str, Any]:
    return {
        "site_id": row["site_id"],
        "key_id": row["key_id"],
        "epoch": epoch,
        "seq": seq,
        "decided_at": at,
        "leaf": leaf,
    }
