"""A detector is called proven only when it fired; what a drill has shown is recorded once, whoever ran it."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.adapters.agent_view import looking
from compliance_agent.adapters.subprocess_host import RealHost
from compliance_agent.agent import ComplianceAgent
from compliance_agent.baseline import load
from compliance_agent.checks.backup import Parameters
from compliance_agent.cli.common import shipped_baseline, unconfigured
from compliance_agent.config import AgentConfig
from compliance_agent.drift import DriftDetector
from compliance_agent.drills import DRILLS, keep, kept, perform
from compliance_agent.drills.restore import drill_backup
from compliance_agent.errors import CannotTell, ConfigError
from compliance_agent.lab.clinic import healthy_host
from compliance_agent.lab.drift import FAULTS
from compliance_agent.lab.host import FakeHost
from compliance_agent.lab.programs import restic
from compliance_agent.models import Result

BACKUP = Parameters(repository=restic.REPOSITORY, password_file=restic.PASSWORD_FILE, paths=("/srv/data",))


def detector_of(host: FakeHost) -> DriftDetector:
    return DriftDetector(
        unconfigured(Path("/nonexistent")), host=host, baseline=load(shipped_baseline()), clock=host.clock
    )


async def drilled(name: str, break_it: Callable[[FakeHost], None] | None = None) -> tuple[Result, str, FakeHost]:
    host = healthy_host(3)
    if break_it is not None:
        break_it(host)
    proof = await perform(DRILLS[name], detector_of(host), host)
    return proof.result, proof.reason, host


@pytest.mark.parametrize("name", DRILLS)
async def test_every_detector_fires_on_a_host_that_is_as_it_should_be(name: str) -> None:
    result, reason, _ = await drilled(name)
    assert (result, reason) == (Result.PASS, "as_expected")


@pytest.mark.parametrize("name", DRILLS)
def test_every_drill_belongs_to_a_check_of_the_shipped_baseline(name: str) -> None:
    assert DRILLS[name].check in load(shipped_baseline()).entries


def damaged(host: FakeHost) -> None:
    host.part(restic.Repositories).by_place[restic.REPOSITORY].damaged = True


def altered(host: FakeHost) -> None:
    """The snapshot holds other bytes than the host, whose file says that it was not touched since."""
    snapshot = host.part(restic.Repositories).by_place[restic.REPOSITORY].snapshots[-1]
    snapshot.files["/srv/data/records.db"] = b"something else"


def locked(host: FakeHost) -> None:
    host.part(restic.Repositories).by_place[restic.REPOSITORY].locked = True


def all_changed(host: FakeHost) -> None:
    host.put("/srv/data/records.db", b"written after the snapshot")


def no_password(host: FakeHost) -> None:
    host.delete(restic.PASSWORD_FILE)


def fault(name: str) -> Callable[[FakeHost], None]:
    return FAULTS[name].inject


@pytest.mark.parametrize(
    ("name", "break_it", "result", "reason"),
    [
        ("log_canary", fault("log_canary_lost"), Result.FAIL, "canary_lost"),
        ("log_canary", fault("logging_stopped"), Result.UNKNOWN, "unit_down"),
        ("eicar", fault("av_stopped"), Result.UNKNOWN, "daemon_down"),
        ("eicar", fault("av_blind"), Result.FAIL, "probe_missed"),
        ("clock", fault("chrony_stopped"), Result.UNKNOWN, "daemon_down"),
        ("restore", damaged, Result.FAIL, "check_failed"),
        ("restore", altered, Result.FAIL, "drill_failed"),
        ("restore", locked, Result.UNKNOWN, "tool_failed"),
        ("restore", all_changed, Result.UNKNOWN, "not_found"),
        ("restore", no_password, Result.UNKNOWN, "tool_failed"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
async def test_a_detector_that_did_not_fire_is_not_called_proven(
    name: str, break_it: Callable[[FakeHost], None], result: Result, reason: str
) -> None:
    assert (await drilled(name, break_it))[:2] == (result, reason)


async def test_stale_signatures_do_not_hide_that_the_scanner_still_finds() -> None:
    """The drill is about the detector; the check goes on failing for its own reason."""
    assert (await drilled("eicar", fault("av_signatures_old")))[0] is Result.PASS


async def test_a_drill_that_cannot_tell_leaves_the_record_of_the_last_one() -> None:
    host = healthy_host(3)
    before = host.files[f"{restic.RECORDS}/backup-drill.json"].content
    all_changed(host)
    with pytest.raises(CannotTell):
        await drill_backup(host, BACKUP)
    assert host.files[f"{restic.RECORDS}/backup-drill.json"].content == before


async def test_the_records_say_what_was_compared_and_nothing_of_the_files() -> None:
    host = healthy_host(3)
    await drill_backup(host, BACKUP)
    for name, size in (("check", 0), ("drill", 512)):
        record = json.loads(host.files[f"{restic.RECORDS}/backup-{name}.json"].content)
        assert record == {"time": host.now().strftime("%Y-%m-%dT%H:%M:%SZ"), "bytes": size, "digest_ok": True}


async def test_an_old_record_does_not_pass_for_a_drill_of_now() -> None:
    """The mutant: a drill that does nothing. The records of last month must not make it look proven."""
    idle = dataclasses.replace(DRILLS["restore"], act=None)
    host = healthy_host(3)
    assert (await perform(idle, detector_of(host), host)).result is Result.UNKNOWN


async def test_what_the_baseline_does_not_list_cannot_be_drilled(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text('version: "1"\nchecks:\n  time_sync: {}\n')
    (tmp_path / "b.yaml").chmod(0o600)
    host = healthy_host(3)
    detector = DriftDetector(unconfigured(tmp_path), host=host, baseline=load(tmp_path / "b.yaml"), clock=host.clock)
    with pytest.raises(ConfigError, match=r"checks\.logging"):
        await perform(DRILLS["log_canary"], detector, host)


# Recorded


def agent_on(host: FakeHost, root: Path) -> ComplianceAgent:
    config = AgentConfig(
        client_id="m", site_id="c", host_id="h", state_dir=root / "state", baseline_path=shipped_baseline()
    )
    detector = DriftDetector(config, host=host, baseline=load(shipped_baseline()), clock=host.clock)
    return ComplianceAgent(config, drift_detector=detector, mcp_client=None, clock=host.clock)


async def test_each_proof_is_recorded_once_and_remembered_when_it_fired(tmp_path: Path) -> None:
    host = healthy_host(3)
    agent = agent_on(host, tmp_path)
    drills_dir, database = agent.config.drills_dir, agent.config.database_path
    fault("log_canary_lost")(host)
    for name in ("log_canary", "eicar"):
        keep(drills_dir, await perform(DRILLS[name], agent.drift_detector, host))
    recorded = await agent.record_drills()
    assert {(item.kind, item.check, str(item.result), item.reason) for item in recorded} == {
        ("drill", "logging", "fail", "canary_lost"),
        ("drill", "av_health", "pass", "as_expected"),
    }
    assert await agent.record_drills() == []
    await agent.close()
    agent = agent_on(host, tmp_path)
    assert await agent.record_drills() == [], "nor again after a restart"
    await host.clock.sleep(86_400)
    keep(drills_dir, await perform(DRILLS["eicar"], agent.drift_detector, host))
    assert len(await agent.record_drills()) == 1
    await agent.close()
    with looking(database) as view:
        assert view.moment("proven.eicar") == host.now()
        assert view.moment("proven.log_canary") is None


@pytest.mark.parametrize("text", ["", "{}", '{"drill":"eicar"}', '{"drill":"clock","at":"x"}', "[" * 99])
def test_a_file_that_is_no_proof_proves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "eicar.json").write_text(text)
    (tmp_path / "eicar.json").chmod(0o600)
    assert kept(tmp_path) == []


# For real


@pytest.mark.real
async def test_restic_itself(tmp_path: Path) -> None:
    """A repository of our own: restored and compared; then with a damaged pack, and with a file that only seems unchanged."""
    if shutil.which("restic") is None:
        pytest.skip("needs restic")
    data, repository, password = tmp_path / "data", tmp_path / "repository", tmp_path / "password"
    (data / "below").mkdir(parents=True)
    for number in range(30):
        (data / "below" / f"{number}.bin").write_bytes(bytes([number]) * (number * 1000 + 1))
    password.write_text("a test's own")
    baseline = Parameters(
        repository=str(repository), password_file=str(password), paths=(str(data),), records=str(tmp_path / "records")
    )
    (tmp_path / "records").mkdir()

    def run(*words: str) -> None:
        argv = ["restic", "--repo", str(repository), "--password-file", str(password), "--no-cache", "--quiet", *words]
        subprocess.run(argv, check=True, capture_output=True, timeout=60)

    def record(name: str) -> tuple[int, bool]:
        found = json.loads((tmp_path / "records" / f"backup-{name}.json").read_bytes())
        return found["bytes"], found["digest_ok"]

    run("init")
    run("backup", str(data))
    host = RealHost()
    await drill_backup(host, baseline)
    assert record("check") == (0, True)
    size, same = record("drill")
    assert same
    assert size > 100_000

    victim = data / "below" / "29.bin"
    content, before = victim.read_bytes(), victim.stat()

    def write(text: bytes) -> None:
        victim.write_bytes(text)
        os.utime(victim, ns=(before.st_atime_ns, before.st_mtime_ns))

    write(bytes([7]) * before.st_size)
    for other in (data / "below").iterdir():
        if other != victim:
            other.unlink()
    await drill_backup(host, baseline)
    assert record("drill") == (before.st_size, False)
    write(content)
    await drill_backup(host, baseline)
    assert record("drill") == (before.st_size, True)

    for pack in (repository / "data").rglob("*"):
        if pack.is_file():
            pack.chmod(0o600)
            pack.write_bytes(bytes(byte ^ 1 for byte in pack.read_bytes()))
    await drill_backup(host, baseline)
    assert record("drill") == (before.st_size, False)
    assert record("check") == (0, False)
