"""Whoever owns uplink can deny service, and do no more: nothing is lost, nothing forgotten on a lie, nobody is kept waiting."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.agent import ComplianceAgent
from compliance_agent.errors import BadReply, Unavailable
from compliance_agent.frames import MAX_FRAME_BYTES
from compliance_agent.models import BundleKind
from compliance_agent.ports import HttpReply
from compliance_agent.transport.protocol import reply_message
from compliance_agent.uplink import link
from compliance_agent.uplink.table import TABLE
from tests.agent_scene import Scene
from tests.uplink.hostile import TRICKS, Owned, frame, own_key
from tests.uplink.scene import Beside

pytestmark = pytest.mark.anyio

HASTY_S, PATIENT_S = -0.97, 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Scene]:
    monkeypatch.setattr(link, "GRACE_S", HASTY_S)  # with a request's own second, silence costs 30 ms
    made = Scene(tmp_path, settings={"privileges": "split", "upload_timeout_sec": 1})
    beside = Beside(made.server, made.config.mcp_api_key_file)
    made.way = beside.transport
    made.beside = beside  # type: ignore[attr-defined]
    yield made
    await made.close()
    await beside.close()


def beside(scene: Scene) -> Beside:
    found = scene.beside  # type: ignore[attr-defined]
    assert isinstance(found, Beside)
    return found


def owned(scene: Scene, next_trick: Callable[[str], str]) -> Owned:
    """From the next connection on somebody else owns uplink."""
    assert scene.config.mcp_api_key_file is not None
    hostile = Owned(scene.server, scene.config.mcp_api_key_file.read_text().strip(), next_trick)
    beside(scene).hostile = hostile
    return hostile


async def record(agent: ComplianceAgent, count: int) -> None:
    for number in range(count):
        await agent.recording.create(
            check="", outcome=None, kind=BundleKind.HEARTBEAT, reason="as_expected", counts={"pending": number}
        )


async def turn(scene: Scene, agent: ComplianceAgent) -> None:
    await agent.delivery.turn()
    await scene.delivered(agent)


async def honest_again(scene: Scene, agent: ComplianceAgent) -> None:
    """Uplink is ours again, and may take its time; turns with an hour between them until nothing waits."""
    link.GRACE_S = PATIENT_S
    beside(scene).hostile = None
    await beside(scene).kill()
    for _ in range(40):
        scene.clock.advance(3_700)
        await turn(scene, agent)
        if (await agent.offline_queue.get_stats())["pending"] == 0:
            return
    raise AssertionError("something still waits although uplink is honest again")


async def expect_nothing_forgotten(scene: Scene, agent: ComplianceAgent) -> None:
    """What the agent takes for delivered, the server holds."""
    stats = await agent.offline_queue.get_stats()
    assert stats["damaged"] == 0
    assert stats["uploaded"] <= len(scene.server.stored())


def expect_each_once(scene: Scene, count: int) -> None:
    numbers = [item["counts"]["pending"] for item in scene.documents() if item["kind"] == "heartbeat"]
    assert sorted(set(numbers)) == list(range(count))
    ids = [item["bundle_id"] for item in scene.documents()]
    assert len(ids) == len(set(ids)), "the server holds nothing twice"


DELIVERS = {
    "honest",
    "twice",
    "cut_after",
    "swapped",
}  # the server has it, and its own word for it came through in the end


@pytest.mark.parametrize("trick", TRICKS)
async def test_no_trick_has_a_record_forgotten_or_lost(scene: Scene, trick: str) -> None:
    agent = scene.agent()
    hostile = owned(scene, lambda path: trick if path == "/api/v1/evidence" else "honest")
    await record(agent, 5)
    for _ in range(4):
        await turn(scene, agent)
        await expect_nothing_forgotten(scene, agent)
        scene.clock.advance(1_000)
    assert trick in hostile.played
    if trick not in DELIVERS:
        assert (await agent.offline_queue.get_stats())["uploaded"] == 0
    await honest_again(scene, agent)
    expect_each_once(scene, 5)


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_tricks_in_any_order_have_nothing_forgotten_or_lost(scene: Scene, seed: int) -> None:
    rng, agent = random.Random(seed), scene.agent()
    hostile = owned(scene, lambda _: rng.choice(TRICKS))
    recorded = 0
    for _ in range(60):
        await record(agent, (fresh := rng.randrange(3)))
        # `record` counts from nothing each time; the ids tell them apart
        recorded += fresh
        await turn(scene, agent)
        await expect_nothing_forgotten(scene, agent)
        scene.clock.advance(rng.choice([60, 600, 3_700]))
    assert len(set(hostile.played)) > 10
    await honest_again(scene, agent)
    held = [item["bundle_id"] for item in scene.documents() if item["kind"] == "heartbeat"]
    assert len(held) == len(set(held)) == recorded


async def test_a_silent_uplink_opens_the_breaker_and_is_left_alone(scene: Scene) -> None:
    agent = scene.agent()
    hostile = owned(scene, lambda _: "no_request")
    await record(agent, 1)
    for _ in range(300):  # half an hour of turns, one every six seconds
        await turn(scene, agent)
        scene.clock.advance(6)
    assert len(hostile.played) < 30
    await honest_again(scene, agent)
    expect_each_once(scene, 1)


async def test_uplink_killed_and_started_again_loses_and_doubles_nothing(scene: Scene) -> None:
    agent, rng = scene.agent(), random.Random(5)
    for _ in range(60):
        await record(agent, 1)
        task = asyncio.ensure_future(turn(scene, agent))
        for _ in range(rng.randrange(12)):
            await asyncio.sleep(0)
        await beside(scene).kill()
        await task
        scene.clock.advance(rng.choice([60, 1_000]))
    await honest_again(scene, agent)
    assert [item["seq"] for item in scene.documents()] == list(range(1, 61))
    assert beside(scene).connections > 20


def claimed(path: str, twist: str, asked: Any, answer: HttpReply) -> HttpReply:
    """The server's answer, made to say what would be of use to who owns uplink."""
    said = json.loads(answer.body)
    headers = {"x-reply-signature": answer.headers.get("x-reply-signature", "")}
    if twist == "kept for later":
        return answer
    if twist == "changed":
        said |= {"fence": 7, "for_s": 600, "reason": ""} if path.endswith("leases") else {"durable": EVERYTHING}
    body = json.dumps(said).encode()
    if twist == "without a signature":
        headers = {}
    if twist == "signed by its own key":
        message = reply_message(path, asked.get("x-nonce", ""), b"", body)
        headers = {"x-reply-signature": base64.b64encode(own_key().sign(message).signature).decode()}
    return HttpReply(200, headers, body)


