"""Orders on a host: done once or not at all, recorded once each, by the agent's own parts; a server alone can do nothing."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import structlog

from compliance_agent.adapters.database import Database
from compliance_agent.adapters.order_store import OrderStore
from compliance_agent.agent import ComplianceAgent
from compliance_agent.core import orders
from compliance_agent.core.order_keys import KINDS
from compliance_agent.ordering import MOST_REFUSED_AN_HOUR, NONCE_LIFE_S, Orders
from tests import order_keys
from tests.order_keys import ANNA, BEN, MALLORY, signed
from tests.order_scene import OrderScene

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[OrderScene]:
    made = OrderScene(tmp_path)
    await made.cycle(made.agent())
    yield made
    await made.close()


def live(scene: OrderScene) -> ComplianceAgent:
    assert scene.live is not None
    return scene.live


def is_paused(scene: OrderScene) -> bool:
    return scene.healer.paused


def untouched(scene: OrderScene) -> bool:
    """Nothing that an order can ask for was done."""
    return not ("time_sync" in scene.healer.cured or scene.healer.approved or is_paused(scene))


# Each kind, by the part that does it anyway


async def test_a_check_is_looked_at_now_and_its_verdict_stands_in_the_record(scene: OrderScene) -> None:
    looks = scene.detector.looks
    raw = scene.signed("check", parameters={"checks": ["logging", "time_sync"]})
    await scene.give(live(scene), raw)
    [document] = [item for item in scene.documents() if item["kind"] == "order"]
    assert document["states"] == {
        name: {"result": "pass", "reason": "as_expected"} for name in ("logging", "time_sync")
    }
    assert (document["outcome"], document["error"], document["trigger"]) == ("success", None, "order")
    assert document["artifacts"] == [{"name": "order", "sha256": hashlib.sha256(raw).hexdigest(), "size": len(raw)}]
    assert scene.detector.looks == looks + 1  # the round that came anyway; the order looks at single checks


async def test_a_drift_is_cured_by_order_through_the_same_gates(scene: OrderScene) -> None:
    scene.healer.held["time_sync"] = "outside_window"
    scene.detector.drift("time_sync")
    await scene.give(live(scene), scene.signed("remediate"))
    assert scene.ended() == [("0" * 31 + "1", "deferred", "outside_window")]
    assert scene.healer.cured == []
    scene.healer.held.clear()
    scene.healer.held["time_sync"] = "cooldown"  # what the round says; the order comes when it is over
    raw = scene.signed("remediate")
    scene.server.orders = [raw]
    await live(scene).delivery.turn()
    scene.healer.held.clear()
    await live(scene)._do_orders()
    await live(scene).delivery.turn()
    assert scene.ended()[1:] == [("0" * 31 + "2", "success", None)]
    cured = [item for item in scene.documents() if item["kind"] == "remediation" and item["trigger"] == "order"]
    assert [(item["order_id"], item["outcome"]) for item in cured] == [("0" * 31 + "2", "success")]


async def test_what_does_not_fail_is_not_put_back(scene: OrderScene) -> None:
    await scene.give(live(scene), scene.signed("remediate"))
    assert scene.ended() == [("0" * 31 + "1", "success", None)]
    assert scene.healer.asked == []


async def test_pause_resume_and_approval_reach_the_healing_engine(scene: OrderScene) -> None:
    await scene.give(live(scene), scene.signed("pause"))
    assert is_paused(scene)
    await scene.give(live(scene), scene.signed("approve"), scene.signed("resume"))
    assert not is_paused(scene)
    assert scene.healer.approved == [("time_sync", "steps-1")]
    assert [outcome for _, outcome, _ in scene.ended()] == ["success"] * 3


async def test_a_stop_beats_everything_and_outlives_a_restart(scene: OrderScene) -> None:
    """It is done before what was offered with it, and only two people end it."""
    work, stop = scene.signed("approve"), scene.signed("stop_all", by=(ANNA,))
    await scene.give(live(scene), work, stop)
    assert is_paused(scene) and scene.healer.approved == []
    assert [(outcome, error) for _, outcome, error in scene.ended()] == [("success", None), ("rejected", "stopped")]
    scene.healer.paused = False  # somebody at the host
    agent = await scene.restart()
    await agent.recover()
    assert is_paused(scene)
    scene.server.orders = []
    await scene.cycle(agent)
    await scene.give(agent, scene.signed("resume", by=(BEN,)))
    assert is_paused(scene) and scene.ended()[-1][2] == "too_few_signers"
    await scene.give(agent, scene.signed("resume"))
    assert not is_paused(scene)
    await scene.give(agent, scene.signed("approve"))
    assert len(scene.healer.approved) == 1


async def test_a_key_rotates_by_order_or_says_what_it_waits_for(scene: OrderScene) -> None:
    raw = scene.signed("rotate_key")
    await scene.give(live(scene), raw)
    [(_, outcome, error)] = scene.ended()
    assert (outcome, error) in {("success", None), ("deferred", "not_delivered")}


async def test_an_order_that_comes_between_two_ticks_is_done_then(scene: OrderScene) -> None:
    agent = live(scene)
    agent.orders.offer([scene.signed("approve")])
    async with asyncio.timeout(5):
        await agent._late()
    await agent._late_turn()
    assert len(scene.healer.approved) == 1


# Once, and only what is right


async def test_what_is_forwarded_again_and_again_is_done_and_recorded_once(scene: OrderScene) -> None:
    raw = scene.signed("approve")
    for _ in range(5):
        await scene.give(live(scene), raw, raw)
    assert len(scene.healer.approved) == 1
    assert len(scene.ended()) == 1


async def test_a_refused_copy_does_not_use_up_the_good_order(scene: OrderScene) -> None:
    made = scene.order("approve")
    body = orders.payload(made)
    bad = orders.envelope(body, {ANNA.key_id: ANNA.sign(body), BEN.key_id: MALLORY.sign(body)})
    late = signed(scene.order("approve", order_id=made.order_id, counter=made.counter, nonce="00" * 16))
    await scene.give(live(scene), bad, late, b"no order")
    assert untouched(scene)
    await scene.give(live(scene), bad, signed(made), late)
    assert len(scene.healer.approved) == 1
    said = [(order_id, error) for order_id, _, error in scene.ended()]
    assert sorted(said, key=str) == sorted(
        [
            (made.order_id, "order_signature"),
            (made.order_id, "wrong_nonce"),
            (None, "order_unreadable"),
            (made.order_id, None),
        ],
        key=str,
    )


async def test_a_second_order_with_a_used_id_or_number_is_refused(scene: OrderScene) -> None:
    first = scene.order("approve")
    await scene.give(live(scene), signed(first))
    again = scene.order("pause", order_id=first.order_id)
    same_number = scene.order("pause", counter=first.counter)
    await scene.give(live(scene), signed(again), signed(same_number))
    assert not is_paused(scene)
    assert [error for *_, error in scene.ended()] == [None, "replayed", "replayed"]
    # The id that was used before has not used up its number: the next order may have it.
    await scene.give(live(scene), signed(scene.order("pause", counter=again.counter)))
    assert is_paused(scene)


async def test_every_order_of_delivery_of_five_orders(scene: OrderScene) -> None:
    """120 ways to deliver five orders one by one: each is done at most once, by number, and each is recorded."""
    agent = live(scene)
    for way in itertools.permutations(range(5)):
        scene.healer.approved.clear()
        scene.clock.advance(300)  # or its refusals would be too many for an hour
        before = len(scene.ended())
        made = [scene.order("approve", parameters={"check": "time_sync", "target": f"t{at}"}) for at in range(5)]
        newest, expected = -1, []
        for at in way:
            scene.server.orders = [signed(made[at])]
            await agent.delivery.turn()
            await agent._do_orders()
            if at > newest:
                newest = at
                expected.append(("time_sync", f"t{at}"))
        assert scene.healer.approved == expected, way
        scene.server.orders = []
        await agent.delivery.turn()
        said = scene.ended()[before:]
        assert [order_id for order_id, *_ in said] == [made[at].order_id for at in way]
        assert [error for *_, error in said].count("replayed") == 5 - len(expected)


async def test_offered_together_they_are_done_by_number_however_they_are_listed(scene: OrderScene) -> None:
    made = [scene.signed("approve", parameters={"check": "time_sync", "target": f"t{at}"}) for at in range(5)]
    await scene.give(live(scene), *reversed(made))
    assert [target for _, target in scene.healer.approved] == [f"t{at}" for at in range(5)]


# Time, restarts, lost state


async def test_a_clock_that_was_set_back_revives_nothing(scene: OrderScene) -> None:
    """The server signed a later time with an acknowledgement; the order was kept back meanwhile."""
    raw = scene.signed("approve")
    signed_at = scene.clock.now() + timedelta(hours=1)
    scene.server.signed_time = signed_at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    scene.detector.drift("av_health")
    scene.server.orders = []
    await scene.cycle(live(scene), pause_s=1.0)  # delivers, and so hears the time
    await scene.give(live(scene), raw)
    assert untouched(scene)
    assert scene.ended() == [("0" * 31 + "1", "expired", "order_expired")]


async def test_the_time_that_was_signed_survives_a_restart(scene: OrderScene) -> None:
    scene.server.signed_time = "2026-11-22T18:00:00.000000Z"
    scene.detector.drift("av_health")
    await scene.cycle(live(scene), pause_s=1.0)
    await scene.cycle(live(scene), pause_s=1.0)
    agent = await scene.restart()
    scene.clock.step(-86_400)
    await scene.cycle(agent, pause_s=1.0)
    await scene.give(agent, scene.signed("approve"))  # 15 minutes from a clock that is a day behind
    assert scene.ended()[-1][2] == "order_expired"
    assert untouched(scene)


async def freshness(scene: OrderScene, hours: float) -> list[str]:
    """What is said of the server's time in a turn, so many hours later."""
    scene.clock.advance(hours * 3_600)
    with structlog.testing.capture_logs() as logged:
        await live(scene).orders.run()
    return [item["event"] for item in logged if item["event"].startswith("order.time")]


