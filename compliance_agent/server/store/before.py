"""Databases from before there were revisions, brought up to schema 3 (`schema_3.py`) in the transaction that opens them.

1 -> 2  the transparency log. Everything the database holds becomes a pending entry, in the order in which it came: a host's
        enrolment before its bundles, then what contradicted them, then its revocation.
2 -> 3  a host's key may give way to a new one; how much of each log a backup holds; how long each baseline version was in effect,
        from all records; holds and pruning; orders; fewer indexes over bundles.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable, Iterator
from datetime import date
from itertools import islice
from typing import Any

from sqlalchemy import insert, inspect, select, text, update
from sqlalchemy.engine import Connection, RowMapping

from compliance_agent.core.retention import day_of
from compliance_agent.entries.leaf import bundle_leaf, fork_leaf, key_leaf
from compliance_agent.server.store import rows
from compliance_agent.server.store.packing import unpacked
from compliance_agent.server.store.schema_3 import METADATA

_T = METADATA.tables
_KEEPING = ("baseline_uses", "holds", "pruned_logs", "prune_never", "prune_guards")
_ORDERS = ("orders", "order_marks", "order_hosts")
_CHUNK = 1_000  # rows held in memory at a time
_COLUMNS_OF_3 = (
    *(
        ("hosts", column)
        for column in ("rotated_to", "waiting_since", "set_back_at", "set_back_digest", "contested_at")
    ),
    ("enrol_tokens", "revoked_at"),
)


def bring_up(connection: Connection, version: str) -> bool:
    """Bring a database of this version up to 3, step by step; False when there is no way from there."""
    for found, step in STEPS.items():
        if version == found:
            step(connection)
            version = str(int(found) + 1)
    return version == "3"


def _from_1(connection: Connection) -> None:
    """Make the log's tables and fill them with what waits to be logged."""
    _from_2(connection)  # rows are read by today's columns
    METADATA.create_all(connection, tables=[_T["log_shards"], _T["log_entries"]])
    entries = _entries(connection)
    while chunk := list(islice(entries, _CHUNK)):
        connection.execute(insert(_T["log_entries"]), chunk)


def _from_2(connection: Connection) -> None:
    for table, column in _COLUMNS_OF_3:
        if column not in {found["name"] for found in inspect(connection).get_columns(table)}:
            connection.execute(text(f"ALTER TABLE {table} ADD COLUMN {column} VARCHAR"))
    for index in ("ix_bundles_bundle_id", "ix_bundles_key_number", "uq_hosts_live_label"):
        connection.execute(text(f"DROP INDEX IF EXISTS {index}"))
    if "ix_hosts_label" not in {index["name"] for index in inspect(connection).get_indexes("hosts")}:
        next(index for index in _T["hosts"].indexes if index.name == "ix_hosts_label").create(connection)
    METADATA.create_all(connection, tables=[_T[name] for name in ("log_durable", *_ORDERS)])
    _people(connection)
    if not inspect(connection).has_table(_T["baseline_uses"].name):
        METADATA.create_all(connection, tables=[_T[name] for name in _KEEPING])
        uses = [
            {"site_id": site, "host_id": host, "version": version, "last_on": day.isoformat()}
            for (site, host, version), day in _uses(connection).items()
        ]
        if uses:
            connection.execute(insert(_T["baseline_uses"]), uses)


def _people(connection: Connection) -> None:
    """Everybody gets an id that is no name, and a role of today; sessions end, for nobody knows when they were used."""
    METADATA.create_all(connection, tables=[_T["factors"], _T["recovery_codes"]])
    if "used_at" not in {column["name"] for column in inspect(connection).get_columns("sessions")}:
        _T["sessions"].drop(connection)
        _T["sessions"].create(connection)
    if "person_id" in {column["name"] for column in inspect(connection).get_columns("users")}:
        return
    for column in ("person_id", "client_id", "first_on", "last_on"):
        connection.execute(text(f"ALTER TABLE users ADD COLUMN {column} VARCHAR"))
    c = _T["users"].c
    for name, role in connection.execute(select(c.name, c.role)).all():
        changed = {"person_id": f"p{secrets.token_hex(8)}", "role": "owner" if role == "admin" else role}
        connection.execute(update(_T["users"]).where(c.name == name).values(changed))


def _uses(connection: Connection) -> dict[tuple[str, str, str], date]:
    """The last day of each baseline version on each host, by every record and every contradicting one."""
    found: dict[tuple[str, str, str], date] = {}
    for table in (_T["bundles"], _T["forks"]):
        query = select(table.c.site_id, _T["hosts"].c.host_id, table.c.body, table.c.received_at)
        for row in _rows(connection, query.join(_T["hosts"], _T["hosts"].c.key_id == table.c.key_id)):
            document = json.loads(unpacked(row["body"]))
            if document["baseline"] is not None:
                use = (row["site_id"], row["host_id"], document["baseline"]["version"])
                day = day_of(document["created_at"], rows.when(row["received_at"]))
                found[use] = max(day, found.get(use, day))
    return found


def _entries(connection: Connection) -> Iterator[dict[str, Any]]:
    hosts, bundles, forks = _T["hosts"], _T["bundles"], _T["forks"]
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


STEPS = {"1": _from_1, "2": _from_2}
