"""A host's lease: asked of the real rules, renewed while the cure runs, kept over a crash, given back, and never invented."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.core import gates, leases
from compliance_agent.errors import BadReply, ServerRefused, StorageError, Unavailable
from compliance_agent.models import DriftResult, Plan, Result, Step, Verdict
from compliance_agent.ports import HttpReply
from compliance_agent.site_lease import FILE, NoLease, SiteLease
from compliance_agent.transport.protocol import LeaseReply, read_lease_reply

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Time:
    """A clock that stands still, and tells a test of every wait."""

    def __init__(self) -> None:
        self.seconds, self.waits = 0.0, asyncio.Queue[tuple[float, asyncio.Event]]()

    def now(self) -> Any:
        from datetime import UTC, datetime

        return datetime.fromtimestamp(1_800_000_000 + self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds

    async def sleep(self, seconds: float) -> None:
        done = asyncio.Event()
        await self.waits.put((seconds, done))
        await done.wait()

    async def pass_wait(self) -> float:
        """Let the next wait end; how long it was."""
        seconds, done = await self.waits.get()
        self.seconds += seconds
        done.set()
        for _ in range(5):
            await asyncio.sleep(0)
        return seconds


class Desk:
    """The server's rules, spoken to by several hosts, with faults."""

    def __init__(self, clock: Time) -> None:
        self.clock, self.board = clock, leases.Board()
        self.fault: Exception | None = None
        self.lost = False
        self.said: list[tuple[str, int | None]] = []

    def client(self, name: str) -> Any:
        desk = self

        class Client:
            async def lease(self, act: str, check: str, target: str, life_s: int, fence: int | None) -> LeaseReply:
                return desk.answer(name, act, check, target, life_s, fence)

        return Client()

    def answer(self, name: str, act: str, check: str, target: str, life_s: int, fence: int | None) -> LeaseReply:
        if self.fault is not None:
            raise self.fault
        self.said.append((act, fence))
        now = self.clock.seconds
        if act == "release":
            self.board, done = leases.release(self.board, name, fence or 0, now)
            return LeaseReply(None, 0, "" if done else "lease_lost")
        ask = leases.Ask(name, name, check, target, life_s)
        self.board, answer = leases.take(self.board, ask, now, cured="success")
        if self.lost:
            raise Unavailable("cut", code="cut")
        until = answer.not_before if answer.lease is None else answer.lease.until
        return LeaseReply(answer.lease.fence if answer.lease else None, int((until or now) - now), answer.reason)


@dataclasses.dataclass
class Parts:
    clock: Any
    mcp_client: Any


PLAN = Plan("patching", (Step("toy", {}),), disruptive=True, target="t1")
DRIFT = DriftResult("patching", drifted=True, verdict=Verdict(Result.FAIL, "behind"), plan=PLAN)


class Scene:
    def __init__(self, root: Path) -> None:
        self.clock = Time()
        self.desk = Desk(self.clock)
        self.root = root

    def host(self, name: str) -> SiteLease:
        directory = self.root / name
        directory.mkdir(exist_ok=True)
        return SiteLease(Parts(self.clock, self.desk.client(name)), directory)


@pytest.fixture
async def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_one_works_and_the_other_waits_and_says_why(scene: Scene) -> None:
    first, second = scene.host("a"), scene.host("b")
    assert await first.take(DRIFT, 100) is None
    refused = await second.take(DRIFT, 100)
    assert isinstance(refused, NoLease) and refused.reason == "lease_busy" and refused.not_before is not None
    await first.release()
    assert await second.take(DRIFT, 100) is None
    await second.release()
    assert scene.desk.board.leases == () and not (scene.root / "a" / FILE).exists()


async def test_it_is_renewed_while_the_cure_runs_and_not_after(scene: Scene) -> None:
    first, second = scene.host("a"), scene.host("b")
    assert await first.take(DRIFT, 300) is None  # for 600 s
    for _ in range(9):
        assert await scene.clock.pass_wait() == 200
        assert isinstance(await second.take(DRIFT, 100), NoLease)
    assert scene.desk.said.count(("take", 1)) == 9, "each renewal names its token"
    await first.release()
    scene.clock.seconds += 10_000
    assert scene.clock.waits.qsize() <= 1 and scene.desk.board.leases == ()


async def test_how_long_it_lasts_is_counted_from_before_it_was_asked_for(scene: Scene) -> None:
    first = scene.host("a")
    assert first.left_s() <= 0, "nothing is held"
    assert await first.take(DRIFT, 300) is None
    assert first.left_s() == 600
    await scene.clock.pass_wait()
    assert first.left_s() == 600, "renewed"
    scene.desk.fault = Unavailable("down")
    assert [await scene.clock.pass_wait() for _ in range(3)] == [200] * 3
    assert first.left_s() <= 0, "the server was not there to renew it"
    first.close()


