"""What began and ended is told once, for each cause and channel, whatever fails in between."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError

from compliance_agent.errors import Unavailable
from compliance_agent.server.records import Backlog
from compliance_agent.server.records.alarms import KINDS, Cause, Delivery
from compliance_agent.server.services import alarms as desk
from compliance_agent.server.services import watching
from compliance_agent.server.services.alarms import MOST_TRIES, Alarms
from compliance_agent.server.services.board import Board
from compliance_agent.server.services.watching import Condition, Watch, Watched
from tests.server.builder import Server, serving

pytestmark = pytest.mark.anyio
CAUSE = Cause("silent_hosts", "clinic-1")


@dataclass
class Receiver:
    """Takes what it is sent, once by its id; or fails as it is told."""

    fails: int = 0
    answered: bool = True  # False: it takes it, and its answer is lost
    seen: list[str] = field(default_factory=list)
    tries: int = 0

    async def send(self, delivery: Delivery) -> None:
        self.tries += 1
        if self.fails > 0:
            self.fails -= 1
            if not self.answered:
                self.take(delivery)
            raise Unavailable("planted", code="planted")
        self.take(delivery)

    def take(self, delivery: Delivery) -> None:
        if delivery.id not in self.seen:
            self.seen.append(delivery.id)

    @property
    def transitions(self) -> list[str]:
        return [item.partition("-")[2] for item in self.seen]


def alarms_of(server: Server, **channels: Receiver) -> Alarms:
    return Alarms(server.services.store, server.clock, channels, random.Random(7))


async def settled(alarms: Alarms, server: Server) -> None:
    """Until nothing waits, however long that takes by the server's clock."""
    for _ in range(500):
        if not await alarms.deliver():
            counts = await alarms.counts()
            if not any(state == "waiting" for _, state in counts):
                return
            server.clock.move(60)
    raise AssertionError(f"stuck: {await alarms.counts()}")


async def test_one_open_and_one_close_for_a_cause_through_every_channel(server: Server) -> None:
    mail, pager = Receiver(), Receiver()
    alarms = alarms_of(server, mail=mail, pager=pager)
    assert await alarms.opened(CAUSE, 1)
    assert not await alarms.opened(CAUSE, 3)  # it stands: nothing is sent again
    assert await alarms.opened(Cause("silent_hosts", "clinic-2"), 1)
    await settled(alarms, server)
    [first, *_] = [item for item in await alarms.all() if item.cause == CAUSE]
    assert first.count == 3 and first.closed_at is None
    assert await alarms.closed(CAUSE)
    assert not await alarms.closed(CAUSE)
    await settled(alarms, server)
    for receiver in (mail, pager):
        assert [item for item in receiver.seen if item.startswith(first.alert_id)] == [
            f"{first.alert_id}-open",
            f"{first.alert_id}-close",
        ]
        assert len(receiver.seen) == 3 == receiver.tries
    assert await alarms.opened(CAUSE, 1)  # it begins anew, under an id of its own
    await settled(alarms, server)
    assert len({item.partition("-")[0] for item in mail.seen}) == 3


async def test_a_channel_that_fails_is_tried_again_and_holds_up_no_other(server: Server) -> None:
    bad, good = Receiver(fails=5), Receiver()
    alarms = alarms_of(server, bad=bad, good=good)
    await alarms.opened(CAUSE, 1)
    await alarms.deliver()
    assert (bad.seen, good.transitions) == ([], ["open"])
    assert not await alarms.deliver()  # not at once
    await settled(alarms, server)
    assert (bad.transitions, bad.tries, good.tries) == (["open"], 6, 1)
    assert alarms.failed == {"planted": 5}


async def test_the_end_is_not_told_before_the_beginning(server: Server) -> None:
    bad = Receiver(fails=3)
    alarms = alarms_of(server, bad=bad)
    await alarms.opened(CAUSE, 1)
    await alarms.deliver()
    await alarms.closed(CAUSE)
    await settled(alarms, server)
    assert bad.transitions == ["open", "close"]


async def test_what_was_taken_and_not_heard_comes_again_under_its_id(server: Server) -> None:
    deaf = Receiver(fails=4, answered=False)
    alarms = alarms_of(server, deaf=deaf)
    await alarms.opened(CAUSE, 1)
    await settled(alarms, server)
    assert (deaf.tries, deaf.transitions) == (5, ["open"])