async def test_a_server_time_that_stands_still_for_a_day_is_said_once_and_so_is_its_end(scene: OrderScene) -> None:
    """RELIABILITY 3.2, freeze: whoever keeps the host from the server's words is noticed; the host goes on."""
    live(scene).orders.saw_time(stamp(scene))
    assert await freshness(scene, 23.9) == []
    assert await freshness(scene, 0.2) == ["order.time_stale"]
    assert await freshness(scene, 24) == []
    scene.server.down, looks = True, scene.detector.looks
    await scene.cycle(live(scene))
    assert scene.detector.looks > looks, "checks go on"
    live(scene).orders.saw_time("2020-01-01T00:00:00.000000Z")  # an old word played back is no new one
    assert await freshness(scene, 0) == []
    scene.clock.step(-7 * 86_400)  # nor does a wall clock that is set back help
    assert await freshness(scene, 0) == []
    scene.clock.step(7 * 86_400)
    live(scene).orders.saw_time(stamp(scene))
    assert await freshness(scene, 0) == ["order.time_fresh"]


async def test_a_host_whose_clock_runs_fast_is_not_told_that_the_server_stands_still(scene: OrderScene) -> None:
    """The server's word comes each hour, a second later each time than this host has counted."""
    for late_s in range(1, 60):
        said = scene.clock.now() + timedelta(hours=1, seconds=-late_s)
        assert await freshness(scene, 1) == []
        live(scene).orders.saw_time(said.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))