async def test_a_host_that_dies_loses_it_and_its_old_token_is_worth_nothing(scene: Scene) -> None:
    first, second = scene.host("a"), scene.host("b")
    assert await first.take(DRIFT, 300) is None
    first.close()  # it died: nothing renews
    scene.clock.seconds += 599
    assert isinstance(await second.take(DRIFT, 300), NoLease)
    scene.clock.seconds += 1
    assert await second.take(DRIFT, 300) is None
    again = scene.host("a")
    await again.release()  # after its recovery: what the file says is not the holder's any more
    assert [lease.fence for lease in scene.desk.board.leases] == [2]
    assert not (scene.root / "a" / FILE).exists()
    second.close()


async def test_after_a_crash_it_is_given_back_once(scene: Scene) -> None:
    first = scene.host("a")
    assert await first.take(DRIFT, 300) is None
    first.close()
    again = scene.host("a")
    await again.release()
    await again.release()
    assert scene.desk.board.leases == ()
    assert [act for act, _ in scene.desk.said] == ["take", "release"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"check":"patching"}', b'{"check":1,"target":2,"fence":"x"}', b"\xff"]
)
async def test_a_damaged_file_frees_nothing_and_stops_nothing(scene: Scene, content: bytes) -> None:
    host = scene.host("a")
    (scene.root / "a" / FILE).write_bytes(content)
    (scene.root / "a" / FILE).chmod(0o600)
    await host.release()
    assert scene.desk.said == [] and not (scene.root / "a" / FILE).exists()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Unavailable("down"), "lease_server_down"),
        (ServerRefused("no", code="host_contested", status=409), "lease_refused"),
        (BadReply("odd"), "lease_refused"),
        (StorageError("odd"), "lease_server_down"),
    ],
)
async def test_without_the_server_it_waits_and_says_so(scene: Scene, fault: Exception, reason: str) -> None:
    scene.desk.fault = fault
    host = scene.host("a")
    assert await host.take(DRIFT, 300) == NoLease(reason)
    assert reason in gates.REASONS
    await host.release()
    assert not (scene.root / "a" / FILE).exists()


async def test_an_answer_that_was_lost_is_a_lease_that_the_next_ask_renews(scene: Scene) -> None:
    host = scene.host("a")
    scene.desk.lost = True
    assert await host.take(DRIFT, 300) == NoLease("lease_server_down")
    scene.desk.lost = False
    assert await host.take(DRIFT, 300) is None
    assert [lease.fence for lease in scene.desk.board.leases] == [1]
    await host.release()


async def test_a_release_that_does_not_arrive_ends_by_itself(scene: Scene) -> None:
    first, second = scene.host("a"), scene.host("b")
    assert await first.take(DRIFT, 300) is None
    scene.desk.fault = Unavailable("down")
    await first.release()
    scene.desk.fault = None
    scene.clock.seconds += 600
    assert await second.take(DRIFT, 300) is None
    await second.release()


async def test_what_cannot_be_kept_is_not_begun(scene: Scene) -> None:
    host = scene.host("a")
    (scene.root / "a" / FILE).mkdir()
    with pytest.raises(StorageError):
        await host.take(DRIFT, 300)
    host.close()


async def test_another_target_is_another_cure(scene: Scene) -> None:
    host = scene.host("a")
    assert DRIFT.plan is not None
    assert await host.take(DRIFT, 300) is None
    await host.release()
    assert await host.take(replace(DRIFT, plan=replace(DRIFT.plan, target="t2")), 300) is None
    await host.release()
    assert len({wave.target for wave in scene.desk.board.waves}) == 2


@pytest.mark.parametrize(
    "changes",
    [
        {"fence": 0},
        {"fence": True},
        {"fence": "1"},
        {"for_s": 0},
        {"for_s": -1},
        {"for_s": 10**6},
        {"for_s": True},
        {"reason": 5},
    ],
)
def test_an_answer_that_is_not_as_agreed_is_no_lease(changes: dict[str, Any]) -> None:
    document = {"fence": 1, "for_s": 5, "reason": ""}
    assert read_lease_reply(HttpReply(200, {}, json.dumps(document).encode())) == LeaseReply(1, 5, "")
    document |= changes
    with pytest.raises(BadReply):
        read_lease_reply(HttpReply(200, {}, json.dumps(document).encode()))


def test_a_reason_that_is_not_known_here_is_not_repeated() -> None:
    reply = HttpReply(200, {}, b'{"fence":null,"for_s":0,"reason":"Jane Roe"}')
    assert read_lease_reply(reply).reason == "lease_required"
