"""R6: a damaged database. Nothing forged is delivered, nothing is deleted, there is no crash loop, the gap is known."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from compliance_agent.crypto import verify
from compliance_agent.evidence.verify import verify_paths
from compliance_agent.lab.clock import FakeClock
from compliance_agent.queue import OfflineQueue
from tests.evidence.conftest import Clinic

CASES = int(os.environ.get("DAMAGE_CASES", "60"))
COUNT = 12

Damage = Callable[[random.Random, Path, Path], None]


def flip_bits(rng: random.Random, state: Path, _: Path) -> None:
    for _number in range(rng.choice((1, 1, 8, 64))):
        _change(rng, rng.choice(_files(state)), lambda raw, at: raw.__setitem__(at, raw[at] ^ 1 << rng.randrange(8)))


def zero_a_page(rng: random.Random, state: Path, _: Path) -> None:
    def zero(raw: bytearray, at: int) -> None:
        start = at // 4096 * 4096
        raw[start : start + 4096] = bytes(len(raw[start : start + 4096]))

    _change(rng, rng.choice(_files(state)), zero)


def truncate(rng: random.Random, state: Path, _: Path) -> None:
    path = rng.choice(_files(state))
    os.truncate(path, rng.randrange(path.stat().st_size))


def garbage(rng: random.Random, state: Path, _: Path) -> None:
    path = rng.choice(_files(state))
    path.write_bytes(rng.randbytes(path.stat().st_size))


def empty(_rng: random.Random, state: Path, _: Path) -> None:
    (state / "agent.db").write_bytes(b"")


def anothers_wal(_rng: random.Random, state: Path, other: Path) -> None:
    shutil.copyfile(other / "agent.db-wal", state / "agent.db-wal")


def anothers_database(_rng: random.Random, state: Path, other: Path) -> None:
    (state / "agent.db-wal").unlink()
    shutil.copyfile(other / "agent.db", state / "agent.db")


def an_old_copy(_rng: random.Random, state: Path, other: Path) -> None:
    (state / "agent.db-wal").unlink()
    shutil.copyfile(other / "early.db", state / "agent.db")


DAMAGES: tuple[Damage, ...] = (
    flip_bits,
    zero_a_page,
    truncate,
    garbage,
    empty,
    anothers_wal,
    anothers_database,
    an_old_copy,
)


def _files(state: Path) -> list[Path]:
    return [path for path in (state / "agent.db", state / "agent.db-wal") if path.exists() and path.stat().st_size]


def _change(rng: random.Random, path: Path, change: Callable[[bytearray, int], None]) -> None:
    raw = bytearray(path.read_bytes())
    change(raw, rng.randrange(len(raw)))
    path.write_bytes(raw)


class Frozen(Clinic):
    """A clinic host whose files are copied while it runs, as a crash leaves them: database and WAL."""

    def freeze(self, target: Path) -> None:
        (target / "state").mkdir(parents=True)
        for name in ("agent.db", "agent.db-wal", "agent.db.id"):
            shutil.copyfile(self.state / name, target / "state" / name)
        for name in ("evidence", "keys"):
            shutil.copytree(self.root / name, target / name)


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`good`: twelve bundles, three of them delivered. `other`: files of another host, and an early copy of this one."""
    root = tmp_path_factory.mktemp("frozen")
    host = Frozen(root / "host")
    host.record(4)
    host.reopen()
    (root / "other").mkdir()
    shutil.copyfile(host.state / "agent.db", root / "other" / "early.db")
    host.record(COUNT - 4)
    host.store.database.write(
        lambda connection: connection.execute("UPDATE evidence SET state='uploaded' WHERE seq <= 3")
    )
    host.freeze(root / "good")
    host.close()
    stranger = Frozen(root / "stranger")
    stranger.record(5)
    for name in ("agent.db", "agent.db-wal"):
        shutil.copyfile(stranger.state / name, root / "other" / name)
    stranger.close()
    return root


async def opened(root: Path) -> tuple[Clinic, list[str]]:
    """Start the host again and ask the queue for everything; whatever it would send verifies."""
    clinic = Clinic(root, number=100)
    queue = OfflineQueue(
        clinic.state / "agent.db", evidence_dir=clinic.evidence, clock=FakeClock(), database=clinic.store.database
    )
    pending = await queue.get_pending(1_000)
    for item in pending:
        body, signature = Path(item.bundle_path).read_bytes(), Path(item.signature_path).read_bytes()
        assert verify(clinic.signer.public_bytes, signature, body), "forged"
    return clinic, [item.bundle_id for item in pending]


def places(clinic: Clinic) -> list[tuple[int, int]]:
    return clinic.store.database.read(
        lambda connection: connection.execute("SELECT epoch, seq FROM evidence WHERE seq IS NOT NULL").fetchall()
    )


@pytest.mark.parametrize("with_directories", [True, False], ids=["directories there", "directories lost"])
@pytest.mark.parametrize("case", range(CASES // 2))
async def test_damage(frozen: Path, tmp_path: Path, case: int, with_directories: bool) -> None:
    rng = random.Random(case)
    damage = DAMAGES[case % len(DAMAGES)]
    root = tmp_path / "host"
    shutil.copytree(frozen / "good", root)
    if not with_directories:
        shutil.rmtree(root / "evidence")
    ids = {path.name for path in (frozen / "good" / "evidence").glob("*/*/*/*")}
    damage(rng, root / "state", frozen / "other")
    before = (root / "state" / "agent.db").read_bytes()

    clinic, pending = await opened(root)
    fresh = clinic.record()[0]
    clinic.close()
    clinic, again = await opened(root)  # no crash loop: the second start finds nothing more to mend
    assert clinic.store.database.damage is None
    assert fresh.bundle_id in again
    assert set(pending) <= set(again)
    found = places(clinic)
    assert len(found) == len(set(found)), "no place is used twice"
    assert (fresh.epoch, fresh.seq) in found
    aside = [
        path for path in clinic.state.iterdir() if ".damaged-" in path.name and not path.name.endswith(("-shm", "-wal"))
    ]
    clinic.close()
    assert all(path.read_bytes() == before for path in aside if path.stat().st_size == len(before)), "kept as it was"
    if with_directories:
        assert ids <= {path.name for path in (root / "evidence").glob("*/*/*/*")}
        assert {fresh.bundle_id} | ids - set(again) <= {fresh.bundle_id} | ids
        report = verify_paths([root / "evidence"], clinic.keys)
        assert report.verified == COUNT + 1, report.problems
        assert [problem.code for problem in report.problems if problem.code != "broken_link"] == []


async def test_undamaged_it_is_simply_opened(frozen: Path, tmp_path: Path) -> None:
    """The planted fault's other side: the cases above do not pass because nothing is ever checked."""
    shutil.copytree(frozen / "good", tmp_path / "host")
    clinic, pending = await opened(tmp_path / "host")
    assert len(pending) == COUNT - 3
    assert clinic.record()[0].seq == COUNT + 1
    clinic.close()
