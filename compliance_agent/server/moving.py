"""A server's rows from its SQLite file into PostgreSQL, once, while no server runs.

1. every log is computed once more from the file, as `server fsck` does: what is not sound is not moved;
2. the schema, as the owner; then all rows in one transaction, each table read back and held against the digest of what was read;
3. every log once more, now from PostgreSQL, as the server's own role: its root must be the one that was signed;
4. only then the file gets another name, so that no server goes on with it by mistake.

A failure before 3 leaves the target empty; the file is untouched until 4.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from compliance_agent.adapters.durable import fsync_directory
from compliance_agent.errors import BadEvidence, NotPermitted
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.opening import only_server
from compliance_agent.server.services.fsck import Finding, Fsck
from compliance_agent.server.store import Address, SqlStore, copy_all, look_at, migrate, tables
from compliance_agent.server.store.copying import Copied, counted

SOURCE, MOVED = "server.db", "moved-to-postgresql.db"
Told = Callable[[int], None] | None


@dataclass(frozen=True)
class Moved:
    """What was moved, the logs as they were computed there, and where the file is now."""

    tables: list[Copied]
    logs: list[Finding]
    aside: str


async def move(
    data_dir: Path,
    target: Address,
    owner: Address,
    told: Told = None,
    places: Callable[[], tuple[LogFiles, LogHeads]] | None = None,
) -> Moved:
    """Move all rows. `places` gives files and heads of the logs where they are not in the data directory.

    Raises:
        NotPermitted: the target holds rows, or a move was done here before.
        BadEvidence: a log is not sound, before or after.
        StorageError: a database failed, or a server runs here.
    """
    if (data_dir / MOVED).exists():
        raise NotPermitted(f"{data_dir / MOVED}: is there from an earlier move", hint="put it elsewhere first")
    with only_server(data_dir):
        files, heads = await _places(data_dir, places)
        keys = LogKeys(data_dir / "keys")
        source = await SqlStore.open(data_dir / SOURCE)
        try:
            await _sound(Fsck(source, files, keys, heads), "the file")
            await migrate(owner, unquote(urlsplit(target.url).username or ""))
            copied = await copy_all(source, owner, told)
        finally:
            await source.close()
        moved = await SqlStore.open(target)
        try:
            logs = await _sound(Fsck(moved, files, keys, heads), "the target")
        finally:
            await moved.close()
        (data_dir / SOURCE).rename(data_dir / MOVED)
        fsync_directory(data_dir)
    return Moved(copied, logs, MOVED)


async def rehearse(
    data_dir: Path,
    target: Address,
    owner: Address,
    places: Callable[[], tuple[LogFiles, LogHeads]] | None = None,
) -> Moved:
    """What `move` looks at before it writes: nothing is changed here and nothing is written there.

    Raises:
        NotPermitted, BadEvidence, StorageError: as `move`.
    """
    files, heads = await _places(data_dir, places)
    with only_server(data_dir):
        source = await SqlStore.open(data_dir / SOURCE)
        try:
            logs = await _sound(Fsck(source, files, LogKeys(data_dir / "keys"), heads), "the file")
            await look_at(target, owner)
            found = [await counted(source.rows, table) for table in tables.metadata.sorted_tables]
        finally:
            await source.close()
    return Moved(found, logs, SOURCE)


async def _places(data_dir: Path, places: Callable[[], tuple[LogFiles, LogHeads]] | None) -> tuple[LogFiles, LogHeads]:
    if places is None:
        return LogFiles(data_dir / "log"), LogHeads(data_dir / "heads")
    return await asyncio.to_thread(places)


async def _sound(checker: Fsck, where: str) -> list[Finding]:
    found = [finding async for finding in checker.run()]
    for finding in found:
        if finding.problems:
            raise BadEvidence(
                f"log {finding.site_id}/{finding.year} in {where}: {finding.problems[0]}; the file stays as it is",
                code="log_damaged",
                hint="compliance-agent server fsck",
            )
    return found
