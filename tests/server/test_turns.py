"""A site that sends a thousand times as much as another does not stand in front of it; no clock is looked at."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Sequence
from typing import Any

import pytest

from compliance_agent.server.services import ingest
from compliance_agent.server.services.ingest import Ingest
from compliance_agent.server.services.placing import Checked, Outcome, Submission
from compliance_agent.server.services.turns import Fair, Turns
from tests.server.builder import FakeHost, Server

pytestmark = pytest.mark.anyio


class Fifo(Fair[Any]):
    """The planted fault: first come, first served."""

    def __init__(self) -> None:
        super().__init__()
        self._line: deque[Any] = deque()

    def __len__(self) -> int:
        return len(self._line)

    def put(self, site: str, host: str, cost: int, item: Any) -> None:
        self._line.append(item)

    def get(self) -> Any:
        return self._line.popleft()


def before(queue: Fair[str], name: str) -> int:
    """How many are served before this one."""
    for count in range(len(queue)):
        if queue.get() == name:
            return count
    raise AssertionError("never served")


def flooded(queue: Fair[str]) -> Fair[str]:
    """A flood of 1,000 from one host, and of batches of 100 from another site; then one bundle of a third."""
    for number in range(1_000):
        queue.put("loud", "ws-1", 1, f"loud-{number}")
        queue.put("large", f"ws-{number % 7}", 100, f"large-{number}")
    queue.put("quiet", "ws-1", 1, "quiet")
    return queue


def test_a_flood_is_not_in_front_of_another_site() -> None:
    assert before(flooded(Fair()), "quiet") <= 2
    assert before(flooded(Fifo()), "quiet") == 2_000


def test_a_flood_of_one_host_is_not_in_front_of_its_neighbour() -> None:
    queue: Fair[str] = Fair()
    for number in range(1_000):
        queue.put("clinic", "ws-1", 1, f"loud-{number}")
    queue.put("clinic", "ws-2", 1, "quiet")
    assert before(queue, "quiet") <= 1


def test_sites_get_as_many_bundles_each_whatever_their_batches() -> None:
    queue: Fair[tuple[str, int]] = Fair()
    for _ in range(1_000):
        queue.put("single", "ws-1", 1, ("single", 1))
        queue.put("batches", "ws-1", 100, ("batches", 100))
    got = {"single": 0, "batches": 0}
    while got["single"] < 900:
        site, cost = queue.get()
        got[site] += cost
    assert 800 <= got["batches"] <= 1_000


def test_a_hosts_own_order_is_kept_and_nothing_is_lost() -> None:
    rng, queue, sent = random.Random(5), Fair[tuple[str, str, int]](), 0
    last: dict[tuple[str, str], int] = {}
    served = 0
    for number in range(20_000):
        if rng.random() < 0.6 or not len(queue):
            site, host = f"s{rng.randrange(5)}", f"h{rng.randrange(3)}"
            queue.put(site, host, rng.randint(0, 120), (site, host, number))
            sent += 1
        else:
            site, host, place = queue.get()
            assert last.get((site, host), -1) < place
            last[site, host] = place
            served += 1
    assert served + len(queue.drain()) == sent and len(queue) == 0
    with pytest.raises(IndexError):
        queue.get()


async def test_turns_are_handed_on_also_when_someone_gives_up() -> None:
    turns, order, release = Turns(1), list[str](), asyncio.Event()

    async def work(site: str, number: int) -> None:
        async with turns.turn(site, "h", 1):
            order.append(f"{site}{number}")
            await release.wait()

    tasks = [asyncio.create_task(work("loud", number)) for number in range(50)]
    await asyncio.sleep(0)
    quiet = asyncio.create_task(work("quiet", 0))
    await asyncio.sleep(0)
    tasks[1].cancel()  # it waits
    release.set()
    await asyncio.wait_for(asyncio.gather(*tasks, quiet, return_exceptions=True), 5)
    assert len(order) == 50 and "loud1" not in order
    assert order.index("quiet0") <= 3
    assert turns._free == 1


class Recording(Ingest):
    """Decides nothing: notes which hosts' bundles each transaction would have held."""

    groups: list[list[str]]

    async def _write(self, group: Sequence[Submission]) -> Sequence[Outcome]:
        self.groups.append([submission.host.host_id for submission in group])
        await asyncio.sleep(0)
        return [Outcome() for _ in group]


async def groups_before(server: Server, planted: Any = None) -> int:
    """How many transactions there are before the one that holds the quiet site's bundle, after 1,000 submissions of another."""
    loud, quiet = await server.enrolled("loud", "clinic-1"), await server.enrolled("quiet", "clinic-2")
    services = server.services
    desk = Recording(services.store, lambda raw: raw, server.clock)
    desk.groups = []
    if planted is not None:
        desk._writes._waiting = planted
    callers = [await services.access.caller(host.headers["authorization"]) for host in (loud, quiet)]
    waiting = [asyncio.create_task(desk._written(Submission(callers[0], (), None))) for _ in range(1_000)]
    await asyncio.sleep(0)
    waiting.append(asyncio.create_task(desk._written(Submission(callers[1], (), None))))
    await asyncio.gather(*waiting)
    assert sum(len(group) for group in desk.groups) == 1_001
    return next(number for number, group in enumerate(desk.groups) if "quiet" in group)


async def test_a_flood_of_submissions_does_not_starve_another_site(server: Server) -> None:
    assert await groups_before(server) <= 2


async def test_planted_first_come_first_served_is_seen(server: Server) -> None:
    assert await groups_before(server, Fifo()) == 1_000 // ingest.GROUP


async def test_a_group_is_bounded_by_its_bundles(server: Server) -> None:
    host: FakeHost = await server.enrolled()
    caller = await server.services.access.caller(host.headers["authorization"])
    desk = Recording(server.services.store, lambda raw: raw, server.clock)
    desk.groups = []
    item = Checked({}, "", b"", b"")
    large = Submission(caller, (item,) * 100, None)
    await asyncio.gather(*(desk._written(large) for _ in range(20)))
    assert max(len(group) for group in desk.groups) == ingest.GROUP_BUNDLES // 100
