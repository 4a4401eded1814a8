"""The admin socket itself: modes, who comes in, what is refused and how; over real unix sockets."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.admin import client
from compliance_agent.admin.door import MAX_BODY_BYTES, Call, Door, Route, answer, asker_of
from compliance_agent.core.access import Asker, Owner
from compliance_agent.errors import StorageError
from compliance_agent.lab.clock import FakeClock
from compliance_agent.ports import HttpReply

pytestmark = pytest.mark.anyio
MEMBER, STRANGER = Asker(1_000, {1_000, 991}), Asker(1_001, {1_001})
OWNER = Owner(990, 991)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Scene:
    """A door with two pages, and the asker that the kernel is made to name."""

    def __init__(self, root: Path) -> None:
        self.path = root / "agent.sock"
        self.who = MEMBER
        self.calls: list[Call] = []
        routes = {
            "/read": Route("GET", self.page),
            "/change": Route("POST", self.page),
            "/fails": Route("GET", self.fails),
        }
        self.door = Door(routes, FakeClock(), owner=OWNER, asker=lambda _: self.who, deadline_s=0.5)

    async def page(self, call: Call) -> HttpReply:
        self.calls.append(call)
        return answer({"uid": call.uid, **call.document})

    async def fails(self, _call: Call) -> HttpReply:
        raise StorageError("the text of it is nobody's business")

    async def ask(self, method: str, page: str, document: Any = None) -> client.Reply:
        return await asyncio.to_thread(client.ask, self.path, method, page, document)

    async def say(self, raw: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(str(self.path))
        writer.write(raw)
        said = await reader.read()
        writer.close()
        await writer.wait_closed()
        return said


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    made = Scene(tmp_path)
    assert await made.door.open(made.path)
    yield made
    await made.door.close()
    assert not made.path.exists()


async def test_the_socket_is_for_owner_and_group_alone(scene: Scene) -> None:
    info = scene.path.stat()
    assert stat.S_ISSOCK(info.st_mode) and stat.S_IMODE(info.st_mode) == 0o660


@pytest.mark.parametrize(
    ("who", "reads", "changes"),
    [(MEMBER, 200, 403), (STRANGER, 403, 403), (Asker(0, {0}), 200, 200), (Asker(990, {1}), 200, 200)],
)
async def test_members_read_and_root_changes(scene: Scene, who: Asker, reads: int, changes: int) -> None:
    scene.who = who
    assert (await scene.ask("GET", "/read")).status == reads
    assert (await scene.ask("POST", "/change", {"a": 1})).status == changes
    assert len(scene.calls) == (reads == 200) + (changes == 200), "a page was reached that may not be"


async def test_every_refusal_is_a_problem_document(scene: Scene) -> None:
    for method, page, status, code in [
        ("GET", "/nowhere", 404, "no_such_page"),
        ("GET", "/read?x=1", 404, "no_such_page"),
        ("POST", "/read", 405, "wrong_method"),
        ("GET", "/change", 405, "wrong_method"),
        ("POST", "/change", 403, "not_permitted"),
        ("GET", "/fails", 503, "storage_failed"),
    ]:
        reply = await scene.ask(method, page)
        assert (reply.status, reply.document["code"], reply.document["status"]) == (status, code, status), page
        assert set(reply.document) == {"type", "title", "status", "code", "detail"}
        assert "nobody's business" not in reply.body.decode()


@pytest.mark.parametrize("body", [b"[]", b'{"a":1,"a":2}', b"{", b'{"a":NaN}', b"\xff"])
async def test_a_body_is_one_strict_object(scene: Scene, body: bytes) -> None:
    scene.who = Asker(0, {0})
    head = f"POST /change HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    said = await scene.say(head + body)
    assert said.startswith(b"HTTP/1.1 400 ") and b"problem+json" in said
    assert scene.calls == []


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (f"POST /change HTTP/1.1\r\nhost: x\r\ncontent-length: {MAX_BODY_BYTES + 1}\r\n\r\n".encode(), 413),
        (b"GET /read HTTP/1.1\r\nhost: x\r\nx: " + b"a" * 20_000 + b"\r\n\r\n", 431),
        (b"nonsense\r\n\r\n", 400),
        (b"GET /read HTTP/1.1\r\nhost: x\r\n", 408),  # and never more
    ],
)
async def test_everything_is_bounded(scene: Scene, raw: bytes, status: int) -> None:
    said = await scene.say(raw)
    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(f"HTTP/1.1 {status} ".encode()) and b"problem+json" in head
    assert json.loads(body)["status"] == status


async def test_the_kernel_says_who_asks() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        who = asker_of(ours)
    assert who.uid == os.geteuid() and {os.getegid(), *os.getgroups()} <= set(who.gids)


async def test_a_stale_socket_gives_way_and_anything_else_stays(tmp_path: Path) -> None:
    """The first agent was killed; what is no socket, and a socket that somebody answers, are left alone."""
    path = tmp_path / "agent.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first, second = (Door({}, FakeClock(), owner=OWNER, asker=lambda _: MEMBER) for _ in range(2))
    assert await first.open(path)
    assert not await second.open(path)
    await first.close()
    path.write_text("mine")
    assert not await second.open(path)
    assert path.read_text() == "mine"


async def test_a_long_path_is_no_trouble(tmp_path: Path) -> None:
    """A unix socket's name has 107 bytes; a state directory may have more."""
    deep = tmp_path / ("d" * 100) / ("e" * 100)
    deep.mkdir(parents=True)
    door = Door({"/read": Route("GET", _fine)}, FakeClock(), owner=OWNER, asker=lambda _: MEMBER)
    assert await door.open(deep / "agent.sock")
    reply = await asyncio.to_thread(client.ask, deep / "agent.sock", "GET", "/read")
    assert reply.document == {"fine": True}
    await door.close()


async def _fine(_call: Call) -> HttpReply:
    return answer({"fine": True})
