"""The logs as files over HTTP: for hosts of the site and for people who may see it; for everybody else they do not exist."""

from __future__ import annotations

import pytest

from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import Tile
from compliance_agent.log.tree import TileTree
from tests.server.builder import FakeHost, Server

pytestmark = pytest.mark.anyio
BASE = "/log/clinic-1/2026"


@pytest.fixture
async def host(server: Server) -> FakeHost:
    """A host with five bundles in the log."""
    made = await server.enrolled()
    await server.deliver(made, *(made.next() for _ in range(5)))
    return made


async def test_the_checkpoint_and_its_tiles_are_there(server: Server, host: FakeHost) -> None:
    reply = await server.client.get(f"{BASE}/checkpoint", headers=host.headers)
    assert (reply.status_code, reply.headers["cache-control"]) == (200, "no-cache")
    assert reply.headers["content-type"].startswith("text/plain")
    checkpoint = Checkpoint.parse(Note.parse(reply.content).text)
    tile = await server.client.get(f"{BASE}/tile/0/000.p/{checkpoint.size}", headers=host.headers)
    assert (tile.status_code, tile.headers["content-type"]) == (200, "application/octet-stream")
    assert "immutable" in tile.headers["cache-control"]
    assert TileTree(checkpoint.size, lambda *_: tile.content).root() == checkpoint.root
    entries = await server.client.get(f"{BASE}/tile/entries/000.p/{checkpoint.size}", headers=host.headers)
    assert entries.status_code == 200 and b'"kind":"bundle"' in entries.content


async def test_people_who_may_see_the_site_see_its_log(server: Server, host: FakeHost) -> None:
    await server.token("clinic-2")
    for sites, status in ((None, 200), (frozenset({"clinic-1"}), 200), (frozenset({"clinic-2"}), 404)):
        headers = await server.operator(f"op-{status}-{sites is None}", sites)
        assert (await server.client.get(f"{BASE}/checkpoint", headers=headers)).status_code == status
        assert (await server.client.get(f"{BASE}/tile/0/000.p/7", headers=headers)).status_code == status


async def test_nobody_else_learns_that_it_exists(server: Server, host: FakeHost) -> None:
    """The same bytes (but for the trace) for another clinic's log, for none, and without credentials."""
    theirs = await server.enrolled("ws-99", "clinic-2")
    revoked = await server.enrolled("ws-03")
    await server.services.enrolment.revoke("clinic-1", revoked.key_id, actor="operator")
    said = set()
    for headers in (
        theirs.headers,
        {},
        {"authorization": "Bearer cak1.x"},
        {"authorization": "Bearer cao1.x"},
        revoked.headers,
    ):
        for path in (f"{BASE}/checkpoint", f"{BASE}/tile/0/000.p/7", "/log/clinic-9/2026/checkpoint"):
            reply = await server.client.get(path, headers=headers)
            document = reply.json()
            assert (reply.status_code, document.pop("trace_id") != "") == (404, True)
            said.add(str(sorted(document.items())))
    assert len(said) == 1


@pytest.mark.parametrize(
    "path",
    [
        "/log/clinic-1/2025/checkpoint",
        "/log/clinic-1/26/checkpoint",
        "/log/clinic-1/٢٠٢٦/checkpoint",
        f"{BASE}/tile/0/000",
        f"{BASE}/tile/0/000.p/256",
        f"{BASE}/tile/0/000.p/007",
        f"{BASE}/tile/00/000.p/7",
        f"{BASE}/tile/64/000",
        f"{BASE}/tile/0/x000/000",
        f"{BASE}/tile/0/..%2f..%2f..%2f..%2f..%2fkeys/log.pem",
        f"{BASE}/tile/..%2f..%2f..%2f..%2fserver.db",
        f"{BASE}/tile/entries/000.p/7%00",
        f"{BASE}/../../../keys/log.pem",
        f"{BASE}/tile/",
    ],
)
async def test_what_is_no_file_of_the_log_is_not_there(server: Server, host: FakeHost, path: str) -> None:
    reply = await server.client.get(path, headers=host.headers)
    assert reply.status_code == 404
    assert reply.json()["code"] == "not_found"


async def test_every_tile_path_comes_back_as_it_was_written(server: Server, host: FakeHost) -> None:
    root = server.services.settings.data_dir / "log/clinic-1/2026"
    for file in root.rglob("*"):
        if file.is_file() and file.name != "checkpoint":
            path = file.relative_to(root).as_posix()
            assert Tile.parse(path).path == path
            assert (await server.client.get(f"{BASE}/{path}", headers=host.headers)).content == file.read_bytes()


async def test_figures_of_the_log(server: Server, host: FakeHost) -> None:
    text = (await server.client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("compliance_server_log"))
    assert float(lines["compliance_server_log_shards"]) == 1
    assert float(lines["compliance_server_log_size"]) == 7
    assert float(lines["compliance_server_log_pending"]) == 0
    assert float(lines["compliance_server_log_lag_seconds"]) == 0
    server.services.board.stopped["clinic-1"] = "tile_conflict"
    server.clock.move(10)
    await server.deliver(host, host.next())
    server.clock.move(30)
    text = (await server.client.get("/metrics")).text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("compliance_server_log"))
    assert float(lines["compliance_server_log_pending"]) == 1
    assert float(lines["compliance_server_log_lag_seconds"]) == 30
    assert 39 < float(lines["compliance_server_log_checkpoint_age_seconds"]) < 41
    assert float(lines['compliance_server_log_still{code="tile_conflict"}']) == 1
