"""backup: repositories that are fresh, old, shared, locked or closed, and the records of check and drill."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.healing_store import HealingStore
from compliance_agent.baseline import load
from compliance_agent.checks import backup, registry
from compliance_agent.cli.common import shipped_baseline
from compliance_agent.config import AgentConfig
from compliance_agent.errors import CannotTell
from compliance_agent.healing import HealingEngine
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import restic
from compliance_agent.models import DriftResult, Result
from compliance_agent.ports import Ran
from tests.checks import contract

FIXTURES = Path(__file__).parent.parent / "fixtures" / "checks" / "backup"
RECORD = "/var/lib/compliance-agent/backup-{}.json"


async def look(host: FakeHost, **parameters: Any) -> DriftResult:
    return await contract.seen_by(registry()["backup"], host, **parameters)


def repository(host: FakeHost) -> restic.Repository:
    return host.part(restic.Repositories).by_place[restic.REPOSITORY]


def answering(name: str, exit_status: int = 0, err: str = "") -> FakeHost:
    """A host whose repository answers as the real restic did."""
    host = healthy_host()
    simulated = host.installed["restic"]

    def program(call: Any) -> Ran:
        if call.words[:1] == ["version"]:
            return simulated(call)
        out = (FIXTURES / name).read_bytes() if name else b""
        return Ran(exit_status, out, (FIXTURES / err).read_bytes() if err else b"")

    host.installed["restic"] = program
    return host


# -- what the agent mends while something else is for a person


@pytest.mark.parametrize("fault", ["backup_stale", "backup_timer_stopped"])
async def test_backups_start_again_where_no_restore_was_ever_proven(tmp_path: Path, fault: str) -> None:
    """Undoing the cure because a drill is due would leave the clinic without backups until somebody has time for one."""
    host = healthy_host()
    host.delete(RECORD.format("drill"))
    FAULTS[fault].inject(host)
    config = AgentConfig(client_id="c", site_id="s", host_id="h", state_dir=tmp_path)
    with contextlib.closing(Database(tmp_path / "agent.db", threaded=False, reserve_kb=0)) as database:
        engine = HealingEngine(
            config, host=host, baseline=load(shipped_baseline()), store=HealingStore(database), clock=host.clock
        )
        result = await engine.remediate(await look(host))
    assert (result.outcome, result.reason, result.post_reason) == ("alert", "cured_in_part", "drill_missing")
    assert (await look(host)).reason == "drill_missing"
    assert host.is_active(restic.TIMER)


# -- what restic says


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        (answering("", 1, "wrong_password.err"), "wrong_password"),
        (answering("", 1, "missing.err"), "repository_missing"),
        (answering("", 10), "repository_missing"),
        (answering("", 11), "repository_locked"),
        (answering("", 12), "wrong_password"),
        (answering("", 1), "tool_failed"),
        (answering("one_host.json", 1), "tool_failed"),
        (answering("version.txt"), "unparsable"),
    ],
)
async def test_a_repository_out_of_reach_is_unknown(host: FakeHost, reason: str) -> None:
    seen = await look(host)
    assert (seen.result, seen.reason, seen.plan) == (Result.UNKNOWN, reason, None)


async def test_a_locked_repository_is_recognised_before_0_17() -> None:
    host = healthy_host()
    text = b"unable to create lock in backend: repository is already locked exclusively by PID 7 on clinic by root\n"
    host.installed["restic"] = lambda call: (
        restic.restic(call) if call.words[:1] == ["version"] else Ran(1, b"", b"Fatal: " + text)
    )
    assert (await look(host)).reason == "repository_locked"


async def test_the_wrong_password_and_no_repository_on_a_host() -> None:
    host = healthy_host()
    host.put(restic.PASSWORD_FILE, "another\n")
    assert (await look(host)).reason == "wrong_password"
    host = healthy_host()
    host.part(restic.Repositories).by_place.clear()
    assert (await look(host)).reason == "repository_missing"


async def test_the_repository_may_be_closed_to_us() -> None:
    host = healthy_host()
    text = b"Fatal: unable to open config file: open /srv/backup/restic/config: permission denied\n"
    host.installed["restic"] = lambda call: restic.restic(call) if call.words[:1] == ["version"] else Ran(1, b"", text)
    assert (await look(host)).reason == "not_permitted"


async def test_looking_takes_no_lock_and_leaves_no_cache() -> None:
    assert {"--no-lock", "--no-cache"} <= set(backup._command(_parameters()))


def _parameters(**changes: Any) -> backup.Parameters:
    return backup.Parameters(**{**registry()["backup"].spec.example, **changes})


# -- snapshots


async def test_another_hosts_snapshot_is_not_ours() -> None:
    host = healthy_host()
    repository(host).snapshots.clear()
    restic.take(host, repository(host), ("/srv/data",), at=host.now() - timedelta(days=9))
    restic.take(host, repository(host), ("/srv/data",)).host = "clinic-other"
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.UNKNOWN, "several_hosts")
    assert (await look(host, snapshot_host="clinic-0")).reason == "snapshot_too_old"
    assert (await look(host, snapshot_host="clinic-other")).result is Result.PASS


async def test_the_path_that_is_worst_off_decides() -> None:
    host = healthy_host()
    restic.take(host, repository(host), ("/srv/images",), at=host.now() - timedelta(hours=40))
    seen = await look(host, paths=("/srv/data", "/srv/images"))
    assert (seen.reason, seen.pre_state["age_h"]) == ("snapshot_too_old", 40)
    seen = await look(host, paths=("/srv/data", "/srv/mail"))
    assert (seen.reason, seen.pre_state["paths_missing"]) == ("path_missing", ["/srv/mail"])


async def test_a_parent_directory_holds_the_path_and_a_sibling_does_not() -> None:
    host = healthy_host()
    repository(host).snapshots.clear()
    restic.take(host, repository(host), ("/srv/database",))
    assert (await look(host)).reason == "path_missing"
    restic.take(host, repository(host), ("/srv/",))
    assert (await look(host)).result is Result.PASS


async def test_an_empty_repository_is_no_backup() -> None:
    host = healthy_host()
    repository(host).snapshots.clear()
    seen = await look(host)
    assert (seen.result, seen.reason) == (Result.FAIL, "snapshot_missing")
    assert seen.plan is not None and not seen.plan.disruptive


async def test_a_snapshot_from_the_future_is_not_fresh() -> None:
    host = healthy_host()
    restic.take(host, repository(host), ("/srv/data",), at=host.now() + timedelta(hours=3))
    seen = await look(host)
    assert (seen.reason, seen.plan) == ("snapshot_from_future", None)


@pytest.mark.parametrize(("hours", "result"), [(26.9, Result.PASS), (27.1, Result.FAIL)])
async def test_age_in_full_hours(hours: float, result: Result) -> None:
    host = healthy_host()
    repository(host).snapshots.clear()
    restic.take(host, repository(host), ("/srv/data",), at=host.now() - timedelta(hours=hours))
    assert (await look(host)).result is result


@given(
    moment=st.integers(946_684_800, 3_786_912_000).map(lambda seconds: datetime.fromtimestamp(seconds, UTC)),
    microseconds=st.integers(0, 999_999),
    digits=st.integers(0, 9),
    minutes=st.integers(-14 * 60, 14 * 60),
)
def test_times_as_go_writes_them(moment: datetime, microseconds: int, digits: int, minutes: int) -> None:
    """Any number of decimals up to nine, trailing zeros cut, any zone."""
    local = moment + timedelta(minutes=minutes)
    fraction = f"{microseconds:06d}000"[:digits].rstrip("0")
    sign, rest = ("-" if minutes < 0 else "+"), abs(minutes)
    zone = "Z" if minutes == 0 else f"{sign}{rest // 60:02d}:{rest % 60:02d}"
    text = f"{local:%Y-%m-%dT%H:%M:%S}{'.' + fraction if fraction else ''}{zone}"
    assert timedelta(0) <= backup._moment(text) - moment < timedelta(seconds=1)


@pytest.mark.parametrize(
    "text", ["", "2026-11-22", "2026-13-01T00:00:00Z", "2026-11-22T01:00:00", "٢٠٢٦-11-22T01:00:00Z"]
)
def test_times_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(CannotTell):
        backup._moment(text)


# -- units and records


async def test_a_backup_that_runs_now_is_no_fault_and_one_that_failed_is() -> None:
    host = healthy_host()
    host.unit(restic.UNIT).failed = True
    seen = await look(host)
    assert (seen.reason, seen.plan is not None) == ("last_run_failed", True)
    del host.units_table[restic.UNIT]
    seen = await look(host)
    assert (seen.reason, seen.plan) == ("unit_missing", None)


@pytest.mark.parametrize(("name", "reason"), [("check", "never_checked"), ("drill", "drill_missing")])
async def test_a_record_that_is_not_there_was_not_earned(name: str, reason: str) -> None:
    host = healthy_host()
    host.delete(RECORD.format(name))
    seen = await look(host)
    assert (seen.result, seen.reason, seen.plan) == (Result.FAIL, reason, None)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("check", {"good": False}, "check_failed"),
        ("check", {"days_ago": 9.5}, "check_too_old"),
        ("drill", {"good": False}, "drill_failed"),
        ("drill", {"size": 0}, "drill_failed"),
        ("drill", {"days_ago": 91.5}, "drill_too_old"),
        ("drill", {"days_ago": -2}, "unparsable"),
    ],
)
async def test_records_that_do_not_pass(name: str, change: dict[str, Any], reason: str) -> None:
    host = healthy_host()
    restic.record(host, name, **{"days_ago": 1, "size": 512, "good": True, **change})
    assert (await look(host)).reason == reason


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        '{"time": "2026-11-20T00:00:00Z", "bytes": 1}',
        '{"time": "2026-11-20T00:00:00Z", "bytes": "1", "digest_ok": true}',
        '{"time": "2026-11-20T00:00:00Z", "bytes": true, "digest_ok": true}',
        '{"time": "2026-11-20T00:00:00Z", "bytes": -1, "digest_ok": true}',
        '{"time": "2026-11-20T00:00:00Z", "bytes": 1, "digest_ok": 1}',
        '{"time": "2026-11-20T00:00:00Z", "bytes": 1, "digest_ok": true, "note": "by Jane"}',
        '{"time": "2026-11-20", "bytes": 1, "digest_ok": true}',
    ],
)
async def test_records_of_another_form_are_unknown(text: str) -> None:
    host = healthy_host()
    host.put(RECORD.format("drill"), text)
    seen = await look(host)
    assert seen.result is Result.UNKNOWN


@pytest.mark.parametrize(
    "wrong",
    [
        {"repository": "rest:https://user:secret@backup.example/main"},
        {"paths": ()},
        {"paths": ("data",)},
        {"max_age_h": 0},
        {"drill_max_age_d": 0},
        {"unit": "restic-backup"},
        {"timer": "restic-backup.service"},
    ],
)
def test_parameters_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"repository|paths|max_age|unit"):
        _parameters(**wrong)


def test_sftp_repositories_name_a_user_and_hold_no_secret() -> None:
    assert _parameters(repository="sftp:backup@store.example:/srv/restic").repository
