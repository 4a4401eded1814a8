"""A server whose logs are in a bucket: what is held, what another server reads there, and what happens while it is away."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from compliance_agent.entries.minimum import Pruned
from compliance_agent.errors import BadEvidence, ConfigError, StorageError, StorageForbidden
from compliance_agent.log.checkpoint import Checkpoint
from compliance_agent.log.note import Note
from compliance_agent.log.tiles import ENTRIES, FULL, Tile, written
from compliance_agent.server import s3
from compliance_agent.server.backup import back_up
from compliance_agent.server.log_places import log_places
from compliance_agent.server.opening import opened
from compliance_agent.server.restore import restore
from compliance_agent.server.services.fsck import Fsck
from compliance_agent.server.services.readopt import Readopt
from compliance_agent.server.settings import ServerSettings
from compliance_agent.server.store import Address
from tests.server.buckets import ObjectStore, object_store
from tests.server.builder import FakeHost, Server, Signed, acknowledged, serving
from tests.server.test_following import replicas, sequenced
from tests.server.test_sequencer import later, reasons, settled

SITE, YEAR = "clinic-1", 2026


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    with object_store(tmp_path_factory.mktemp("store")) as running:
        yield running


@asynccontextmanager
async def on_bucket(directory: Path, store: ObjectStore, name: str, days: int = 0) -> AsyncIterator[Server]:
    async with serving(directory, clock=later(days), log_interval_ms=60_000, **store.settings(name)) as server:
        yield server


async def grown(server: Server, host: FakeHost, count: int) -> None:
    for at in range(0, count, 100):
        batch = [host.next() for _ in range(min(100, count - at))]
        assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * len(batch)
    await settled(server)


async def problems(server: Server) -> list[str]:
    """As a process of its own finds them: nothing that this one remembers is asked."""
    services = server.services
    files, heads = log_places(services.settings, services.clock)
    found = Fsck(services.store, files, services.log_keys, heads)
    return [problem async for finding in found.run() for problem in finding.problems]


def keys_of(store: ObjectStore, name: str) -> set[str]:
    pages = store.client.get_paginator("list_objects_v2").paginate(Bucket=name)
    return {item["Key"] for page in pages for item in page.get("Contents", ())}


def head_of(server: Server) -> Checkpoint:
    note = server.services.log_files.published(SITE, YEAR)
    assert note is not None
    return Checkpoint.parse(Note.parse(note).text)


async def test_what_is_full_is_held_for_six_years(tmp_path: Path, store: ObjectStore) -> None:
    """Full tiles, full entry bundles, and a checkpoint over them; nothing of it is in the data directory."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 300)
        assert await problems(server) == []
        root = f"msp/log/{SITE}/{YEAR}"
        held = {
            key: store.client.head_object(Bucket=name, Key=key)
            for key in keys_of(store, name)
            if "/kept/" in key or (key.startswith(f"{root}/tile/") and ".p/" not in key)
        }
        size = head_of(server).size
        expected = {f"{root}/{tile.path}" for tile in written(0, size) if tile.width == FULL}
        kept = {key for key in held if "/kept/" in key}
        assert held.keys() - kept == expected and len(expected) == 2 and len(kept) == 1
        assert {item["ObjectLockMode"] for item in held.values()} == {"COMPLIANCE"}
        assert {item["ObjectLockRetainUntilDate"] for item in held.values()} == {datetime(2032, 11, 23, tzinfo=UTC)}
        assert keys_of(store, name) - held.keys() == {
            "msp/heads/clinic-1-2026",
            f"{root}/checkpoint",
            *(f"{root}/{tile.path}" for tile in written(0, size) if tile.width < FULL),
        }  # what is not full yet, and what is replaced, is free
        receipts = await server.services.receipts.of(
            (await server.services.store.for_sites({SITE}).hosts())[0],
            [row[0] for row in await server.by_hand("SELECT bundle_id FROM bundles ORDER BY number LIMIT 3")],
        )
        assert None not in receipts and len(receipts) == 3
    assert not any((tmp_path / "data" / part).exists() for part in ("log", "heads"))


