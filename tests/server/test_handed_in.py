"""A witness that only calls out brings its line: it counts like one that was asked for, and nothing else that is brought does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import KeyType, Note, Signature, VerifierKey
from tests.log.builder import Signer, signer
from tests.server.builder import START, Server
from tests.server.test_cosigning import URL, World, cosigning, down, notes, settled

pytestmark = pytest.mark.anyio
NOW = int(START.timestamp())
FIRST, SECOND = (signer(f"witness.example/out{number}", KeyType.COSIGNATURE) for number in (1, 2))
PLACE = "/log/clinic-1/2026/cosignature"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(tmp_path, monkeypatch)
    made.file.write_text(f"witness a {FIRST.key}\nwitness b {SECOND.key}\ngroup both all a b\nquorum both\n")
    made.policy = made.policy.parse(f"log {made.policy.logs[0]}\n{made.file.read_text()}".encode())
    return made


@pytest.fixture
async def server(world: World) -> AsyncIterator[Server]:
    async with world.serving() as made:
        host = await made.enrolled()
        await made.deliver(host, host.next())
        await settled(made)
        yield made


def cosigned(note: bytes, *signers: Signer, at: int = NOW) -> bytes:
    found = Note.parse(note)
    return Note(found.text, (*found.signatures, *(one.line(found.text, at) for one in signers))).encode()


def standing(server: Server) -> tuple[bool, dict[str, str]]:
    """Whether the quorum is met, and who lacks."""
    found = server.services.board.witnessing["clinic-1", 2026]
    return found.met, dict(found.failed)


async def bring(server: Server, body: bytes, place: str = PLACE) -> httpx2.Response:
    return await server.client.post(place, content=body, headers={"content-type": "text/plain"})


async def test_brought_lines_make_the_quorum_and_stand_in_receipts_and_file(world: World, server: Server) -> None:
    assert standing(server)[0] is False
    assert (await bring(server, cosigned(world.checkpoint, FIRST))).status_code == 204
    assert world.witnesses() == {"a"} and standing(server) == (False, {"b": "no_url"})
    assert (await bring(server, cosigned(world.checkpoint, SECOND))).status_code == 204
    assert world.witnesses() == {"a", "b"} and standing(server) == (True, {})
    head = server.services.board.heads["clinic-1", 2026]
    assert world.policy.verify(head.note).quorum_met, "what receipts are made under"
    cosigning(server).tick()
    await cosigning(server).settled()
    assert world.witnesses() == {"a", "b"}, "asking again loses no line"


async def test_the_same_again_is_taken_and_changes_nothing(world: World, server: Server) -> None:
    body = cosigned(world.checkpoint, FIRST)
    await bring(server, body)
    before = world.checkpoint
    assert (await bring(server, body)).status_code == 204
    assert (
        await bring(
            server,
            cosigned(Note(Note.parse(before).text, Note.parse(before).signatures[:-1]).encode(), FIRST, at=NOW - 9),
        )
    ).status_code == 204
    assert world.checkpoint == before, "an older word does not replace a newer one"


async def test_a_stranger_learns_nothing_and_changes_nothing(world: World, server: Server) -> None:
    before = world.checkpoint
    stranger = signer("witness.example/out9", KeyType.COSIGNATURE)
    namesake = Signer(VerifierKey(FIRST.key.name, KeyType.COSIGNATURE, stranger.key.public), stranger.private)
    right = FIRST.line(Note.parse(before).text, NOW)
    forged = Signature(right.name, right.key_id, right.signature[:-1] + bytes([right.signature[-1] ^ 1]))
    other_log = signer("compliance-server/clinic-1/2026", seed="another key")
    text = Note.parse(before).text
    bodies = {
        "nothing": b"",
        "garbage": b"\xff" * 99,
        "no line": before,
        "a stranger's": cosigned(before, stranger),
        "under a witness's name": cosigned(before, namesake),
        "forged": Note(text, (*Note.parse(before).signatures, forged)).encode(),
        "not signed by the log": Note(text, (right,)).encode(),
        "signed by another key": Note(text, (other_log.line(text), right)).encode(),
        "too long": cosigned(before, FIRST) + b"\n" * 70_000,
    }
    there = {name: await bring(server, body) for name, body in bodies.items()}
    elsewhere = await bring(server, before, "/log/clinic-9/2026/cosignature")
    assert {name: (reply.status_code, reply.json()["code"]) for name, reply in there.items()} == dict.fromkeys(
        bodies, (elsewhere.status_code, elsewhere.json()["code"])
    )
    assert elsewhere.status_code == 404 and world.checkpoint == before


async def test_another_checkpoint_than_the_newest_is_stale(world: World, server: Server) -> None:
    older = cosigned(world.checkpoint, FIRST)
    host = await server.enrolled("ws-02")
    await server.deliver(host, host.next())
    await settled(server)
    before = world.checkpoint
    reply = await bring(server, older)
    assert (reply.status_code, reply.json()["code"]) == (409, "stale")
    moved = FIRST.line(Note.parse(older).text, NOW)  # right, and of another text
    replayed = Note(Note.parse(before).text, (*Note.parse(before).signatures, moved)).encode()
    assert (await bring(server, replayed)).status_code == 404
    assert world.checkpoint == before


@pytest.mark.parametrize("at", [0, NOW - 301, NOW + 301, 2**63 - 1])
async def test_a_witness_whose_clock_is_wrong_does_not_count(world: World, server: Server, at: int) -> None:
    reply = await bring(server, cosigned(world.checkpoint, FIRST, at=at))
    assert (reply.status_code, reply.json()["code"]) == (422, "bad_time")
    assert world.witnesses() == set()


async def test_without_witnesses_nobody_brings_anything(world: World) -> None:
    async with world.serving(witness_policy_file=None) as server:
        host = await server.enrolled()
        await server.deliver(host, host.next())
        assert (await bring(server, cosigned(world.checkpoint, FIRST))).status_code == 404


async def test_a_line_that_comes_while_others_are_asked_is_kept(world: World) -> None:
    """One witness is asked and is slow; the other brings its line meanwhile."""
    w1 = next(iter(world.witness.keys.keys))
    world.file.write_text(f"witness w1 {w1} {URL}\nwitness a {FIRST.key}\ngroup both all w1 a\nquorum both\n")
    world.policy = world.policy.parse(f"log {world.policy.logs[0]}\n{world.file.read_text()}".encode())
    world.way.answer = down
    async with world.serving() as server:
        host = await server.enrolled()
        (note,) = notes(await server.deliver(host, host.next()))
        await settled(server)

        async def meanwhile(method: str, path: str, body: bytes) -> object:
            assert (await bring(server, cosigned(world.checkpoint, FIRST))).status_code == 204
            return await world.witness.witness.answer(method, path, body)

        world.way.answer = meanwhile  # type: ignore[assignment]
        cosigning(server).tick()
        await cosigning(server).settled()
        assert Checkpoint.parse(Note.parse(note).text).size <= Checkpoint.parse(Note.parse(world.checkpoint).text).size
        assert world.witnesses() == {"w1", "a"}
        assert server.services.board.witnessing["clinic-1", 2026].met
