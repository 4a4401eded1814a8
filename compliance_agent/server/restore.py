"""A backup put back into a data directory, after every byte of it was held against its manifest.

What was signed after the backup must never be signed another way, so whatever the directory still knows of that stays: of each
log the newer checkpoint, in `heads/` and in `log/`, and the tiles under it. A database that is there is set aside, never
removed. The database is put in place last: a restore that was interrupted leaves a directory whose server signs nothing
(`log_restored`), and is simply done again.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from compliance_agent.adapters.durable import fsync_directory, make_directory, read_file, storage_error, write_file
from compliance_agent.documents import read_json
from compliance_agent.entries.minimum import NAME as MINIMUM
from compliance_agent.errors import BadEvidence, DocumentError, LogStopped, NoInput, NotPermitted
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import Tile
from compliance_agent.server.backup import DATABASE, HEADS, LOG, MANIFEST, SCHEMA, digest_of, parts_of
from compliance_agent.server.blobs import Directory
from compliance_agent.server.log_files import LogFiles
from compliance_agent.server.log_heads import LogHeads
from compliance_agent.server.log_keys import LogKeys
from compliance_agent.server.opening import only_server

MAX_MANIFEST_BYTES = 256 << 20
SIGNERS = ("keys/ack.pem", "keys/log.pem")  # a server is known by these
_LIMIT = 64 << 20

Told = Callable[[int], None] | None


@dataclass(frozen=True)
class RestoredLog:
    """One log: entries in the database that was put back, and entries that are known to have been signed."""

    site_id: str
    year: int
    size: int
    signed: int


@dataclass(frozen=True)
class Restored:
    """What was put back, and under which name the database that was there stands now."""

    made_at: str
    files: int
    set_aside: str | None
    logs: list[RestoredLog]


def restore(
    backup: Path,
    data_dir: Path,
    *,
    force: bool = False,
    told: Told = None,
    places: Callable[[], tuple[LogFiles, LogHeads]] | None = None,
) -> Restored:
    """Verify the backup, then put it into `data_dir`, and its logs into `places` where those are elsewhere.

    Raises:
        BadEvidence: the backup is not what its manifest says; nothing was changed.
        NotPermitted: the directory holds something and `force` was not given, or is of a server with other keys.
        LogStopped: the directory knows of another history; nothing was changed.
        StorageError: it could not be written, or a server runs there.
    """
    manifest = verified(backup, told)
    if data_dir.exists() and any(data_dir.iterdir()) and not force:
        raise NotPermitted(
            f"{data_dir}: is not empty",
            hint="--force puts the backup into it; what was signed since stays, its database is set aside",
        )
    make_directory(data_dir)
    with only_server(data_dir):
        _same_server(backup, data_dir)
        files, kept = places() if places is not None else (LogFiles(data_dir / LOG), LogHeads(data_dir / HEADS))
        heads = _newest(backup, files, kept, manifest["logs"])
        try:
            _put_logs(backup, files, kept, manifest, heads)
            aside = _put_back(backup, data_dir, manifest)
        except OSError as error:
            raise storage_error(error, f"restoring {data_dir}") from error
    signed = {place: checkpoint.size for place, (_, checkpoint) in heads.items()}
    logs = [
        RestoredLog(item["site_id"], item["year"], item["size"], signed[item["site_id"], item["year"]])
        for item in manifest["logs"]
    ]
    return Restored(manifest["made_at"], len(manifest["files"]), aside, logs)


def verified(backup: Path, told: Told = None) -> dict[str, Any]:
    """The manifest of a backup whose every file is as it says, and which holds no other.

    Raises:
        NoInput: there is no manifest.
        BadEvidence: names the first file that is not right.
    """
    try:
        manifest = read_json(
            read_file(backup / MANIFEST, limit_bytes=MAX_MANIFEST_BYTES), limit_bytes=MAX_MANIFEST_BYTES
        )
        if manifest["schema"] != SCHEMA:
            raise BadEvidence(f"{backup / MANIFEST}: of another schema than {SCHEMA}", code="bad_manifest")
        wanted = {str(name): (int(item["size"]), str(item["sha256"])) for name, item in manifest["files"].items()}
        [(item["site_id"], item["year"], item["size"], item["origin"]) for item in manifest["logs"]]
    except (DocumentError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise BadEvidence(f"{backup / MANIFEST}: not a manifest of a backup", code="bad_manifest") from error
    for name in wanted:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or name.startswith("/") or PurePosixPath(*parts).as_posix() != name:
            raise BadEvidence("manifest: names a file outside the backup", code="bad_manifest")
        if parts[0] == LOG and not (len(parts) > 3 and re.fullmatch("[0-9]{4}", parts[2], re.ASCII)):
            raise BadEvidence(f"manifest: {name} is no file of a log", code="bad_manifest")
    found = {
        path.relative_to(backup).as_posix() for path in backup.rglob("*") if path.is_symlink() or not path.is_dir()
    }
    for name in sorted((wanted.keys() | {MANIFEST}) ^ found):
        state = "missing" if name in wanted else "not in the manifest"
        raise BadEvidence(f"{backup / name}: {state}; nothing was restored", code="backup_damaged")
    for number, (name, (size, sha256)) in enumerate(sorted(wanted.items()), 1):
        path = backup / name
        if path.is_symlink() or path.stat().st_size != size or digest_of(path) != sha256:
            raise BadEvidence(f"{path}: not what was backed up; nothing was restored", code="backup_damaged")
        if told is not None:
            told(number)
    for name in (DATABASE, *SIGNERS):
        if name not in wanted:
            raise BadEvidence(f"{backup / name}: missing; nothing was restored", code="backup_damaged")
    return dict(manifest)


def _same_server(backup: Path, data_dir: Path) -> None:
    """Two servers' histories must not be mixed."""
    for name in SIGNERS:
        there = data_dir / name
        if there.exists() and digest_of(there) != digest_of(backup / name):
            raise NotPermitted(
                f"{there}: not the key of the server that was backed up; nothing was restored",
                hint="restore into an empty directory",
            )