EVERYTHING = [{"origin": "fake/clinic-1/2026", "size": 10**9}]


@pytest.mark.parametrize("twist", ["changed", "without a signature", "signed by its own key", "kept for later"])
@pytest.mark.parametrize("path", ["/api/v1/leases", "/api/v1/checkin"])
async def test_no_leave_and_no_backup_is_made_up(scene: Scene, path: str, twist: str) -> None:
    """What the answer alone decides (leave to disturb, what a backup holds) must be the server's word, and about this question."""
    real, kept = scene.server.request, list[HttpReply]()

    async def twisted(method: str, asked: str, **given: Any) -> HttpReply:
        answer = await real(method, asked, **given)
        if asked != path:
            return answer
        kept.append(answer)
        return (
            kept[0] if twist == "kept for later" and len(kept) > 1 else claimed(path, twist, given["headers"], answer)
        )

    client = scene.agent().mcp_client
    report: dict[str, Any] = {"head": (0, 0, "0" * 64), "pending": 0, "baseline": ("1", "b" * 64), "checks": {}}

    async def ask() -> object:
        if path == "/api/v1/checkin":
            return await client.check_in(**report)
        return await client.lease("take", "time_sync", "ab" * 32, 600, None)

    assert await ask()
    scene.server.request = twisted  # type: ignore[method-assign,assignment]
    if twist == "kept for later":
        assert await ask(), "the first time it is the answer"
    with pytest.raises(BadReply) as refused:
        await ask()
    assert refused.value.code == "unsigned_reply"


async def test_nobody_listening_is_said_as_that_and_costs_no_time(tmp_path: Path) -> None:
    way = link.UplinkTransport(link.Link(link.at_path(tmp_path / "none", {0})))
    began = time.monotonic()
    with pytest.raises(Unavailable) as refused:
        await way.request("GET", "/readyz")
    assert refused.value.code == "no_uplink"
    assert time.monotonic() - began < 1


# The link itself, against peers that break one rule each

