"""restic 0.14 (Debian 12): repositories with snapshots of the host's own files. Every failure ends with status 1."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from compliance_agent.lab.host import Call, FakeHost, Node, Unit, said
from compliance_agent.ports import Ran

REPOSITORY = "/srv/backup/restic"
PASSWORD_FILE = "/etc/msp/restic.password"  # noqa: S105 - a path
UNIT = "restic-backup.service"
TIMER = "restic-backup.timer"
SOURCES = ("/etc", "/srv/data")
RECORDS = "/var/lib/compliance-agent"


@dataclass
class Snapshot:
    """One snapshot, with the files as they were."""

    id: str
    time: datetime
    paths: tuple[str, ...]
    files: dict[str, bytes]
    tags: tuple[str, ...] = ()
    host: str = ""  # another host's name, in a repository that is shared


@dataclass
class Repository:
    """What lies at a repository's place."""

    password: str
    snapshots: list[Snapshot] = field(default_factory=list)
    damaged: bool = False
    locked: bool = False
    full: bool = False


@dataclass
class Repositories:
    """All repositories this host can reach, by place."""

    by_place: dict[str, Repository] = field(default_factory=dict)


def provide(host: FakeHost) -> None:
    """Have a repository with a week of nightly snapshots, and the unit that makes them."""
    host.install("restic")
    host.put("/srv/data/records.db", bytes(host.rng.randrange(256) for _ in range(512)), mode=0o640, age_s=30 * 86_400)
    host.put(PASSWORD_FILE, f"lab-{host.seed}\n", mode=0o600)
    host.place(REPOSITORY, Node("directory", mode=0o700, modified_at=host.now()))
    host.put(f"{REPOSITORY}/config", b"\0" * 155, mode=0o400)
    repository = Repository(f"lab-{host.seed}")
    host.part(Repositories).by_place[REPOSITORY] = repository
    for days in range(6, -1, -1):
        take(host, repository, SOURCES, at=host.now() - timedelta(days=days, hours=9))
    host.units_table[UNIT] = Unit(
        active=False, enabled="static", oneshot=True, can_start=lambda: nightly(host), started=lambda: _ended(host)
    )
    host.units_table[TIMER] = Unit()
    record(host, "check", days_ago=2)
    record(host, "drill", days_ago=30, size=1_048_576)


def record(host: FakeHost, name: str, *, days_ago: float, size: int = 512, good: bool = True) -> None:
    """What the weekly repository check or the restore drill left."""
    time = (host.now() - timedelta(days=days_ago)).isoformat(timespec="seconds").replace("+00:00", "Z")
    text = json.dumps({"time": time, "bytes": size, "digest_ok": good})
    host.put(f"{RECORDS}/backup-{name}.json", text, age_s=days_ago * 86_400)


def _ended(host: FakeHost) -> None:
    """A backup unit is inactive again once it is done."""
    host.units_table[UNIT].active = False


def nightly(host: FakeHost) -> bool:
    """What the backup unit does; False when it fails."""
    repository = host.part(Repositories).by_place.get(REPOSITORY)
    if repository is None or repository.full or repository.locked:
        return False
    take(host, repository, SOURCES)
    return True


def take(
    host: FakeHost,
    repository: Repository,
    paths: tuple[str, ...],
    *,
    at: datetime | None = None,
    tags: tuple[str, ...] = (),
) -> Snapshot:
    """Put a snapshot of these paths into the repository."""
    time = at or host.now()
    files = {
        name: node.content
        for name, node in host.files.items()
        if node.kind == "file" and any(name == path or name.startswith(f"{path}/") for path in paths)
    }
    identity = f"{host.boot_id} {time.isoformat()} {len(repository.snapshots)}"
    snapshot = Snapshot(hashlib.sha256(identity.encode()).hexdigest(), time, paths, files, tags)
    repository.snapshots.append(snapshot)
    return snapshot


@dataclass(frozen=True)
class _Asked:
    """The command line, taken apart."""

    command: str
    words: tuple[str, ...]
    options: dict[str, str]
    place: str
    password_file: str