async def test_what_one_server_wrote_another_one_serves(tmp_path: Path, store: ObjectStore) -> None:
    """Two data directories that share keys and nothing else: as two replicas, each on a disk of its own."""
    name = store.new()
    async with on_bucket(tmp_path / "one", store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 300)
        head = head_of(server)
        tiles = {tile: server.services.log_files.read(SITE, YEAR, tile) for tile in written(0, head.size)}
        assert len(tiles) == 5
    shutil.copytree(tmp_path / "one" / "keys", tmp_path / "two" / "keys")
    settings = ServerSettings(data_dir=tmp_path / "two", **store.settings(name))
    async with opened(settings, later(1)) as services:
        assert {tile: services.log_files.read(SITE, YEAR, tile) for tile in tiles} == tiles
        assert services.log_files.known() == services.log_heads.known() == [(SITE, YEAR)]
        note = services.log_files.published(SITE, YEAR)
        assert note is not None and Checkpoint.parse(Note.parse(note).text) == head


async def test_two_replicas_on_one_database_and_one_bucket(
    tmp_path: Path, store: ObjectStore, postgresql: Address
) -> None:
    """Whoever takes the evidence, the one on duty writes the files, once; both serve them, and receipts come from either."""
    name = store.new()
    async with replicas(tmp_path, postgresql, **store.settings(name)) as servers:
        host, batch = await servers[0].enrolled(), list[Signed]()
        for count, server in ((1, servers[0]), (90, servers[1]), (100, servers[0]), (100, servers[1])):
            batch = [host.next() for _ in range(count)]
            assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * count
            await sequenced(*servers)
            assert head_of(servers[0]) == head_of(servers[1])
        ids = {"protocol": 1, "bundles": [bundle.document["bundle_id"] for bundle in batch[-3:]]}
        for server in servers:
            reply = await server.post("/api/v1/receipts", ids, headers=host.headers)
            assert None not in reply.json()["receipts"] and len(reply.json()["receipts"]) == 3
            assert (await reasons(server), await problems(server)) == ((200, []), [])
        versions = store.client.list_object_versions(Bucket=name, Prefix=f"msp/log/{SITE}/{YEAR}/tile/")["Versions"]
        keys = [item["Key"] for item in versions]
        assert len(keys) == len(set(keys)), "no tile was written twice"
        assert head_of(servers[0]).size == 293


async def test_a_server_moves_from_its_directory_to_a_bucket(tmp_path: Path, store: ObjectStore) -> None:
    """The next start writes all of it from the database, and the heads come along: an old database signs nothing there."""
    directory, name = tmp_path / "data", store.new()
    async with serving(directory) as server:
        host = await server.enrolled()
        await grown(server, host, 100)
        made = await back_up(server.services, tmp_path / "yesterday")
        await grown(server, host, 200)
        head = head_of(server)
    assert made.logs[0].size < head.size
    restore(tmp_path / "yesterday", tmp_path / "old")
    shutil.copytree(directory / "heads", tmp_path / "old" / "heads", dirs_exist_ok=True)
    async with on_bucket(tmp_path / "old", store, store.new(), 1) as server:
        assert await reasons(server) == (503, ["log_restored"])
    async with on_bucket(directory, store, name, 1) as server:
        assert (head_of(server), await problems(server)) == (head, [])
        await grown(server, host, 1)
        assert head_of(server).size == head.size + 1


async def test_a_backup_of_a_bucket_goes_back_into_a_bucket(tmp_path: Path, store: ObjectStore) -> None:
    """Into an empty one after a loss; into the one that is ahead, where everything newer stays and `readopt` takes it back."""
    directory, name, other = tmp_path / "data", store.new(), store.new()
    async with on_bucket(directory, store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 300)
        made = await back_up(server.services, tmp_path / "out")
        await grown(server, host, 50)
        head = head_of(server)
    for bucket, data, signed in ((other, tmp_path / "new", made.logs[0].size), (name, directory, head.size)):
        settings = ServerSettings(data_dir=data, **store.settings(bucket))
        done = restore(tmp_path / "out", data, force=True, places=lambda s=settings: log_places(s, later(1)))  # type: ignore[misc]
        assert (done.logs[0].size, done.logs[0].signed) == (made.logs[0].size, signed)
        assert not any((data / part).exists() for part in ("log", "heads"))
    async with on_bucket(tmp_path / "new", store, other, 1) as server:
        assert (await reasons(server), await problems(server)) == ((200, []), [])
    async with on_bucket(directory, store, name, 1) as server:
        assert await reasons(server) == (503, ["log_restored"])
    async with opened(ServerSettings(data_dir=directory, **store.settings(name)), later(2)) as services:
        files, keys, heads = services.log_files, services.log_keys, services.log_heads
        [taken] = await Readopt(services.store, files, keys, heads, services.clock, services.settings.name).run()
        assert (taken.before, taken.after) == (made.logs[0].size, head.size)
    async with on_bucket(directory, store, name, 3) as server:
        assert (await reasons(server), head_of(server)) == ((200, []), head)