PEERS: dict[str, tuple[bytes, type[Exception], str]] = {
    "no hello": (frame(2, 1, b'{"status":200,"headers":{},"blob":0}'), BadReply, "no_hello"),
    "another protocol": (frame(0, 0, b'{"protocol":"http","version":1}'), BadReply, "other_protocol"),
    "another version": (frame(0, 0, b'{"protocol":"compliance-agent/uplink","version":99}'), BadReply, "other_version"),
    "garbage": (b"HTTP/1.1 200 OK\r\n\r\n", BadReply, "bad_length"),
    "an end": (b"", Unavailable, "cut"),
    "an end within a frame": (TABLE.hello() + b"\x00", Unavailable, "cut"),
    "an answer to nothing": (TABLE.hello() + frame(3, 9, b'{"code":"cut"}'), BadReply, "unknown_id"),
    "another status": (TABLE.hello() + frame(2, 1, b'{"status":20,"headers":{},"blob":0}'), BadReply, "bad_field"),
    "another header": (
        TABLE.hello() + frame(2, 1, b'{"status":200,"headers":{"set-cookie":"a"},"blob":0}'), BadReply, "bad_field",
    ),
    "text in place of a code": (TABLE.hello() + frame(3, 1, b'{"code":"call 555"}'), BadReply, "bad_field"),
    "more than 2 MB": (TABLE.hello() + frame(2, 1, b'{"status":200,"headers":{},"blob":2097153}'), BadReply, "too_large"),
}  # fmt: skip


@pytest.mark.parametrize("case", PEERS)
async def test_what_breaks_the_frames_is_named_and_the_next_question_starts_anew(scene: Scene, case: str) -> None:
    said, kind, code = PEERS[case]

    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if said.startswith(TABLE.hello()):
            writer.write(TABLE.hello())
            while len(await reader.read(MAX_FRAME_BYTES)) <= len(TABLE.hello()):
                pass  # the question comes
            writer.write(said.removeprefix(TABLE.hello()))
        else:
            writer.write(said)
        await writer.drain()
        writer.close()
        await reader.read()

    beside(scene).hostile = peer
    way = beside(scene).transport()
    with pytest.raises(kind) as refused:
        await way.request("GET", "/readyz", timeout_s=5)
    assert getattr(refused.value, "code", "") == code
    beside(scene).hostile = None
    assert (await way.request("GET", "/readyz", timeout_s=5)).status == 200
    assert beside(scene).connections == 2


async def test_one_who_never_says_hello_is_not_waited_for(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HELLO_S", 0.02)

    async def peer(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    beside(scene).hostile = peer
    with pytest.raises(Unavailable) as refused:
        await beside(scene).transport().request("GET", "/readyz", timeout_s=5)
    assert refused.value.code == "no_uplink"


async def test_one_who_reads_nothing_is_not_waited_for(scene: Scene) -> None:
    async def peer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(TABLE.hello())
        await asyncio.sleep(60)

    beside(scene).hostile = peer
    with pytest.raises(Unavailable) as refused:
        await beside(scene).transport().request("POST", "/api/v1/evidence", body=bytes(2_000_000), timeout_s=1)
    assert refused.value.code == "timed_out"


async def test_what_the_agent_never_asks_does_not_leave_the_host(scene: Scene) -> None:
    """The other way round: a run that is owned reaches the server's own routes, and nothing else."""
    way = beside(scene).transport()
    asked: list[tuple[str, str]] = [
        ("GET", "/"), ("POST", "/readyz"), ("GET", "/api/v1/evidence"), ("POST", "/api/v1/enrol"),
        ("GET", "/log/../api/v1/x"), ("GET", "/api/v1/baselines/a/b"), ("GET", "/login"),
    ]  # fmt: skip
    for method, path in asked:
        with pytest.raises(Unavailable):
            await way.request(method, path)
    elsewhere = link.UplinkTransport(way._link, "https://elsewhere.example")
    with pytest.raises(Unavailable):
        await elsewhere.request("GET", "/readyz")
    assert scene.server.requests == []
    with pytest.raises(BadReply):
        await way.request("DELETE", "/readyz")


async def test_the_key_goes_only_where_it_belongs(scene: Scene) -> None:
    seen: list[tuple[str, bool]] = []
    real = scene.server.request

    async def noted(method: str, path: str, **given: Any) -> Any:
        seen.append((path, "authorization" in (given.get("headers") or {})))
        return await real(method, path, **given)

    scene.server.request = noted  # type: ignore[method-assign]
    way = beside(scene).transport()
    await way.request("GET", "/readyz", headers={"authorization": "Bearer mine"})
    await way.request("POST", "/api/v1/enrol/challenge", body=json.dumps({"public_key": "AA=="}).encode())
    await way.request("GET", "/api/v1/baselines/" + "a" * 64)
    assert seen == [("/readyz", False), ("/api/v1/enrol/challenge", False), ("/api/v1/baselines/" + "a" * 64, True)]