async def test_a_day_that_passed_while_the_agent_was_off_counts(scene: OrderScene) -> None:
    live(scene).orders.saw_time(stamp(scene))
    await live(scene).orders.run()
    scene.clock.advance(25 * 3_600)
    await scene.restart()
    assert await freshness(scene, 0) == ["order.time_stale"]


async def test_planted_a_host_that_believes_any_word_to_be_new_is_caught(
    scene: OrderScene, monkeypatch: pytest.MonkeyPatch
) -> None:
    def believing(self: Any, _text: str) -> None:
        self._fresh_at = self._parts.clock.monotonic()

    monkeypatch.setattr(Orders, "saw_time", believing)
    with pytest.raises(AssertionError):
        await test_a_server_time_that_stands_still_for_a_day_is_said_once_and_so_is_its_end(scene)


def stamp(scene: OrderScene) -> str:
    return scene.clock.now().strftime("%Y-%m-%dT%H:%M:%S.%fZ")


async def test_an_order_that_was_kept_back_dies_with_its_nonce_whatever_the_clock_says(scene: OrderScene) -> None:
    raw = scene.signed("approve")
    live(scene).orders._time, scene.server.signed_time = (
        None,
        "2020-01-01T00:00:00.000000Z",
    )  # no other time to hold it against
    scene.clock.advance(NONCE_LIFE_S)
    scene.clock.step(-NONCE_LIFE_S)
    other = scene.signed("approve")  # one life later the nonce before is still good
    await scene.give(live(scene), other)
    assert len(scene.healer.approved) == 1
    assert scene.ended()[-1][1] == "success"
    for _ in range(2):
        scene.clock.advance(NONCE_LIFE_S)
        scene.clock.step(-NONCE_LIFE_S)
        scene.server.orders = []
        await scene.cycle(live(scene), pause_s=0.0)
    late = scene.signed("approve", nonce=scene.server.check_ins[0]["order_nonce"])
    await scene.give(live(scene), raw, late)
    assert {error for *_, error in scene.ended()[1:]} <= {"wrong_nonce", "replayed"}
    assert len(scene.healer.approved) == 1


