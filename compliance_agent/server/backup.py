"""A backup of a server that runs: database, logs, heads and keys, copied to one new directory and checked there.

1. the database, as it is at one moment: by SQLite's own online backup, or from PostgreSQL row by row in one transaction, into a
   file of SQLite, too; a backup is the same whichever database it comes from;
2. for each log in that copy, the files of exactly the tree that the copy has signed, and that checkpoint;
3. the keys; then the copy is opened and all of it computed once more, as `server fsck` does;
4. everything durable under a hidden name, and then renamed: a directory with the wanted name is a whole backup;
5. only then the durable watermark, in the live database: hosts may let go of what it covers.

The order is right because the sequencer makes files durable before the checkpoint over them is in the database: whatever the
copied database has signed, its files are there, and a tile never changes. Copying `log/` first would leave files behind what
the database signed; copying all of `log/` afterwards would leave them ahead, as after a restore. So only what is signed is taken.

A watermark ends before the first entry whose record the copy does not hold: after `readopt` an entry can be there without it.
A restored copy says less than the live database did, for its own watermark was written after it: hosts are never told too much.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from compliance_agent import __version__
from compliance_agent.adapters.durable import fsync_directory, make_directory, storage_error
from compliance_agent.errors import BadEvidence, NotPermitted
from compliance_agent.log.merkle import HASH_BYTES
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, decode_entries, encode_entries, written
from compliance_agent.server.blobs import TURNS
from compliance_agent.server.desks import Services
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.records import Durable, Shard
from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.store import SqlStore, copying, migration, tables
from compliance_agent.server.store.database import Statements
from compliance_agent.server.store.postgres import PostgresDatabase
from compliance_agent.server.store.snapshot import copy_database

SCHEMA = "compliance-agent/backup/v1"
MANIFEST, DATABASE, LOG, HEADS = "manifest.json", "server.db", "log", "heads"
KEYS = ("keys", "tls")  # copied as they are
TRIES, TRY_AGAIN_S = 20, 0.25  # a log that was opened a moment ago is not signed yet
_CHUNK = 1 << 20

Told = Callable[[int], None] | None


@dataclass(frozen=True)
class CopiedLog:
    """One log in a backup: entries under its checkpoint, and how many of them, from the first on, have their records."""

    site_id: str
    year: int
    origin: str
    size: int
    durable: int


@dataclass(frozen=True)
class Backup:
    """What a backup holds."""

    made_at: datetime
    files: int
    size_bytes: int
    logs: list[CopiedLog]


async def back_up(services: Services, out: Path, told: Told = None) -> Backup:
    """Make a backup in the new directory `out` and record how much of each log it holds.

    Raises:
        NotPermitted: `out` is there already.
        BadEvidence: the copy is not sound; nothing is left of it, and nothing was recorded.
        StorageError: it could not be written.
    """
    now = services.clock()
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        await asyncio.to_thread(_begin, out, partial)
        logs = await _copy(services, partial, told)
        made = await asyncio.to_thread(_seal, partial, out, now, logs)
    except OSError as error:
        raise storage_error(error, f"writing backup {out}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    found = [Durable(item.site_id, item.year, item.origin, item.durable) for item in logs]

    async def record(tx: Any) -> None:
        await tx.save_durable(found, now)
        await tx.audit(now, "operator", "server.backup")

    await services.store.write(record)
    return made


def _begin(out: Path, partial: Path) -> None:
    if os.path.lexists(out):
        raise NotPermitted(f"{out}: exists; a backup is not written over anything", hint="name a new directory")
    make_directory(out.parent)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700)


async def _copy(services: Services, root: Path, told: Told) -> list[CopiedLog]:
    """Everything into `root`, checked there."""
    store, shards = await _database(services, root, told)
    try:
        for name in KEYS:
            await asyncio.to_thread(_copy_tree, services.settings.data_dir / name, root / name)
        keys, files, heads = LogKeys(root / KEYS[0]), LogFiles(root / LOG), LogHeads(root / HEADS)
        for shard in shards:
            await asyncio.to_thread(_copy_log, services.log_files, root / LOG, shard)
            heads.keep(shard.site_id, shard.year, shard.checkpoint or b"")
        async for finding in Fsck(store, files, keys, heads).run():
            if finding.problems:
                raise BadEvidence(
                    f"backup: log {finding.site_id}/{finding.year}: {finding.problems[0]}; nothing was kept of the copy",
                    code="backup_damaged",
                    hint="compliance-agent server fsck",
                )
        return [await _counted(store, shard) for shard in shards]
    finally:
        await store.close()
        for names in (f"{DATABASE}?*", f"*/{TURNS}"):  # locks, and what SQLite leaves
            await asyncio.to_thread(_remove, root, names)


async def _database(services: Services, root: Path, told: Told) -> tuple[SqlStore, list[Shard]]:
    """The copied database, opened, with its logs; each of them is signed."""
    target = root / DATABASE
    unsigned = [""]
    for _ in range(TRIES):
        await _copy_database(services, target, told)
        store = await SqlStore.open(target)
        shards = await store.for_sites(await store.all_sites()).shards()
        unsigned = [shard.origin for shard in shards if shard.checkpoint is None]
        if not unsigned:
            return store, shards
        await store.close()
        await asyncio.to_thread(_remove, root, f"{DATABASE}*")
        await asyncio.sleep(TRY_AGAIN_S)
    raise BadEvidence(
        f"backup: log {unsigned[0]}: no checkpoint was signed yet",
        code="backup_damaged",
        hint="start the server, and see /readyz for why it does not sign",
    )


async def _copy_database(services: Services, target: Path, told: Told) -> None:
    """The database as it is at one moment, as a file of SQLite, whichever it is itself."""
    live = services.store.database if isinstance(services.store, SqlStore) else None
    if not isinstance(live, PostgresDatabase):
        await asyncio.to_thread(copy_database, services.settings.data_dir / DATABASE, target, told)
        return
    copy = await SqlStore.open(target)

    async def export(statements: Statements) -> None:
        read, count = copying.reading(statements), 0
        for table in tables.metadata.sorted_tables:
            tally, names = copying.Tally(table), tuple(column.name for column in table.columns)
            async for rows in copying.pages(read, table):
                tally.add(rows)
                values = [tuple(row) for row in rows]
                await copy.database.transaction(lambda one, v=values, t=table, n=names: one.insert(t, n, v))  # type: ignore[misc]
                count += len(rows)
                if told is not None:
                    told(count)
            if await copying.counted(copy.rows, table) != tally.done:
                raise BadEvidence(f"backup: {table.name}: was read back otherwise", code="backup_damaged")

    try:
        await live.snapshot(export)
    finally:
        await copy.close()


def _remove(root: Path, names: str) -> None:
    for left in root.glob(names):
        left.unlink()


async def _counted(store: SqlStore, shard: Shard) -> CopiedLog:
    first = await store.for_sites({shard.site_id}).first_without_record(shard.site_id, shard.year)
    durable = shard.checkpoint_size if first is None else min(first, shard.checkpoint_size)
    return CopiedLog(shard.site_id, shard.year, shard.origin, shard.checkpoint_size, durable)


def _copy_log(live: LogFiles, root: Path, shard: Shard) -> None:
    """The files of the tree that the copied database has signed, cut to that size where they have grown since."""
    site_id, year, copy = shard.site_id, shard.year, LogFiles(root)
    gone = live.pruned(site_id, year)
    if gone is not None:
        copy.prune(site_id, year, gone)
    for tile in written(0, shard.checkpoint_size):
        if gone is not None and gone.covers(tile):
            continue
        path = root / site_id / f"{year:04}" / tile.path
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        path.write_bytes(_cut(live.read(site_id, year, tile), tile))
        path.chmod(0o644)
    seen = live.published(site_id, year)
    note = shard.checkpoint or b""
    same = seen is not None and seen.split(b"\n\n", 1)[0] == note.split(b"\n\n", 1)[0]
    copy.publish(site_id, year, seen if same and seen is not None else note)  # with its cosignatures, where it has them


def _cut(content: bytes, tile: Tile) -> bytes:
    if tile.width == FULL:
        return content
    if tile.level != ENTRIES:
        return content[: tile.width * HASH_BYTES]
    try:
        decode_entries(content, tile.width)
    except BadEvidence:
        return encode_entries(decode_entries(content, FULL)[: tile.width])
    return content


def _copy_tree(source: Path, target: Path) -> None:
    for path in sorted(source.rglob("*")) if source.is_dir() else ():
        if path.is_file() and not path.is_symlink() and not path.name.startswith("."):
            copied = target / path.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            shutil.copyfile(path, copied)
            copied.chmod(path.stat().st_mode & 0o777)


def _seal(root: Path, out: Path, now: datetime, logs: list[CopiedLog]) -> Backup:
    """Write the manifest, make every file and every name durable, and give the whole its name."""
    paths = sorted(path for path in root.rglob("*") if path.is_file())
    sizes = [path.stat().st_size for path in paths]
    files = {
        path.relative_to(root).as_posix(): {"size": size, "sha256": digest_of(path)}
        for path, size in zip(paths, sizes, strict=True)
    }
    document = {
        "schema": SCHEMA,
        "made_at": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "version": __version__,
        "database_version": int(migration.HEAD),
        "logs": [asdict(item) for item in logs],
        "files": files,
    }
    (root / MANIFEST).write_text(json.dumps(document, sort_keys=True, indent=1) + "\n", encoding="utf-8")
    settle(root)
    root.rename(out)
    fsync_directory(out.parent)
    return Backup(now, len(files), sum(sizes), logs)


def settle(root: Path) -> None:
    """Fsync every file below, then every directory."""
    for path in root.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
    for path in [*(item for item in root.rglob("*") if item.is_dir()), root]:
        fsync_directory(path)


def digest_of(path: Path) -> str:
    """SHA-256 of a file of any size."""
    found = hashlib.sha256()
    for part in parts_of(path):
        found.update(part)
    return found.hexdigest()


def parts_of(path: Path) -> Iterator[bytes]:
    """A file's bytes, a part at a time."""
    with contextlib.closing(path.open("rb")) as file:
        while part := file.read(_CHUNK):
            yield part
