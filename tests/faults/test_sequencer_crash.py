"""The sequencer is stopped at every one of its writes: no index used twice, nothing contradicted that was visible, nothing lost.

Each fault that the judge is there for is planted once, and must be caught.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from compliance_agent.server.log_reading import Growth
from compliance_agent.server.records import Transaction
from compliance_agent.server.sequencer import Sequencer
from compliance_agent.server.store import SqlStore
from tests.faults.sequencing import (
    BATCHES,
    Crash,
    Points,
    Said,
    Ticking,
    check,
    decide,
    ensure_site,
    scene,
    sequencer_over,
)
from tests.faults.sequencing import WatchedFiles as Files

START = datetime(2026, 12, 31, 12, 0, tzinfo=UTC)
ALL = sum(BATCHES)


def count_points(directory: Path) -> int:
    points, said = Points(), Said()
    assert asyncio.run(scene(directory, START, points, said)) == {}
    check(directory, said)
    assert len(said.acked) == ALL
    return len(points.names)


def run_again(directory: Path, said: Said, number: int) -> None:
    assert asyncio.run(scene(directory, START + timedelta(hours=number), Points(), said)) == {}
    check(directory, said)


def test_stopped_at_every_write(tmp_path: Path) -> None:
    """Each write in turn is not made, or was made and nothing after it; then the next start mends it."""
    total = count_points(tmp_path / "whole")
    assert total > 60
    for at in range(1, total + 1):
        directory, said = tmp_path / str(at), Said()
        with pytest.raises(Crash):
            asyncio.run(scene(directory, START, Points(at), said))
        check(directory, said, whole=False)
        run_again(directory, said, 1)


def test_stopped_again_while_it_mends(tmp_path: Path) -> None:
    """A second crash, at each write of the recovery from the first."""
    for at in range(3, count_points(tmp_path / "whole"), 7):
        for second in range(1, 6):
            directory, said = tmp_path / f"{at}-{second}", Said()
            for number, point in enumerate((at, second)):
                with pytest.raises(Crash):
                    asyncio.run(scene(directory, START + timedelta(hours=number), Points(point), said))
                check(directory, said, whole=False)
            run_again(directory, said, 2)


@contextlib.contextmanager
def nursery() -> Iterator[subprocess.Popen[str]]:
    """Forks the scene's processes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.faults.sequencing"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    with process:  # the end of its input ends it
        yield process


def killed(forks: subprocess.Popen[str], directory: Path, at: int, said: Said) -> None:
    """The scene in a process that ends by SIGKILL at this write."""
    assert forks.stdin is not None and forks.stdout is not None
    print(START.isoformat(), at, directory, file=forks.stdin, flush=True)
    for line in forks.stdout:
        kind, _, rest = line.rstrip("\n").partition(" ")
        if kind == "E":
            assert rest == "-9"
            return
        if kind == "A":
            said.acked |= {int(word) for word in rest.split()}
        else:
            said.notes.append(base64.b64decode(rest))
    raise AssertionError("the nursery is gone")


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_killed_for_real_at_every_write(tmp_path: Path) -> None:
    with nursery() as forks:
        for at in range(1, count_points(tmp_path / "whole") + 1):
            said = Said()
            killed(forks, tmp_path / str(at), at, said)
            check(tmp_path / str(at), said, whole=False)
            run_again(tmp_path / str(at), said, 1)


# --- planted faults -------------------------------------------------------------------------------


class ShowsFirst(Sequencer):
    """Shows a checkpoint before it is in the database."""

    async def _publish(self, growths: Sequence[Growth], now: datetime) -> None:
        for growth in growths:
            self._write_files(growth)
            self._show(self._signed(growth, now))
        await super()._publish(growths, now)


class KeepsHeadLast(Sequencer):
    """Shows a checkpoint before its head is durable."""

    def _show(self, growth: Growth) -> None:
        shard = growth.tree.shard
        self._files.publish(shard.site_id, shard.year, shard.checkpoint or b"")
        super()._show(growth)


@pytest.mark.parametrize(
    ("kind", "words"), [(ShowsFirst, "before it was in the database"), (KeepsHeadLast, "before it was kept")]
)
def test_showing_a_checkpoint_too_early_is_caught(tmp_path: Path, kind: type[Sequencer], words: str) -> None:
    def caught(at: int) -> bool:
        directory, said = tmp_path / f"early-{at}", Said()
        try:
            asyncio.run(scene(directory, START, Points(at), said, kind))
        except Crash:
            try:
                check(directory, said, whole=False)
            except AssertionError as error:
                return words in str(error)
        return False

    assert any(caught(at) for at in range(1, 25))


