"""The files of the host's key while one gives way to another: the one that signs, the next one, the former one.

    <key>            signs
    <key>.next       made and durable before any statement about it leaves; becomes <key> once the database says so
    <key>.former     kept until the server has said that it knows the new one; then removed

The database decides which key the chain is signed with; after a stop at any point `settle` brings the files in line with it.
Removing a file makes the key unusable to whoever has this file system; what a disk keeps of deleted blocks is the disk's own.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.durable import fsync_directory, remove_file, storage_error
from compliance_agent.crypto import Ed25519Signer


def next_path(path: Path) -> Path:
    """Where the next key stands until it signs."""
    return path.with_name(f"{path.name}.next")


def former_path(path: Path) -> Path:
    """Where the former key stands until the server knows the new one."""
    return path.with_name(f"{path.name}.former")


def settle(path: Path, key_id: str | None) -> None:
    """Have the key with which the chain is signed stand at `path`, if it is the next one that has become it.

    Args:
        path: of the key that signs.
        key_id: of the key the database names; None when it names none yet.

    Raises:
        ConfigError: a key file cannot be used.
        StorageError: a file could not be moved.
    """
    coming = next_path(path)
    if key_id is None or not coming.exists() or Ed25519Signer(coming).key_id != key_id:
        return
    if path.exists() and Ed25519Signer(path).key_id != key_id:
        _move(path, former_path(path))
    _move(coming, path)


def forget_former(path: Path) -> None:
    """Remove the former key, durably."""
    remove_file(former_path(path))


def chain_key(database: Database) -> str | None:
    """Id of the key with which the chain in this database is signed; None before the first record."""

    def read(connection: sqlite3.Connection) -> str | None:
        known = connection.execute("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'chain'").fetchone()
        row = connection.execute("SELECT key_id FROM chain").fetchone() if known else None
        return str(row[0]) if row else None

    return database.read(read)


def _move(path: Path, to: Path) -> None:
    try:
        path.rename(to)
        fsync_directory(path.parent)
    except OSError as error:
        raise storage_error(error, f"moving {path}") from error
