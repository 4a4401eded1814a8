"""A recent snapshot holds every listed path, the repository was checked, and a restore has been proven.

The repository is asked, not a log: `restic snapshots`, without a lock and without a cache, so that looking changes nothing.
Reading all data back takes hours, so the check of the repository and the restore drill run by their own timers and leave
a record each (`backup-check.json`, `backup-drill.json`: time, bytes, digest_ok); a record that is not there was not earned.
A repository that is locked, missing or closed to us is `unknown`: it may hold a fine backup or none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from datetime import datetime, timedelta

from compliance_agent.checks.spec import UNREADABLE, Case, CheckSpec, Citation, failed, passed, unknown
from compliance_agent.checks.units import UNIT, unit_word
from compliance_agent.core.tools import answered, json_answer, refused, unparsable
from compliance_agent.dataclass import dataclass
from compliance_agent.errors import CannotTell
from compliance_agent.facts import TIMESTAMP, Bool, Choice, Int, Many, Name, Version, fact
from compliance_agent.models import Plan, Result, Severity, Step, Verdict
from compliance_agent.ports import Host, Ran

CLOCK_TOLERANCE = timedelta(minutes=10)
_CREDENTIALS = re.compile(r"://[^/]*@")
_VERSION = re.compile(
    r"restic ([0-9]{1,4}\.[0-9]{1,4}\.[0-9]{1,4})(?:-\S+)?(?: \([^)]*\))? compiled with go\S+ on [a-z0-9]+/[a-z0-9]+"
)
_ID = re.compile(r"[0-9a-f]{8,64}")
_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)", re.ASCII)
_EXIT_CODES = {10: "missing", 11: "locked", 12: "wrong_password"}  # restic 0.17 and later
_MESSAGES = (  # restic before 0.17 ends with 1 and says why
    ("wrong password or no key found", "wrong_password"),
    ("already locked", "locked"),
    ("is there a repository at the following location", "missing"),
)


@dataclass(frozen=True)
class Parameters:
    repository: str = field(metadata={"doc": "Where restic keeps it; credentials do not belong in it."})
    password_file: str = field(metadata={"doc": "File that holds the repository's password."})
    paths: tuple[str, ...] = field(metadata={"doc": "Directories that every backup must hold."})
    snapshot_host: str | None = field(
        default=None, metadata={"doc": "Host name in the snapshots, where a repository is shared."}
    )
    max_age_h: int = field(default=26, metadata={"doc": "Age in hours at which the last snapshot is too old."})
    check_max_age_d: int = field(default=8, metadata={"doc": "Age in days at which the repository check is too old."})
    drill_max_age_d: int = field(default=90, metadata={"doc": "Age in days at which the restore drill is too old."})
    unit: str = field(default="restic-backup.service", metadata={"doc": "Unit that takes a backup.", "unit": "needed"})
    timer: str = field(default="restic-backup.timer", metadata={"doc": "Timer that starts it.", "unit": "needed"})
    records: str = field(
        default="/var/lib/compliance-agent", metadata={"doc": "Directory of the records of check and drill."}
    )

    def __post_init__(self) -> None:
        if _CREDENTIALS.search(self.repository):
            raise ValueError("repository: must hold no credentials; the process list shows them to every user")
        if not self.paths or not all(path.startswith("/") for path in self.paths):
            raise ValueError("paths: expected at least one absolute path; a backup of nothing proves nothing")
        for name, high in (("max_age_h", 8_760), ("check_max_age_d", 3_650), ("drill_max_age_d", 3_650)):
            if not 1 <= getattr(self, name) <= high:
                raise ValueError(f"{name}: expected 1 to {high}")
        if not self.unit.endswith(".service") or not self.timer.endswith(".timer"):
            raise ValueError("unit, timer: expected names that end in .service and .timer")


@dataclass(frozen=True)
class Observation:
    restic_version: str | None = fact(Version(), "Version of restic.")
    repository: str | None = fact(
        Choice(("read", "locked", "wrong_password", "missing", "failed")), "How asking the repository ended."
    )
    snapshots: int | None = fact(Int(0, 1_000_000), "Latest snapshots that were looked at.")
    hosts: int | None = fact(Int(0, 1_000_000), "Hosts that these snapshots name.")
    from_future: bool | None = fact(Bool(), "A snapshot is dated later than now.")
    paths_missing: tuple[str, ...] | None = fact(Many(Name("paths")), "Listed paths that no snapshot holds.")
    age_h: int | None = fact(
        Int(0, 1_000_000), "Age of the newest snapshot of the listed path that is worst off, hours."
    )
    check_age_d: int | None = fact(Int(0, 100_000), "Age of the last check of the repository, full days.")
    check_ok: bool | None = fact(Bool(), "That check found the repository sound.")
    drill_age_d: int | None = fact(Int(0, 100_000), "Age of the last restore drill, full days.")
    drill_ok: bool | None = fact(Bool(), "What the drill restored was the same as what had been saved.")
    drill_bytes: int | None = fact(Int(0, 2**53 - 1), "How much the drill restored.")
    unit: str | None = fact(UNIT, "State of the unit that takes a backup.")
    timer: str | None = fact(UNIT, "State of its timer.")


CHECK = CheckSpec(
    id="backup",
    title="A recent backup exists and has been restored from",
    severity=Severity.CRITICAL,
    rationale="Records that are lost or encrypted by an attacker come back only from a backup that is known to work.",
    citations=(
        Citation(
            "164.308(a)(7)(ii)(A)",
            "The age and content of the last snapshot show that retrievable copies are being made.",
            "That the listed paths are all that holds patient records.",
            primary=True,
        ),
        Citation(
            "164.308(a)(7)(ii)(D)",
            "The record of a restore drill shows that the plan is tested, when, and with what result.",
            "That the contingency plan is revised after tests, or that people were part of them.",
        ),
        Citation(
            "164.308(a)(7)(ii)(B)",
            "A drill that restored the same bytes shows that lost data can be restored.",
            "That a whole host or site can be restored in the time the clinic needs.",
        ),
    ),
    parameters=Parameters,
    observation=Observation,
    reasons={
        "repository_locked": "Another program holds the repository exclusively.",
        "repository_missing": "There is no repository at the place the baseline names.",
        "wrong_password": "The password file does not open the repository.",
        "several_hosts": "Snapshots of several hosts are there, and the baseline does not say which is this one.",
        "snapshot_missing": "There is no snapshot.",
        "path_missing": "No snapshot holds one of the listed paths.",
        "snapshot_too_old": "The last snapshot of a listed path is too old.",
        "snapshot_from_future": "A snapshot is dated later than now, so ages cannot be relied on.",
        "last_run_failed": "The unit that takes a backup failed when it last ran.",
        "unit_missing": "The unit that takes a backup does not exist or is masked.",
        "timer_not_active": "The timer that starts backups does not run.",
        "never_checked": "The repository has never been checked.",
        "check_failed": "The last check found the repository damaged.",
        "check_too_old": "The last check of the repository is too long ago.",
        "drill_missing": "No restore has been proven.",
        "drill_failed": "What the last drill restored was not what had been saved.",
        "drill_too_old": "The last restore drill is too long ago.",
    },
    example={
        "repository": "/srv/backup/restic",
        "password_file": "/etc/msp/restic.password",
        "paths": ("/srv/data",),
    },
    # A clinic that has never restored anything must still get its nightly backup back when that has stopped.
    for_people=("never_checked", "check_failed", "check_too_old", "drill_missing", "drill_failed", "drill_too_old"),
    needs=("restic", "systemd"),
    reads=("unit:{unit}", "unit:{timer}", "path:{records}/backup-check.json", "path:{records}/backup-drill.json"),
    optional={"unit:* strange_unit_3_restic-backup.service": "a backup that runs at this moment is no fault"},
    interval_s=900,
    deadline_s=60.0,
)


async def observe(host: Host, baseline: Parameters) -> Observation:
    version = _version(await host.run(("restic", "version")))
    units = await host.units((baseline.unit, baseline.timer))
    check = await _record(host, f"{baseline.records}/backup-check.json")
    drill = await _record(host, f"{baseline.records}/backup-drill.json")
    ran = await host.run(_command(baseline), timeout_s=45.0)
    outcome = "read" if ran.exit_status == 0 else _refusal(ran)
    seen = Observation(
        restic_version=version,
        repository=outcome,
        check_age_d=_age(host.now(), check).days if check else None,
        check_ok=check.ok if check else None,
        drill_age_d=_age(host.now(), drill).days if drill else None,
        drill_ok=drill.ok if drill else None,
        drill_bytes=drill.bytes if drill else None,
        unit=unit_word(units[baseline.unit]),
        timer=unit_word(units[baseline.timer]),
    )
    return _with_snapshots(seen, _snapshots(ran.out), baseline, host.now()) if outcome == "read" else seen


def reach(baseline: Parameters) -> tuple[str, ...]:
    """How restic is called on the repository of the baseline."""
    return ("restic", "--repo", baseline.repository, "--password-file", baseline.password_file)


def _command(baseline: Parameters) -> tuple[str, ...]:
    own = () if baseline.snapshot_host is None else ("--host", baseline.snapshot_host)
    return (*reach(baseline), "--no-lock", "--no-cache", "snapshots", "--json", "--latest", "1", *own)


async def newest_snapshots(host: Host, baseline: Parameters) -> dict[str, tuple[str, datetime]]:
    """For each listed path the newest snapshot that holds it: its id, and when it was taken.

    Raises:
        CannotTell: the repository could not be read, or a path is in no snapshot of this host alone.
    """
    ran = await host.run(_command(baseline), timeout_s=45.0)
    if ran.exit_status != 0:
        raise CannotTell("tool_failed", f"restic could not list the snapshots ({_refusal(ran)})")
    snapshots = _snapshots(ran.out)
    if len({snapshot.host for snapshot in snapshots}) > 1:
        raise CannotTell("tool_failed", "snapshots of several hosts, and the baseline names none")
    found = {}
    for path in baseline.paths:
        holding = [snapshot for snapshot in snapshots if any(_holds(saved, path) for saved in snapshot.paths)]
        if not holding:
            raise CannotTell("not_found", "a listed path is in no snapshot")
        newest = max(holding, key=lambda snapshot: snapshot.time)
        found[path] = (newest.id, newest.time)
    return found


def _version(ran: Ran) -> str:
    found = _VERSION.fullmatch(answered(ran, "restic version").text.strip())
    if found is None:
        raise unparsable("restic version", "restic, a version and how it was built")
    return found[1]


def _refusal(ran: Ran) -> str:
    """Why restic could not read the repository.

    Raises:
        CannotTell: `not_permitted`.
    """
    if ran.exit_status in _EXIT_CODES:
        return _EXIT_CODES[ran.exit_status]
    said = ran.err.decode("utf-8", "replace").lower()
    for message, outcome in _MESSAGES:
        if message in said:
            return outcome
    if refused(ran):
        raise CannotTell("not_permitted", "restic may not read the repository or its password file")
    return "failed"


@dataclass(frozen=True)
class _Snapshot:
    id: str
    time: datetime
    paths: tuple[str, ...]
    host: str


@dataclass(frozen=True)
class _Record:
    time: datetime
    bytes: int
    ok: bool


def _snapshots(raw: bytes) -> tuple[_Snapshot, ...]:
    """The latest snapshot of each host and set of paths.

    Raises:
        CannotTell: `unparsable`.
    """
    document = json_answer(raw, "restic snapshots")
    if not isinstance(document, list):
        raise unparsable("restic snapshots", "a list")
    found = []
    for item in document:
        match item:
            case {"id": str(id_), "time": str(time), "paths": [*paths], "hostname": str(name)} if _ID.fullmatch(
                id_
            ) and all(isinstance(p, str) for p in paths):
                found.append(_Snapshot(id_, _moment(time), tuple(paths), name))
            case _:
                raise unparsable("restic snapshots", "id, time, paths and hostname")
    return tuple(found)


def _moment(text: str) -> datetime:
    """A time as Go writes it: up to nine decimals, any zone.

    Raises:
        CannotTell: `unparsable`.
    """
    found = _TIME.fullmatch(text)
    try:
        if found:
            return datetime.fromisoformat(f"{found[1]}{(found[2] or '')[:7]}{found[3]}")
    except ValueError:
        pass
    raise unparsable("restic snapshots", "an RFC 3339 time")


def _with_snapshots(
    seen: Observation, snapshots: Sequence[_Snapshot], baseline: Parameters, now: datetime
) -> Observation:
    newest: dict[str, datetime] = {}
    for path in baseline.paths:
        holding = [snapshot.time for snapshot in snapshots if any(_holds(saved, path) for saved in snapshot.paths)]
        if holding:
            newest[path] = max(holding)
    return replace(
        seen,
        snapshots=len(snapshots),
        hosts=len({snapshot.host for snapshot in snapshots}),
        from_future=any(snapshot.time > now + CLOCK_TOLERANCE for snapshot in snapshots),
        paths_missing=tuple(path for path in baseline.paths if path not in newest),
        age_h=max(0, int((now - min(newest.values())).total_seconds() // 3_600)) if newest else None,
    )


def _holds(saved: str, path: str) -> bool:
    return path == saved or path.startswith(saved.rstrip("/") + "/")


async def _record(host: Host, path: str) -> _Record | None:
    """What a check or drill left; None when there never was one.

    Raises:
        CannotTell: it is there and cannot be read.
    """
    try:
        raw = await host.read(path, limit_bytes=4_096)
    except CannotTell as error:
        if error.reason == "not_found":
            return None
        raise
    document = json_answer(raw, "record")
    if not isinstance(document, dict) or set(document) != {"time", "bytes", "digest_ok"}:
        raise unparsable("record", "time, bytes and digest_ok")
    time, size, ok = document["time"], document["bytes"], document["digest_ok"]
    if not isinstance(time, str) or not TIMESTAMP.fullmatch(time) or type(size) is not int or type(ok) is not bool:
        raise unparsable("record", "a time, a number and a truth")
    return _Record(_moment(time), size, ok)


def _age(now: datetime, record: _Record) -> timedelta:
    """Age of a record.

    Raises:
        CannotTell: `unparsable`; it is dated later than now.
    """
    if record.time > now + CLOCK_TOLERANCE:
        raise unparsable("record", "a time that has passed")
    return max(timedelta(0), now - record.time)


_UNREACHED: Mapping[str, tuple[str, str]] = {
    "locked": ("repository_locked", "the repository is locked by another program"),
    "missing": ("repository_missing", "there is no repository where the baseline says"),
    "wrong_password": ("wrong_password", "the password file does not open the repository"),
    "failed": ("tool_failed", "restic could not read the repository"),
}


def judge(baseline: Parameters, seen: Observation) -> Verdict:
    if seen.repository != "read":
        return unknown(
            *_UNREACHED.get(str(seen.repository), ("unparsable", "could not tell what the repository holds"))
        )
    if (verdict := _judge_snapshots(baseline, seen)) is not None:
        return verdict
    if seen.unit == "failed":
        return failed("last_run_failed", f"expected the last run of {baseline.unit} to succeed, it failed")
    if seen.unit not in {"stopped", "active", "starting"}:
        return failed("unit_missing", f"expected a unit {baseline.unit} that can run, found it {seen.unit}")
    if seen.timer != "active":
        return failed("timer_not_active", f"expected {baseline.timer} to be active, found it {seen.timer}")
    return _judge_records(baseline, seen) or passed(f"last snapshot {seen.age_h} h ago, check and drill in time")


def _judge_snapshots(baseline: Parameters, seen: Observation) -> Verdict | None:
    if seen.snapshots is None or seen.hosts is None or seen.from_future is None or seen.paths_missing is None:
        return unknown("unparsable", "could not tell what the repository holds")
    if seen.snapshots == 0:
        return failed("snapshot_missing", "expected a snapshot, found none")
    if seen.hosts > 1:
        return unknown("several_hosts", f"snapshots of {seen.hosts} hosts, and the baseline names none")
    if seen.from_future:
        return failed("snapshot_from_future", "expected snapshots of the past, found one dated later than now")
    if seen.paths_missing:
        return failed("path_missing", f"expected every listed path in a snapshot, {len(seen.paths_missing)} in none")
    if seen.age_h is None:
        return unknown("unparsable", "could not tell how old the last snapshot is")
    if seen.age_h > baseline.max_age_h:
        return failed(
            "snapshot_too_old", f"expected a snapshot of the last {baseline.max_age_h} h, found {seen.age_h} h"
        )
    return None


def _judge_records(baseline: Parameters, seen: Observation) -> Verdict | None:
    if seen.check_age_d is None or seen.check_ok is None:
        return failed("never_checked", "expected a record of a repository check, found none")
    if not seen.check_ok:
        return failed("check_failed", "expected a sound repository, the last check found damage")
    if seen.check_age_d > baseline.check_max_age_d:
        return failed(
            "check_too_old", f"expected a check within {baseline.check_max_age_d} d, found {seen.check_age_d} d"
        )
    if seen.drill_age_d is None or seen.drill_ok is None:
        return failed("drill_missing", "expected a record of a restore drill, found none")
    if not seen.drill_ok or not seen.drill_bytes:
        return failed("drill_failed", "expected the drill to restore what was saved, it did not")
    if seen.drill_age_d > baseline.drill_max_age_d:
        return failed(
            "drill_too_old", f"expected a drill within {baseline.drill_max_age_d} d, found {seen.drill_age_d} d"
        )
    return None


def plan(baseline: Parameters, seen: Observation) -> Plan | None:
    """A missing or old snapshot is cured by taking one, a stopped timer by starting it. A damaged repository, a snapshot
    from the future, and a check or drill that is due are for a person; neither of the last two keeps a backup from being taken.
    """
    reason = judge(baseline, seen).reason
    if reason in {"snapshot_missing", "snapshot_too_old", "path_missing", "last_run_failed"}:
        # A failed run (a repository out of reach) is worth another try when the snapshot has grown half a day older.
        target = f"snapshot_{'none' if seen.age_h is None else seen.age_h // 12}"
        return Plan(CHECK.id, (Step("run_backup_unit", {"unit": baseline.unit}),), target=target)
    if reason == "timer_not_active":
        return Plan(CHECK.id, (Step("ensure_unit_active", {"unit": baseline.timer}),))
    return None


_GOOD = Observation(
    restic_version="0.14.0",
    repository="read",
    snapshots=1,
    hosts=1,
    from_future=False,
    paths_missing=(),
    age_h=9,
    check_age_d=2,
    check_ok=True,
    drill_age_d=30,
    drill_ok=True,
    drill_bytes=1_048_576,
    unit="stopped",
    timer="active",
)

CASES = (
    Case("all in time", _GOOD, Result.PASS, "as_expected"),
    Case("snapshot too old", replace(_GOOD, age_h=50), Result.FAIL, "snapshot_too_old", heals=True),
    Case("no snapshot", replace(_GOOD, snapshots=0, hosts=0, age_h=None), Result.FAIL, "snapshot_missing", heals=True),
    Case(
        "a path is in no snapshot",
        replace(_GOOD, paths_missing=("/srv/data",)),
        Result.FAIL,
        "path_missing",
        heals=True,
    ),
    Case("last run failed", replace(_GOOD, unit="failed"), Result.FAIL, "last_run_failed", heals=True),
    Case("a backup runs now", replace(_GOOD, unit="starting"), Result.PASS),
    Case("no unit", replace(_GOOD, unit="missing"), Result.FAIL, "unit_missing"),
    Case("timer stopped", replace(_GOOD, timer="stopped"), Result.FAIL, "timer_not_active", heals=True),
    Case("snapshot from the future", replace(_GOOD, from_future=True, age_h=0), Result.FAIL, "snapshot_from_future"),
    Case("snapshots of several hosts", replace(_GOOD, hosts=2), Result.UNKNOWN, "several_hosts"),
    Case("never checked", replace(_GOOD, check_age_d=None, check_ok=None), Result.FAIL, "never_checked"),
    Case("damaged", replace(_GOOD, check_ok=False), Result.FAIL, "check_failed"),
    Case("checked long ago", replace(_GOOD, check_age_d=20), Result.FAIL, "check_too_old"),
    Case("never restored", replace(_GOOD, drill_age_d=None, drill_ok=None), Result.FAIL, "drill_missing"),
    Case("restored something else", replace(_GOOD, drill_ok=False), Result.FAIL, "drill_failed"),
    Case("a drill that restored nothing", replace(_GOOD, drill_bytes=0), Result.FAIL, "drill_failed"),
    Case("restored long ago", replace(_GOOD, drill_age_d=200), Result.FAIL, "drill_too_old"),
    Case("repository locked", replace(_GOOD, repository="locked"), Result.UNKNOWN, "repository_locked"),
    Case("wrong password", replace(_GOOD, repository="wrong_password"), Result.UNKNOWN, "wrong_password"),
    Case("repository missing", replace(_GOOD, repository="missing"), Result.UNKNOWN, "repository_missing"),
    Case("restic failed", replace(_GOOD, repository="failed"), Result.UNKNOWN, "tool_failed"),
    Case("nothing seen", Observation(), Result.UNKNOWN),
    Case("cannot ask restic", UNREADABLE, Result.UNKNOWN),
)