async def _two(directory: Path) -> tuple[SqlStore, list[Sequencer], list[dict[str, str]], Said]:
    """Two sequencers that have both recovered from the same state."""
    directory.mkdir()
    store = await SqlStore.open(directory / "server.db")
    clock, said = Ticking(START), Said()
    await ensure_site(store, clock())
    files = Files(directory / "log", Points(), said.see)
    first, _ = sequencer_over(directory, store, files, clock)
    await decide(store, range(1, 4), clock())
    said.acked |= {1, 2, 3}
    await first.round()
    pair = [sequencer_over(directory, store, files, clock) for _ in range(2)]
    for sequencer, _ in pair:
        await sequencer.recover()
    return store, [sequencer for sequencer, _ in pair], [board.stopped for _, board in pair], said


@pytest.mark.anyio
async def test_of_two_sequencers_one_goes_on(tmp_path: Path) -> None:
    store, pair, stopped, said = await _two(tmp_path / "data")
    clock = Ticking(START + timedelta(hours=1))
    for seq in range(4, 30):
        await decide(store, [seq], clock())
        said.acked.add(seq)
        await asyncio.gather(*(sequencer.round() for sequencer in pair))
    await store.close()
    assert sorted(map(tuple, (found.items() for found in stopped))) == [(), (("", "sequenced_elsewhere"),)]
    check(tmp_path / "data", said)


@pytest.mark.anyio
async def test_two_sequencers_without_the_comparison_are_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even then the database refuses a second use of an index."""
    from compliance_agent.server.store.transaction import BoundTransaction

    true_grow = BoundTransaction.grow_shard

    async def careless(self: BoundTransaction, shard: object, *, old_size: int) -> bool:
        await true_grow(self, shard, old_size=old_size)  # type: ignore[arg-type]
        return True

    monkeypatch.setattr(BoundTransaction, "grow_shard", careless)
    store, pair, stopped, said = await _two(tmp_path / "data")
    clock = Ticking(START + timedelta(hours=1))
    for seq in range(4, 8):
        await decide(store, [seq], clock())
        said.acked.add(seq)
        for sequencer in pair if seq % 2 else reversed(pair):
            await sequencer.round()
    await store.close()
    assert any(stopped)
    check(tmp_path / "data", said, whole=False)


@pytest.mark.anyio
async def test_an_index_that_is_given_twice_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from compliance_agent.server.store.transaction import BoundTransaction

    true_place = BoundTransaction.place_leaves

    async def one_less(self: Transaction, site_id: str, year: int, first: int, numbers: Sequence[int]) -> bool:
        return await true_place(self, site_id, year, first - 1, numbers)  # type: ignore[arg-type]

    monkeypatch.setattr(BoundTransaction, "place_leaves", one_less)
    said = Said()
    assert await scene(tmp_path / "data", START, Points(), said) == {"": "write_unknown"}
    assert said.notes == []
    check(tmp_path / "data", said, whole=False)


def damaged(directory: Path, said: Said, statement: str) -> None:
    import sqlite3

    from tests.server.builder import unwalled

    with sqlite3.connect(directory / "server.db") as database:
        unwalled(database)
        database.execute(statement)
    database.close()
    with pytest.raises(AssertionError):
        check(directory, said)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log_entries SET leaf = x'00' WHERE leaf_index = 5 AND year = 2026",
        "DELETE FROM log_entries WHERE leaf_index = 300 AND year = 2027",
        "UPDATE log_shards SET root = x'00' WHERE year = 2026",
        "UPDATE log_shards SET checkpoint_size = 3 WHERE year = 2027",
    ],
)
def test_the_judge_sees_what_it_is_there_for(tmp_path: Path, statement: str) -> None:
    said = Said()
    asyncio.run(scene(tmp_path / "data", START, Points(), said))
    damaged(tmp_path / "data", said, statement)


@pytest.mark.parametrize("path", ["tile/0/000", "tile/entries/000", "tile/1/000.p/1", "tile/0/001.p/45"])
def test_the_judge_sees_a_changed_file(tmp_path: Path, path: str) -> None:
    said = Said()
    asyncio.run(scene(tmp_path / "data", START, Points(), said))
    file = next((tmp_path / "data" / "log").glob(f"*/2027/{path}"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(AssertionError):
        check(tmp_path / "data", said)