def _asked(call: Call) -> _Asked:
    with_value = {"-r", "--repo", "-p", "--password-file", "--tag", "--host", "--path", "--target", "-t", "--include"}
    with_value |= {"--latest", "--cache-dir", "--read-data-subset", "-n", "--mode", "-H"}
    rest, words, options = list(call.argv[1:]), [], {}
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            words.append(word)
        elif name in with_value and not has_value and rest:
            options[name] = rest.pop(0)
        else:
            options[name] = value
    place = options.get("-r", options.get("--repo", call.env.get("RESTIC_REPOSITORY", "")))
    secret = options.get("-p", options.get("--password-file", call.env.get("RESTIC_PASSWORD_FILE", "")))
    return _Asked(words[0] if words else "", tuple(words[1:]), options, place.removeprefix("local:"), secret)


def restic(call: Call) -> Ran:
    """`restic version | snapshots | check | stats | backup | restore | dump | list locks | unlock`."""
    asked = _asked(call)
    if asked.command == "version":
        return said("restic 0.14.0 compiled with go1.19.8 on linux/amd64\n")
    answer = _open(call.host, asked)
    if isinstance(answer, Ran):
        return answer
    if answer.locked and asked.command in {"backup", "check"} and "--no-lock" not in asked.options:
        return _fatal("unable to create lock in backend: repository is already locked by PID 4242 on clinic by root")
    commands = {"snapshots": _snapshots, "check": _check, "stats": _stats, "backup": _backup, "restore": _restore}
    commands |= {"dump": _dump, "unlock": _unlock, "list": _list, "cat": _cat}
    if asked.command not in commands:
        return said("", 1, err=f'unknown command "{asked.command}" for "restic"\n')
    return commands[asked.command](call, asked, answer)


def _fatal(text: str, out: str = "") -> Ran:
    return said(out, 1, err=f"Fatal: {text}\n")


def _open(host: FakeHost, asked: _Asked) -> Repository | Ran:
    if not asked.place:
        return _fatal("Please specify repository location (-r or --repository-file)")
    node = host.files.get(asked.password_file)
    if node is None or host.uid not in {0, node.uid}:
        return _fatal(f"Resolving password failed: {asked.password_file} does not exist")
    repository = host.part(Repositories).by_place.get(asked.place)
    if repository is None or (host.uid != 0 and host.uid != host.files[asked.place].uid):
        question = f"Is there a repository at the following location?\n{asked.place}"
        missing = "permission denied" if repository else "no such file or directory"
        return _fatal(f"unable to open config file: stat {asked.place}/config: {missing}\n{question}")
    if node.content.decode("utf-8", "replace").strip() != repository.password:
        return _fatal("wrong password or no key found")
    return repository


def _chosen(host: FakeHost, asked: _Asked, repository: Repository) -> list[Snapshot]:
    found = list(repository.snapshots)
    if tag := asked.options.get("--tag"):
        found = [snapshot for snapshot in found if tag in snapshot.tags]
    if path := asked.options.get("--path"):
        found = [snapshot for snapshot in found if path in snapshot.paths]
    if wanted := asked.options.get("--host", asked.options.get("-H")):
        found = [snapshot for snapshot in found if (snapshot.host or f"clinic-{host.seed}") == wanted]
    if latest := asked.options.get("--latest"):
        groups: dict[tuple[str, ...], list[Snapshot]] = {}
        for snapshot in found:
            groups.setdefault((snapshot.host, *snapshot.paths), []).append(snapshot)
        found = [snapshot for group in groups.values() for snapshot in group[-int(latest) :]]
    if asked.words and asked.words[0] != "latest" and asked.command == "snapshots":
        found = [snapshot for snapshot in found if snapshot.id.startswith(asked.words)]
    return found