async def test_after_a_restart_nothing_that_was_signed_before_counts(scene: OrderScene) -> None:
    raw = scene.signed("approve")
    agent = await scene.restart()
    await scene.give(agent, raw)
    assert untouched(scene)
    assert scene.ended()[-1][2] == "wrong_nonce"
    await scene.give(agent, scene.signed("approve"))
    assert len(scene.healer.approved) == 1


async def test_a_wiped_or_restored_state_does_nothing_twice(scene: OrderScene) -> None:
    before = scene.config.database_path.read_bytes()
    raw = scene.signed("approve")
    await scene.give(live(scene), raw)
    for content in (b"", before):  # wiped; a copy from before the order
        await scene.close()
        for path in scene.config.state_dir.glob("agent.db*"):
            path.unlink()
        if content:
            scene.config.database_path.write_bytes(content)
        agent = scene.agent()
        await scene.give(agent, raw)
        assert len(scene.healer.approved) == 1
    assert "wrong_nonce" in {error for *_, error in scene.ended()}


async def test_a_state_that_is_lost_while_the_agent_runs_needs_a_new_nonce(scene: OrderScene) -> None:
    """Nonce and number alone are in memory then; what was taken is gone."""
    raw, later = scene.signed("approve"), scene.signed("pause")
    await scene.give(live(scene), raw)
    with sqlite3.connect(scene.config.database_path) as connection:
        connection.execute("DELETE FROM order_state")
        connection.execute("DELETE FROM orders")
    await scene.give(live(scene), raw, later)
    assert len(scene.healer.approved) == 1
    assert not is_paused(scene)
    scene.server.orders = []
    await scene.cycle(live(scene))
    await scene.give(live(scene), scene.signed("pause"))
    assert is_paused(scene)


# Whose orders count


