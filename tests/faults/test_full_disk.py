"""R5: the disk fills up and is freed. What was promised stays, the queue drains while it is still full, recording resumes."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from compliance_agent import crypto
from compliance_agent.errors import StorageFull
from compliance_agent.evidence import table
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clock import FakeClock
from compliance_agent.queue import OfflineQueue
from tests.evidence.conftest import Clinic
from tests.faults.driver import DOCUMENTED, command, judge, run

# At 800 KB the agent fills the disk by itself (22 records beside an empty state of 416 KB), spends its reserve, and another program
# takes what that freed: directories that could not be made yet then cannot be made as long as the disk stays full.
SIZES_KB = tuple(range(800, 3_000, 800 if "FULL_DISK_SIZES" not in os.environ else 44))
RESERVE_KB = 256


def may_mount(where: Path) -> bool:
    """Whether this process may mount a small file system (root does)."""
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", where], capture_output=True, check=False)
    if done.returncode == 0:
        subprocess.run(["umount", where], check=True)
    return done.returncode == 0


@pytest.fixture(params=SIZES_KB, ids=lambda size: f"{size} KB")
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system of so many KB."""
    where = tmp_path / "small"
    where.mkdir()
    if not may_mount(where):
        pytest.skip("mounting needs root; the test below fills the disk by injected errors instead")
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={request.param}k,mode=0700", "tmpfs", where], check=True)
    yield where
    subprocess.run(["umount", "--lazy", where], check=True)  # lazy: a failed test still has files open


class SmallClinic(Clinic):
    """Everything on the small file system, with a reserve."""

    def open(self):  # type: ignore[no-untyped-def]
        from compliance_agent.adapters.database import Database
        from compliance_agent.evidence.store import EvidenceStore

        database = Database(self.state / "agent.db", threaded=False, reserve_kb=RESERVE_KB)
        self.store = EvidenceStore(database, self.evidence, self.signer)
        self.store.replay()
        return self.store


def fill(clinic: Clinic, at_most: int = 2_000) -> list[str]:
    """Record until it is refused; the ids of what was promised."""
    promised: list[str] = []
    for _ in range(at_most):
        try:
            promised.append(clinic.record()[0].bundle_id)
        except StorageFull:
            break
    return promised


def eat(where: Path) -> None:
    """Another program takes every byte that is left."""
    with (where / "food").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


@pytest.mark.parametrize("who", ["the agent itself", "another program", "one after the other"])
async def test_a_disk_that_fills_up(small: Path, who: str, capsys: pytest.CaptureFixture[str]) -> None:
    clinic = SmallClinic(small)
    promised = fill(clinic, 30 if who == "another program" else 2_000)
    if who != "the agent itself":  # also of what the reserve gave free
        eat(small)
    promised += fill(clinic)
    assert len(promised) >= 20
    for _ in range(50):
        with pytest.raises(StorageFull):
            clinic.record()
    assert len(capsys.readouterr().out.splitlines()) < len(promised) + 20, "no log storm"

    delivered = await drained(clinic)
    assert set(promised) <= set(delivered), "drained while the disk was still full"
    clinic.reopen()  # a restart on the full disk
    with pytest.raises(StorageFull):
        clinic.record()

    (small / "food").unlink(missing_ok=True)
    subprocess.run(["mount", "-o", "remount,size=16m", small], check=True)
    fresh = clinic.record()[0]
    clinic.reopen()
    assert (clinic.state / "reserve").stat().st_size == RESERVE_KB * 1024
    report = verify_paths([clinic.evidence], clinic.keys)
    clinic.close()
    assert report.ok, report.problems
    assert report.verified == fresh.seq == len(delivered) + 1


async def drained(clinic: Clinic) -> list[str]:
    """Deliver everything while the disk is full."""
    queue = OfflineQueue(
        clinic.state / "agent.db", evidence_dir=clinic.evidence, clock=FakeClock(), database=clinic.store.database
    )
    delivered: list[str] = []
    while pending := await queue.get_pending(25):
        for item in pending:
            assert item.body is not None and item.signature is not None, "what is sent must need no file"
            claim = table.claim(item.body)
            assert claim is not None and claim.bundle_id == item.bundle_id
            assert crypto.verify(clinic.signer.public_bytes, item.signature, item.body)
            await queue.mark_uploaded(item.id, os.urandom(600))
            delivered.append(item.bundle_id)
    assert len(set(delivered)) == len(delivered)
    assert (await queue.get_stats())["storage_full"] is True
    return delivered


FROM = {"pwrite64": (30, 75, 120), "fdatasync": (9, 12, 16), "fsync": (6, 12, 20)}


@pytest.mark.parametrize("call", FROM)
def test_every_write_fails_from_one_on(tmp_path: Path, call: str) -> None:
    """The same without root: from the k-th call on there is no room at all; then there is again."""
    promised: list[str] = []
    for number in FROM[call]:
        state = tmp_path / str(number)
        log = tmp_path / "log"
        strace = ["strace", "-f", "-qq", "-o", str(log), "-e", f"trace={call}"]
        ran = run([*strace, "-e", f"inject={call}:error=ENOSPC:when={number}+", *command(state, 3)])
        assert ran.status in DOCUMENTED, ran
        assert "Traceback" not in ran.errors, ran.errors
        again = run(command(state, 1))
        assert (again.status, len(again.said("P"))) == (0, 1), again
        assert judge(state, ran.said("P") + again.said("P"), chain_may_start_anew=not ran.said("P")) == []
        promised += ran.said("P")
        shutil.rmtree(state)
    assert promised, "some of it must come after a promise"
