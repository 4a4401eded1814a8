"""From SQLite to PostgreSQL, and back by a backup: every row, every log, or nothing."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
from sqlalchemy import select

from compliance_agent.errors import BadEvidence, NotPermitted, StorageError
from compliance_agent.evidence.canonical import canonical
from compliance_agent.packet.build import build
from compliance_agent.server.backup import back_up
from compliance_agent.server.moving import MOVED, move
from compliance_agent.server.restore import restore
from compliance_agent.server.store import Address, SqlStore, copying, tables
from compliance_agent.server.store.postgres import _Waiting
from tests.postgres import Postgres
from tests.server.builder import FakeHost, Server, acknowledged, by_hand, serving
from tests.server.test_process import Running, command, running, stopped
from tests.server.test_sequencer import later, settled

pytestmark = pytest.mark.anyio


def owner_of(address: Address) -> Address:
    return Address(address.url.replace("//server@", "//owner@"))


async def filled(server: Server) -> FakeHost:
    """Two clinics, more rows than a page, a fork, a gap, a hold and a user."""
    host, other = await server.enrolled(), await server.enrolled("ws-02", "clinic-2")
    twin = FakeHost(key=host.key, api_key=host.api_key, now=host.now)
    for _ in range(3):
        await server.deliver(host, *(host.next() for _ in range(90)))
    await server.deliver(twin, twin.next())
    await server.deliver(other, other.next(), other.next(seq=9))
    await server.services.holds.add("clinic-1", None, "case-1")
    await server.operator()
    await settled(server)
    return host


async def contents(store: SqlStore) -> dict[str, copying.Copied]:
    return {table.name: await copying.counted(store.rows, table) for table in tables.metadata.sorted_tables}


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "PAGE", 64)


async def test_everything_moves_and_the_server_goes_on(tmp_path: Path, postgresql: Address) -> None:
    data = tmp_path / "data"
    async with serving(data) as server:
        host = await filled(server)
        store = server.services.store
        assert isinstance(store, SqlStore)
        before = await contents(store)
    seen: list[int] = []
    done = await move(data, postgresql, owner_of(postgresql), seen.append)
    assert {item.table: item for item in done.tables} == before
    assert seen[-1] == sum(item.rows for item in before.values()) > 270
    assert [(item.site_id, item.problems) for item in done.logs] == [("clinic-1", []), ("clinic-2", [])]
    assert not (data / "server.db").exists() and (data / MOVED).is_file()
    async with serving(data, clock=later(1), database=postgresql.url) as server:
        more = [host.next() for _ in range(3)]
        assert acknowledged(await server.deliver(host, *more), host, more) == ["stored"] * 3
        await settled(server)
        assert (await server.client.get("/readyz")).status_code == 200
        numbers = await server.by_hand("SELECT number FROM bundles ORDER BY number DESC LIMIT 4")
        assert [first[0] - second[0] for first, second in itertools.pairwise(numbers)] == [1, 1, 1]


async def test_a_database_that_holds_something_is_refused(tmp_path: Path, postgresql: Address) -> None:
    async with serving(tmp_path / "data") as server:
        await filled(server)
    await by_hand(postgresql.url, "INSERT INTO sites VALUES ('other', 'msp', '')")
    with pytest.raises(NotPermitted, match="sites"):
        await move(tmp_path / "data", postgresql, owner_of(postgresql))
    assert (tmp_path / "data" / "server.db").is_file()
    assert await by_hand(postgresql.url, "SELECT count(*) FROM bundles") == [(0,)]


real_insert = _Waiting.insert


async def _broken_insert(statements: Any, table: Any, names: Any, rows: Any) -> None:
    if table.name == "bundles":
        rows = [(*row[:-1], b"another signature") for row in rows]
    await real_insert(statements, table, names, rows)


async def test_a_row_that_arrives_otherwise_leaves_nothing_behind(
    tmp_path: Path, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "data") as server:
        await filled(server)
    with monkeypatch.context() as patch:
        patch.setattr(_Waiting, "insert", _broken_insert)
        with pytest.raises(BadEvidence, match="bundles: was read back otherwise"):
            await move(tmp_path / "data", postgresql, owner_of(postgresql))
    assert await by_hand(postgresql.url, "SELECT count(*) FROM sites") == [(0,)]
    await move(tmp_path / "data", postgresql, owner_of(postgresql))  # and again, without the fault


async def test_a_failure_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, postgresql: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(tmp_path / "data") as server:
        await filled(server)

    def told(count: int) -> None:
        if count > 200:
            raise StorageError("planted")

    with pytest.raises(StorageError, match="planted"):
        await move(tmp_path / "data", postgresql, owner_of(postgresql), told)
    assert await by_hand(postgresql.url, "SELECT count(*) FROM sites") == [(0,)]
    assert (tmp_path / "data" / "server.db").is_file()


async def test_a_log_that_is_not_sound_is_not_moved(tmp_path: Path, postgresql: Address) -> None:
    async with serving(tmp_path / "data") as server:
        await filled(server)
        await server.by_hand("UPDATE log_entries SET leaf = $1 WHERE leaf_index = 3", b"{}")
    with pytest.raises(BadEvidence, match="the file stays as it is"):
        await move(tmp_path / "data", postgresql, owner_of(postgresql))
    assert await by_hand(postgresql.url, "SELECT count(*) FROM sites") == [(0,)]


async def test_a_running_server_is_not_moved(tmp_path: Path, postgresql: Address) -> None:
    async with serving(tmp_path / "data"):
        with pytest.raises(StorageError) as caught:
            await move(tmp_path / "data", postgresql, owner_of(postgresql))
    assert caught.value.code == "already_running"


async def test_a_backup_of_postgresql_is_restored_into_a_new_database(
    tmp_path: Path, postgresql: Address, postgres: Postgres
) -> None:
    """The backup is the same directory that SQLite gives; it comes back as a file, and moves from there."""
    async with serving(tmp_path / "data", database=postgresql.url) as server:
        host = await filled(server)
        store = server.services.store
        assert isinstance(store, SqlStore)
        before = await contents(store)
        made = await back_up(server.services, tmp_path / "backup")
        assert [(item.site_id, item.size, item.durable) for item in made.logs if item.site_id == "clinic-1"]
    restore(tmp_path / "backup", tmp_path / "new")
    file = await SqlStore.open(tmp_path / "new" / "server.db")
    assert await contents(file) == before
    await file.close()
    day = server.clock().date()
    built = await build(tmp_path / "new", "clinic-1", day, day, tmp_path / "packet.zip")
    assert built.records >= 270  # an auditor's packet comes from the restored directory
    async with postgres.database() as name:
        await move(tmp_path / "new", postgres.address(name), postgres.address(name, "owner"))
        async with serving(tmp_path / "new", clock=later(1), database=postgres.address(name).url) as server:
            bundle = host.next()
            assert acknowledged(await server.deliver(host, bundle), host, [bundle]) == ["stored"]


async def test_pages_hold_every_row_once(postgresql: Address) -> None:
    """Also where a page ends exactly, and where keys have two columns."""
    store = await SqlStore.open(postgresql)
    await by_hand(
        postgresql.url,
        "INSERT INTO login_attempts SELECT n, '', 0 FROM generate_series(1, 128) n",
    )
    rows = [row async for page in copying.pages(store.rows, tables.login_attempts) for row in page]
    assert [row[0] for row in rows] == list(range(1, 129))
    assert len(await store.rows(select(tables.login_attempts))) == 128
    await store.close()


def test_the_command_moves_a_server_and_it_goes_on_there(tmp_path: Path, postgres: Postgres) -> None:
    """By the program itself: a server filled, stopped, rehearsed, moved, checked, run there, backed up, and restored from that."""
    data, name = ("--data-dir", str(tmp_path / "data")), f"m{uuid.uuid4().hex}"
    asyncio.run(postgres.by_hand("postgres", f"CREATE DATABASE {name}"))  # empty: `move` makes the schema
    try:
        with running(tmp_path / "data") as server:
            host = server.enrolled(FakeHost(now=datetime.now(UTC)), server.token())
            assert sent(server, host, 120) == ["stored"] * 120
            assert stopped(server)[0] == 0
        to, owner = postgres.address(name).url, postgres.address(name, "owner").url
        before = json.loads(command("server", "fsck", "--json", *data).stdout)["logs"]
        rehearsed = command("server", "move", "--to", to, "--owner", owner, "--dry-run", *data)
        assert (rehearsed.returncode, "nothing was changed" in rehearsed.stderr) == (0, True), rehearsed.stderr
        assert (tmp_path / "data" / "server.db").is_file()
        assert asyncio.run(postgres.by_hand(name, "SELECT to_regclass('bundles')"))[0][0] is None
        moved = command("server", "move", "--to", to, "--owner", owner, *data)
        assert moved.returncode == 0, moved.stderr
        assert re.search(r"^bundles +120 +[0-9a-f]{64}$", moved.stdout, re.MULTILINE), moved.stdout
        assert moved.stdout == rehearsed.stdout  # row by row what was announced, and every log
        assert f"database: {to}" in moved.stderr and (tmp_path / "data" / MOVED).is_file()
        again = command("server", "move", "--to", to, "--owner", owner, "--dry-run", *data)
        assert again.returncode == 66  # there is no file any more
        settings = tmp_path / "server.yaml"
        settings.write_text(json.dumps({"database": to, "data_dir": str(tmp_path / "data")}))
        there = ("--config", str(settings))
        found = json.loads(command("server", *there, "fsck", "--json").stdout)
        assert (found["valid"], found["logs"]) == (True, before)
        with running(tmp_path / "data", *there) as server:
            assert sent(server, host, 3) == ["stored"] * 3
            assert stopped(server)[0] == 0
        made = command("server", *there, "backup", "--out", str(tmp_path / "backup"))
        assert made.returncode == 0, made.stderr
        assert json.loads(command("server", *there, "fsck", "--json").stdout)["valid"] is True
        into = ("--data-dir", str(tmp_path / "new"))
        restored = command("server", "restore", "--from", str(tmp_path / "backup"), *into)
        assert restored.returncode == 0, restored.stderr
        refused = command("server", "move", "--to", to, "--owner", owner, "--dry-run", *into)
        assert (refused.returncode, "holds rows" in refused.stderr) == (77, True)  # the old one is not written over
        assert json.loads(command("server", "fsck", "--json", *into).stdout)["logs"][0]["bundles"] == 123
    finally:
        asyncio.run(postgres.by_hand("postgres", f"DROP DATABASE {name} WITH (FORCE)"))


def sent(server: Running, host: FakeHost, count: int) -> list[str]:
    """Bundles as a host delivers them, and when the last has its place in the log, what became of each."""
    batch, said = [host.next() for _ in range(count)], list[str]()
    with httpx2.Client(base_url=server.url, headers=host.headers, timeout=30) as client:
        for at in range(0, count, 60):
            part = batch[at : at + 60]
            body = canonical({"protocol": 1, "bundles": [bundle.item for bundle in part], "gaps": []})
            said += acknowledged(client.post("/api/v1/evidence", content=body), host, part)
    return said


def test_the_commands(tmp_path: Path, postgres: Postgres) -> None:
    """`server init`, `server migrate`, `server move`: what they say, and their exit codes."""
    data = ("--data-dir", str(tmp_path / "data"))
    assert command("server", "init", *data).returncode == 0
    done = command("server", "move", "--owner", "postgresql://owner@/x?host=/nowhere", *data)
    assert done.returncode == 78 and "--to" in done.stderr
    to = "postgresql://server@/none?host=/nowhere"
    done = command("server", "move", "--to", to, "--owner", to.replace("server@", "owner@"), *data)
    assert done.returncode == 74 and "Traceback" not in done.stderr
    assert (tmp_path / "data" / "server.db").is_file()
    done = command("server", "migrate", *data)
    assert done.returncode == 0 and "up to date" in done.stderr
