"""The restore drill: files are read back out of the last snapshot and compared byte for byte with what lies on the host.

    snapshots -> a sample of the host's own files that have not changed since -> `restic dump` of each -> SHA-256 of both
    a tenth of the repository's data is read and verified (`restic check --read-data-subset`), another tenth each week

Nothing is written to this host's disks but two records (`backup-check.json`, `backup-drill.json`: time, bytes, digest_ok) that the
`backup` check reads; no restored byte is, and no file's name leaves the host. A sample that is empty, a file that cannot be
read and a repository that is locked end in "could not tell", and leave no record.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime

from compliance_agent.checks.backup import Parameters, newest_snapshots, reach
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.ports import ChangingHost, Host

MOST_FILES = 20
MOST_FILE_BYTES = 8_388_608
MOST_LOOKED_AT = 2_000  # files and directories, so that a drill ends
PARTS = 10
CHECK_S, DUMP_S = 3_600.0, 120.0


@dataclass(frozen=True)
class _Sample:
    path: str
    snapshot: str
    size: int


async def drill_backup(host: ChangingHost, baseline: Parameters) -> None:
    """Check a part of the repository, restore a sample, and leave both records.

    Raises:
        CannotTell: neither good nor bad can be said; no record is left.
    """
    now = host.now()
    sound = await _check_part(host, baseline, now)
    await _leave(host, baseline, "check", now, 0, sound)
    sample = await _sample(host, baseline)
    if not sample:
        raise CannotTell(
            "not_found", "no file on this host is unchanged since the last snapshot, so there is nothing to compare"
        )
    same = [await _same(host, baseline, item) for item in sample]
    await _leave(host, baseline, "drill", now, sum(item.size for item in sample), all(same))


async def _check_part(host: ChangingHost, baseline: Parameters, now: datetime) -> bool:
    week = now.toordinal() // 7
    ran = await host.change(
        (*reach(baseline), "--no-cache", "check", f"--read-data-subset={week % PARTS + 1}/{PARTS}"), timeout_s=CHECK_S
    )
    if ran.exit_status == 0:
        return True
    said = ran.err.decode("utf-8", "replace").lower()
    if ran.exit_status in {10, 11, 12} or any(
        word in said for word in ("already locked", "wrong password", "repository at")
    ):
        raise CannotTell("tool_failed", "the repository could not be opened, or another program holds it")
    return False


async def _sample(host: Host, baseline: Parameters) -> list[_Sample]:
    """Files under the listed paths that are as old as the snapshot that holds them; spread over what was found."""
    found: list[_Sample] = []
    for path, (snapshot, time) in (await newest_snapshots(host, baseline)).items():
        found += await _unchanged(host, path, snapshot, time)
    step = max(1, len(found) // MOST_FILES)
    return found[::step][:MOST_FILES]


async def _unchanged(host: Host, top: str, snapshot: str, time: datetime) -> list[_Sample]:
    waiting, found, looked = [top], [], 0
    while waiting and looked < MOST_LOOKED_AT:
        path = waiting.pop()
        looked += 1
        info = await host.stat(path)
        if info.kind == "directory":
            waiting += [f"{path.rstrip('/')}/{name}" for name in reversed(await host.list(path))]
        elif info.kind == "file" and 0 < info.size_bytes <= MOST_FILE_BYTES and info.modified_at < time:
            found.append(_Sample(path, snapshot, info.size_bytes))
    return found


async def _same(host: Host, baseline: Parameters, item: _Sample) -> bool:
    limit = MOST_FILE_BYTES + 65_536
    own = await host.read(item.path, limit_bytes=limit)
    ran = await host.run(
        (*reach(baseline), "--no-lock", "--no-cache", "dump", item.snapshot, item.path),
        timeout_s=DUMP_S,
        limit_bytes=limit,
    )
    return ran.exit_status == 0 and hashlib.sha256(ran.out).digest() == hashlib.sha256(own).digest()


async def _leave(host: ChangingHost, baseline: Parameters, name: str, at: datetime, size: int, ok: bool) -> None:
    time = at.strftime("%Y-%m-%dT%H:%M:%SZ")
    document = {"time": time, "bytes": size, "digest_ok": ok}
    await host.write(f"{baseline.records}/backup-{name}.json", json.dumps(document).encode() + b"\n", mode=0o644)
