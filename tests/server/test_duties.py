"""Who does what among replicas: one at a time, the next one under a new epoch, and nothing is written under an old one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance_agent.errors import OffDuty
from compliance_agent.server.records import Duty, Figures, Site, Tenure, Transaction
from compliance_agent.server.services import duties as desk
from compliance_agent.server.services.duties import DUTIES, LOGS, PARTS, WATCH, Duties, log_duty, wanted
from compliance_agent.server.store import Address, SqlStore
from tests.server.builder import START, Hands

pytestmark = pytest.mark.anyio
LEASE_S = 10.0


@dataclass
class Fleet:
    """Replicas on one database, each with a monotonic clock of its own."""

    where: Path | Address
    clock: Hands = field(default_factory=Hands)
    stores: list[SqlStore] = field(default_factory=list)
    monotonic: dict[str, float] = field(default_factory=dict)

    async def replica(self, name: str, *, alone: bool = False, figures: Callable[[], Figures] = Figures) -> Duties:
        store = await SqlStore.open(self.where, self.clock)
        self.stores.append(store)
        self.monotonic[name] = 0.0
        return Duties(store, name, LEASE_S, alone=alone, figures=figures, clock=lambda: self.monotonic[name])

    def wait(self, seconds: float, *stopped: str) -> None:
        """Time goes by; who is stopped does not see it."""
        self.clock.move(seconds)
        for name in self.monotonic.keys() - set(stopped):
            self.monotonic[name] += seconds


@pytest.fixture(params=["sqlite", "postgresql"])
async def fleet(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Fleet]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Fleet]:
        if request.param == "sqlite":
            yield Fleet(tmp_path / "server.db")
        else:
            async with request.getfixturevalue("postgres").database() as name:
                yield Fleet(request.getfixturevalue("postgres").address(name))

    async with opened() as made:
        yield made
        for store in made.stores:
            await store.close()


def held(duties: Duties) -> set[str]:
    return {name for name in DUTIES if duties.tenure(name) is not None}


async def write(duties: Duties, tenure: Tenure, name: str) -> None:
    async def work(tx: Transaction) -> None:
        await duties.check(tx, {tenure})
        await tx.add_site(Site(name, "msp", START))

    await duties._store.write(work)


async def test_the_first_takes_everything_and_the_second_its_share(fleet: Fleet) -> None:
    first, second = await fleet.replica("a"), await fleet.replica("b")
    await first.look()
    assert held(first) == set(DUTIES)
    await second.look()
    assert held(second) == set()
    await first.look()  # hears of the second, and leaves half of the logs to it
    await second.look()
    assert len(held(first) & set(LOGS)) == len(held(second) & set(LOGS)) == PARTS // 2
    assert held(first) | held(second) == set(DUTIES) and not held(first) & held(second)
    assert WATCH in held(first)


async def test_who_is_not_heard_is_followed_under_a_new_epoch(fleet: Fleet) -> None:
    first, second = await fleet.replica("a"), await fleet.replica("b")
    await first.look()
    old = {name: first.tenure(name) for name in DUTIES}
    fleet.wait(LEASE_S - 1, "a")
    await second.look()
    assert held(second) == set()
    fleet.wait(1, "a")
    await second.look()
    assert held(second) == set(DUTIES)
    for name, tenure in old.items():
        assert tenure is not None
        assert second.tenure(name) == Tenure(name, tenure.epoch + 1)


async def test_who_was_stopped_and_believes_writes_nothing(fleet: Fleet) -> None:
    first, second = await fleet.replica("a"), await fleet.replica("b")
    await first.look()
    tenure = first.tenure(WATCH)
    assert tenure is not None
    await write(first, tenure, "before")
    fleet.wait(LEASE_S, "a")
    await second.look()
    assert first.tenure(WATCH) == tenure, "it has not noticed"
    with pytest.raises(OffDuty):
        await write(first, tenure, "after")
    assert await first._store.all_sites() == {"before"}
    assert first.tenure(WATCH) is None and first.refused == 1
    await first.look()  # the other one is there: nothing to take but its share, later
    assert held(first) == set()


async def test_planted_a_check_that_lets_everything_pass_is_seen(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    async def check(self: Duties, tx: Transaction, tenures: object) -> None: ...

    monkeypatch.setattr(desk.Duties, "check", check)
    with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
        await test_who_was_stopped_and_believes_writes_nothing(fleet)


async def test_who_cannot_ask_stops_believing_by_its_own_clock(fleet: Fleet) -> None:
    only = await fleet.replica("a")
    await only.look()
    fleet.wait(LEASE_S - 0.1)
    assert held(only) == set(DUTIES)
    fleet.wait(0.1)
    assert held(only) == set()
    await only.look()  # nobody has taken them: the same epoch goes on
    assert held(only) == set(DUTIES) and only.tenure(WATCH) == Tenure(WATCH, 1)


async def test_who_leaves_keeps_nobody_waiting(fleet: Fleet) -> None:
    first, second = await fleet.replica("a"), await fleet.replica("b")
    await first.look()
    await first.leave()
    assert held(first) == set()
    await second.look()
    assert held(second) == set(DUTIES) and second.others == ()


async def test_a_process_takes_at_once_what_its_directory_held(fleet: Fleet) -> None:
    """The lock on the directory says that the one before is gone."""
    await (await fleet.replica("a")).look()
    again = await fleet.replica("a")
    await again.look()
    assert held(again) == set(DUTIES) and again.tenure(WATCH) == Tenure(WATCH, 2)


async def test_alone_it_holds_everything_for_good(fleet: Fleet) -> None:
    await (await fleet.replica("a")).look()
    only = await fleet.replica("b", alone=True)
    await only.look()
    fleet.wait(1_000_000)
    assert held(only) == set(DUTIES)


async def test_what_replicas_say_of_themselves_is_heard_while_they_live(fleet: Fleet) -> None:
    first, second = await fleet.replica("a"), await fleet.replica("b", figures=lambda: Figures(31, 2, 1))
    await second.look()
    await first.look()
    assert [(one.replica_id, one.figures) for one in first.others] == [("b", Figures(31, 2, 1))]
    fleet.wait(LEASE_S)
    await first.look()
    assert first.others == ()


async def test_the_databases_clock_is_the_one_that_counts(postgresql: Address) -> None:
    """Not that of the process, which a test would have given it."""
    store = await SqlStore.open(postgresql)
    now = await store.write(lambda tx: tx.now())
    later = await store.write(lambda tx: tx.now())
    assert now.tzinfo is not None and now < later < now + timedelta(minutes=1)
    await store.close()


def duty(name: str, holder: str, epoch: int) -> Duty:
    return Duty(name, holder, epoch, START)


@given(
    st.integers(1, 6), st.dictionaries(st.sampled_from(DUTIES), st.tuples(st.integers(1, 3), st.booleans())), st.data()
)
def test_nobody_takes_what_is_held_or_more_than_its_share(
    replicas: int, known: dict[str, tuple[int, bool]], data: st.DataObject
) -> None:
    rows = {name: duty(name, "x", epoch) for name, (epoch, _) in known.items()}
    free = {name for name, (_, is_free) in known.items() if is_free}
    mine = {name: data.draw(st.integers(1, 3)) for name in known if data.draw(st.booleans())}
    found = wanted(rows, mine, replicas, lambda one: one.name in free)
    kept = {one.name for one in found.keep}
    assert all(rows[one.name].epoch == one.epoch == mine[one.name] for one in (*found.keep, *found.leave))
    assert all(name not in rows or name in free for name in found.take)
    assert not kept & set(found.take)
    share = -(-PARTS // replicas)
    assert len((kept | set(found.take)) & set(LOGS)) <= share
    assert {WATCH} & (free | (set(DUTIES) - rows.keys())) - mine.keys() <= set(found.take)


def test_a_site_has_one_part_and_no_part_is_empty() -> None:
    assert {log_duty(f"clinic-{number}") for number in range(100)} == set(LOGS)