async def test_it_is_given_up_after_so_many_tries_loudly(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    gone = Receiver(fails=10_000)
    alarms = alarms_of(server, gone=gone)
    await alarms.opened(CAUSE, 1)
    await settled(alarms, server)
    assert gone.tries == MOST_TRIES and alarms.dead == 1
    assert await alarms.counts() == {("gone", "dead"): 1}
    assert capsys.readouterr().out.count("alert.given_up") == 1
    gone.fails = 0
    await alarms.closed(CAUSE)  # the end is told all the same
    await settled(alarms, server)
    assert gone.transitions == ["close"]


async def test_a_hang_ends_at_the_deadline(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    class Hanging(Receiver):
        async def send(self, delivery: Delivery) -> None:
            self.tries += 1
            await asyncio.Event().wait()

    monkeypatch.setattr(desk, "SEND_DEADLINE_S", 0.02)
    alarms = alarms_of(server, hanging=Hanging())
    await alarms.opened(CAUSE, 1)
    assert await alarms.deliver() == 1
    assert alarms.failed == {"timed_out": 1}


async def test_two_processes_send_it_once(server: Server) -> None:
    """One claims it and stops; the other sends it only once the claim has run out, and the first may not say what became of it."""
    receiver = Receiver()
    frozen, other = alarms_of(server, one=receiver), alarms_of(server, one=receiver)
    await frozen.opened(CAUSE, 1)
    now = server.clock()
    store = server.services.store
    [claimed] = await store.write(lambda tx: tx.claim_deliveries("frozen", now, now + desk.CLAIM, ("one",), 5))
    assert await other.deliver() == 0 and receiver.tries == 0
    server.clock.move(desk.CLAIM.total_seconds() + 1)
    assert await other.deliver() == 1
    assert not await store.write(lambda tx: tx.settle_delivery(claimed.number, "frozen", state="dead"))
    assert await other.counts() == {("one", "sent"): 1}
    assert receiver.tries == 1


async def test_a_restart_between_loses_and_doubles_nothing(tmp_path: Path) -> None:
    receiver = Receiver(fails=2)
    async with serving(tmp_path / "data") as server:
        alarms = alarms_of(server, one=receiver)
        await alarms.opened(CAUSE, 1)
        await alarms.deliver()
        clock = server.clock
    for _ in range(6):
        clock.move(60)
        async with serving(tmp_path / "data", clock=clock) as server:
            again = alarms_of(server, one=receiver)
            assert not await again.opened(CAUSE, 2)
            await again.deliver()
    assert (receiver.transitions, receiver.tries) == (["open"], 3)


async def test_a_fork_opens_its_alert_in_its_own_transaction(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    host = await server.enrolled()
    receiver = Receiver()
    own = server.services.alarms
    own.channels, own._names = {"one": receiver}, ("one",)
    await server.deliver(host, host.next())
    forked = host.sign(host.document(seq=1, prev="0" * 64))

    async def fail(*_arguments: Any) -> None:
        raise IntegrityError("planted", None, ValueError())

    with monkeypatch.context() as planted:  # the transaction does not become durable, and so neither does the alert
        planted.setattr("compliance_agent.server.store.taking.TakingRows.save_hosts", fail)
        assert (await server.deliver(host, forked)).status_code == 503
    assert await own.all() == []
    for _ in range(2):
        assert (await server.deliver(host, forked)).json()["code"] == "fork"
    [alert] = await own.all()
    assert alert.cause == Cause("fork", "clinic-1", host.key_id)
    await settled(own, server)
    await own.acknowledge(alert.alert_id, "op")
    with pytest.raises(Exception, match="nobody has acknowledged"):
        await own.acknowledge(alert.alert_id, "op")
    await settled(own, server)
    assert receiver.transitions == ["open", "close"]
    [alert] = await own.all()
    assert (alert.acked_by, alert.closed_at) == ("op", server.clock())


# --- the watcher ----------------------------------------------------------------------------------


def test_a_condition_opens_and_closes_once_and_does_not_flap() -> None:
    def steps(*values: float) -> list[bool | None]:
        condition = Condition(10.0)
        return [condition.step(value) for value in values]

    assert steps(10, 10, 10, 10) == [None, None, True, None]
    assert steps(0, 0, 0, 0) == [None, None, False, None]  # at the start: what an older process left open ends
    assert not any(steps(*[10, 0] * 20))
    assert not any(steps(*[10, 10, 7] * 20))
    assert steps(10, 10, 10, 7, 7, 7, 7, 5, 5, 5)[3:] == [None] * 6 + [False]
    flat = [item for item in steps(*([12] * 5 + [7, 9, 6] * 5 + [12] * 5 + [1] * 5)) if item is not None]
    assert flat == [True, False]


@dataclass
class Scene:
    """A server whose figures are as they are told to be."""

    server: Server
    watch: Watch
    alarms: Alarms
    board: Board
    waiting_s: float = 0.0

    async def looks(self, count: int = watching.LOOKS) -> list[str]:
        """Look so often; what is open."""
        for _ in range(count):
            await self.watch.look()
        return sorted(item.cause.id for item in await self.alarms.all() if item.closed_at is None)


@pytest.fixture
async def scene(server: Server) -> Scene:
    alarms, board = alarms_of(server, one=Receiver()), Board()
    services = server.services
    made: list[Scene] = []
    watched = Watched(
        store=services.store,
        board=board,
        clock=server.clock,
        waiting_s=lambda: made[0].waiting_s,
        silent_since=lambda: services.silence.since(server.clock()),
        stamps_every=timedelta(hours=1),
    )
    made.append(Scene(server, Watch(watched, alarms), alarms, board))
    return made[0]


async def test_silent_hosts_are_one_alert_for_a_clinic(scene: Scene) -> None:
    for number in range(3):
        await scene.server.checkin(await scene.server.enrolled(f"ws-{number}"))
    assert await scene.looks() == []
    scene.server.clock.move(3_600)
    silent = "silent_hosts/clinic-1/"
    assert silent not in await scene.looks(2)
    assert silent in await scene.looks(1)
    [alert] = [item for item in await scene.alarms.all() if item.cause.id == silent]
    assert alert.count == 3
    for host in await scene.server.services.store.for_sites({"clinic-1"}).hosts():
        await scene.server.services.enrolment.revoke("clinic-1", host.key_id, actor="test")
    assert silent not in await scene.looks()


async def test_what_waits_too_long_is_told(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.waiting_s = watching.UNVERIFIED_S
    assert await scene.looks() == ["unverified//"]
    scene.waiting_s = 0
    assert await scene.looks() == []
    now = scene.server.clock()

    async def old(_reader: object) -> Backlog:
        return Backlog(count=5, oldest=now - timedelta(seconds=watching.UNSEQUENCED_S))

    with monkeypatch.context() as planted:
        planted.setattr("compliance_agent.server.store.reader.BoundReader.backlog", old)
        assert await scene.looks() == ["unsequenced//"]
    assert await scene.looks() == []


async def test_a_log_that_stands_still_and_one_without_time_stamps_are_told(scene: Scene) -> None:
    scene.board.sequencing = True
    scene.board.stopped["clinic-1"] = "log_stopped"
    scene.board.stamped_at = scene.server.clock()
    assert await scene.looks() == ["log_still//"]
    scene.board.stopped.clear()
    scene.server.clock.move(3 * 3_600 + 1)
    assert await scene.looks() == ["unanchored//"]
    scene.board.stamped_at = scene.server.clock()
    assert await scene.looks() == []


async def test_a_watcher_that_starts_again_does_not_tell_again(scene: Scene) -> None:
    scene.waiting_s = 100
    assert await scene.looks() == ["unverified//"]
    restarted = Watch(scene.watch._watched, scene.alarms)
    for _ in range(5):
        await restarted.look()
    assert len(await scene.alarms.all()) == 1
    scene.waiting_s = 0
    for _ in range(5):
        await Watch(scene.watch._watched, scene.alarms).look()  # never long enough to know
    assert len([item for item in await scene.alarms.all() if item.closed_at is None]) == 1
    for _ in range(watching.LOOKS):
        await restarted.look()
    assert [item for item in await scene.alarms.all() if item.closed_at is None] == []


def test_every_kind_is_described_and_used() -> None:
    source = "".join(path.read_text() for path in Path(desk.__file__).parents[1].rglob("*.py"))
    page = (Path(__file__).resolve().parents[2] / "docs" / "alerts.md").read_text()
    for kind in KINDS:
        assert f"`{kind}`" in page
        assert f'Cause("{kind}"' in source or kind == "test"