async def test_a_backup_from_elsewhere_meets_a_bucket_that_holds_something_else(
    tmp_path: Path, store: ObjectStore
) -> None:
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        await grown(server, await server.enrolled(), 300)
        await back_up(server.services, tmp_path / "out")
    other = store.new()
    store.client.put_object(Bucket=other, Key=f"msp/log/{SITE}/{YEAR}/{Tile(0, 0).path}", Body=b"another")
    settings = ServerSettings(data_dir=tmp_path / "new", **store.settings(other))
    with pytest.raises(Exception, match="other bytes") as caught:
        restore(tmp_path / "out", tmp_path / "new", places=lambda: log_places(settings, later(1)))
    assert getattr(caught.value, "code", "") == "tile_conflict"
    assert not (tmp_path / "new" / "server.db").exists()


async def test_a_bucket_that_is_away_costs_no_evidence(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evidence is acknowledged, the log waits and says why, and goes on by itself. So it does when an answer got lost."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 10)
        blobs: Any = server.services.log_files.blobs
        real = blobs._client._make_api_call

        def away(operation: str, given: dict[str, Any]) -> Any:
            if operation == "PutObject" and "/tile/" in given["Key"]:
                real(operation, given)  # it is written, and nobody hears of it
            raise ConnectionResetError

        for broken in (away, lambda *_: (_ for _ in ()).throw(ConnectionRefusedError())):
            with monkeypatch.context() as patch:
                patch.setattr(blobs._client, "_make_api_call", broken)
                batch = [host.next() for _ in range(3)]
                assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"] * 3
                for _ in range(3):
                    await server.services.sequencer.round()
                assert await reasons(server) == (503, ["blobs_away"])
                reply = await server.client.get(f"/log/{SITE}/{YEAR}/checkpoint", headers=host.headers)
                assert (reply.status_code, reply.json()["code"]) == (503, "blobs_away")
            await settled(server)
            assert (await reasons(server), await problems(server)) == ((200, []), [])
        assert head_of(server).size == 1 + 1 + 10 + 3 + 3  # the log's first entry, the enrolment, the records


async def test_a_slow_bucket_does_not_hold_up_the_loop(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each answer takes half a second: sequencing, minting a receipt, reading a tile; meanwhile the loop runs on."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 10)
        blobs: Any = server.services.log_files.blobs
        real, asked = blobs._client._make_api_call, list[str]()

        def slow(operation: str, given: dict[str, Any]) -> Any:
            asked.append(operation)
            time.sleep(0.5)
            return real(operation, given)

        worst = 0.0

        async def pulse() -> None:
            nonlocal worst
            while True:
                before = time.monotonic()
                await asyncio.sleep(0.01)
                worst = max(worst, time.monotonic() - before)

        monkeypatch.setattr(blobs._client, "_make_api_call", slow)
        [bundle_id] = [row[0] for row in await server.by_hand("SELECT bundle_id FROM bundles LIMIT 1")]
        [sender] = await server.services.store.for_sites({SITE}).hosts()
        beating = asyncio.create_task(pulse())
        assert (await server.services.receipts.of(sender, [bundle_id]))[0] is not None
        batch = [host.next()]
        assert acknowledged(await server.deliver(host, *batch), host, batch) == ["stored"]
        await server.services.sequencer.round()
        await server.client.get(f"/log/{SITE}/{YEAR}/checkpoint", headers=host.headers)
        beating.cancel()
        assert {"GetObject", "PutObject"} <= set(asked)
        assert worst < 0.4, worst


async def test_a_lock_that_is_missing_or_short_is_named(tmp_path: Path, store: ObjectStore) -> None:
    """As the store's owner: `server fsck` asks the store for each lock, and finds what was put there without one."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        await grown(server, await server.enrolled(), 300)
        key = f"msp/log/{SITE}/{YEAR}/{Tile(0, 0).path}"
        store.client.put_object_retention(  # moto allows it; a real store would not
            Bucket=name, Key=key, Retention={"Mode": "COMPLIANCE", "RetainUntilDate": datetime(2030, 1, 1, tzinfo=UTC)}
        )
        [problem] = await problems(server)
        assert "tile/0/000" in problem and "until 2030-01-01" in problem
        other = f"msp/log/{SITE}/{YEAR}/{Tile(ENTRIES, 0).path}"
        body = store.client.get_object(Bucket=name, Key=other)["Body"].read()
        store.client.put_object(Bucket=name, Key=other, Body=body)  # a newer version, the same bytes, free
        assert [item for item in await problems(server) if "does not hold it" in item] != []


async def test_pruning_meets_a_lock(tmp_path: Path, store: ObjectStore) -> None:
    """What the store still holds stays, is no longer served, and is named with its day; what it lets go of is gone."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        await grown(server, await server.enrolled(), 520)
        files, origin = server.services.log_files, f"compliance-server/{SITE}/{YEAR}"
        said = Pruned(origin, 512, datetime(2033, 1, 1, tzinfo=UTC))
        client: Any = store.client
        first = f"msp/log/{SITE}/{YEAR}/{Tile(ENTRIES, 0).path}"
        client.put_object_retention(
            Bucket=name,
            Key=first,
            Retention={"Mode": "COMPLIANCE", "RetainUntilDate": datetime(2026, 1, 1, tzinfo=UTC)},
        )
        with pytest.raises(StorageForbidden, match="until 2032-11-23") as caught:
            files.prune(SITE, YEAR, said)
        assert caught.value.code == "retained"
        assert files.pruned(SITE, YEAR) == said
        assert [f"msp/log/{SITE}/{YEAR}/{Tile(ENTRIES, n).path}" in keys_of(store, name) for n in (0, 1)] == [
            False,
            True,
        ]


async def test_an_older_checkpoint_never_replaces_a_newer_one(tmp_path: Path, store: ObjectStore) -> None:
    """Who was frozen and thawed publishes what it had signed long ago; nobody sees the log shrink."""
    name = store.new()
    async with on_bucket(tmp_path / "data", store, name) as server:
        host = await server.enrolled()
        await grown(server, host, 10)
        old = server.services.log_files.published(SITE, YEAR) or b""
        await grown(server, host, 10)
        new = server.services.log_files.published(SITE, YEAR)
        server.services.log_files.publish(SITE, YEAR, old)
        assert server.services.log_files.published(SITE, YEAR) == new


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({"blobs": "evidence"}, "blobs"),
        ({"blobs": "s3://UPPER"}, "blobs"),
        ({"blobs": "s3://evidence", "blobs_mode": "compliance"}, "blobs_mode"),
        ({"blobs": "s3://evidence", "blobs_endpoint": "http://store.example"}, "blobs_endpoint"),
        ({"blobs": "s3://evidence", "blobs_credentials_file": "relative"}, "blobs_credentials_file"),
        ({"blobs_region": "us-east-1"}, "blobs_region"),
    ],
)
def test_settings_that_cannot_be_meant(tmp_path: Path, given: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        ServerSettings(data_dir=tmp_path, **given)


def test_a_store_that_is_away_at_the_start_is_one_line(
    tmp_path: Path, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "ATTEMPTS", 1)
    away = {**store.settings("evidence"), "blobs_endpoint": "http://127.0.0.1:9"}
    with pytest.raises(StorageError, match="bucket evidence") as caught:
        log_places(ServerSettings(data_dir=tmp_path, **away), later())
    assert caught.value.code == "blobs_away"


def test_a_backup_cannot_name_a_file_that_is_no_logs(tmp_path: Path) -> None:
    from compliance_agent.server.restore import verified

    (tmp_path / "manifest.json").write_text(
        '{"schema": "compliance-agent/backup/v1", "logs": [], "files": {"log/x": {"size": 0, "sha256": ""}}}'
    )
    with pytest.raises(BadEvidence, match="no file of a log"):
        verified(tmp_path)