Place = tuple[str, int]
Heads = dict[Place, tuple[bytes, Checkpoint]]


def _newest(backup: Path, files: LogFiles, kept: LogHeads, logs: list[dict[str, Any]]) -> Heads:
    """The largest checkpoint of each log that the backup knows or what is there, verified."""
    keys, found = LogKeys(backup / "keys"), Heads()
    for item in logs:
        place, origin = (item["site_id"], item["year"]), item["origin"]
        for served, ever in ((LogFiles(backup / LOG), LogHeads(backup / HEADS)), (files, kept)):
            for note in (ever.get(*place), served.published(*place)):
                if note is None:
                    continue
                seen = _checkpoint(keys, origin, note)
                best = found.get(place)
                if best is not None and best[1].size == seen.size and best[1].root != seen.root:
                    raise LogStopped(
                        f"log {origin}: backup and directory hold two roots of {seen.size} entries; nothing was restored",
                        code="log_forked",
                    )
                if best is None or seen.size > best[1].size:
                    found[place] = note, seen
    return found


def _checkpoint(keys: LogKeys, origin: str, note: bytes) -> Checkpoint:
    try:
        parsed = Note.parse(note)
        parsed.verify([keys.verifier(origin)])
        checkpoint = Checkpoint.parse(parsed.text)
    except (BadEvidence, NoInput) as error:
        raise LogStopped(f"log {origin}: {error}; nothing was restored", code="checkpoint_unusable") from error
    if checkpoint.origin != origin:
        raise LogStopped(
            f"log {origin}: checkpoint is of another log; nothing was restored", code="checkpoint_unusable"
        )
    return checkpoint


def _put_logs(backup: Path, files: LogFiles, kept: LogHeads, manifest: dict[str, Any], heads: Heads) -> None:
    for (site_id, year), (note, _) in sorted(heads.items()):
        kept.keep(site_id, year, note)
    checkpoints = []
    for name in sorted(name for name in manifest["files"] if name.startswith(f"{LOG}/")):
        _, site_id, year, path = name.split("/", 3)
        if path == "checkpoint":
            checkpoints.append((site_id, int(year), backup / name))
        elif isinstance(files.blobs, Directory):
            _copy(backup / name, files.blobs.root / site_id / year / path)  # a tile has these bytes, or is damaged
        elif path == MINIMUM:
            files.blobs.create(f"{site_id}/{year}/{path}", (backup / name).read_bytes())
        else:
            files.put(site_id, int(year), Tile.parse(path), (backup / name).read_bytes())
    for site_id, number, source in checkpoints:  # after the tiles under it
        if not _is_newer(files.published(site_id, number), source.read_bytes()):
            files.publish(site_id, number, source.read_bytes())


def _put_back(backup: Path, data_dir: Path, manifest: dict[str, Any]) -> str | None:
    for name in sorted(manifest["files"]):
        if name != DATABASE and not name.startswith((f"{HEADS}/", f"{LOG}/")) and not (data_dir / name).exists():
            _copy(backup / name, data_dir / name)
    aside = _set_aside(data_dir)
    _copy_database(backup / DATABASE, data_dir / DATABASE, manifest["files"][DATABASE]["sha256"])
    return aside


def _is_newer(there: bytes | None, backed_up: bytes) -> bool:
    """Whether the checkpoint that is there covers as much as the other at least; both were verified."""
    if there is None:
        return False
    first, second = (Checkpoint.parse(Note.parse(note).text) for note in (there, backed_up))
    return first.size >= second.size


def _copy(source: Path, target: Path) -> None:
    content = read_file(source, limit_bytes=_LIMIT)
    if target.exists() and target.read_bytes() == content:
        return
    public = source.stat().st_mode & 0o777
    make_directory(target.parent, 0o755 if public & 0o044 else 0o700)
    write_file(target, content, public)


def _set_aside(data_dir: Path) -> str | None:
    """Keep the database that is there, with its write-ahead log, under a name of its own; that name."""
    if not (data_dir / DATABASE).exists():
        return None
    number = 1
    while os.path.lexists(data_dir / f"before-restore-{number}.db"):
        number += 1
    name = f"before-restore-{number}.db"
    there = [suffix for suffix in ("", "-wal", "-shm") if (data_dir / f"{DATABASE}{suffix}").exists()]
    for suffix in there:  # a second name for each first: whatever happens next, the set is whole under the new one
        os.link(data_dir / f"{DATABASE}{suffix}", data_dir / f"{name}{suffix}")
    fsync_directory(data_dir)
    for suffix in there[1:]:  # a write-ahead log must never meet another database
        (data_dir / f"{DATABASE}{suffix}").unlink()
    fsync_directory(data_dir)
    return name


def _copy_database(source: Path, target: Path, sha256: str) -> None:
    temporary, found = target.with_name(f".{target.name}.{os.getpid()}.tmp"), hashlib.sha256()
    with temporary.open("wb") as file:
        temporary.chmod(0o600)
        for part in parts_of(source):
            file.write(part)
            found.update(part)
        file.flush()
        os.fsync(file.fileno())
    if found.hexdigest() != sha256:
        temporary.unlink()
        raise BadEvidence(f"{source}: changed while it was read", code="backup_damaged")
    temporary.rename(target)
    fsync_directory(target.parent)