@pytest.mark.parametrize(
    ("content", "mode", "error"),
    [
        (None, 0o644, "no_order_keys"),
        (b"{}", 0o644, "no_order_keys"),
        (order_keys.keys_file(), 0o666, "no_order_keys"),  # others may write it
        (order_keys.keys_file(expires="2026-11-22T00:00:00Z"), 0o644, "order_keys_expired"),
        (order_keys.keys_file(tenant="msp-2"), 0o644, "other_host"),
    ],
)
async def test_without_a_sound_list_of_signers_checks_go_on_and_orders_do_not(
    scene: OrderScene, content: bytes | None, mode: int, error: str, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = scene.signed("approve")
    if content is None:
        scene.keys_path.unlink()
    else:
        scene.keys_path.write_bytes(content)
        scene.keys_path.chmod(mode)
    scene.detector.drift("av_health")
    await scene.give(live(scene), raw)
    assert untouched(scene)
    assert scene.ended() == [("0" * 31 + "1", "rejected", error)]
    assert any(item["check"] == "av_health" for item in scene.documents())
    if error != "other_host":
        assert "order.keys_unusable" in capsys.readouterr().out
    scene.keys_path.write_bytes(order_keys.keys_file())
    scene.keys_path.chmod(0o644)
    await scene.give(live(scene), raw)
    assert scene.ended()[-1][1] == "success"  # a refusal uses up nothing


async def test_a_server_that_invents_orders_does_not_fill_the_chain(scene: OrderScene) -> None:
    before = len(scene.documents())
    for number in range(20):
        made = [
            scene.signed("approve", by=(MALLORY,), parameters={"check": "time_sync", "target": f"{number}-{at}"})
            for at in range(16)
        ]
        scene.server.orders = made
        await live(scene).delivery.turn()
        await live(scene)._do_orders()
    scene.server.orders = []
    await live(scene).delivery.turn()
    assert untouched(scene)
    assert len(scene.documents()) - before == MOST_REFUSED_AN_HOUR
    scene.clock.advance(3_600)
    await scene.give(live(scene), scene.signed("approve", by=(MALLORY,)))
    assert len(scene.ended()) == MOST_REFUSED_AN_HOUR + 1


async def test_a_part_that_breaks_ends_its_order_and_nothing_else(scene: OrderScene) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError

    scene.healer.approve = broken  # type: ignore[method-assign,assignment]
    await scene.give(live(scene), scene.signed("approve"), scene.signed("pause"))
    assert is_paused(scene)
    assert [(outcome, error) for _, outcome, error in scene.ended()] == [("failed", "order_failed"), ("success", None)]


# Cut off at every write


class Cut(BaseException):
    """The power went."""


def cut_at(number: int, after: bool) -> Callable[..., Any]:
    """A `Database.write` that is cut at its `number`-th transaction, before or after it became durable."""
    write, count = Database.write, [0]

    def cutting(self: Database, fn: Any, *, drains: bool = False) -> Any:
        count[0] += 1
        if count[0] == number and not after:
            raise Cut
        value = write(self, fn, drains=drains)
        if count[0] == number and after:
            raise Cut
        return value

    return cutting


async def one_order(root: Path, kind: str, number: int, after: bool) -> tuple[int, list[Any], bool]:
    """An order cut off at one write, then a restart: how often it was done, its records, and whether it was cut."""
    scene = OrderScene(root)
    scene.healer.held["time_sync"] = "cooldown"
    if kind == "remediate":
        scene.detector.drift("time_sync")
    await scene.cycle(scene.agent())
    done = [0]
    approve, remediate = scene.healer.approve, scene.healer.remediate

    def counted(*args: Any) -> None:
        done[0] += 1
        approve(*args)

    async def cured(drift: Any) -> Any:
        done[0] += 1
        return await remediate(drift)

    scene.healer.approve = counted  # type: ignore[method-assign,assignment]
    scene.healer.remediate = cured  # type: ignore[method-assign]
    raw = scene.signed(kind)
    agent = live(scene)
    agent.orders.offer([raw])
    cut = False
    with pytest.MonkeyPatch.context() as patch:
        cutting = cut_at(number, after)
        patch.setattr(Database, "write", cutting)
        try:
            await agent.orders.run()
        except Cut:
            cut = True
    acts = done[0]
    scene.healer.remediate = remediate  # type: ignore[method-assign]
    again = await scene.restart()
    await again.recover()
    scene.healer.approve = counted  # type: ignore[method-assign,assignment]
    await scene.give(again, raw)
    acts = acts if kind == "remediate" else done[0]
    said = [item for item in scene.ended() if item[0] == "0" * 31 + "1"]
    await scene.close()
    return acts, said, cut


@pytest.mark.parametrize("kind", ["approve", "remediate"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_cut_off_at_each_write_it_is_done_at_most_once_and_said_once(
    tmp_path: Path, kind: str, after: bool
) -> None:
    ends = []
    for number in itertools.count(1):
        acts, said, cut = await one_order(tmp_path / f"{number}", kind, number, after)
        assert acts <= 1, number
        assert len([item for item in said if item[2] != "wrong_nonce"]) <= 1, (number, said)
        assert len(said) >= 1
        ends.append((acts, said[-1][2]))
        if not cut:
            break
    assert len(ends) > 4
    assert (0, "wrong_nonce") in ends or after  # before it began: refused after the restart, for its nonce is gone
    assert (0, "order_interrupted") in ends or (1, "order_interrupted") in ends


async def test_an_order_that_is_done_before_it_is_written_down_would_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted fault: acting first. Cut off in between, the order is done and nobody ever says so."""
    begin = OrderStore.begin

    def act_first(self: OrderStore, taken: Any, counter: int | None, *, stops: bool | None = None) -> bool:
        scenes[-1].healer.approve("time_sync", "steps-1")
        return begin(self, taken, counter, stops=stops)

    scenes: list[OrderScene] = []
    init = OrderScene.__post_init__

    def noted(self: OrderScene) -> None:
        init(self)
        scenes.append(self)

    monkeypatch.setattr(OrderScene, "__post_init__", noted)
    monkeypatch.setattr(OrderStore, "begin", act_first)
    acts, said, cut = await one_order(tmp_path / "1", "approve", 1, after=False)
    assert cut
    assert (acts, said[-1][2]) == (1, "wrong_nonce")


def test_every_kind_is_done_by_something() -> None:
    from compliance_agent import ordering

    assert set(ordering._ACTS) == set(KINDS)