def _snapshots(call: Call, asked: _Asked, repository: Repository) -> Ran:
    rows: list[dict[str, Any]] = []
    for number, snapshot in enumerate(_chosen(call.host, asked, repository)):
        row: dict[str, Any] = {"time": snapshot.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f123Z")}
        if number:
            row["parent"] = repository.snapshots[number - 1].id
        row |= {"tree": hashlib.sha256(snapshot.id.encode()).hexdigest(), "paths": list(snapshot.paths)}
        row |= {"hostname": snapshot.host or f"clinic-{call.host.seed}", "username": "root"}
        row |= {"tags": list(snapshot.tags)} if snapshot.tags else {}
        rows.append(row | {"id": snapshot.id, "short_id": snapshot.id[:8]})
    if "--json" in asked.options:
        return said(json.dumps(rows) + "\n")
    return said("".join(f"{row['short_id']}  {row['time'][:19]}  {row['paths'][0]}\n" for row in rows))


def _check(call: Call, asked: _Asked, repository: Repository) -> Ran:
    out = "using temporary cache in /tmp/restic-check-cache-1\ncreate exclusive lock for repository\nload indexes\n"
    out += "check all packs\ncheck snapshots, trees and blobs\n"
    if repository.damaged:
        return said(out, 1, err=f"pack {'13d090bb' * 8}: does not exist\nFatal: repository contains errors\n")
    return said(out + "[0:00] 100.00%  1 / 1 snapshots\n\nno errors were found\n")


def _stats(call: Call, asked: _Asked, repository: Repository) -> Ran:
    files = [content for snapshot in repository.snapshots for content in snapshot.files.values()]
    row = {"total_size": sum(map(len, files)), "total_file_count": len(files)}
    return said(json.dumps(row | {"snapshots_count": len(repository.snapshots)}) + "\n")


def _backup(call: Call, asked: _Asked, repository: Repository) -> Ran:
    call.alters()
    if repository.full:
        return _fatal("unable to save snapshot: write: no space left on device")
    tags = tuple(filter(None, (asked.options.get("--tag", ""),)))
    snapshot = take(call.host, repository, asked.words, tags=tags)
    summary = {"message_type": "summary", "files_new": len(snapshot.files), "snapshot_id": snapshot.id[:8]}
    return said(json.dumps(summary) + "\n" if "--json" in asked.options else f"snapshot {snapshot.id[:8]} saved\n")


def _one(asked: _Asked, repository: Repository) -> Snapshot | None:
    wanted = asked.words[0] if asked.words else ""
    known = repository.snapshots
    if wanted == "latest":
        return known[-1] if known else None
    return next((snapshot for snapshot in known if wanted and snapshot.id.startswith(wanted)), None)


def _restore(call: Call, asked: _Asked, repository: Repository) -> Ran:
    call.alters()
    snapshot, target = _one(asked, repository), asked.options.get("--target", asked.options.get("-t", ""))
    if snapshot is None or not target:
        return _fatal(
            "no snapshot found" if snapshot is None else "please specify a directory to restore to (--target)"
        )
    if repository.damaged:
        return said("", 1, err="ignoring error: load pack: does not exist\nFatal: There were 1 errors\n")
    wanted = asked.options.get("--include", "")
    for path, content in snapshot.files.items():
        if path.startswith(wanted):
            call.host.put(target.rstrip("/") + path, content, mode=0o600)
    return said(f"restoring <Snapshot {snapshot.id[:8]} of {list(snapshot.paths)}> to {target}\n")


def _dump(call: Call, asked: _Asked, repository: Repository) -> Ran:
    snapshot = _one(asked, repository)
    content = snapshot.files.get(asked.words[1]) if snapshot and asked.words[1:] else None
    if content is None:
        return _fatal("cannot dump file: path not found in snapshot")
    return _fatal("cannot dump file: pack does not exist") if repository.damaged else Ran(0, content, b"")


def _unlock(call: Call, asked: _Asked, repository: Repository) -> Ran:
    call.alters()
    repository.locked = False
    return said("successfully removed locks\n")


def _list(call: Call, asked: _Asked, repository: Repository) -> Ran:
    if asked.words[:1] == ("locks",):
        return said(f"{'ab' * 32}\n" if repository.locked else "")
    return said("".join(f"{snapshot.id}\n" for snapshot in repository.snapshots))


def _cat(call: Call, asked: _Asked, repository: Repository) -> Ran:
    identity = hashlib.sha256(asked.place.encode()).hexdigest()
    return said(json.dumps({"version": 2, "id": identity, "chunker_polynomial": "3f3f3f3f3f3f3f"}, indent=2) + "\n")


PROGRAMS = {"restic": restic}
